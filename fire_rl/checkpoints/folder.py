"""A folder of checkpoints: what is in it, how one is added, and which old ones go.

What is not ours, is damaged or is a symbolic link stays as it is: nothing is written or deleted
through a link inside the folder (the folder itself may be one), and nothing odd ends a training.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from fire_rl.checkpoints.manifest import (
    REPLAY,
    STATE,
    CheckpointError,
    Manifest,
    read_manifest,
    segment_names,
)
from fire_rl.runs.layout import MODEL, checkpoint_name, checkpoint_order, checkpoint_paths

logger = logging.getLogger("fire_rl")

_LOCK = ".lock"
_STEP = re.compile(r"\d+(\.\d+)?")
_LEFT_BEHIND = re.compile(r"\.\d+(\.\d+)?\.[0-9a-f]{8}\.tmp")
_SEGMENT = re.compile(r"\d+-\d+-\d+\.zst")


def survey(folder: Path) -> tuple[dict[Path, Manifest], dict[Path, str]]:
    """Return the manifests in a folder as they were written, oldest first, and the damaged ones.

    Returns:
        Checkpoint to its manifest; and checkpoint to what is wrong with its manifest.
    """
    found: dict[Path, Manifest] = {}
    damaged: dict[Path, str] = {}
    for path in _step_folders(folder):
        try:
            found[path] = read_manifest(path)
        except (OSError, ValueError) as error:
            damaged[path] = str(error)
    order = sorted(found, key=lambda path: (found[path]["number"], checkpoint_order(path)))
    return {path: found[path] for path in order}, damaged


def next_number(folder: Path) -> int:
    """Return the number of the next checkpoint in a folder."""
    return 1 + max((manifest["number"] for manifest in survey(folder)[0].values()), default=0)


def free_name(folder: Path, step: int) -> Path:
    """Return a path for a checkpoint at which there is nothing, no file and no link either."""
    again = 0
    while os.path.lexists(folder / checkpoint_name(step, again)):
        again += 1
    return folder / checkpoint_name(step, again)


def temporary_for(final: Path) -> Path:
    """Return an unused name beside a checkpoint, under which to write or to delete it."""
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")


def check_no_links(folder: Path) -> None:
    """Raise CheckpointError if what is written inside a folder would be written elsewhere."""
    for name in (REPLAY, _LOCK):
        if (folder / name).is_symlink():
            raise CheckpointError(
                f"{folder / name} is a symbolic link, and nothing is written through a link inside "
                f"a folder of checkpoints: remove it, or make {folder} itself the link."
            )


def delete_old(folder: Path, new: Path, keep_last: int | None) -> None:
    """Delete a training's own old checkpoints.

    Kept are the newest ``keep_last`` as they were written, the new one in any case, and the newest
    one with finite weights. Those of other trainings stay, and what cannot be read.
    """
    found, _ = survey(folder)
    if new not in found:
        return
    run, step = found[new]["run"], found[new]["num_timesteps"]
    own = [path for path, manifest in found.items() if manifest["run"] == run]
    left = [path for path in own if path == new or found[path]["num_timesteps"] != step]
    kept = {*left[-(keep_last or 0) :], new}  # None: all
    if not any(found[path]["finite"] for path in kept):
        kept.update([path for path in own if found[path]["finite"]][-1:])
    for path in own:
        if path not in kept and not path.is_symlink():
            _delete(path)


def collect_garbage(folder: Path) -> None:
    """Delete segments that no checkpoint lists, and what a killed process has left behind.

    A checkpoint whose manifest cannot be read now may hold any segment that is older than itself.
    """
    found, damaged = survey(folder)
    used = {name for manifest in found.values() for name in segment_names(manifest)}
    times = [_modified(path) for path in damaged]
    for path in _entries(folder / REPLAY):
        is_ours = _SEGMENT.fullmatch(path.name) and path.is_file() and not path.is_symlink()
        if is_ours and path.name not in used and _modified(path) > max(times, default=-1.0):
            with suppress(OSError):
                path.unlink()
    for path in _entries(folder):
        if _LEFT_BEHIND.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of checkpoints: one process writes at a time.

    Raises:
        CheckpointError: If another process holds it, or the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_no_links(folder)
        lock = _lock(str(folder.resolve())).acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"Another process trains into {folder}: two runs in one folder would overwrite each "
            "other. Wait for it to end, or choose another folder."
        ) from None
    except OSError as error:
        raise CheckpointError(f"Nothing can be written to {folder}: {error}.") from error
    with lock:
        yield


@cache
def _lock(folder: str) -> FileLock:
    """One lock object per folder: this process may take it again while it holds it."""
    return FileLock(Path(folder) / _LOCK)


def _step_folders(folder: Path) -> list[Path]:
    """Checkpoints, and folders that were some: they have a manifest, or other files of ours."""
    found = set(checkpoint_paths(folder))
    for path in _entries(folder):
        if _STEP.fullmatch(path.name) and any((path / name).exists() for name in (MODEL, STATE)):
            found.add(path)
    return sorted(found, key=checkpoint_order)


def _delete(path: Path) -> None:
    """Delete a checkpoint at once: under its name it is never there in part."""
    try:
        away = temporary_for(path)
        os.replace(path, away)
        shutil.rmtree(away)
    except OSError as error:
        logger.warning("The old checkpoint %s could not be deleted: %s.", path, error)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
