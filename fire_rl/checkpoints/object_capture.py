"""Objects as tables of plain values: every object once, with what it refers to by number.

So objects that refer to each other, or are referred to twice, come back as they were. What cannot
be read has a node that says so, and is named; everything else is there.
"""

from __future__ import annotations

import enum
import functools
import io
import multiprocessing.process
import subprocess
import threading
import types
from collections import defaultdict, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from fire_rl.checkpoints.class_lookup import base_of, is_readable, name_of, slots_of
from fire_rl.checkpoints.value_kinds import (
    NotCapturable,
    describe_static,
    find_kind,
    is_leaf,
    is_without_state,
)
from fire_rl.utils.gymnasium_internals import CONFIGURATION, generator_of, subspaces

State = dict[str, Any]

# Of a vector environment: buffers that the next step fills, and what is captured by itself.
_OF_ANY_VEC_ENV = {"metadata", "class_attributes", "reset_infos"}
_BUFFERS = {
    "buf_obs", "buf_dones", "buf_rews", "buf_infos", "actions", "keys", "remotes", "processes",
    "work_remotes",
}  # fmt: skip
# Python classes whose state is somewhere else: in a thread, a process, a file.
_ELSEWHERE = (
    threading.Thread, subprocess.Popen, multiprocessing.process.BaseProcess, io.IOBase,
)  # fmt: skip
_SUBCLASSED = (int, float, str, bytes)


@dataclass(frozen=True)
class Place:
    """Where a value stands: in which copy of the environment, and under which name."""

    copy: int | None
    name: str

    def attribute(self, name: str) -> Place:
        """Return the place of an attribute."""
        return Place(self.copy, f"{self.name}.{name}")

    def item(self, key: Any) -> Place:
        """Return the place of an item."""
        return Place(self.copy, f"{self.name}[{key!r:.40}]")


@dataclass(frozen=True)
class Problem:
    """Something that is not exact.

    Attributes:
        copy: Number of the copy of the environment; None if it is in none.
        text: What it is, and why.
        is_shared: Whether it belongs to a class or a module: episodes go on all the same.
    """

    copy: int | None
    text: str
    is_shared: bool = False


@dataclass
class Table:
    """What :func:`capture` returns.

    Attributes:
        nodes: Each object's description; the first is that of the root.
        problems: What could not be read.
        classes: Classes of the objects that were read.
    """

    nodes: list[State] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    classes: set[type] = field(default_factory=set)


def capture(root: Any, name: str = "") -> Table:
    """Read an object and all that it refers to.

    Args:
        root: The object.
        name: What to call it; by default by its class.
    """
    return _Capture().run(root, Place(None, name or type(root).__name__))


def skipped(value: Any) -> Collection[str]:
    """Return the attributes of an object that are no state."""
    if isinstance(value, gym.Env):
        return CONFIGURATION
    if isinstance(value, DummyVecEnv | SubprocVecEnv):
        return _OF_ANY_VEC_ENV | _BUFFERS
    return _OF_ANY_VEC_ENV if isinstance(value, VecEnv) else ()


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, slots included, but for those that are no state.

    What an environment wraps comes last: wrappers may change it when they are restored.
    """
    found = {
        name: member.__get__(value) for name, member in slots_of(type(value))
        if hasattr(value, name)
    }  # fmt: skip
    found |= vars(value) if hasattr(value, "__dict__") else {}
    left_out = skipped(value)
    if isinstance(value, BaseAlgorithm):  # an opponent, say: what it plays is its policy
        return {"policy": found["policy"]} if "policy" in found else {}
    if type(value).__name__ == "AtariEnv":  # all but these is configuration, beside the emulator
        wanted = np.random.Generator | spaces.Space
        found = {k: v for k, v in found.items() if k == "ale" or isinstance(v, wanted)}
    inside = "venv" if isinstance(value, VecEnvWrapper) else "env"
    names = sorted(found, key=lambda name: name == inside)
    return {name: found[name] for name in names if name not in left_out}


def cells_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the variables that a function closes over, with their cells; empty ones are not."""
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            _ = cell.cell_contents
        except ValueError:
            continue
        yield name, cell


