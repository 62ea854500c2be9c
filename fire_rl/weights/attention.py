"""Recognise attention projections by their customary names, and split fused ones into blocks.

Only layouts in which query, key and value are equal blocks of rows, one after the other, are known
by name. Models that interleave them head by head, or whose heads share keys, need ``split=``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fire_rl.utils.validation import check_int

BlockRule = Literal["project", "keep"]

# The last part of a layer's name, and what its equal blocks of rows are.
_PROJECTIONS: Mapping[str, str] = {
    "to_q": "q",  # vit-pytorch, FIRE's authors
    "to_k": "k",
    "q_proj": "q",  # torch's MultiheadAttention with kdim or vdim, many others
    "k_proj": "k",
    "query": "q",
    "key": "k",
    "in_proj": "qkv",  # torch's MultiheadAttention
    "c_attn": "qkv",  # nanoGPT
    "qkv": "qkv",  # timm
    "to_qkv": "qkv",  # vit-pytorch
    "to_kv": "kv",
}
QUERY_KEY_NAMES = tuple(name for name, blocks in _PROJECTIONS.items() if set(blocks) & {*"qk"})


def blocks_by_name(name: str) -> str:
    """Return a letter for each block of rows of a layer, such as ``"qkv"``; empty if unknown.

    Args:
        name: Dotted name of the layer; only its last part is looked up.
    """
    return _PROJECTIONS.get(name.rpartition(".")[2], "")


def as_split(value: Any) -> Literal["by_name"] | dict[str, tuple[BlockRule, ...]]:
    """Return how to split fused layers, from ``"by_name"`` or a mapping.

    Args:
        value: ``"by_name"``; or name pattern to a number of blocks, all to be projected, or to a
            list with ``"project"`` or ``"keep"`` for each block.

    Raises:
        ValueError: If it is neither, or the rule of a block is unknown.
    """
    if value == "by_name":
        return "by_name"
    if not isinstance(value, Mapping):
        raise ValueError(
            "`split` must be 'by_name' or map a name pattern to a number of blocks or a list of "
            f"'project' and 'keep', such as {{'*.c_attn': 3}}, got {value!r}."
        )
    found: dict[str, tuple[BlockRule, ...]] = {}
    for pattern, blocks in value.items():
        if not isinstance(blocks, Sequence) or isinstance(blocks, str):
            blocks = ["project"] * check_int(f"split[{pattern!r}]", blocks, 1)
        if not blocks or any(rule not in ("project", "keep") for rule in blocks):
            raise ValueError(
                f"`split[{pattern!r}]` must be a number of blocks or a list of 'project' and "
                f"'keep', one for each, got {blocks!r}."
            )
        found[str(pattern)] = tuple(blocks)
    return found
