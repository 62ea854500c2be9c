"""The options of FIRE as flags: one for each of its fields, with the text of its docstring."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from fire_rl.interventions import FIRE
from fire_rl.interventions.base import Aftermath

_PRESETS = tuple(name for name in vars(FIRE) if name.startswith("paper_"))
# Texts for options whose docstring does not suit a flag, or does not hold for a file.
_TEXTS = {
    "networks": "Roles to act on: actor, critic, shared; all by default.",
    "include": "Names or shell patterns of the only layers to touch; all by default.",
    "exclude": "Names or shell patterns of layers to leave alone.",
    "null_directions": "For the exact method: directions that a weight maps to zero stay so (keep) "
    "or get orthonormal images (complete).",
    "split": "Layers that are several matrices on top of one another, such as fused query, key and "
    "value projections: PATTERN=3 for three equal blocks, PATTERN=project,project,keep with a rule "
    "for each, or by_name for those with customary names (c_attn, qkv, to_qkv, to_kv).",
    "vecnormalize": "Not possible here: the statistics are in a file of their own.",
    "replay_buffer": "Not possible here: a zip holds no replay buffer.",
}
# How the help shows a value of a type.
_VALUES: Mapping[Any, str] = {int: "N", float: "NUMBER", tuple: "NAME", Mapping: "PATTERN=BLOCKS"}
# A flag takes words, which FIRE itself checks and converts. Empty: the flag was not given, so that
# a preset keeps its value. (With `str | None`, tyro would take the word None for "not given".)
_Word = tyro.conf.UseAppendAction[tuple[str, ...]]
_Words = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]


def given_options(flags: Any) -> dict[str, Any]:
    """Return the options that were given, as FIRE takes them.

    Args:
        flags: A :data:`FireFlags`, as tyro has filled it.

    Raises:
        ValueError: If a flag has no value, or ``--split`` is not understood.
    """
    given: dict[str, Any] = {}
    for name, values in vars(flags).items():
        if () in values:
            raise ValueError(f"`--{name.replace('_', '-')}` needs a value.")
        if values:
            several = isinstance(values[0], tuple)
            given[name] = [word for words in values for word in words] if several else values[-1]
    if "split" in given:
        given["split"] = _split(given["split"])
    return given


def _split(words: Sequence[str]) -> str | dict[str, Any]:
    """``["by_name"]``, or ``["c_attn=3", "qkv=project,keep"]`` as FIRE takes them."""
    if list(words) == ["by_name"]:
        return "by_name"
    found: dict[str, Any] = {}
    for word in words:
        pattern, sign, blocks = word.partition("=")
        if not sign:
            raise ValueError(f"`--split` must be by_name or PATTERN=BLOCKS, got {word!r}.")
        found[pattern] = int(blocks) if blocks.isdecimal() else blocks.split(",")
    return found


def _fire_flags() -> type:
    """Build a dataclass with ``preset`` and the fields of FIRE."""
    hints = get_type_hints(FIRE)
    texts = {**documented(FIRE), **documented(Aftermath), **_TEXTS}
    preset = "Options as in the code of FIRE's authors; single flags override it."
    flags = [_flag("preset", Literal[_PRESETS], preset)]
    for option in dataclasses.fields(FIRE):
        plain = isinstance(option.default, str | int | float)
        default = f"(default: {option.default})" if plain else ""
        flags.append(_flag(option.name, hints[option.name], texts.get(option.name, ""), default))
    return dataclasses.make_dataclass("FireFlags", flags, frozen=True)


def _flag(name: str, hint: Any, text: str, default: str = "") -> tuple[str, Any, Any]:
    """Describe one field: its name, how tyro reads it, and that it may be left out."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    types = [get_origin(kind) or kind for kind in kinds]
    values = [*words, *(_VALUES[kind] for kind in types if kind in _VALUES)]
    metavar = "{" + ",".join(values) + "}" if words else values[0]
    several = tuple in types or Mapping in types
    shown = tyro.conf.arg(
        metavar=f"{metavar} [...]" if several else metavar,
        help=text,
        help_behavior_hint=default,
        prefix_name=False,
    )
    return name, Annotated[_Words if several else _Word, shown], ()


def documented(item: Any) -> dict[str, str]:
    """Read what a docstring says about each argument; empty under ``python -OO``."""
    found = docstring_parser.parse(item.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    return {one.arg_name: _plain(one.description or "") for one in found.params}


def _plain(text: str) -> str:
    """Return a text without line breaks and the marks of reStructuredText."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda match: match[1].rpartition(".")[2], text)
    return " ".join(text.replace("``", "").replace('"', "").split())


FireFlags = _fire_flags()
