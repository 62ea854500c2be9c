"""The state of environments and other objects, as plain values, and back into objects in place.

Every attribute is captured that can hold a state: see
:mod:`~fire_rl.checkpoints.object_capture` and :mod:`~fire_rl.checkpoints.value_kinds`. What cannot
be read, or not be put back, is a :class:`Problem` that names it; the rest is there all the same.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym

from fire_rl.checkpoints.description import describe_env
from fire_rl.checkpoints.object_capture import Problem, State, capture
from fire_rl.checkpoints.object_restore import restore
from fire_rl.checkpoints.shared_state import changed, libraries_with_state, shared_digests
from fire_rl.checkpoints.value_kinds import NotCapturable

__all__ = [
    "NotCapturable", "Problem", "State", "StateAccess", "capture_attributes", "capture_env",
    "capture_object", "put_back", "restore_attributes", "restore_env", "restore_object",
]  # fmt: skip


def capture_object(obj: Any) -> State:
    """Return the state of an object and of all that it refers to.

    Returns:
        Plain values: ``"nodes"``, ``"missing"`` (what could not be read: the arguments of
        :class:`Problem`) and ``"shared"`` (digests of what belongs to classes and modules).
    """
    table = capture(obj)
    missing = [[problem.copy, problem.text, False] for problem in table.problems]
    missing += [[None, text, True] for text in libraries_with_state(table.classes)]
    return {"nodes": table.nodes, "missing": missing, "shared": shared_digests(table.classes)}


def restore_object(obj: Any, state: State, envs: Sequence[Any] = ()) -> list[Problem]:
    """Put a state back into an object that was built in the same way.

    A wrapper of an environment that changes what is inside it (physics, the game) has a method
    ``reconfigure()``: with its own attributes restored, it makes the inside as it was, and then
    that is restored.

    Args:
        obj: The object.
        state: Of :func:`capture_object`.
        envs: The environments in it, with the numbers of their nodes.

    Returns:
        What is not restored, what could not be captured included.
    """
    for number, env in envs:
        _reconfigure(env, state["nodes"], number)
    missing = [Problem(*each) for each in state["missing"]]
    problems, classes = restore(state["nodes"], obj)
    shared = [Problem(None, text, is_note=True) for text in changed(state["shared"], classes)]
    return missing + problems + shared


def capture_attributes(obj: Any) -> State:
    """Return the state of an object, all of it.

    Raises:
        NotCapturable: If a part of it cannot be read.
    """
    state = capture_object(obj)
    if state["missing"]:
        raise NotCapturable("; ".join(text for _, text, _ in state["missing"]))
    return state


def restore_attributes(obj: Any, state: State) -> None:
    """Put a state back into an object that was built in the same way.

    Raises:
        NotCapturable: If a part of it cannot be put back.
    """
    if problems := restore_object(obj, state):
        raise NotCapturable("; ".join(problem.text for problem in problems))


def put_back(obj: Any, name: str, value: Any) -> None:
    """Set an attribute to plain data; a list or mapping that others may hold changes in place."""
    current = getattr(obj, name, None)
    if type(current) is type(value) is dict:
        current.clear()
        current.update(value)
    elif type(current) is type(value) is list:
        current[:] = value
    else:
        setattr(obj, name, value)


def capture_env(env: gym.Env[Any, Any]) -> State:
    """Return the state of an environment and of every wrapper around it."""
    return capture_object(env)


def restore_env(env: gym.Env[Any, Any], state: State) -> list[Problem]:
    """Put a state back into an environment that is wrapped in the same way.

    Returns:
        What is not restored, see :func:`restore_object`.
    """
    return restore_object(env, state, [(0, env)])


class StateAccess(gym.Wrapper[Any, Any, Any, Any]):
    """Makes an environment's state reachable from another process, through ``env_method``.

    SubprocVecEnv's workers can call methods of their environments only: wrap each one in this.

    Example:
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> env = make_vec_env("CartPole-v1", n_envs=2, wrapper_class=StateAccess)
        >>> env.env_is_wrapped(StateAccess)
        [True, True]
    """

    def training_state(self) -> State:
        """Return the state of all wrappers and what is inside; an error would end the worker."""
        try:
            return capture_env(_outermost(self))
        except Exception as error:
            return {"nodes": [], "missing": [[None, repr(error), False]], "shared": {}}

    def restore_training_state(self, state: State) -> list[Problem]:
        """Put the state back; return what is not restored."""
        try:
            return restore_env(_outermost(self), state)
        except Exception as error:
            return [Problem(None, repr(error))]

    def training_configuration(self) -> dict[str, Any]:
        """Return what the environment was built with, as plain values."""
        return describe_env(self.env)


def _outermost(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Return the wrapper around all others: somebody may have wrapped this one again."""
    for referrer in gc.get_referrers(env):
        owners = gc.get_referrers(referrer) if isinstance(referrer, dict) else [referrer]
        for owner in owners:
            if isinstance(owner, gym.Wrapper) and owner.env is env and owner is not env:
                return _outermost(owner)
    return env


def _reconfigure(env: Any, nodes: Sequence[State], number: int) -> None:
    """Restore each wrapper that changes what is inside it, without the inside, outermost first."""
    for level in _levels(env):  # lazily: the inside may change
        node = nodes[number]
        if node.get("class") != type(level).__qualname__:
            return  # it is named when all is restored
        if hasattr(type(level), "reconfigure"):
            restore(nodes, level, number, without={"env"})
            level.reconfigure()  # type: ignore[attr-defined]
        inside = node.get("attributes", {}).get("env")
        if not isinstance(inside, dict):
            return
        number = inside["ref"]


def _levels(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while True:
        yield env
        if not isinstance(env, gym.Wrapper):
            return
        env = env.env
