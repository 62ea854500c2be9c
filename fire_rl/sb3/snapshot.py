"""Save a copy of a model as it is, under a name that is free."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm


def save_snapshot(model: BaseAlgorithm, folder: Path, name: str) -> None:
    """Write ``<name>_<steps>_steps.zip``, and VecNormalize's statistics beside it.

    If there is such a file, a number follows the name: nothing is overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem, number = f"{name}_{model.num_timesteps}_steps", 1
    while (folder / f"{stem}.zip").exists():
        number += 1
        stem = f"{name}_{model.num_timesteps}_steps_{number}"
    model.save(folder / f"{stem}.zip")
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.save(str(folder / f"{stem}_vecnormalize.pkl"))
