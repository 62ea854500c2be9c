"""Which class a saved name means: only classes that the environment itself consists of or names.

A checkpoint is data. It may say that an object was a ``Enemy``; which class that is, the living
environment says: a class of one of its objects, or one that stands in a module where such a class
is defined, in such a class, or in what its methods close over. Nothing is imported.
"""

from __future__ import annotations

import enum
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch

BUILTIN: dict[str, type] = {
    kind.__qualname__: kind
    for kind in (
        list, dict, set, deque, OrderedDict, defaultdict, Counter, types.SimpleNamespace,
        torch.Size, int, float, str, bytes, bool, tuple, frozenset, complex, bytearray, type(None),
    )
}  # fmt: skip
# Layouts that Python code can fill completely; the order matters: the nearest one counts.
BASES = (OrderedDict, defaultdict, dict, list, set, deque, types.SimpleNamespace, object)
_BUILTIN = "builtin "  # begins the saved name of one of them
_SMALL = 1000  # items of a constant that are constants, too
_WORD = 8  # bytes of a slot, of a reference to the attributes, and of one to weak references
_LIBRARIES = {
    "gymnasium", "stable_baselines3", "sb3_contrib", "fire_rl", "numpy", "torch", "pandas",
    "scipy", "mujoco", "ale_py", "minatar", "typing_extensions",
} | set(sys.stdlib_module_names) - {"__main__"}  # fmt: skip


def name_of(kind: type) -> str:
    """Return the name of a class in a checkpoint.

    Without its module, which is another one for a script that is run and one that is imported.
    """
    name = kind.__qualname__
    return _BUILTIN + name if BUILTIN.get(name) is kind else name


def base_of(kind: type) -> type:
    """Return the built-in class whose layout a class has."""
    return next(base for base in BASES if issubclass(kind, base))


def slots_of(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the slots of a class: attributes that are not in ``__dict__``."""
    for level in kind.__mro__:
        for name, member in vars(level).items():
            if isinstance(member, types.MemberDescriptorType) and level not in BASES:
                yield name, member


def is_written_in_python(kind: type) -> bool:
    """Tell whether a class was made by a ``class`` statement (or in the same way)."""
    return bool(kind.__flags__ & 1 << 9)  # Py_TPFLAGS_HEAPTYPE


def is_readable(kind: type) -> bool:
    """Tell whether the attributes and items of an object are all of its state.

    An object of a class that is written in C, or of one that derives from it, has more: memory
    beyond that of its slots.
    """
    base = base_of(kind)
    known = base.__basicsize__ + _WORD * (sum(1 for _ in slots_of(kind)) + 2)
    return kind.__basicsize__ <= known and kind.__itemsize__ == 0


def is_own(kind: type) -> bool:
    """Tell whether a class is the user's own: of no library that is known to keep its classes."""
    return is_own_module(kind.__module__)


def is_own_module(name: str) -> bool:
    """Tell whether a module is the user's own."""
    return name.split(".")[0] not in _LIBRARIES


class ClassLookup:
    """Finds classes by name near the environment, see the module's docstring."""

    def __init__(self) -> None:
        self.seen: dict[str, type] = {}
        self._unread: list[type] = []
        self._constants: set[int] = set()
        self._modules: set[str] = set()

    def see(self, kind: type) -> None:
        """Get to know the class of an object of the environment."""
        if kind.__qualname__ not in self.seen:
            self.seen[kind.__qualname__] = kind
            self._unread.append(kind)

    def find(self, name: str, current: Any = None) -> type | None:
        """Return the class of a name; that of the current value, if it has this name."""
        if name.startswith(_BUILTIN):
            return BUILTIN.get(name.removeprefix(_BUILTIN))
        for kind in (current, type(current)):
            if isinstance(kind, type) and name_of(kind) == name:
                return kind
        if name in self.seen:
            return self.seen[name]
        return next((k for k in self._nearby() if k.__qualname__ == name), None)

    def is_constant(self, value: Any) -> bool:
        """Tell whether a container belongs to a module or a class.

        An environment that starts its episodes from it must find it as it was.
        """
        while self._unread:
            kind = self._unread.pop()
            for level in kind.__mro__[:-1]:
                self._note_constants(vars(level))
            around = _globals(kind)
            self._note_module(kind.__module__, around)
            for item in list(around.values()):
                if isinstance(item, types.ModuleType):
                    self._note_module(item.__name__, vars(item))
        return id(value) in self._constants

    def _note_module(self, name: str, space: Mapping[str, Any]) -> None:
        if name not in self._modules:
            self._modules.add(name)
            self._note_constants(space)

    def _note_constants(self, space: Mapping[str, Any]) -> None:
        left = list(space.values())
        while left:
            item = left.pop()
            is_container = isinstance(item, list | dict | set | deque | tuple)
            if not is_container or id(item) in self._constants:
                continue
            self._constants.add(id(item))
            if len(item) <= _SMALL:
                left += item.values() if isinstance(item, dict) else item

    def _nearby(self) -> Iterator[type]:
        for kind in list(self.seen.values()):
            package = kind.__module__.split(".")[0]
            for value in _values_around(kind):
                if not isinstance(value, type):
                    continue
                is_theirs = value.__module__.split(".")[0] in (package, "torch")
                if issubclass(value, enum.Enum) or (is_theirs and not hasattr(value, "__del__")):
                    yield value


def _globals(kind: type) -> dict[str, Any]:
    module = sys.modules.get(kind.__module__)
    return {} if module is None else vars(module)


def _values_around(kind: type) -> Iterator[Any]:
    yield from list(_globals(kind).values())
    for level in kind.__mro__:
        for value in list(vars(level).values()):
            yield value
            for cell in getattr(value, "__closure__", None) or ():
                try:
                    yield cell.cell_contents
                except ValueError:  # it is empty
                    continue
