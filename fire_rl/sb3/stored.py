"""Read the observations that a buffer holds, whatever its class, without asking it for a batch.

SB3's buffers keep arrays ``(rows, n_envs, *shape)``, which rollout buffers flatten to
``(rows · n_envs, *shape)``. A buffer of another class is asked by duck typing for what these have:
``observations``, how many rows are filled, and ``actions`` where critics take them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from torch import Tensor

Arrays = dict[str, NDArray[Any]]  # a plain observation has the one key ""


class UnreadableBuffer(ValueError):
    """A buffer does not say where its observations are; the message names what is missing."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What a buffer holds of one kind: observations by key, or actions by the key ``""``.

    Attributes:
        parts: Key to an array, tensor or whatever is indexed like one.
        envs: Number of environments in the second dimension; None if there is no such.
    """

    parts: Mapping[str, Any]
    envs: int | None

    def take(self, chosen: NDArray[Any]) -> Arrays:
        """Return copies of some observations; they count row by row, environment by environment."""
        index = (chosen,) if self.envs is None else np.divmod(chosen, self.envs)
        return {key: _taken(part, index) for key, part in self.parts.items()}

    def __len__(self) -> int:
        """The number of rows that there is room for."""
        return len(next(iter(self.parts.values())))


def stored_observations(model: BaseAlgorithm, buffer: Any) -> Stored:
    """Find the observations in a buffer.

    Raises:
        UnreadableBuffer: If there are none of the shape of the model's observation space.
    """
    held = _first(buffer, "observations", "obs")
    try:
        shape = get_obs_shape(model.observation_space)  # a mapping for a dict space
    except NotImplementedError as error:
        raise UnreadableBuffer(str(error)) from error
    if held is None:
        raise UnreadableBuffer("it has no `observations`")
    if isinstance(shape, dict) != isinstance(held, Mapping):
        raise UnreadableBuffer("its `observations` are not built like the observation space")
    parts = dict(held) if isinstance(held, Mapping) else {"": held}
    shapes = shape if isinstance(shape, dict) else {"": shape}
    if missing := [key for key in shapes if key not in parts]:
        raise UnreadableBuffer(f"its `observations` lack {', '.join(map(repr, missing))}")
    layouts = {_layout(parts[key], shapes[key]) for key in shapes}
    if len(layouts) != 1:
        raise UnreadableBuffer("its `observations` differ in length")
    return Stored({key: parts[key] for key in shapes}, layouts.pop())


def stored_actions(buffer: Any, like: Stored) -> Stored:
    """Find the actions that belong to a buffer's observations.

    Raises:
        UnreadableBuffer: If there are none of the same rows and environments.
    """
    held = _first(buffer, "actions", "acts")
    leading = 1 if like.envs is None else 2
    expected = (len(like), like.envs)[:leading]
    if held is None or tuple(getattr(held, "shape", ()))[:leading] != expected:
        raise UnreadableBuffer("it has no `actions` beside its observations, which critics take")
    return Stored({"": held}, like.envs)


def filled_rows(buffer: Any, room: int) -> int:
    """Return how many rows of a replay buffer are filled.

    ``size()`` as SB3 has it; or else ``full`` and ``pos``; or a number called ``size``; or its
    length.

    Args:
        buffer: The buffer.
        room: How many rows it has room for.

    Raises:
        UnreadableBuffer: If it does not say.
    """
    size, place = getattr(buffer, "size", None), getattr(buffer, "pos", None)
    if callable(size):
        rows: Any = size()
    elif isinstance(getattr(buffer, "full", None), bool | np.bool_) and _is_count(place):
        rows = room if buffer.full else place
    elif _is_count(size):
        rows = size
    else:
        rows = len(buffer) if hasattr(buffer, "__len__") else None
    if not _is_count(rows):
        raise UnreadableBuffer("it does not say how much it holds (`size()`)")
    return min(int(rows), room)


def rows_of_rollout(buffer: Any, room: int) -> int:
    """Return how many rows of a rollout buffer are of a finished rollout, 0 if none is.

    SB3's own say when they are full; others may only count how far they are.
    """
    if getattr(buffer, "full", False):
        return room
    place: Any = getattr(buffer, "pos", None)
    if isinstance(buffer, RolloutBuffer) or not _is_count(place):
        return 0
    return min(int(place), room)


def _layout(part: Any, shape: tuple[int, ...]) -> int | None:
    """Return the number of environments of an array of observations, None if it is flat."""
    found = tuple(getattr(part, "shape", ()))
    if len(found) == len(shape) + 2 and found[2:] == shape:
        return int(found[1])
    if len(found) == len(shape) + 1 and found[1:] == shape:
        return None
    raise UnreadableBuffer(
        f"its `observations` are {type(part).__name__} of shape {found}, where (rows, n_envs, "
        f"{', '.join(map(str, shape))}) is expected"
    )


def _taken(part: Any, index: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    if isinstance(part, Tensor):
        taken: NDArray[Any] = part.detach().cpu().numpy()[index]
        return taken
    return np.asarray(part[index if len(index) > 1 else index[0]])


def _first(owner: Any, *names: str) -> Any:
    return next((found for n in names if (found := getattr(owner, n, None)) is not None), None)


def _is_count(value: Any) -> bool:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        return False
    return bool(value >= 0)
