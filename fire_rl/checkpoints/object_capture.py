"""Objects as tables of plain values: every object once, with what it refers to by number.

So objects that refer to each other, or are referred to twice, come back as they were. What cannot
be read has a node that says so, and is named; everything else is there.
"""

from __future__ import annotations

import io
import threading
from collections import defaultdict, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from fire_rl.checkpoints.class_lookup import (
    ClassLookup,
    base_of,
    is_readable,
    is_written_in_python,
    slots_of,
)
from fire_rl.checkpoints.composite_kinds import class_name, find_kind
from fire_rl.checkpoints.value_kinds import is_leaf
from fire_rl.utils.gymnasium_internals import CONFIGURATION

State = dict[str, Any]

# Of a vector environment: buffers that the next step fills, and what is captured by itself.
_OF_ANY_VEC_ENV = {"metadata", "class_attributes", "reset_infos"}
_BUFFERS = {
    "buf_obs", "buf_dones", "buf_rews", "buf_infos", "actions", "keys", "remotes", "processes",
    "work_remotes",
}  # fmt: skip
# Python classes whose state is somewhere else: in a thread, a process, a connection, a file.
_ELSEWHERE = (threading.Thread, io.IOBase)
_ELSEWHERE_MODULES = {
    "asyncio", "concurrent", "multiprocessing", "mmap", "selectors", "socket", "sqlite3", "ssl",
    "subprocess", "tempfile", "weakref",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a value stands: in which copy of the environment, and under which name.

    ``holds_copies`` says that it is the list of the copies.
    """

    copy: int | None
    name: str
    holds_copies: bool = False

    def attribute(self, owner: Any, name: str) -> Place:
        """Return the place of an attribute of an object."""
        holds_copies = isinstance(owner, VecEnv) and name == "envs"
        return Place(self.copy, f"{self.name}.{name}", holds_copies)

    def item(self, key: Any) -> Place:
        """Return the place of an item, or of a part with a name."""
        return Place(self.copy, f"{self.name}[{key!r:.40}]")


@dataclass(frozen=True)
class Problem:
    """Something that is not exact.

    Attributes:
        copy: Number of the copy of the environment; None if it is in none.
        text: What it is, and why.
        is_note: Whether the episodes in progress go on all the same.
    """

    copy: int | None
    text: str
    is_note: bool = False


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
        wanted: Any = (np.random.Generator, spaces.Space)
        found = {k: v for k, v in found.items() if k == "ale" or isinstance(v, wanted)}
    inside = "venv" if isinstance(value, VecEnvWrapper) else "env"
    names = sorted(found, key=lambda name: name == inside)
    return {name: found[name] for name in names if name not in left_out}


class _Capture:
    def __init__(self) -> None:
        self.table = Table()
        self._lookup = ClassLookup()
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
        if (kind := find_kind(value)) is not None:
            data, parts = kind.split(value)
            node: State = {"kind": kind.name, **_named(value, place), "data": data}
            if parts:
                node["parts"] = {
                    key: self._refer(part, place.item(key)) for key, part in parts.items()
                }
            return node
        is_own = is_written_in_python(type(value)) or base_of(type(value)) is type(value)
        if is_own and is_readable(type(value)) and not _is_elsewhere(value):
            return self._object(value, place)
        return self._unreadable(value, place)

    def _object(self, value: Any, place: Place) -> State:
        kind = type(value)
        self.table.classes.add(kind)
        self._lookup.see(kind)
        base = base_of(kind)
        if isinstance(value, gym.Env | VecEnv):  # its wrappers need not be named
            place = Place(place.copy, kind.__name__)
        node: State = {"kind": "object", **_named(value, place)}
        if base in (list, set, deque):
            places = [place.item(k) for k in range(len(value))]
            if place.holds_copies:
                places = [Place(k, "") for k in range(len(value))]
            pairs = zip(base.__iter__(value), places, strict=True)
            node["items"] = [self._refer(item, where) for item, where in pairs]
        if base is not SimpleNamespace and base is not object:
            node["constant"] = self._lookup.is_constant(value)
        if issubclass(base, dict):
            node["items"] = [
                [self._refer(key, place), self._refer(item, place.item(key))]
                for key, item in dict.items(value)
            ]
        if base is deque:
            node["maxlen"] = value.maxlen
        if base is defaultdict:
            node["factory"] = self._refer(value.default_factory, place)
        node["attributes"] = {
            name: self._refer(item, place.attribute(value, name))
            for name, item in attributes_of(value).items()
        }
        return node

    def _unreadable(self, value: Any, place: Place, why: str = "") -> State:
        kind = type(value)
        text = f"`{place.name}` is a {kind.__module__}.{kind.__qualname__}"
        self.table.problems.append(Problem(place.copy, f"{text}: {why}" if why else text))
        return {"kind": "unreadable", **_named(value, place)}


def _is_elsewhere(value: Any) -> bool:
    modules = {kind.__module__.split(".")[0] for kind in type(value).__mro__}
    return isinstance(value, _ELSEWHERE) or bool(modules & _ELSEWHERE_MODULES)


def _named(value: Any, place: Place) -> State:
    return {"class": class_name(value), "copy": place.copy, "path": place.name}
