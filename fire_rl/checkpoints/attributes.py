"""Which attributes a checkpoint may set: those that are state, never code, never a place on disk.

A checkpoint's checksums show damage; a stranger can compute them anew. What it may set is therefore
what a capture of the same object would have written.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from fire_rl.checkpoints.safe_tree import is_plain

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_PLACES = {"path", "paths", "folder", "dir", "directory", "file", "filename", "prefix", "root"}


def printed(value: Any) -> str:
    """Return what a value prints of itself, without addresses in memory."""
    return _ADDRESS.sub("", str(value))


def constructor_arguments(kind: type) -> set[str]:
    """Return the names of the arguments of a class's constructor and of its bases'."""
    names: set[str] = set()
    for base in kind.__mro__:
        constructor = vars(base).get("__init__")
        if inspect.isfunction(constructor):
            names |= set(inspect.signature(constructor).parameters)
    return names


def is_place(name: str, value: Any) -> bool:
    """Tell whether an attribute says where something is on a disk: never state, and it may move."""
    if isinstance(value, PurePath):
        return True
    words = name.lower().strip("_").split("_")
    return isinstance(value, str) and (words[-1] in _PLACES or PurePath(value).is_absolute())


def holds_text(value: Any) -> bool:
    """Tell whether a value is a word, or a container with a word that is an absolute path."""
    return isinstance(value, str | bytes) or _holds_place(value)


def check_name(obj: Any, name: Any) -> None:
    """Raise ValueError unless an attribute is one that an object itself may hold.

    Refused are names that are none or that Python itself reads, properties, methods and classes'
    other attributes that are no plain values.
    """
    is_name = type(name) is str and name.isidentifier() and not name.startswith("__")
    of_class = inspect.getattr_static(type(obj), name, None) if is_name else None
    is_code = callable(of_class) or hasattr(type(of_class), "__get__")
    if not is_name or is_code or not (is_plain(of_class) or name in vars(obj)):
        raise ValueError(
            f"it would set `{name}` of {type(obj).__name__}, which is no attribute that a "
            "checkpoint holds"
        )


def check_attribute(obj: Any, name: Any, value: Any) -> None:
    """Raise ValueError unless a capture of an object would write such a plain attribute.

    Refused are what :func:`check_name` refuses, an attribute that now is an object, and a word
    where there is a number or a container. A number may become an array: ``total = 0`` and then
    ``total += rewards``.
    """
    check_name(obj, name)
    current = vars(obj).get(name)
    is_object = not is_plain(current) and value is not None
    is_word = isinstance(value, str | bytes) and not isinstance(current, type(value) | None)
    if is_object or is_word or not is_plain(value):
        raise ValueError(
            f"it would set `{name}` of {type(obj).__name__}, which is {_an(current)} here, to "
            f"{_an(value)}"
        )


def restorable(
    obj: Any, saved: Mapping[str, Any], left_out: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a saved state that may be set; places on disk are passed over.

    Args:
        obj: The object that they belong to.
        saved: Its plain attributes.
        left_out: Names that a capture leaves out, such as arguments of the constructor.

    Raises:
        ValueError: If a capture would not have written one of them.
    """
    for name, value in saved.items():
        if name in left_out:
            raise ValueError(
                f"it would set `{name}` of {type(obj).__name__}, which is no attribute that a "
                "checkpoint holds"
            )
        check_attribute(obj, name, value)
        if not may_move(obj, name, value) and is_plain(vars(obj).get(name)):
            yield name, value


def may_move(obj: Any, name: str, value: Any) -> bool:
    """Tell whether an attribute, as saved or as it is, says where something is on a disk."""
    given = name if name in constructor_arguments(type(obj)) else ""
    return is_place(given, value) or is_place(given, vars(obj).get(name))


def _holds_place(value: Any) -> bool:
    if isinstance(value, str):
        return PurePath(value).is_absolute()
    if isinstance(value, Mapping):
        return any(_holds_place(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_holds_place, value))
    return isinstance(value, np.ndarray) and value.dtype.kind in "US"


def _an(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
