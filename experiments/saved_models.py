"""The models that a run has saved: which one is the newest, read as data and never unpickled."""

from __future__ import annotations

import contextlib
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from agents import ALGORITHMS, make_agent
from agents.algorithms import hyperparameters
from agents.make import load_weights
from agents.signatures import default
from experiments.build import with_frame_buffer
from experiments.config import RunConfig
from experiments.folder import RunFolder
from experiments.normalization import load_from_checkpoint, load_statistics
from experiments.plain_yaml import ConfigError
from fire_rl.files.formats import read_model_file
from fire_rl.runs import layout


def find_models(path: str | Path) -> tuple[RunFolder, list[Path]]:
    """Return a run folder and the models in it, the one to play first.

    Args:
        path: A run folder: the final model of a finished run, else its model with the most steps,
            and last its best one. Or a checkpoint's folder, or one of the zip files.

    Raises:
        ConfigError: If there is no run, or no model in it.
    """
    path = Path(path)
    if path.parent.name == layout.CHECKPOINTS and (path / layout.MODEL).is_file():
        path = path / layout.MODEL
    if path.suffix == ".zip" and path.is_file():
        folder = RunFolder(path.parents[2] if _is_in_checkpoint(path) else path.parent)
        models = [path]
    else:
        folder = RunFolder(path)
        folder.check_run()
        models = _by_age(folder)
    folder.check_run()
    if not models:
        raise ConfigError([f"{path} has no model yet: no model.zip, best_model.zip or checkpoint."])
    return folder, models


def load_first(model: BaseAlgorithm, env: VecEnv, paths: list[Path]) -> Path:
    """Load the first whole model into one that is built, and its normalisation into ``env``.

    Raises:
        ConfigError: If none is whole; each is named with what is wrong.
    """
    faults: list[str] = []
    for path in paths:
        try:
            _load_normalization(env, path)
            load_weights(model, path)
        except Exception as error:  # damaged zip and torch files fail in many ways
            faults.append(str(error) if str(path) in str(error) else f"{path}: {error!r}")
        else:
            for fault in faults:
                print(f"Passed over: {fault}")
            return path
    raise ConfigError(faults)


def build_for_play(config: RunConfig, env: VecEnv) -> BaseAlgorithm:
    """Build the agent of a run as it was built for training, in one environment."""
    values = with_frame_buffer(config, env)
    kind = ALGORITHMS[config.algo]
    if "buffer_size" in hyperparameters(config.algo):
        values["buffer_size"] = 1_000  # nothing will be stored
    if issubclass(kind, OnPolicyAlgorithm):  # as many steps in a rollout, which batches must divide
        values["n_steps"] = values.get("n_steps", default(kind, "n_steps")) * config.n_envs
    return make_agent(config.algo, env, values, seed=config.seed, fast_cnn=False)


def _by_age(folder: RunFolder) -> list[Path]:
    """Return the models of a run: the final one, those with the most steps, the best one."""
    saved = [path / layout.MODEL for path in layout.checkpoint_paths(folder.checkpoints)[::-1]]
    models = [path for path in saved if path.is_file()]
    if folder.model.is_file():
        is_last = folder.end() is not None
        newer = 0
        if not is_last:  # stopped, gone on with and killed: there may be later checkpoints
            steps = 0
            with contextlib.suppress(Exception):  # load_first() says what is wrong with it
                steps = read_model_file(folder.model).num_timesteps or 0
            newer = sum(layout.checkpoint_step(path.parent) > steps for path in models)
        models.insert(newer, folder.model)
    return [*models, *([folder.best_model] if folder.best_model.is_file() else [])]


def _load_normalization(env: VecEnv, model: Path) -> None:
    normalize = unwrap_vec_normalize(env)
    if normalize is None or not normalize.norm_obs:
        return
    if _is_in_checkpoint(model):
        load_from_checkpoint(normalize, model.parent / "state")
        return
    statistics = layout.statistics_of(model)
    if not statistics.is_file():
        pickle = layout.vecnormalize_of(model).name
        raise ValueError(
            f"{model} needs {statistics.name}, which is not there. ({pickle} holds the same as a "
            "pickle, which is never opened: it could run code.) Play a checkpoint of the run."
        )
    load_statistics(normalize, statistics)


def _is_in_checkpoint(model: Path) -> bool:
    return model.parent.parent.name == layout.CHECKPOINTS
