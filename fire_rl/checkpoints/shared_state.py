"""State that belongs to a class or a module: it is compared, and named if it is another one.

It is not restored: other environments and other trainings of this process share it.
"""

from __future__ import annotations

import dis
import enum
import hashlib
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from fire_rl.checkpoints.class_lookup import is_own, is_own_module
from fire_rl.checkpoints.object_capture import capture

_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR")
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
        f"`{name}` belongs to a class or a module, has another value than in the saved training, "
        "and is left alone, because others may use it (attributes of an environment are restored)"
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
            if (
                not name.startswith("__")
                and name not in ("metadata", "_abc_impl")
                and _is_data(value)
            ):
                yield f"{kind.__name__}.{name}", value
        module: Any = sys.modules.get(kind.__module__)
        space = {} if module is None else vars(module)
        for path in sorted(_names_in(kind)):
            name, _, attribute = path.partition(".")
            value, where = space.get(name), kind.__module__
            if attribute:
                if not isinstance(value, types.ModuleType) or not is_own_module(value.__name__):
                    continue
                value, where, name = vars(value).get(attribute), value.__name__, attribute
            if isinstance(value, type):
                left.append(value)
            elif value is not None and not name.startswith("__") and _is_data(value):
                yield f"{where}.{name}", value


def _is_data(value: Any) -> bool:
    is_code = isinstance(value, type | types.ModuleType) or hasattr(type(value), "__get__")
    return not is_code and not isinstance(value, types.BuiltinFunctionType)


def _names_in(kind: type) -> set[str]:
    """Return the global names that the methods of a class use."""
    codes = []
    for value in vars(kind).values():
        for part in (value, *(getattr(value, n, None) for n in ("__func__", "fget", "fset"))):
            if isinstance(part, types.FunctionType):
                codes.append(part.__code__)
    return set().union(*map(_globals_of, codes))


@cache
def _globals_of(code: types.CodeType) -> frozenset[str]:
    """Return the global names that code uses; what it takes from a module, as ``module.name``."""
    names, before = set(), ""
    for step in dis.get_instructions(code):
        if step.opname in _GLOBAL:
            names.add(step.argval)
        elif step.opname in _ATTRIBUTE and before:
            names.add(f"{before}.{step.argval}")
        before = step.argval if step.opname in _GLOBAL else ""
    inner = [_globals_of(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return frozenset(names).union(*inner)


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
