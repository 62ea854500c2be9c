"""The state of environments and other objects, as plain values, and back into objects in place.

An object's state is its attributes: plain values, random generators, spaces (which hold a
generator) and parts of known classes. Configuration (functions, classes, specs) is left to its
constructor. Every other attribute is an error that names it: an incomplete state that looks
complete would be worse than none. MuJoCo and the Atari emulator have functions of their own for
their state; pickling such environments raises no error and restores another state.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import types
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from fire_rl.checkpoints.attributes import check_attribute, check_name, may_move
from fire_rl.checkpoints.description import describe_env
from fire_rl.checkpoints.safe_tree import is_plain
from fire_rl.utils.gymnasium_internals import CONFIGURATION, generator_of, set_generator

State = dict[str, Any]
Parts = tuple[type, ...]

_STATIC = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    functools.partial, EnvSpec, enum.Enum, np.dtype, gym.Env,
)  # fmt: skip
# Known by name, so that nothing is imported: drawing, files, and MuJoCo's model (see `_digest`).
_STATIC_NAMES = {"MjModel", "MujocoRenderer", "ResultsWriter"}
_STATIC_PACKAGES = {"pygame"}


class NotCapturable(ValueError):
    """An object has a state that cannot be read from outside; the message names it."""


def capture_attributes(obj: Any, skip: Collection[str] = (), parts: Parts = ()) -> State:
    """Return the state of an object.

    Args:
        obj: The object.
        skip: Names of attributes to leave out.
        parts: Classes of attributes to descend into.

    Raises:
        NotCapturable: If an attribute is none of what this module knows.
    """
    state = {}
    for name, value in vars(obj).items():
        if name not in skip and not _is_static(value):
            state[name] = _capture(f"{type(obj).__name__}.{name}", value, parts)
    return state


def restore_attributes(obj: Any, state: Mapping[str, Any]) -> None:
    """Put a state back into an object that was built in the same way."""
    for name, saved in state.items():
        current = getattr(obj, name, None)
        value = _restore(current, saved)
        if saved["kind"] == "plain":
            check_attribute(obj, name, value)
        if value is not current and not may_move(obj, name, value):
            check_name(obj, name)
            setattr(obj, name, value)


def capture_env(env: gym.Env[Any, Any]) -> list[State]:
    """Return the state of an environment and of every wrapper around it, outermost first.

    Raises:
        NotCapturable: If one of them has a state that cannot be read.
    """
    return [_capture_level(level) for level in _levels(env)]


def restore_env(env: gym.Env[Any, Any], states: list[State]) -> None:
    """Put states back into an environment that is wrapped in the same way.

    A wrapper that changes what is inside it (physics, the game) has a method ``reconfigure()``:
    with its own attributes restored, it makes the inside as it was, and then that is restored.

    Raises:
        NotCapturable: If it is wrapped differently, or is another one.
    """
    for level, state in zip(_levels(env), states, strict=False):  # lazily: the inside may change
        if hasattr(type(level), "reconfigure") and type(level).__name__ == state["class"]:
            restore_attributes(level, state["attributes"])
            level.reconfigure()  # type: ignore[attr-defined]
    levels = list(_levels(env))
    names = [type(level).__name__ for level in levels]
    if names != [state["class"] for state in states]:
        raise NotCapturable(
            f"the environment is {' in '.join(reversed(names))}, the checkpoint has "
            f"{' in '.join(state['class'] for state in reversed(states))}"
        )
    for level, state in zip(levels, states, strict=True):
        _restore_level(level, state)


class StateAccess(gym.Wrapper[Any, Any, Any, Any]):
    """Makes an environment's state reachable from another process, through ``env_method``.

    SubprocVecEnv's workers can call methods of their environments only: wrap each one in this.
    """

    def training_state(self) -> list[State]:
        """Return :func:`capture_env` of what is inside."""
        return capture_env(self.env)

    def training_configuration(self) -> dict[str, Any]:
        """Return what the environment was built with, as plain values."""
        return describe_env(self.env)

    def restore_training_state(self, states: list[State]) -> None:
        """Apply :func:`restore_env` to what is inside."""
        restore_env(self.env, states)


def _levels(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while True:
        yield env
        if not isinstance(env, gym.Wrapper):
            return
        env = env.env


def _capture_level(level: gym.Env[Any, Any]) -> State:
    state: State = {"class": type(level).__name__}
    emulator: Any = vars(level).get("ale")
    physics: Any = vars(level).get("data")
    if type(emulator).__name__ == "ALEInterface":
        # The rest of it is configuration. Without the emulator's own random state, sticky actions
        # would differ after some steps.
        state["ale"] = emulator.cloneState(include_rng=True).__getstate__()
        state["attributes"] = {
            name: _capture(name, value, ())
            for name, value in vars(level).items()
            if isinstance(value, np.random.Generator | spaces.Space)
        }
        return state
    skip = set(CONFIGURATION)
    if type(physics).__name__ == "MjData":
        # All of MjData: the documented state flags lack derived arrays from which rewards of Ant
        # and Humanoid are computed.
        state |= {"mujoco": physics.__getstate__(), "model": _digest(vars(level)["model"])}
        skip.add("data")
    state["attributes"] = capture_attributes(level, skip)
    return state


def _restore_level(level: Any, state: State) -> None:
    if "ale" in state:
        import ale_py

        saved = ale_py.ALEState.__new__(ale_py.ALEState)
        saved.__setstate__(state["ale"])
        level.ale.restoreState(saved)
    if "mujoco" in state:
        import mujoco

        if _digest(level.model) != state["model"]:
            raise NotCapturable(
                f"the MjModel of {type(level).__name__} is not the one of the checkpoint: it was "
                "changed in training, or it is another version of the environment"
            )
        data = mujoco.MjData.__new__(mujoco.MjData)
        data.__setstate__(state["mujoco"])
        mujoco.mj_copyData(level.data, level.model, data)
    restore_attributes(level, state["attributes"])


def _digest(model: Any) -> str:
    """Identify a MuJoCo model."""
    return hashlib.sha256(model.__getstate__()).hexdigest()


def _is_static(value: Any) -> bool:
    """Tell whether a value is configuration: functions, classes, specs, and containers of these."""
    if isinstance(value, list | tuple | set | deque) and value:
        return all(map(_is_static, value))
    if isinstance(value, Mapping) and value:
        return all(map(_is_static, value.values()))
    if isinstance(value, np.random.Generator | np.random.RandomState | spaces.Space):
        return False
    kind = type(value)
    is_known = kind.__name__ in _STATIC_NAMES or kind.__module__.split(".")[0] in _STATIC_PACKAGES
    return is_known or isinstance(value, _STATIC)


def _capture(path: str, value: Any, parts: Parts) -> State:
    if isinstance(value, np.random.Generator):
        return {"kind": "generator", "state": value.bit_generator.state}
    if isinstance(value, np.random.RandomState):
        return {"kind": "random_state", "state": value.get_state(legacy=False)}
    if isinstance(value, spaces.Space):
        return {"kind": "space", "state": [_generator_state(s) for s in _subspaces(value)]}
    if is_plain(value):
        return {"kind": "plain", "state": value}
    if isinstance(value, parts):
        return {"kind": "part", "state": capture_attributes(value, (), parts)}
    if isinstance(value, list | tuple):
        inner = [_capture(f"{path}[{k}]", item, parts) for k, item in enumerate(value)]
        return {"kind": "list", "state": inner}
    if isinstance(value, Mapping):
        items = {key: _capture(f"{path}[{key!r}]", item, parts) for key, item in value.items()}
        return {"kind": "mapping", "state": items}
    kind = type(value)
    raise NotCapturable(f"`{path}` is a {kind.__module__}.{kind.__qualname__}")


def _restore(current: Any, saved: State) -> Any:
    """Return what an attribute must be; generators, spaces and parts change in place."""
    kind, state = saved["kind"], saved["state"]
    if kind == "plain":
        return state
    if kind == "generator":
        return _restore_generator(current, state)
    if kind == "random_state":
        current.set_state(state)
    elif kind == "space":
        for space, generator in zip(_subspaces(current), state, strict=True):
            if generator is not None:
                generator = _restore_generator(generator_of(space), generator)
            set_generator(space, generator)
    elif kind == "part":
        restore_attributes(current, state)
    elif kind == "list":
        for item, inner in zip(current, state, strict=True):
            _restore(item, inner)
    elif kind == "mapping":
        for key, inner in state.items():
            _restore(current[key], inner)
    return current


def _restore_generator(current: np.random.Generator | None, state: State) -> np.random.Generator:
    if current is None:
        kinds = {"PCG64": np.random.PCG64, "MT19937": np.random.MT19937}
        current = np.random.Generator(kinds[state["bit_generator"]]())
    current.bit_generator.state = state
    return current


def _subspaces(space: spaces.Space[Any]) -> Iterator[spaces.Space[Any]]:
    yield space
    if isinstance(space, spaces.Dict):
        for inner in space.spaces.values():
            yield from _subspaces(inner)
    elif isinstance(space, spaces.Tuple):
        for inner in space.spaces:
            yield from _subspaces(inner)


def _generator_state(space: spaces.Space[Any]) -> Any:
    generator = generator_of(space)
    return None if generator is None else generator.bit_generator.state
