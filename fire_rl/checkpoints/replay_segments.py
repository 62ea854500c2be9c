"""Replay buffers on disk: what was added since the last checkpoint, compressed, once.

A buffer is written in segments, files of consecutive rows (one row is one transition of every
environment). A checkpoint lists the segments that its buffer consists of; those which an earlier
checkpoint has written are not written again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her import HerReplayBuffer

from fire_rl.checkpoints.safe_tree import is_plain
from fire_rl.sb3.frame_replay import FrameReplayBuffer
from fire_rl.sb3.internals import current_episode_starts

Array = NDArray[Any]
Description = dict[str, Any]
Head = dict[str, Any]

# Their rows never change once they are added; what else they hold is in `_capture_head`.
_KNOWN = (
    ReplayBuffer, NStepReplayBuffer, DictReplayBuffer, FrameReplayBuffer, HerReplayBuffer
)  # fmt: skip
_ROW_ARRAYS = (
    "observations", "next_observations", "actions", "rewards", "dones", "timeouts", "frames",
)  # fmt: skip
_LEVEL = 1  # of zstandard: 45 bytes a frame at 2.9 GB/s on two Atari games, higher ones gain little
_ROWS_AT_ONCE = 64


def write_replay(
    buffer: Any, num_timesteps: int, folder: Path, earlier: Description | None
) -> tuple[Description | None, Head, int]:
    """Write what a replay buffer has got since an earlier checkpoint.

    Args:
        buffer: A replay buffer; None for none.
        num_timesteps: Environment steps of the training so far.
        folder: Where segments are.
        earlier: What the checkpoint that the training goes on from says about the buffer.

    Returns:
        What the manifest says about it, what segments do not hold, and the bytes written.

    Raises:
        ValueError: If buffers of this class are unknown here.
    """
    if buffer is None:
        return None, {}, 0
    check_buffer(buffer)
    is_counted = isinstance(buffer, FrameReplayBuffer)
    num_rows = buffer.num_rows if is_counted else num_timesteps // buffer.n_envs
    by_steps = (buffer.size(), buffer.pos) == _by_steps(num_rows, buffer.buffer_size)
    description: Description = {
        "class": type(buffer).__name__,
        # Else filled otherwise than by the steps of this training: no row can be told by its number
        "num_rows": num_rows if by_steps else buffer.size(),
        "by_steps": by_steps,
        "pos": int(buffer.pos),
        "full": bool(buffer.full),
        "rows": _layout(buffer),
    }
    num_rows = description["num_rows"]
    before = buffer.n_stack - 1 if isinstance(buffer, FrameReplayBuffer) else 0
    first = max(0, num_rows - buffer.size() - before)
    kept = [item for item in _reusable(earlier, description) if item["last"] > first]
    start, written = kept[-1]["last"] if kept else first, 0
    if start < num_rows:
        path = folder / f"{start}-{num_rows}-{time.time_ns()}.zst"
        kept.append(write_segment(buffer, range(start, num_rows), path))
        written = kept[-1]["bytes"]
    return {**description, "segments": kept}, _capture_head(buffer), written


def check_buffer(buffer: Any) -> None:
    """Raise ValueError if buffers of this class are unknown here; None is fine."""
    if buffer is not None and type(buffer) not in _KNOWN:
        known = ", ".join(kind.__name__ for kind in _KNOWN)
        raise ValueError(
            f"A {type(buffer).__name__} cannot be saved in checkpoints; known are {known}."
        )


def misfit(buffer: Any, saved: Description | None) -> list[str]:
    """Say why a saved replay buffer cannot be put into another: nothing, if it can."""
    if saved is None or buffer is None:
        only = saved is not None or buffer is not None
        return ["only one of checkpoint and model has a replay buffer"] if only else []
    mine = (type(buffer).__name__, _layout(buffer))
    if mine == (saved["class"], saved["rows"]):
        return []
    return [
        f"its replay buffer is a {saved['class']} of {saved['rows']}, the model's is a "
        f"{mine[0]} of {mine[1]}"
    ]


def restore_replay(buffer: Any, saved: Description | None, head: Head, folder: Path) -> None:
    """Put back, in place, what :func:`write_replay` has written.

    Raises:
        ValueError: If the buffer is another one, or a segment is damaged.
    """
    if wrong := misfit(buffer, saved):
        raise ValueError(wrong[0])
    if saved is None:
        return
    for segment in saved["segments"]:
        try:
            read_segment(buffer, segment, folder / segment["file"])
        except zstandard.ZstdError as error:
            raise ValueError(f"{segment['file']} is damaged: {error}") from error
    _restore_head(buffer, head, saved)


def write_segment(buffer: Any, rows: range, path: Path) -> Description:
    """Write rows of a buffer to a file, and make sure that they are on the disk.

    Returns:
        ``file``, ``first``, ``last`` (the row behind the last one), ``bytes``, ``sha256``.
    """
    with path.open("wb") as file:
        compressor = zstandard.ZstdCompressor(level=_LEVEL)
        with compressor.stream_writer(file, closefd=False) as stream:
            for array, length in _rings(buffer).values():
                for positions in _chunks(rows, length):
                    stream.write(np.ascontiguousarray(array[positions]).data.cast("B"))
        file.flush()
        os.fsync(file.fileno())
    return {
        "file": path.name,
        "first": rows.start,
        "last": rows.stop,
        "bytes": path.stat().st_size,
        "sha256": digest(path),
    }


def read_segment(buffer: Any, segment: Mapping[str, Any], path: Path) -> None:
    """Put the rows of a file back where they were.

    Raises:
        ValueError: If the file does not hold what it should.
    """
    rows = range(segment["first"], segment["last"])
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        for array, length in _rings(buffer).values():
            for positions in _chunks(rows, length):
                part = np.empty((len(positions), *array.shape[1:]), array.dtype)
                _fill(part, stream)
                array[positions] = part


def _capture_head(buffer: Any) -> Head:
    """Return what rows do not hold: a buffer's tables and its newest observation."""
    if isinstance(buffer, FrameReplayBuffer):
        return {
            "ages": buffer.ages[: buffer.size()],
            "is_last": buffer.is_last[: buffer.size()],
            "last_frames": buffer.last_frames,
            "first_stacks": buffer.first_stacks,
            "next": buffer.newest_observations,
            "next_frames": buffer.frames[buffer.num_rows % len(buffer.frames)],
        }
    if isinstance(buffer, HerReplayBuffer):
        return _capture_episodes(buffer)
    if getattr(buffer, "optimize_memory_usage", False):
        return {"next": buffer.observations[buffer.pos]}
    return {}


