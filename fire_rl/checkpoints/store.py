"""Checkpoints from which a training goes on as if nothing had happened.

A folder of checkpoints has one sub-folder for each, named by its step, and ``replay/`` with the
segments that they share. A checkpoint counts when its ``manifest.json`` is there, which is written
last and renamed into place: a kill at any byte leaves the earlier ones as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from fire_rl.checkpoints import replay_segments
from fire_rl.checkpoints.replay_segments import digest
from fire_rl.checkpoints.safe_tree import read_tree, write_tree
from fire_rl.checkpoints.training_state import capture_training, check_same, restore_training
from fire_rl.runs.layout import (
    MANIFEST,
    MODEL,
    VECNORMALIZE,
    checkpoint_name,
    checkpoint_order,
    checkpoint_paths,
)
from fire_rl.sb3.internals import total_timesteps
from fire_rl.sb3.loggers import cut_logs, log_sizes

logger = logging.getLogger("fire_rl")

FORMAT = 1
_REPLAY, _STATE = "replay", "state"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which, and what holds now."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been compared with their checksums, all of them.

    Attributes:
        path: Its folder.
        manifest: What it consists of: steps, files with their checksums, sizes of logs.
    """

    path: Path
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Saved(Checkpoint):
    """A checkpoint that this process has written and verified.

    Attributes:
        written: Bytes written for it; segments that an earlier one has written do not count.
        total: Bytes that it consists of.
        seconds: How long it took.
    """

    written: int
    total: int
    seconds: float


def save(
    model: BaseAlgorithm,
    folder: str | Path,
    callbacks: Sequence[BaseCallback] = (),
    keep_last: int | None = None,
    base: Checkpoint | None = None,
) -> Saved:
    """Write a checkpoint, verify what was written, then delete the oldest ones.

    Only in ``_on_rollout_start`` is it exact (elsewhere SB3 holds half of a step in local
    variables): :class:`~fire_rl.RunCheckpointCallback` calls it there.

    Args:
        model: The model in training.
        folder: Folder of checkpoints.
        callbacks: The callbacks of the training, whose state is saved too.
        keep_last: How many checkpoints to keep; None for all.
        base: The checkpoint in this folder that this training has written last, or was restored
            from: what it holds of the replay buffer is neither written nor verified again.

    Raises:
        CheckpointError: If it cannot be written, or another process writes here; earlier
            checkpoints are as they were.
    """
    started = time.perf_counter()
    folder = Path(folder)
    with locked(folder):
        final = _free_name(folder, model.num_timesteps)
        temporary = folder / f".{final.name}.tmp"
        try:
            (folder / _REPLAY).mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            earlier = _replay_of(base, folder)
            written = _write(model, folder, temporary, callbacks, earlier)
            os.replace(temporary, final)
            _sync(folder)
            known = {item["file"] for item in (earlier or {"segments": []})["segments"]}
            manifest = _verified(final, known).manifest
        except (OSError, ValueError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            _collect_garbage(folder)
            good = latest(folder)
            rest = f"the last good one is {good.path}" if good else "there is no earlier one"
            raise CheckpointError(
                f"The checkpoint at step {model.num_timesteps:,} could not be written to "
                f"{folder}: {error}; {rest}."
            ) from error
        same_step = _of_step(folder, model.num_timesteps)
        too_many = [] if keep_last is None else checkpoints(folder)[:-keep_last]
        for old in {*same_step[:-1], *too_many}:
            shutil.rmtree(old)
        _collect_garbage(folder)
    total = sum(item["bytes"] for item in _files(manifest))
    return Saved(final, manifest, written, total, time.perf_counter() - started)


def restore(
    model: BaseAlgorithm,
    checkpoint: str | Path | Checkpoint,
    callbacks: Sequence[BaseCallback] = (),
    strict: bool = True,
    branch: bool = False,
) -> list[BaseCallback]:
    """Put a checkpoint into a training that was built in the same way, in place.

    To go on exactly, call it in the first ``_on_rollout_start`` of ``learn()``, as
    :class:`~fire_rl.RunCheckpointCallback` does. No file is unpickled.

    Args:
        model: A model with the same algorithm, networks and number of environments.
        checkpoint: What :func:`latest` or :func:`check` has verified; or its folder, which is
            verified first.
        callbacks: The same callbacks in the same order.
        strict: Whether other hyper-parameters than the checkpoint's are an error.
        branch: Whether this is another training than the one that was saved, with its own logs
            and callbacks; see :func:`~fire_rl.checkpoints.training_state.restore_training`.

    Returns:
        The callbacks that begin here: those that branched off.

    Raises:
        CheckpointError: If the checkpoint is damaged, or does not fit the model.
    """
    found = checkpoint if isinstance(checkpoint, Checkpoint) else check(checkpoint)
    path, manifest = found.path, found.manifest
    try:
        tree = read_tree(path / _STATE)
        check_same(model, tree["training"], strict)
        buffer = getattr(model, "replay_buffer", None)
        replay_segments.restore_replay(
            buffer, manifest["replay"], tree["replay"], path.parent / _REPLAY
        )
        begun = restore_training(model, tree["training"], callbacks, strict, branch)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"The checkpoint {path} does not fit: {error}.") from error
    if not branch:
        cut_logs(model.logger, manifest["logs"])
    return begun


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first; unfinished ones do not count."""
    return checkpoint_paths(folder)


def latest(folder: str | Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; one that is not is named in a warning."""
    for path in reversed(checkpoints(folder)):
        try:
            return check(path)
        except CheckpointError as error:
            logger.warning("%s It is passed over.", error)
    return None


