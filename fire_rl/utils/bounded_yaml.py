"""YAML whose aliases are bounded: a few lines of it can stand for billions of values."""

from __future__ import annotations

from typing import Any

import yaml

_MAX_VALUES, _MAX_DEPTH, _MAX_DIGITS = 100_000, 50, 1000


def load_yaml(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """Read YAML, without running code.

    Args:
        text: The YAML.
        loader: A safe loader.

    Raises:
        ValueError: If it is no YAML, is nested too deep, or has more values than any configuration,
            those that its aliases repeat included.
    """
    try:
        one = loader(text)
        try:
            node = one.get_single_node()
            _expanded(node, {})
            return None if node is None else one.construct_document(node)
        finally:
            one.dispose()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except (yaml.YAMLError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{error}") from error  # dates, numbers and keys that are none


def _expanded(node: Any, known: dict[int, int], depth: int = 0) -> int:
    """Return how many values a node stands for, once for each time that it is used."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep, or contains itself")
    if id(node) in known:
        return known[id(node)]
    count = 1
    if node is not None and node.tag.endswith(":int") and len(node.value) > _MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(node.value):,} letters")
    if isinstance(node, yaml.CollectionNode):
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        for part in parts:
            count += _expanded(part, known, depth + 1)
            if count > _MAX_VALUES:
                raise ValueError(f"it stands for more than {_MAX_VALUES:,} values")
    known[id(node)] = count
    return count
