"""The statistics of VecNormalize as plain numbers, so that nobody's pickle is opened to play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from fire_rl.checkpoints.class_lookup import name_of
from fire_rl.checkpoints.object_restore import restore
from fire_rl.checkpoints.safe_tree import read_tree
from fire_rl.utils.files import replacing

_NUMBERS = ("mean", "var", "count")


def save_statistics(normalize: VecNormalize, path: Path) -> None:
    """Write the statistics of observations to an ``.npz`` file."""
    values = {
        f"{number}/{key}": np.asarray(getattr(statistics, number))
        for key, statistics in _of_observations(normalize).items()
        for number in _NUMBERS
    }
    with replacing(path) as file:
        np.savez(file, **values)  # type: ignore[arg-type]  # numpy's stub


def load_statistics(normalize: VecNormalize, path: Path) -> None:
    """Read what :func:`save_statistics` has written, in place.

    Raises:
        ValueError: If the file is damaged or is of other observations.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            for key, statistics in _of_observations(normalize).items():
                _set(statistics, {number: file[f"{number}/{key}"] for number in _NUMBERS})
    except Exception as error:  # damaged zip files fail in many ways
        raise ValueError(f"{path} holds no statistics of these observations: {error}") from error


def load_from_checkpoint(normalize: VecNormalize, state: Path) -> None:
    """Read the statistics in a checkpoint's plain tree, in place.

    Raises:
        ValueError: If it is damaged, or has none of such observations.
    """
    try:
        nodes = read_tree(state)["training"]["env"]["venv"]["nodes"]
        (saved,) = [node for node in nodes if node.get("class") == name_of(VecNormalize)]
        expected = {key: one.mean.shape for key, one in _of_observations(normalize).items()}
        problems, _ = restore(nodes, normalize.obs_rms, saved["attributes"]["obs_rms"]["ref"])
        if problems:
            raise ValueError(problems[0].text)
        for key, statistics in _of_observations(normalize).items():
            _set(statistics, {number: getattr(statistics, number) for number in _NUMBERS})
            if statistics.mean.shape != expected[key]:
                raise ValueError(f"their shape is {statistics.mean.shape}, not {expected[key]}")
    except Exception as error:  # whatever a damaged tree leads to
        raise ValueError(f"{state} holds no statistics of these observations: {error}") from error


def _of_observations(normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    """Return the statistics by key of the observation; ``""`` for one that is no mapping."""
    if not normalize.norm_obs:
        return {}
    statistics: Any = normalize.obs_rms
    return dict(statistics) if isinstance(statistics, dict) else {"": statistics}


def _set(statistics: RunningMeanStd, values: dict[str, Any]) -> None:
    arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
    for name, array in arrays.items():
        shape = () if name == "count" else statistics.mean.shape
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"`{name}` has the shape {array.shape}, expected {shape}, all finite")
    statistics.mean, statistics.var = arrays["mean"], arrays["var"]
    statistics.count = float(arrays["count"])