def check(path: str | Path) -> Checkpoint:
    """Compare every file of a checkpoint with its checksum.

    Raises:
        CheckpointError: If one is missing, damaged or foreign; the message names it.
    """
    return _verified(Path(path))


def _verified(path: Path, known: Collection[str] = ()) -> Checkpoint:
    """Verify a checkpoint as :func:`check` does, but read no replay segment that is known.

    Args:
        path: Its folder.
        known: Segments that an earlier checkpoint has verified.
    """
    homes = {"": path, _STATE: path / _STATE, _REPLAY: path.parent / _REPLAY}
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("checksum") != _checksum(manifest):
            raise ValueError(f"{MANIFEST} is damaged: its checksum is another one")
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}, this version reads {FORMAT}")
        for item in _files(manifest):
            if Path(item["file"]).name != item["file"] or item["folder"] not in homes:
                raise ValueError(f"it names a file elsewhere, {item['file']!r}")
            file = homes[item["folder"]] / item["file"]
            if not file.is_file():
                raise ValueError(f"{file.name} is missing")
            is_known = item["folder"] == _REPLAY and item["file"] in known
            if not is_known and digest(file) != item["sha256"]:
                raise ValueError(f"{file.name} is damaged: its checksum is another one")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no usable checkpoint: {error}.") from error
    return Checkpoint(path, manifest)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of checkpoints: one process writes at a time.

    Raises:
        CheckpointError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(str(folder.resolve())).acquire(timeout=0):
            yield
    except Timeout:
        raise CheckpointError(
            f"Another process trains into {folder}: two runs in one folder would overwrite each "
            "other. Wait for it to end, or choose another folder."
        ) from None


@cache
def _lock(folder: str) -> FileLock:
    """One lock object per folder: this process may take it again while it holds it."""
    return FileLock(Path(folder) / ".lock")


def _of_step(folder: Path, step: int) -> list[Path]:
    """Return the checkpoints of one step, oldest first."""
    return [path for path in checkpoints(folder) if checkpoint_order(path)[0] == step]


def _free_name(folder: Path, step: int) -> Path:
    """Return a folder for a checkpoint; one of the same step stays until the new one is good."""
    taken = _of_step(folder, step)
    return folder / checkpoint_name(step, checkpoint_order(taken[-1])[1] + 1 if taken else 0)


def _write(
    model: BaseAlgorithm,
    folder: Path,
    target: Path,
    callbacks: Sequence[BaseCallback],
    earlier: dict[str, Any] | None,
) -> int:
    """Write all files of a checkpoint; return the bytes written."""
    buffer = getattr(model, "replay_buffer", None)
    replay, head, written = replay_segments.write_replay(
        buffer, model.num_timesteps, folder / _REPLAY, earlier
    )
    _sync(folder / _REPLAY)
    tree = {"training": capture_training(model, callbacks), "replay": head}
    (target / _STATE).mkdir()
    write_tree(target / _STATE, tree)
    with (target / MODEL).open("wb") as file:  # SB3 leaves its own file open after an error
        model.save(file)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.save(str(target / VECNORMALIZE))
    files = []
    for path in sorted([*target.glob("*.*"), *(target / _STATE).iterdir()]):
        size = path.stat().st_size
        where = _STATE if path.parent.name == _STATE else ""
        files.append({"folder": where, "file": path.name, "bytes": size, "sha256": digest(path)})
        written += size
        _sync(path)
    manifest = {
        "format": FORMAT,
        "algorithm": type(model).__name__,
        "num_timesteps": model.num_timesteps,
        "total_timesteps": total_timesteps(model),
        "files": files,
        "replay": replay,
        "logs": log_sizes(model.logger),
    }
    text = json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=1)
    (target / MANIFEST).write_text(text + "\n", encoding="utf-8")
    for path in (target / MANIFEST, target / _STATE, target):
        _sync(path)
    return written


def _replay_of(base: Checkpoint | None, folder: Path) -> dict[str, Any] | None:
    """Return what the checkpoint that this training goes on from says about its replay buffer."""
    if base is None or base.path.parent.resolve() != folder.resolve() or not base.path.exists():
        return None
    replay: dict[str, Any] | None = base.manifest["replay"]
    return replay


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Return a checksum of a manifest that is independent of its layout."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    replay = manifest["replay"] or {"segments": []}
    return [*manifest["files"], *({**item, "folder": _REPLAY} for item in replay["segments"])]


def _collect_garbage(folder: Path) -> None:
    """Delete segments that no checkpoint lists, and what a killed process has left behind."""
    used = set()
    for path in checkpoints(folder):
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        used |= {item["file"] for item in _files(manifest) if item["folder"] == _REPLAY}
    for path in (folder / _REPLAY).glob("*.zst"):
        if path.name not in used:
            path.unlink()
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Make sure that a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
