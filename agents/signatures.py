"""Check plain values against the signatures of SB3's classes: there is no second list of them."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter

from fire_rl.utils.validation import as_number, nearest


@cache
def arguments(kind: type) -> Mapping[str, Any]:
    """Return the constructor's arguments and their declared types."""
    parameters = inspect.signature(kind, eval_str=True).parameters
    return {name: p.annotation for name, p in parameters.items() if not name.startswith("_")}


def convert(label: str, declared: Any, value: Any) -> Any:
    """Convert a plain value to a declared type; what stays is fit for YAML.

    Args:
        label: What the error calls the value, such as ``"agent.batch_size"``.
        declared: The annotation, such as ``int | tuple[int, str]``.
        value: What a YAML file or a flag gave.

    Raises:
        ValueError: If the value does not fit.
    """
    adapter = TypeAdapter(declared, config=ConfigDict(arbitrary_types_allowed=True))
    number = as_number(value)
    try:
        if isinstance(value, bool) and bool not in (declared, *get_args(declared)):
            raise ValueError("pydantic takes true for 1")
        if isinstance(number, float) and math.isnan(number):
            raise ValueError("pydantic takes nan for a number")
        converted = adapter.validate_python(number)
    except ValueError as error:  # ValidationError is one
        raise ValueError(f"`{label}` must be {_describe(declared)}, got {value!r}.") from error
    return list(converted) if isinstance(converted, tuple) else converted


def takes_schedule(declared: Any) -> bool:
    """Tell whether an argument may be a function of the remaining progress."""
    return any(_is_callable(option) for option in get_args(declared))


def default(kind: type, name: str) -> Any:
    """Return the default of a constructor's argument."""
    return inspect.signature(kind).parameters[name].default


def hint(name: object, known: Collection[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or a list of them."""
    listed = f" Known are {', '.join(known)}." if len(known) < 40 else ""
    return nearest(name, known) or listed


def one_of(names: Collection[str]) -> str:
    """Return ``"'a' or 'b'"``."""
    return " or ".join(repr(name) for name in names)


def _is_callable(declared: Any) -> bool:
    return Callable in (declared, get_origin(declared))  # TQC declares it bare


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def _describe(declared: Any) -> str:
    """Describe a type in a user's words."""
    is_union = get_origin(declared) in (Union, types.UnionType)
    words = []
    for option in get_args(declared) if is_union else (declared,):
        if option in _WORDS:
            words.append(_WORDS[option])
        elif _is_callable(option):
            words.append("a linear schedule such as lin_3e-4")
        elif get_origin(option) is tuple:
            words.append("a list such as [1, episode]")
        elif get_origin(option) is dict:
            words.append("a mapping")
        else:
            words.append("a word" if option is str else str(option))
    return " or ".join(words)
