"""State that belongs to a class or a module: it is compared, and named if it is another one.

It is not restored: other environments and other trainings of this process share it.
"""

from __future__ import annotations

import enum
import hashlib
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from fire_rl.checkpoints.class_lookup import is_own
from fire_rl.checkpoints.object_capture import capture

_WHOLE_TRAININGS = (gym.Env, VecEnv, BaseAlgorithm)  # compared by themselves


def shared_digests(classes: Iterable[type]) -> dict[str, str]:
    """Return a digest of each value that classes, and the modules of their methods, keep.

    Args:
        classes: The classes of an environment's objects. Those of libraries are left out.
    """
    found = {}
    for name, value in _shared_values(classes):
        table = capture(value, name)
        if not any(issubclass(kind, _WHOLE_TRAININGS) for kind in table.classes):
            digest = hashlib.sha256()
            _update(digest, table.nodes or value)
            found[name] = digest.hexdigest()
    return found


def changed(saved: Mapping[str, str], classes: Iterable[type]) -> list[str]:
    """Return a sentence for each value that is not as it was when the digests were taken."""
    now = shared_digests(classes)
    return [
        f"`{name}` belongs to a class or a module and is another one than in the saved training"
        for name, digest in saved.items()
        if now.get(name, digest) != digest
    ]


def _shared_values(classes: Iterable[type]) -> Iterator[tuple[str, Any]]:
    """Yield what may change and is kept by classes or by the modules of their methods."""
    left = [level for kind in classes for level in kind.__mro__]
    known: set[type] = set()
    while left:
        kind = left.pop()
        if kind in known or not is_own(kind) or issubclass(kind, enum.Enum):
            continue
        known.add(kind)
        for name, value in list(vars(kind).items()):
            if not name.startswith("__") and name not in ("metadata", "_abc_impl") and _is_data(value):
                yield f"{kind.__name__}.{name}", value
        module = sys.modules.get(kind.__module__)
        space = {} if module is None else vars(module)
        for name in sorted(_names_in(kind) & space.keys()):
            value = space[name]
            if isinstance(value, type):
                left.append(value)
            elif not name.startswith("__") and _is_data(value):
                yield f"{kind.__module__}.{name}", value


def _is_data(value: Any) -> bool:
    is_code = isinstance(value, type | types.ModuleType) or hasattr(type(value), "__get__")
    return not is_code and not isinstance(value, types.BuiltinFunctionType)


def _names_in(kind: type) -> set[str]:
    """Return the global names that the methods of a class use."""
    names: set[str] = set()
    codes = []
    for value in vars(kind).values():
        for part in (value, *(getattr(value, n, None) for n in ("__func__", "fget", "fset"))):
            if isinstance(part, types.FunctionType):
                codes.append(part.__code__)
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
    return names


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.cpu().numpy()
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        is_set = value.get("kind") == "object" and value.get("class") == "builtin set"
        for key, item in value.items():
            digest.update(repr(key).encode())
            _update(digest, sorted(item, key=repr) if is_set and key == "items" else item)
    elif isinstance(value, list | tuple):
        digest.update(str(len(value)).encode())
        for item in value:
            _update(digest, item)
    else:
        digest.update(repr(value).encode() + b";")
