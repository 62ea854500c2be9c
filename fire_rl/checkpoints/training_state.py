"""The state of a training between two rollouts: model, environments, callbacks, random numbers."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
)
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her import HerReplayBuffer

from fire_rl.checkpoints.attributes import (
    constructor_arguments,
    holds_text,
    may_move,
    restorable,
)
from fire_rl.checkpoints.changed_arguments import capture_changed, restore_changed
from fire_rl.checkpoints.env_state import State, capture_attributes, put_back, restore_attributes
from fire_rl.checkpoints.identity import Identity
from fire_rl.checkpoints.safe_tree import is_plain, is_record
from fire_rl.checkpoints.vec_env_state import capture_vec_env, restore_vec_env
from fire_rl.sb3 import internals
from fire_rl.sb3.callback_tree import walk_callbacks
from fire_rl.sb3.loggers import capture_rows, restore_rows

logger = logging.getLogger("fire_rl")

_GSDE = ("exploration_mat", "exploration_matrices")
_PENDING = ("name_to_value", "name_to_count", "name_to_excluded")  # of SB3's logger
# Of a model: what the clock says, what this call of `learn()` says, what is captured by itself.
_NOT_OF_THE_MODEL = {
    "start_time", internals.STEPS_AT_START, internals.TOTAL_STEPS, "action_noise", "policy_kwargs"
}  # fmt: skip
_NOT_OF_A_CALLBACK = {"num_timesteps", "verbose"}


def capture_training(
    model: BaseAlgorithm, callbacks: Sequence[BaseCallback], start: Identity, now: Identity
) -> State:
    """Return all that the training needs to go on, but for the replay buffer.

    Exact only in ``_on_rollout_start``: elsewhere half of a step is in local variables.

    Args:
        model: The model.
        callbacks: The callbacks of the training, lists of callbacks included.
        start: What the training was built with.
        now: What it would be built with as it is now: what differs is state.
    """
    assert model.env is not None
    variables = internals.saved_variables(model)
    return {
        "algorithm": type(model).__name__,
        "parameters": model.get_parameters(),
        "variables": {name: getattr(model, name) for name in variables},
        "gsde": [
            {name: getattr(part, name) for name in _GSDE if hasattr(part, name)}
            for part in _distributions(model)
        ],
        "attributes": _plain_attributes(model, _NOT_OF_THE_MODEL | set(variables)),
        "arguments": capture_changed(model, start["arguments"], now["arguments"], is_model=True),
        "parts": capture_attributes(_parts(model)),
        "logger": {
            name: {k: v for k, v in getattr(model.logger, name).items() if is_plain(v)}
            for name in _PENDING
        },
        "rows": capture_rows(model.logger),
        "env": capture_vec_env(model.env),
        "callbacks": [
            _capture_callback(callback, one["options"], two["options"])
            for callback, one, two in zip(
                walk_callbacks(callbacks), start["callbacks"], now["callbacks"], strict=True
            )
        ],
        "random": {
            "python": random.getstate(),
            "numpy": np.random.get_state(),  # noqa: NPY002  (the one that SB3 draws from)
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def restore_training(
    model: BaseAlgorithm,
    state: State,
    callbacks: Sequence[BaseCallback],
    branch: bool = False,
) -> list[BaseCallback]:
    """Put a state back, in place, into a training that was built in the same way.

    In the first ``_on_rollout_start`` of ``learn()``: SB3 holds on to buffers and noise by then,
    and has drawn what it draws at the start. Random numbers come last.

    Args:
        model: The model.
        state: Of :func:`capture_training`.
        callbacks: The callbacks, in the same order.
        branch: Whether the callbacks may be others: then each goes on from the saved one of its
            class, if there is one, and a callback with a method ``branch_off`` begins here.

    Returns:
        The callbacks that begin here.

    Raises:
        ValueError: If the state would set something that :func:`capture_training` does not write,
            or the callbacks are others.
    """
    _restore_model(model, state)
    internals.set_steps_at_start(model, model.num_timesteps)
    if not branch:  # what this process has recorded so far was recorded by the saved one, too
        for key in [key for key, value in model.logger.name_to_value.items() if is_plain(value)]:
            for name in _PENDING:
                getattr(model.logger, name).pop(key, None)
    for name in _PENDING:
        getattr(model.logger, name).update(state["logger"][name])
    assert model.env is not None
    if not restore_vec_env(model.env, state["env"]):
        _begin_new_episodes(model)
    begun: list[BaseCallback] = []
    if branch:
        begun = _branch_callbacks(walk_callbacks(callbacks), state["callbacks"])
    else:
        restore_rows(model.logger, state["rows"])
        for callback, saved in zip(walk_callbacks(callbacks), state["callbacks"], strict=True):
            _restore_callback(callback, saved)
    drawn = state["random"]
    random.setstate(drawn["python"])
    np.random.set_state(drawn["numpy"])  # noqa: NPY002
    torch.set_rng_state(drawn["torch"])
    if torch.cuda.is_available() and drawn["cuda"]:
        torch.cuda.set_rng_state_all(drawn["cuda"])
    return begun


def _restore_model(model: BaseAlgorithm, state: State) -> None:
    """Put back networks, optimizers, variables, noise and plain attributes."""
    variables = internals.saved_variables(model)
    known = {*model.get_parameters(), *variables}
    if other := known ^ {*state["parameters"], *state["variables"]}:
        raise ValueError(
            f"only one of checkpoint and model has {', '.join(sorted(map(str, other)))} "
            "(an entropy temperature that is learned, or a network)"
        )
    model.set_parameters(state["parameters"], exact_match=True, device=model.device)
    for name in variables:
        getattr(model, name).data.copy_(state["variables"][name])
    for part, values in zip(_distributions(model), state["gsde"], strict=True):
        for name in [name for name in _GSDE if name in values]:
            setattr(part, name, values[name].to(model.device))
    left_out = constructor_arguments(type(model)) | _NOT_OF_THE_MODEL | set(variables)
    for name, value in restorable(model, state["attributes"], left_out):
        if isinstance(value, str | bytes) and vars(model).get(name) is None:
            raise ValueError(f"it would set `{name}` of {type(model).__name__} to a word")
        setattr(model, name, _like(getattr(model, name, None), value, model.device))
    restore_changed(model, state.get("arguments", {}))
    restore_attributes(_parts(model), state["parts"])


class _View:
    """A few attributes of another object, to be captured as one."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def _parts(model: BaseAlgorithm) -> _View:
    """What changes in place and is no plain attribute."""
    return _View(
        action_noise=getattr(model, "action_noise", None),
        action_space=model.action_space,
        observation_space=model.observation_space,
    )


