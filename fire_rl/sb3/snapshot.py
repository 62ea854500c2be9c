"""Save a copy of a model as it is, under a name that is free."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm

from fire_rl.utils.files import whole_file


def save_snapshot(model: BaseAlgorithm, folder: Path, name: str) -> None:
    """Write ``<name>_<steps>_steps.zip``, and VecNormalize's statistics beside it.

    If there is such a file, a number follows the name: nothing is overwritten. A copy that is
    interrupted leaves no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem, number = f"{name}_{model.num_timesteps}_steps", 1
    while (folder / f"{stem}.zip").exists():
        number += 1
        stem = f"{name}_{model.num_timesteps}_steps_{number}"
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        with whole_file(folder / f"{stem}_vecnormalize.pkl") as path:
            normalize.save(str(path))
    with whole_file(folder / f"{stem}.zip") as path, path.open("wb") as file:
        model.save(file)
