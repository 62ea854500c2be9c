"""The one place that knows private names of gymnasium's core: spaces and wrappers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from fire_rl.utils.foreign import private, set_private

# Attributes of gymnasium's own classes that never change.
CONFIGURATION = {
    "metadata", "spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "_cached_spec",
    "_metadata",
}  # fmt: skip


def generator_of(space: spaces.Space[Any]) -> np.random.Generator | None:
    """Return the generator that a space samples with, None before it has been asked for one.

    (The public ``np_random`` makes one, seeded by the operating system.)
    """
    generator: np.random.Generator | None = private(space, "_np_random", "gymnasium")
    return generator


def set_generator(space: spaces.Space[Any], generator: np.random.Generator | None) -> None:
    """Let a space sample with a generator; None as at its start."""
    set_private(space, "_np_random", generator, "gymnasium")


def subspaces(space: spaces.Space[Any]) -> Iterator[spaces.Space[Any]]:
    """Yield a space and all that it consists of: each has a generator of its own."""
    yield space
    for value in vars(space).values():
        parts = value.values() if isinstance(value, Mapping) else value
        for part in parts if isinstance(value, Mapping | list | tuple) else [value]:
            if isinstance(part, spaces.Space):
                yield from subspaces(part)