def _distributions(model: BaseAlgorithm) -> list[Any]:
    """Action distributions, which hold gSDE's noise matrices."""
    owners = (model.policy, getattr(model.policy, "actor", None))
    found = [getattr(owner, "action_dist", None) for owner in owners]
    return [distribution for distribution in found if distribution is not None]


def _plain_attributes(obj: Any, skip: Collection[str]) -> State:
    """Return every plain attribute that is no argument of the constructor."""
    left_out = constructor_arguments(type(obj)) | set(skip)
    return {k: v for k, v in vars(obj).items() if k not in left_out and is_plain(v)}


def _like(current: Any, saved: Any, device: torch.device) -> Any:
    """Return a value with its tensors on the device and its tuples as the model has them."""
    if isinstance(saved, torch.Tensor):
        return saved.to(device)
    if isinstance(saved, tuple):
        models = current if isinstance(current, tuple) else [None] * len(saved)
        items = [_like(one, item, device) for one, item in zip(models, saved, strict=True)]
        return type(current)(*items) if is_record(current) else tuple(items)
    return saved


def _begin_new_episodes(model: BaseAlgorithm) -> None:
    """Go on from the observations of a reset, which the start of ``learn()`` has made."""
    assert model.env is not None
    buffer = getattr(model, "replay_buffer", None)
    if isinstance(buffer, HerReplayBuffer):  # else one episode would lead into another's goals
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it asks whether this is meant
            buffer.truncate_last_trajectory()
    observations: Any = model.env.reset()
    internals.set_last_observations(model, observations)
    internals.set_last_episode_starts(model, np.ones((model.env.num_envs,), dtype=bool))
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        internals.set_last_original_observations(model, normalize.get_original_obs())


def _capture_callback(callback: BaseCallback, start: State, now: State) -> State:
    state: State = {"class": type(callback).__name__}
    if hasattr(callback, "get_state"):
        return {**state, "own": callback.get_state()}
    state["attributes"] = _plain_attributes(callback, _NOT_OF_A_CALLBACK)
    state["arguments"] = capture_changed(callback, start, now)
    if isinstance(vars(callback).get("eval_env"), VecEnv):
        state["eval_env"] = capture_vec_env(vars(callback)["eval_env"])
    return state


def _branch_callbacks(callbacks: Iterable[Any], states: Sequence[State]) -> list[BaseCallback]:
    """Restore the callbacks that the saved training had, too; return those that begin here."""
    left, begun = list(states), []
    for callback in callbacks:
        callback.num_timesteps = callback.model.num_timesteps
        if hasattr(callback, "branch_off"):
            callback.branch_off(states)
            begun.append(callback)
            continue
        same = [state for state in left if state["class"] == type(callback).__name__]
        if same:
            left = [state for state in left if state is not same[0]]
            _restore_callback(callback, same[0])
        if isinstance(callback, EvalCallback):  # the branch keeps a best model of its own
            callback.best_mean_reward = -np.inf
    return begun


def _restore_callback(callback: Any, state: State) -> None:
    if state["class"] != type(callback).__name__:
        raise ValueError(
            f"the callbacks are others than the checkpoint's: {type(callback).__name__} stands "
            f"where {state['class']} stood"
        )
    callback.num_timesteps = callback.model.num_timesteps
    if "own" in state:
        callback.set_state(state["own"])
        return
    left_out = constructor_arguments(type(callback)) | _NOT_OF_A_CALLBACK
    for name, value in restorable(callback, state["attributes"], left_out):
        now = vars(callback).get(name)
        if not holds_text(value) and not holds_text(now):
            put_back(callback, name, value)
        elif value != now and not may_move(callback, name, value):
            logger.warning(
                "`%s` of %s was %r and is %r: words of a callback are not restored, for they may "
                "say where files are. Give it get_state() and set_state(state).",
                name, type(callback).__name__, value, now,
            )  # fmt: skip
    restore_changed(callback, state.get("arguments", {}))
    if "eval_env" in state:
        restore_vec_env(callback.eval_env, state["eval_env"])
