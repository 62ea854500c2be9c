"""What objects were built with, as plain values that can be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from fire_rl.checkpoints.attributes import constructor_arguments, is_place, printed

Description = dict[str, Any]

KIND = "is"  # the key under which a description has the name of a class
ACCESS = "training_configuration"  # the method by which worker processes answer
_DEPTH = 4
_SMALL = 16  # longer arrays are described by a checksum
# Libraries whose objects report on a training: each run has others.
_REPORTING = {
    "aim", "clearml", "comet_ml", "logging", "mlflow", "neptune", "rich", "tqdm", "wandb"
}  # fmt: skip
_NOISES = (NormalActionNoise, OrnsteinUhlenbeckActionNoise)
_NOT_OF_AN_ENV = {
    "env", "venv", "render_mode", "envs", "verbose", "observation_space", "action_space"
}  # fmt: skip
# What gymnasium prints of an environment: its wrappers, and its id or class.
_PRINTED = re.compile(r"(<\w+)+(<[\w./:-]+)?>+")


def describe(value: Any, depth: int = _DEPTH) -> Any:
    """Return a value as numbers, words, lists and mappings that are equal if it was built alike.

    Classes and functions are described by their names, objects by their class and by the
    arguments of their constructor that they keep, large arrays by a checksum.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item() if isinstance(value.item(), bool | int | float | str) else str(value)
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, PurePath | spaces.Space | torch.device | torch.dtype | np.dtype):
        return printed(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy()
    if isinstance(value, np.ndarray):
        return _array(value, depth)
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__qualname__
    if depth == 0 or type(value).__module__.split(".")[0] in _REPORTING:
        return {KIND: type(value).__qualname__}
    if isinstance(value, Mapping):
        return {printed(key): describe(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item, depth - 1) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(describe(item, depth - 1)) for item in value)
    return describe_object(value, depth)


def describe_object(
    obj: Any, depth: int = _DEPTH, skip: Callable[[str], bool] | None = None
) -> Any:
    """Return the class of an object and what it keeps of its constructor's arguments.

    Args:
        obj: The object.
        depth: How many levels of objects to descend into.
        skip: Tells which arguments to leave out, by name.
    """
    found: Description = {KIND: type(obj).__qualname__}
    for name, value in _kept_arguments(obj).items():
        if not (skip is not None and skip(name)) and not is_place(name, value):
            found[name] = describe(value, depth - 1)
    return found


def describe_schedule(value: Any) -> Any:
    """Return a schedule of SB3 by its values at 1, ½ and 0 of the progress that remains.

    One that does not change is the number itself, as it may also be given.
    """
    if not callable(value):
        return describe(value)
    try:
        values = [float(value(remaining)) for remaining in (1.0, 0.5, 0.0)]
    except Exception:  # no schedule: any function of the user's
        return describe(value)
    return values[0] if values[0] == values[1] == values[2] else values


def describe_env(env: gym.Env[Any, Any]) -> Description:
    """Return id, arguments and wrappers of an environment, outermost first."""
    spec = env.unwrapped.spec
    found: Description = {}
    if spec is not None:
        kwargs = {k: v for k, v in spec.kwargs.items() if not _is_free(k) and not is_place(k, v)}
        found |= {"id": spec.id, "arguments": describe(kwargs)}
    levels = [level for level in _levels(env) if not hasattr(type(level), ACCESS)]
    found["wrappers"] = [type(level).__qualname__ for level in levels]
    for level in levels:
        kept = describe_object(level, 3, _is_free)
        found[kept.pop(KIND)] = kept
    return found


def describe_vec_env(venv: VecEnv) -> Description:
    """Return the wrappers of a vector environment, and what each of its copies is.

    Copies in worker processes answer if they are wrapped in :class:`~fire_rl.StateAccess`; of
    others the names of the wrappers and the id are known. A question that could end a worker is
    not asked.
    """
    names, options = [], {}
    while isinstance(venv, VecEnvWrapper):
        kept = describe_object(venv, 3, _is_free)
        names.append(kept.pop(KIND))
        options[names[-1]] = kept
        venv = venv.venv
    copies = _describe_copies(venv)
    alike = all(copy == copies[0] for copy in copies)
    found = copies[0] if copies and alike else {"copies": copies}
    return {"vec_wrappers": names, **options, **found}


def _describe_copies(base: VecEnv) -> list[Any]:
    if isinstance(base, DummyVecEnv):
        return [describe_env(env) for env in base.envs]
    if not isinstance(base, SubprocVecEnv):  # of the user's own: it may answer anything
        return []
    if base.has_attr(ACCESS):
        return list(base.env_method(ACCESS))
    printed = [str(text) for text in base.env_method("__str__")]
    if not all(_PRINTED.fullmatch(text) for text in printed):
        return []
    return [{"environment": text} for text in printed]


def _kept_arguments(obj: Any) -> Description:
    """The arguments of the constructor that are kept, as they are or with a ``_`` before."""
    kept = vars(obj) if hasattr(obj, "__dict__") else {}
    if dataclasses.is_dataclass(obj):
        return {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
    if type(obj) in _NOISES:
        return {name.strip("_"): value for name, value in kept.items() if name != "noise_prev"}
    names = sorted(constructor_arguments(type(obj)) - {"self"})
    return {
        name: kept[form]
        for name in names
        for form in [
            next(
                (f for f in (name, f"_{name}", f"_given_{name}", f"given_{name}") if f in kept),
                None,
            )
        ]
        if form is not None
    }


def _is_free(name: str) -> bool:
    return name in _NOT_OF_AN_ENV


def _levels(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _array(array: Any, depth: int) -> Any:
    if array.dtype.kind == "O":
        items = [describe(item, max(depth - 1, 0)) for item in array.flat]
        content = str(items).encode()
        if array.size <= _SMALL:
            return items
    else:
        content = np.ascontiguousarray(array).tobytes()
    if array.size <= _SMALL and array.dtype.kind in "biufSU":
        return array.tolist()
    return f"{array.dtype} {list(array.shape)} {hashlib.sha256(content).hexdigest()[:16]}"
