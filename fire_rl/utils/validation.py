"""Check arguments.

Every message says which argument it is, what was expected and what was given, and offers the
nearest name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any

NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")


def nearest(name: object, choices: Collection[str], count: int = 1) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest choices, or an empty string.

    Upper and lower case are treated alike.
    """
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), list(lower), n=count)
    return f" Did you mean {' or '.join(repr(lower[name]) for name in close)}?" if close else ""


def check_choice(argument: str, value: Any, choices: Collection[str]) -> None:
    """Raise ValueError unless a value is one of the named choices."""
    if not isinstance(value, str) or value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"`{argument}` must be one of {expected}, got {value!r}.{nearest(value, choices)}"
        )


def check_names(argument: str, names: Collection[str], choices: Collection[str]) -> None:
    """Raise ValueError unless every name is a known one."""
    for name in names:
        check_choice(argument, name, choices)


def as_number(value: Any) -> Any:
    """Return the number that a text stands for; return every other value unchanged.

    YAML 1.1 reads ``1e5`` and ``1e-3`` as texts (a float needs a dot there).
    """
    is_number = isinstance(value, str) and NUMBER.fullmatch(value)
    return float(value.replace("_", "")) if is_number else value


def check_int(argument: str, value: Any, minimum: int) -> int:
    """Return a whole number of at least ``minimum``; 1e5 is one, 0.5 and True are not."""
    number = as_number(value)
    if not _is_number(number) or number != number // 1 or number < minimum:
        raise ValueError(
            f"`{argument}` must be a whole number of at least {minimum}, got {value!r}."
        )
    return int(number)


def check_positive(argument: str, value: Any, maximum: float = math.inf) -> float:
    """Return a finite number above 0 and at most ``maximum``."""
    number = as_number(value)
    if not _is_number(number) or not (0 < number <= maximum and math.isfinite(number)):
        bound = "" if math.isinf(maximum) else f" and at most {maximum:g}"
        raise ValueError(f"`{argument}` must be a number above 0{bound}, got {value!r}.")
    return float(number)


def check_non_negative(argument: str, value: Any) -> float:
    """Return a finite number of at least 0."""
    number = as_number(value)
    if not _is_number(number) or not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"`{argument}` must be a number of at least 0, got {value!r}.")
    return float(number)


def check_share(argument: str, value: Any) -> float:
    """Return a number from 0 to 1."""
    number = as_number(value)
    if not _is_number(number) or not 0 <= number <= 1:
        raise ValueError(f"`{argument}` must be a number from 0 to 1, got {value!r}.")
    return float(number)


def check_options(label: str, kind: type[Any], options: Collection[str]) -> None:
    """Raise ValueError for options that a dataclass does not have; the nearest is offered."""
    known = [option.name for option in dataclasses.fields(kind)]
    for option in options:
        if option not in known:
            raise ValueError(
                f"`{label}` has no option {option!r}; it has {', '.join(known)}."
                f"{nearest(option, known)}"
            )


def make_from_options(kind: Any, argument: str, options: Any) -> Any:
    """Make a dataclass from a mapping of its options.

    Raises:
        TypeError: If the options are no mapping.
        ValueError: If one is unknown, missing or out of range.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f"`{argument}` must be a mapping of options, got {options!r}.")
    check_options(argument, kind, options)
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(
            f"`{argument}` needs {dataclasses.fields(kind)[0].name!r}, got {dict(options)!r}."
        ) from error


def as_names(argument: str, value: Any) -> tuple[str, ...]:
    """Return a tuple of strings, from one string or a list of them."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple | set | frozenset) or not all(
        isinstance(name, str) for name in names
    ):
        raise ValueError(f"`{argument}` must be a name or a list of names, got {value!r}.")
    return tuple(names)


def _is_number(value: Any) -> bool:
    """Tell whether a value is a number, of Python or numpy."""
    return not isinstance(value, bool) and isinstance(value, Real)
