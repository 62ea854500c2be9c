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


def libraries_with_state(classes: Iterable[type]) -> list[str]:
    """Return a sentence for each library written in C that the user's own classes call.

    Such a one may keep the state of a simulation in itself, as pybullet does.
    """
    found = {}
    for kind in _own_classes(classes):
        module: Any = sys.modules.get(kind.__module__)
        for name in _names_in(kind):
            value = getattr(module, name.partition(".")[0], None)
            if isinstance(value, types.ModuleType) and is_own_module(value.__name__):
                origin = str(getattr(value, "__file__", None) or "")
                if origin.endswith((".so", ".pyd")):
                    found[value.__name__] = kind.__name__
    return [
        f"{kind} calls {name}, a library that may keep a state which cannot be read"
        for name, kind in found.items()
    ]


def _own_classes(classes: Iterable[type]) -> Iterator[type]:
    """Yield the user's own classes, and those that their methods name."""
    left = [level for kind in classes for level in kind.__mro__]
    known: set[type] = set()
    while left:
        kind = left.pop()
        if kind not in known and is_own(kind) and not issubclass(kind, enum.Enum):
            known.add(kind)
            yield kind
            module: Any = sys.modules.get(kind.__module__)
            named = [getattr(module, name, None) for name in _names_in(kind)]
            left += [value for value in named if isinstance(value, type)]


def _shared_values(classes: Iterable[type]) -> Iterator[tuple[str, Any]]:
    """Yield what may change and is kept by classes or by the modules of their methods."""
    for kind in _own_classes(classes):
        for name, value in list(vars(kind).items()):
            is_hidden = name.startswith("__") or name in ("metadata", "_abc_impl")
            if not is_hidden and _is_data(value):
                yield f"{kind.__name__}.{name}", value
        for path in sorted(_names_in(kind)):
            name, _, attribute = path.partition(".")
            owner: Any = sys.modules.get(kind.__module__)
            if attribute:  # of a module of the user's own
                owner = getattr(owner, name, None)
                is_module = isinstance(owner, types.ModuleType) and is_own_module(owner.__name__)
                owner, name = owner if is_module else None, attribute
            value = None if owner is None else vars(owner).get(name)
            if value is not None and not name.startswith("__") and _is_data(value):
                yield f"{owner.__name__}.{name}", value


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