def _restore_head(buffer: Any, head: Head, description: Description) -> None:
    """Put back :func:`_capture_head`, after the rows."""
    buffer.pos, buffer.full = description["pos"], description["full"]
    if isinstance(buffer, FrameReplayBuffer):
        buffer.num_rows = description["num_rows"]
        buffer.ages[: buffer.size()] = head["ages"]
        buffer.is_last[: buffer.size()] = head["is_last"]
        buffer.last_frames = dict(head["last_frames"])
        buffer.first_stacks = dict(head["first_stacks"])
        buffer.newest_observations[:] = head["next"]
        buffer.frames[buffer.num_rows % len(buffer.frames)] = head["next_frames"]
    elif isinstance(buffer, HerReplayBuffer):
        _restore_episodes(buffer, head)
    elif head:
        buffer.observations[buffer.pos] = head["next"]


def _capture_episodes(buffer: HerReplayBuffer) -> Head:
    """Return where episodes begin and end: unlike rows, that changes after they were added."""
    infos = buffer.infos[: buffer.size()].tolist() if buffer.copy_info_dict else None
    if not is_plain(infos):
        raise ValueError(
            "`copy_info_dict` keeps the environment's infos, and these hold objects that are no "
            "plain data: leave it out, or remove them from the infos"
        )
    return {
        "starts": buffer.ep_start[: buffer.size()],
        "lengths": buffer.ep_length[: buffer.size()],
        "current": current_episode_starts(buffer),
        "infos": infos,
    }


def _restore_episodes(buffer: HerReplayBuffer, head: Head) -> None:
    size = buffer.size()
    buffer.ep_start[:size], buffer.ep_length[:size] = head["starts"], head["lengths"]
    current_episode_starts(buffer)[:] = head["current"]
    if head["infos"] is not None:
        for position, infos in enumerate(head["infos"]):
            buffer.infos[position] = infos


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rings(buffer: Any) -> dict[str, tuple[Array, int]]:
    """Return the arrays of a buffer with one row per step, and after how many rows they wrap."""
    rings = {}
    for name in _ROW_ARRAYS:
        value = vars(buffer).get(name)
        items = value if isinstance(value, dict) else {"": value}
        for key, array in items.items():
            if array is not None:
                rings[f"{name}.{key}" if key else name] = (array, len(array))
    return rings


def _chunks(rows: range, length: int) -> Iterator[Array]:
    """Yield the positions of rows in a ring, some at a time."""
    for start in range(rows.start, rows.stop, _ROWS_AT_ONCE):
        yield np.arange(start, min(start + _ROWS_AT_ONCE, rows.stop)) % length


def _fill(array: Array, stream: Any) -> None:
    view = array.data.cast("B")
    while len(view):
        count = stream.readinto(view)
        if not count:
            raise ValueError("it ends too early")
        view = view[count:]


def _layout(buffer: Any) -> dict[str, list[Any]]:
    """Return shape and dtype of each array."""
    return {
        name: [list(array.shape), array.dtype.str] for name, (array, _) in _rings(buffer).items()
    }


def _by_steps(num_rows: int, size: int) -> tuple[int, int]:
    """Return how many rows a buffer holds after so many steps, and where the next one goes."""
    return min(num_rows, size), num_rows % size


def _reusable(earlier: Description | None, description: Description) -> list[Description]:
    """Return the segments of an earlier checkpoint from which this buffer goes on."""
    if earlier is None or earlier["num_rows"] > description["num_rows"]:
        return []
    same = all(earlier[key] == description[key] for key in ("class", "rows", "by_steps"))
    return list(earlier["segments"]) if same and description["by_steps"] else []
