"""Checkpoints from which a training goes on as if nothing had happened.

A folder of checkpoints has one sub-folder for each, named by its step, and ``replay/`` with the
segments that they share. A checkpoint counts when its ``manifest.json`` is there, which is written
last and renamed into place: a kill at any byte leaves the earlier ones as they are.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from fire_rl.checkpoints import identity as identities
from fire_rl.checkpoints import replay_segments
from fire_rl.checkpoints.folder import (
    check_no_links,
    collect_garbage,
    delete_old,
    free_name,
    locked,
    next_number,
    survey,
    temporary_for,
)
from fire_rl.checkpoints.manifest import (
    FORMAT,
    REPLAY,
    STATE,
    files_of,
    named,
    read_manifest,
    sealed,
    segment_names,
)
from fire_rl.checkpoints.manifest import Checkpoint as Checkpoint
from fire_rl.checkpoints.manifest import CheckpointError as CheckpointError
from fire_rl.checkpoints.manifest import checksum as _checksum  # noqa: F401  (tests seal with it)
from fire_rl.checkpoints.manifest import sync as _sync
from fire_rl.checkpoints.ownership import go_on_with, training_of
from fire_rl.checkpoints.replay_segments import digest
from fire_rl.checkpoints.safe_tree import read_tree, write_tree
from fire_rl.checkpoints.training_state import capture_training, restore_training
from fire_rl.runs.layout import MANIFEST, MODEL, VECNORMALIZE, checkpoint_paths
from fire_rl.sb3.internals import saved_variables, total_timesteps
from fire_rl.sb3.loggers import cut_logs, log_sizes

logger = logging.getLogger("fire_rl")


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
        keep_last: How many checkpoints of this training to keep, as they were written; None for
            all. The new one stays in any case, and so does the newest one with finite weights.
        base: The checkpoint in this folder that this training has written last, or was restored
            from: what it holds of the replay buffer is neither written nor verified again.

    Raises:
        CheckpointError: If it cannot be written, or another process writes here; earlier
            checkpoints are as they were.
    """
    started = time.perf_counter()
    folder = Path(folder)
    with locked(folder):
        final = free_name(folder, model.num_timesteps)
        temporary = temporary_for(final)
        try:
            check_no_links(folder)
            (folder / REPLAY).mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            earlier = _replay_of(base, folder, training_of(model, callbacks).run)
            written = _write(model, folder, temporary, callbacks, earlier)
            os.replace(temporary, final)
            _sync(folder)
            known = {item["file"] for item in (earlier or {"segments": []})["segments"]}
            manifest = _verified(final, known).manifest
        except (OSError, ValueError) as error:
            collect_garbage(folder)
            good, _ = _newest_whole(folder)
            rest = f"the last good one is {good.path}" if good else "there is no earlier one"
            raise CheckpointError(
                f"The checkpoint at step {model.num_timesteps:,} could not be written to "
                f"{folder}: {error}; {rest}."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # what an error has left of it
        if not manifest["finite"] and (base is None or base.manifest["finite"]):
            logger.warning(
                "The checkpoint %s holds weights that are NaN or infinite; the newest one with "
                "finite weights is kept, whatever `keep_last` is.", final,
            )  # fmt: skip
        delete_old(folder, final, keep_last)
        collect_garbage(folder)
    total = sum(item["bytes"] for item in files_of(manifest))
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
        strict: Whether other options than the checkpoint's are an error that names them all: of
            the algorithm (``seed`` among them), the policy, the environments and the callbacks.
            Otherwise the model's own hold. Spaces, ``n_envs``, networks and buffers must fit.
        branch: Whether this is another training than the one that was saved, with its own logs
            and callbacks; see :func:`~fire_rl.checkpoints.training_state.restore_training`.

    Returns:
        The callbacks that begin here: those that branched off.

    Raises:
        CheckpointError: If the checkpoint is damaged, or does not fit the model.
    """
    found = checkpoint if isinstance(checkpoint, Checkpoint) else check(checkpoint)
    path, manifest = found.path, found.manifest
    buffer = getattr(model, "replay_buffer", None)
    try:
        tree = read_tree(path / STATE)
        saved, mine = tree["identity"], training_of(model, callbacks).identity
        wrong: list[str] = identities.compare(saved, mine, strict, branch)
        if saved["algorithm"] == mine["algorithm"]:
            wrong += replay_segments.misfit(buffer, manifest["replay"])
        if wrong:
            raise ValueError("; ".join(wrong))
        replay_segments.restore_replay(
            buffer, manifest["replay"], tree["replay"], path.parent / REPLAY
        )
        begun = restore_training(model, tree["training"], callbacks, branch)
    except Exception as error:  # a stranger's files may hold anything
        what = f"{type(error).__name__} " if isinstance(error, KeyError | AssertionError) else ""
        raise CheckpointError(f"The checkpoint {path} does not fit: {what}{error}.") from error
    if not branch:
        go_on_with(model, found)
        cut_logs(model.logger, manifest["logs"], path.parent)
    return begun


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first; unfinished ones do not count."""
    return checkpoint_paths(folder)


def latest(folder: str | Path) -> Checkpoint | None:
    """Return the newest checkpoint, as they were written, that is whole.

    Those that are not are named in warnings. A folder without a manifest was never a whole one.

    Raises:
        CheckpointError: If there are checkpoints, and none of them is whole.
    """
    found, damaged = _newest_whole(Path(folder))
    complete = [error for path, error in damaged.items() if os.path.lexists(path / MANIFEST)]
    if found is None and complete:
        raise CheckpointError(
            f"None of the {len(complete)} checkpoints in {folder} can be used, and a training that "
            "began anew there would hide what is left of them. The newest: "
            f"{complete[0]} To begin anew, choose another folder, or move them away."
        )
    return found


def _newest_whole(folder: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """Return the newest whole checkpoint, and what is wrong with those that were passed over."""
    found, damaged = survey(folder)
    wrong: dict[Path, str] = {}
    for path in [*reversed(damaged), *reversed(found)]:
        try:
            return check(path), wrong
        except CheckpointError as error:
            logger.warning("%s It is passed over.", error)
            wrong[path] = str(error)
    return None, wrong


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
    homes = {"": path, STATE: path / STATE, REPLAY: path.parent / REPLAY}
    try:
        manifest = read_manifest(path)
        for item in files_of(manifest):
            if Path(item["file"]).name != item["file"] or item["folder"] not in homes:
                raise ValueError(f"it names a file elsewhere, {item['file']!r}")
            file = homes[item["folder"]] / item["file"]
            if not file.is_file():
                raise ValueError(f"{file.name} is missing")
            is_known = item["folder"] == REPLAY and item["file"] in known
            if not is_known and digest(file) != item["sha256"]:
                raise ValueError(f"{file.name} is damaged: its checksum is another one")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no usable checkpoint: {error}.") from error
    return Checkpoint(path, manifest)


def _write(
    model: BaseAlgorithm,
    folder: Path,
    target: Path,
    callbacks: Sequence[BaseCallback],
    earlier: dict[str, Any] | None,
) -> int:
    """Write all files of a checkpoint; return the bytes written."""
    training = training_of(model, callbacks)
    buffer = getattr(model, "replay_buffer", None)
    with named(folder / REPLAY):
        replay, head, written = replay_segments.write_replay(
            buffer, model.num_timesteps, folder / REPLAY, earlier
        )
    _sync(folder / REPLAY)
    now = identities.identity(model, callbacks)
    tree = {
        "identity": identities.without_state(training.identity, now),
        "training": capture_training(model, callbacks, training.identity, now),
        "replay": head,
    }
    (target / STATE).mkdir()
    with named(target / STATE):
        write_tree(target / STATE, tree)
    # SB3 leaves its own file open after an error
    with named(target / MODEL), (target / MODEL).open("wb") as file:
        model.save(file)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        with named(target / VECNORMALIZE):
            normalize.save(str(target / VECNORMALIZE))
    files = []
    for path in sorted([*target.glob("*.*"), *(target / STATE).iterdir()]):
        size = path.stat().st_size
        where = STATE if path.parent.name == STATE else ""
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
        "run": training.run,
        "writer": training.writer,
        "number": next_number(folder),
        "finite": _is_finite(model),
    }
    with named(target / MANIFEST):
        (target / MANIFEST).write_text(sealed(manifest), encoding="utf-8")
    for path in (target / MANIFEST, target / STATE, target):
        _sync(path)
    return written


def is_intact(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint's replay segments are there, as long as they were written."""
    folder, names = checkpoint.path.parent / REPLAY, segment_names(checkpoint.manifest)
    sizes = {item["file"]: item["bytes"] for item in files_of(checkpoint.manifest)}
    files = {name: folder / name for name in names}
    return all(file.is_file() and file.stat().st_size == sizes[n] for n, file in files.items())


def _is_finite(model: BaseAlgorithm) -> bool:
    """Tell whether all weights, and what SB3 trains beside them, are finite numbers."""
    tensors = [*model.policy.parameters(), *(getattr(model, n) for n in saved_variables(model))]
    return all(bool(torch.isfinite(tensor.detach()).all()) for tensor in tensors)


def _replay_of(base: Checkpoint | None, folder: Path, run: str) -> dict[str, Any] | None:
    """Return what the checkpoint that this training goes on from says about its replay buffer."""
    if base is None or base.manifest["run"] != run or not base.path.exists():
        return None
    if base.path.parent.resolve() != folder.resolve():
        return None
    replay: dict[str, Any] | None = base.manifest["replay"]
    return replay
