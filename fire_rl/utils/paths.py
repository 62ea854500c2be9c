"""Attributes by dotted path."""

from __future__ import annotations

from typing import Any


def attribute_at(root: Any, path: str) -> Any:
    """Return what a dotted path of attributes leads to; None where it breaks off."""
    for part in path.split("."):
        root = getattr(root, part, None)
    return root
