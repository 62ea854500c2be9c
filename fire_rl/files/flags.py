"""Flags for the options of FIRE, made from its fields and their documentation."""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fire_rl.interventions import FIRE
from fire_rl.interventions.base import Aftermath
from fire_rl.utils.validation import as_number

_PRESETS = tuple(name for name in vars(FIRE) if name.startswith("paper_"))
# Where the words for a keyword argument do not suit a flag, or a file is not an agent.
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


class FireOptions:
    """One flag for each option of :class:`FIRE`, and ``--preset``."""

    def __init__(self) -> None:
        self._fields = dataclasses.fields(FIRE)

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Add the flags to a group of a parser."""
        group.add_argument(
            "--preset",
            metavar=_braces(_PRESETS),
            help="options as in the code of FIRE's authors; single flags override it",
        )
        hints = get_type_hints(FIRE)
        texts = {**_documented(FIRE), **_documented(Aftermath, "Attributes"), **_TEXTS}
        for option in self._fields:
            plain = isinstance(option.default, str | int | float)
            default = f" (default: {option.default})" if plain else ""
            group.add_argument(
                f"--{option.name.replace('_', '-')}",
                dest=option.name,
                help=f"{texts.get(option.name, '')}{default}".replace("%", "%%"),
                **_how_to_parse(hints[option.name]),
            )

    def given(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Return those that were given, as FIRE takes them."""
        names = ["preset", *(option.name for option in self._fields)]
        values = {name: getattr(arguments, name) for name in names}
        given = {name: value for name, value in values.items() if value is not None}
        if "split" in given:
            given["split"] = _split(given["split"])
        return given


def _how_to_parse(hint: Any) -> dict[str, Any]:
    """Arguments of ``add_argument`` for a type; words are checked by FIRE itself."""
    kinds = list(_alternatives(hint))
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if any(get_origin(kind) is Mapping for kind in kinds):
        return {"nargs": "+", "action": "extend", "metavar": "PATTERN=BLOCKS"}
    if any(get_origin(kind) is tuple for kind in kinds):
        return {"nargs": "+", "action": "extend", "metavar": "NAME"}
    if int in kinds:
        return {"type": int, "metavar": "N"}
    if float in kinds:
        if words:
            return {"type": as_number, "metavar": _braces([*words, "NUMBER"])}
        return {"type": float, "metavar": "NUMBER"}
    return {"metavar": _braces(words)}


def _alternatives(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _alternatives(part)
    else:
        yield hint


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


def _braces(words: Any) -> str:
    return "{" + ",".join(words) + "}"


def _documented(kind: type, section: str = "Args") -> Mapping[str, str]:
    """Read what a Google docstring says about each argument; empty under ``python -OO``."""
    _, found, rest = (kind.__doc__ or "").partition(f"{section}:\n")
    if not found:
        return {}
    texts: dict[str, str] = {}
    name, indent = "", 0
    for line in rest.splitlines():
        if not line.strip():
            break
        depth = len(line) - len(line.lstrip())
        indent = indent or depth
        if depth == indent:
            name, _, text = line.strip().partition(": ")
            texts[name] = text
        else:
            texts[name] += f" {line.strip()}"
    return {name: _plain(text) for name, text in texts.items()}


def _plain(text: str) -> str:
    """Without the marks of reStructuredText."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda match: match[1].rpartition(".")[2], text)
    return text.replace("``", "").replace('"', "")
