"""Whose a checkpoint is: which training wrote it, from which model, and whether that has ended.

``resume=True`` means "go on after a kill". It must never take up what another training has written
into the same folder, such as that of the seed before.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from fire_rl.checkpoints.folder import survey
from fire_rl.checkpoints.identity import Identity, identity, identity_of_callbacks
from fire_rl.checkpoints.manifest import Checkpoint, CheckpointError, write_whole
from fire_rl.runs.layout import FINISHED
from fire_rl.sb3.internals import total_timesteps

logger = logging.getLogger("fire_rl")


@dataclass
class Training:
    """What this process knows of the training of one model.

    Attributes:
        writer: Names the model object in the checkpoints that it writes.
        run: Names the training: a resumed one has the name of the one that it goes on with.
        identity: What it was built with, before anything has changed.
        env: The environment that ``identity`` is about.
    """

    writer: str
    run: str
    identity: Identity
    env: Any


_TRAININGS: WeakKeyDictionary[BaseAlgorithm, Training] = WeakKeyDictionary()
_WRITERS: set[str] = set()  # every model of this process that has trained with checkpoints


def training_of(
    model: BaseAlgorithm, callbacks: Sequence[BaseCallback], start: bool = False
) -> Training:
    """Return the training of a model, which begins with the first call.

    Args:
        model: The model.
        callbacks: The callbacks of this call of ``learn()``.
        start: Whether that has just begun: one that counts from 0 is another training.
    """
    known = _TRAININGS.get(model)
    if known is None:
        built = identity(model, callbacks)
        known = Training(uuid.uuid4().hex, uuid.uuid4().hex, built, model.env)
        _TRAININGS[model] = known
        _WRITERS.add(known.writer)
        return known
    _WRITERS.add(known.writer)
    if start and (known.env is not model.env or model.num_timesteps == 0):
        known.identity, known.env = identity(model, callbacks), model.env
        if model.num_timesteps == 0:
            known.run = uuid.uuid4().hex
        return known
    mine = identity_of_callbacks(callbacks)  # of chunks: the rest as the first one began
    if start or [one["class"] for one in mine] != _classes(known.identity):
        known.identity = {**known.identity, "callbacks": mine}
    return known


def _classes(found: Identity) -> list[str]:
    return [callback["class"] for callback in found["callbacks"]]


def hand_over(model: BaseAlgorithm) -> None:
    """Let another model of this process go on with a training: it was stopped for that."""
    _WRITERS.discard(_TRAININGS[model].writer)


def go_on_with(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Let a model's training be the one of a checkpoint.

    Going back to an earlier checkpoint of a training begins another one: the later checkpoints of
    the first stay.
    """
    run, number = checkpoint.manifest["run"], checkpoint.manifest["number"]
    found, _ = survey(checkpoint.path.parent)
    numbers = [manifest["number"] for manifest in found.values() if manifest["run"] == run]
    if number >= max(numbers, default=0):
        _TRAININGS[model].run = run


def is_in_memory(model: BaseAlgorithm, checkpoint: Checkpoint) -> bool:
    """Tell whether a model has itself written a checkpoint, and is there or beyond it."""
    known = _TRAININGS.get(model)
    step = checkpoint.manifest["num_timesteps"]
    same = known is not None and known.writer == checkpoint.manifest["writer"]
    return same and 0 < step <= model.num_timesteps


def check_unfinished(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless ``resume=True`` may go on from a checkpoint."""
    manifest, path = checkpoint.manifest, checkpoint.path
    advice = (
        f"Give every training a folder of its own, for example one per seed; or, to go on from "
        f"that one all the same, resume={str(path)!r}."
    )
    ended = _finished(path.parent)
    if ended and ended["run"] == manifest["run"] and manifest["number"] <= ended["number"]:
        raise CheckpointError(
            f"resume=True finds a training in {path.parent} that has ended, at step "
            f"{ended['num_timesteps']:,} of {ended['total_timesteps']:,}: there is nothing to go "
            f"on with. {advice}"
        )
    known = _TRAININGS.get(model)
    mine = known.writer if known is not None else None
    if manifest["writer"] in _WRITERS and manifest["writer"] != mine:
        raise CheckpointError(
            f"resume=True finds {path}, which this process has written with another model: it "
            f"is another training's. {advice}"
        )


def check_total(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if a checkpoint lies at or behind the end of this training."""
    step, total = checkpoint.manifest["num_timesteps"], total_timesteps(model)
    if step >= total:
        raise CheckpointError(
            f"{checkpoint.path} is at step {step:,} and this training ends at {total:,}: nothing "
            "is left to train. Give learn() a larger total, or another folder."
        )


def mark_finished(model: BaseAlgorithm, folder: Path, last: Checkpoint) -> None:
    """Write down that a training has come to its total; a full disk is no reason to lose it."""
    values = {
        "run": last.manifest["run"],
        "number": last.manifest["number"],
        "num_timesteps": model.num_timesteps,
        "total_timesteps": total_timesteps(model),
    }
    try:
        write_whole(folder / FINISHED, json.dumps(values) + "\n")
    except OSError as error:
        logger.warning("%s could not be written: %s.", folder / FINISHED, error)


def _finished(folder: Path) -> dict[str, Any] | None:
    """Return what :func:`mark_finished` has written, or None."""
    path = folder / FINISHED
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        numbers = ("number", "num_timesteps", "total_timesteps")
        if isinstance(values["run"], str) and all(isinstance(values[n], int) for n in numbers):
            return dict(values)
        error: Exception = ValueError("it holds something else")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as caught:
        error = caught
    logger.warning("%s is damaged (%s): whether the training has ended is unknown.", path, error)
    return None
