"""The state of a vector environment: its wrappers, and every copy in the middle of an episode."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from fire_rl.checkpoints.env_state import (
    NotCapturable,
    State,
    capture_attributes,
    capture_env,
    restore_attributes,
    restore_env,
)

logger = logging.getLogger("fire_rl")

# Objects that change in place and are captured attribute by attribute.
PARTS = (RunningMeanStd, StackedObservations, ActionNoise)
# Of a vector environment: buffers that the next step fills, and what is captured by itself.
_NOT_OF_A_VEC_ENV = {
    "venv", "envs", "buf_obs", "buf_dones", "buf_rews", "buf_infos", "actions", "keys", "metadata",
    "reset_infos", "class_attributes", "remotes", "processes", "work_remotes",
}  # fmt: skip
_CONSEQUENCE = (
    "the episodes in progress are dropped when the training is resumed and new ones begin; "
    "everything else is exact"
)


def capture_vec_env(venv: VecEnv) -> State:
    """Return the state of a vector environment; under ``"missing"`` what could not be captured.

    Then the episodes in progress are dropped when the training is resumed, and new ones begin.
    """
    state: State = {"wrappers": [], "envs": None, "missing": None}
    try:
        for wrapper in _wrappers(venv):
            saved: State = {"class": type(wrapper).__name__}
            state["wrappers"].append(saved)
            saved["state"] = capture_attributes(wrapper, _NOT_OF_A_VEC_ENV, PARTS)
        state["envs"] = _capture_envs(venv.unwrapped)
    except NotCapturable as error:
        state["missing"] = str(error)
        logger.warning("The environments' state cannot be saved (%s): %s.", error, _CONSEQUENCE)
    return state


def restore_vec_env(venv: VecEnv, state: State) -> bool:
    """Put a state back; return False, with a warning, if new episodes must begin instead."""
    try:
        for wrapper, saved in zip(_wrappers(venv), state["wrappers"], strict=False):
            if type(wrapper).__name__ != saved["class"]:
                raise NotCapturable(f"{saved['class']} was {type(wrapper).__name__} when saved")
            restore_attributes(wrapper, saved.get("state", {}))
        if state["missing"] is not None:
            raise NotCapturable(state["missing"])
        _restore_envs(venv.unwrapped, state["envs"])
    except NotCapturable as error:
        logger.warning("The environments' state is not restored (%s): %s.", error, _CONSEQUENCE)
        return False
    return True


def _capture_envs(base: VecEnv) -> list[Any]:
    if isinstance(base, DummyVecEnv):
        return [capture_env(env) for env in base.envs]
    try:
        return list(base.env_method("training_state"))
    except AttributeError as error:
        raise NotCapturable(
            f"{type(base).__name__} keeps its environments in other processes; wrap each of them "
            "in fire_rl.StateAccess"
        ) from error


def _restore_envs(base: VecEnv, states: Sequence[Any]) -> None:
    if len(states) != base.num_envs:
        raise NotCapturable(f"there are {base.num_envs} environments, there were {len(states)}")
    for index, saved in enumerate(states):
        if isinstance(base, DummyVecEnv):
            restore_env(base.envs[index], saved)
        else:
            base.env_method("restore_training_state", saved, indices=[index])


def _wrappers(venv: VecEnv) -> Iterator[VecEnv]:
    """The vector environment itself and what it wraps, outermost first."""
    yield venv
    while isinstance(venv, VecEnvWrapper):
        venv = venv.venv
        yield venv