class _Capture:
    def __init__(self) -> None:
        self.table = Table()
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no two objects have the same id
        self._queue: deque[tuple[int, Any, Place]] = deque()

    def run(self, root: Any, place: Place) -> Table:
        self._refer(root, place)
        while self._queue:
            number, value, place = self._queue.popleft()
            try:
                node = self._describe(value, place)
            except Exception as error:  # of a foreign class's own making, too
                node = self._unreadable(value, place, str(error) or type(error).__name__)
            self.table.nodes[number].update(node)
        return self.table

    def _refer(self, value: Any, place: Place) -> Any:
        """Return a leaf, or the number of the node of a value."""
        if is_leaf(value):
            return value
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._alive)
            self._alive.append(value)
            self.table.nodes.append({})
            self._queue.append((self._numbers[id(value)], value, place))
        return {"ref": self._numbers[id(value)]}

    def _describe(self, value: Any, place: Place) -> State:
        node = self._describe_simple(value, place)
        if node is None:
            node = self._describe_tuple(value, place)
        if node is None and not isinstance(value, _ELSEWHERE) and is_readable(type(value)):
            if type(value) is object or not type(value).__flags__ & (1 << 9):
                is_known = base_of(type(value)) is type(value) is not object
                return self._object(value, place) if is_known else self._unreadable(value, place)
            node = self._object(value, place)
        return self._unreadable(value, place) if node is None else node

    def _describe_simple(self, value: Any, place: Place) -> State | None:
        """Describe what is no object with attributes."""
        kind = type(value)
        named = {"class": name_of(kind), "copy": place.copy, "path": place.name}
        if isinstance(value, enum.Enum):
            is_flag = isinstance(value, enum.Flag)
            return {"kind": "enum", **named, "value": value.value if is_flag else value.name}
        if (known := find_kind(value)) is not None:
            return {"kind": known.name, **named, "value": known.read(value)}
        if isinstance(value, spaces.Space):
            own = [self._refer(generator_of(s), place) for s in subspaces(value)]
            return {"kind": "space", **named, "text": str(value), "generators": own}
        if isinstance(value, np.ndarray):
            return self._array(value, place)
        if isinstance(value, torch.Tensor):
            return self._tensor(value, place)
        if isinstance(value, type):
            return {"kind": "class", **named, "class": name_of(value)}
        if is_without_state(value):
            return {"kind": "static", **named, "is": describe_static(value)}
        if isinstance(value, types.FunctionType):
            cells = {
                name: self._refer(cell.cell_contents, place.attribute(name))
                for name, cell in cells_of(value)
            }
            own = {k: self._refer(v, place.attribute(k)) for k, v in vars(value).items()}
            words = {"name": value.__qualname__, "cells": cells, "attributes": own}
            return {"kind": "function", **named, **words}
        if isinstance(value, types.MethodType):
            owner = self._refer(value.__self__, place.attribute("__self__"))
            return {"kind": "method", **named, "name": value.__func__.__name__, "self": owner}
        if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            owner = self._refer(value.__self__, place.attribute("__self__"))
            return {"kind": "builtin", **named, "name": value.__qualname__, "self": owner}
        if isinstance(value, functools.partial):
            parts = [value.func, value.args, value.keywords]
            return {"kind": "partial", **named, "parts": [self._refer(p, place) for p in parts]}
        if isinstance(value, _SUBCLASSED):
            base = next(base for base in _SUBCLASSED if isinstance(value, base))
            return {"kind": "subclass", **named, "base": base.__name__, "value": base(value)}
        if kind in (bytearray,):
            return {"kind": "bytearray", **named, "value": bytes(value)}
        return None

    def _describe_tuple(self, value: Any, place: Place) -> State | None:
        named = {"class": name_of(type(value)), "copy": place.copy, "path": place.name}
        if isinstance(value, tuple | frozenset):
            items = [self._refer(item, place.item(k)) for k, item in enumerate(value)]
            kind = "tuple" if isinstance(value, tuple) else "frozenset"
            return {"kind": kind, **named, "items": items}
        if type(value) is slice:
            parts = (value.start, value.stop, value.step)
            return {"kind": "slice", **named, "items": [self._refer(p, place) for p in parts]}
        return None

    def _object(self, value: Any, place: Place) -> State:
        kind = type(value)
        self.table.classes.add(kind)
        base = base_of(kind)
        if isinstance(value, gym.Env):  # its wrappers need not be named
            place = Place(place.copy, kind.__name__)
        node: State = {"class": name_of(kind), "copy": place.copy, "path": place.name}
        if base in (list, set, deque):
            places = [place.item(k) for k in range(len(value))]
            if isinstance(value, list) and place.name.endswith("VecEnv.envs"):
                places = [Place(k, "") for k in range(len(value))]
            pairs = zip(base.__iter__(value), places, strict=True)
            node["items"] = [self._refer(item, where) for item, where in pairs]
        elif issubclass(base, dict):
            node["items"] = [
                [self._refer(key, place), self._refer(item, place.item(key))]
                for key, item in dict.items(value)
            ]
        if base is deque:
            node["maxlen"] = value.maxlen
        if base is defaultdict:
            node["factory"] = self._refer(value.default_factory, place)
        node["attributes"] = {
            name: self._refer(item, place.attribute(name))
            for name, item in attributes_of(value).items()
        }
        return {"kind": "object", **node}

    def _array(self, value: Any, place: Place) -> State:
        named = {"class": name_of(type(value)), "copy": place.copy, "path": place.name}
        if type(value) is not np.ndarray:
            raise NotCapturable("a class of arrays with a state of its own")
        shape = list(value.shape)
        if value.dtype.hasobject:
            if value.dtype != object:
                raise NotCapturable("a structured array with objects in it")
            items = [self._refer(item, place.item(k)) for k, item in enumerate(value.flat)]
            return {"kind": "objects", **named, "shape": shape, "items": items}
        root = value
        while isinstance(root.base, np.ndarray):
            root = root.base
        if root is not value and value.size and type(root) is np.ndarray and not value.dtype.names:
            # Others may see the same memory: what changes in one changes in all.
            start = value.__array_interface__["data"][0] - root.__array_interface__["data"][0]
            layout = {"shape": shape, "strides": list(value.strides), "offset": start}
            of = self._refer(root, place)
            return {"kind": "view", **named, "of": of, "dtype": value.dtype.str, **layout}
        # In the order of the memory, on which the rounding of sums depends.
        axes = sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis]))
        writeable, foreign = value.flags.writeable, root.base is not None
        node = {"kind": "array", **named, "axes": axes, "writeable": writeable}
        return {**node, "foreign": foreign and writeable, "value": value.transpose(axes)}

    def _tensor(self, value: torch.Tensor, place: Place) -> State:
        named = {"class": name_of(type(value)), "copy": place.copy, "path": place.name}
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided:
            raise NotCapturable("a special kind of tensor")
        if not value.is_leaf:
            raise NotCapturable("a tensor whose gradients lead to others")
        grad = self._refer(value.grad, place.attribute("grad"))
        kept = {"requires_grad": value.requires_grad, "grad": grad, "value": value.detach()}
        return {"kind": "tensor", **named, "device": str(value.device), **kept}

    def _unreadable(self, value: Any, place: Place, why: str = "") -> State:
        kind = type(value)
        text = f"`{place.name}` is a {kind.__module__}.{kind.__qualname__}"
        self.table.problems.append(Problem(place.copy, f"{text}: {why}" if why else text))
        return {"kind": "unreadable", "copy": place.copy, "path": place.name}

