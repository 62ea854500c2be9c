"""What SB3's logger writes, how TensorBoard shows it, and how a resumed run goes on with it."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import (
    DISABLED,
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    Logger,
    TensorBoardOutputFormat,
)

from fire_rl.metrics.registry import Shown
from fire_rl.runs.layout import EVENT_FILES, EVENTS
from fire_rl.sb3.internals import event_file
from fire_rl.sb3.progress_csv import WholeCSV
from fire_rl.utils.files import naming, write_whole

warner = logging.getLogger("fire_rl")


def summary_writer(logger: Logger) -> Any | None:
    """Return the logger's TensorBoard ``SummaryWriter``, or None if it has none."""
    return next((output.writer for output in _tensorboard(logger)), None)


def log_scalars(logger: Logger, values: Mapping[str, float], step: int) -> None:
    """Log values of our own without moving those of others.

    ``logger.dump()`` would write all that SB3 and the user have recorded so far, at another step
    than without us, and begin their means anew. TensorBoard gets the values now, at their step;
    tables and files of rows get them in their next row.

    Args:
        logger: The model's.
        values: By key.
        step: At which they were measured.
    """
    if logger.level == DISABLED:
        return
    nowhere: dict[str, tuple[str, ...]] = dict.fromkeys(values, ("",))
    for output in _tensorboard(logger):
        output.write(dict(values), nowhere, step)
    for key, value in values.items():
        logger.record(key, value, exclude="tensorboard")


class NamingTensorBoard(TensorBoardOutputFormat):
    """SB3's own, but an error says which file could not be written; its thread does not tell."""

    def __init__(self, output: TensorBoardOutputFormat) -> None:
        vars(self).update(vars(output))

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Write values at a step."""
        with naming(Path(self.writer.log_dir) / event_file(self)):
            super().write(key_values, key_excluded, step)


def guard_outputs(logger: Logger) -> None:
    """Let SB3's outputs survive a full disk, a kill and a second process: their rows are whole."""
    for number, output in enumerate(logger.output_formats):
        if type(output) is CSVOutputFormat and not output.file.closed:
            logger.output_formats[number] = WholeCSV.instead_of(output)
        elif type(output) is TensorBoardOutputFormat:
            logger.output_formats[number] = NamingTensorBoard(output)


def log_folder(logger: Logger) -> Path | None:
    """Return the folder of the logger's TensorBoard or CSV files, or None if it writes none."""
    writes = any(
        isinstance(output, TensorBoardOutputFormat | CSVOutputFormat)
        for output in logger.output_formats
    )
    folder = logger.get_dir()
    return Path(folder) if writes and folder is not None else None


def custom_scalars_layout(roles: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Lay out the Custom Scalars tab: returns and plasticity together, one category a network.

    Args:
        roles: Of the model's networks, such as ``["actor", "critic"]``.
    """
    layout: dict[str, dict[str, list[Any]]] = {}
    for role in roles:
        charts = {"return": ["rollout/ep_rew_mean", "eval/mean_reward"]}
        for key, title in Shown("tensorboard").items():
            # The deviation from isometry just after each event is drawn in the same chart.
            after = [f"intervention/{role}/dfi_after$"] if key == "dfi_per_sv" else []
            name = title.replace("DfI", "deviation from isometry")
            charts[name] = [f"plasticity/{role}/{key}$", *after]
        layout[role] = {name: ["Multiline", tags] for name, tags in charts.items()}
    return layout


def log_sizes(logger: Logger) -> dict[str, int]:
    """Return how long each event file is now, by its name, everything logged so far included."""
    folder = log_folder(logger)
    if folder is None:
        return {}
    for output in _tensorboard(logger):
        output.writer.flush()
    return {path.name: path.stat().st_size for path in folder.glob(EVENTS)}


def note_event_files(logger: Logger, checkpoints: Path) -> None:
    """Write down which event files the trainings of a folder of checkpoints have begun."""
    begun = [event_file(output) for output in _tensorboard(logger)]
    known = _event_files(checkpoints)
    if not known.issuperset(begun):
        write_whole(checkpoints / EVENT_FILES, json.dumps(sorted(known.union(begun))) + "\n")


def cut_logs(logger: Logger, sizes: Mapping[str, Any], checkpoints: Path) -> None:
    """Cut event files back to :func:`log_sizes`: what came later is about to be logged again.

    Files that this training has begun since (:func:`note_event_files`) are deleted, but for the
    logger's own; those of other trainings are left alone. The logs are not needed to go on: what
    cannot be cut is named in a warning.
    """
    folder = log_folder(logger)
    if folder is None:
        return
    own = {event_file(output) for output in _tensorboard(logger)}
    begun = _event_files(checkpoints)
    is_here = folder.resolve() == checkpoints.parent.resolve()
    for name in sizes if is_here or any((folder / name).exists() for name in sizes) else ():
        size = (folder / name).stat().st_size if (folder / name).exists() else 0
        if size < sizes[name]:
            lost = sizes[name] - size
            warner.warning("%s has lost %d bytes that were logged before.", folder / name, lost)
    for path in folder.glob(EVENTS):
        if path.name in own or path.is_symlink():
            continue
        try:
            if path.name in sizes:
                os.truncate(path, min(sizes[path.name], path.stat().st_size))
            elif path.name in begun:
                path.unlink()
        except OSError as error:
            _warn_of(path, error)


def capture_rows(logger: Logger) -> dict[str, Any]:
    """Return what the files of rows hold so far, by name: SB3 empties them for a new logger.

    A file that is gone is left out: a log is no reason to save no checkpoint.
    """
    found: dict[str, Any] = {}
    for name, output in _row_outputs(logger):
        try:
            text = output.text() if isinstance(output, WholeCSV) else _written_by(output)
        except (OSError, ValueError) as error:
            warner.warning("%s is not saved with the checkpoint: %s", name, error)
            continue
        packed = np.frombuffer(zlib.compress(text.encode(), 1), np.uint8)
        found[name] = {"keys": list(getattr(output, "keys", ())), "text": packed}
    return found


def restore_rows(logger: Logger, rows: Mapping[str, Any]) -> None:
    """Let the files of rows go on from :func:`capture_rows`: what came later is logged again."""
    for name, output in _row_outputs(logger):
        if name not in rows:
            continue
        text = zlib.decompress(rows[name]["text"].tobytes()).decode()
        try:
            if isinstance(output, WholeCSV):
                output.go_on(rows[name]["keys"], text)
            else:
                output.file.seek(0)
                output.file.truncate()
                output.file.write(text)
                output.file.flush()
        except (OSError, ValueError) as error:  # a WholeCSV tries again with its next row
            _warn_of(Path(name), error)


def _row_outputs(logger: Logger) -> list[tuple[str, Any]]:
    """Return the outputs that write rows to files of their own, each with the file's name."""
    found: list[tuple[str, Any]] = []
    for output in logger.output_formats:
        if isinstance(output, WholeCSV):
            found.append((output.path.name, output))
        elif isinstance(output, JSONOutputFormat | CSVOutputFormat) or (
            isinstance(output, HumanOutputFormat) and output.own_file
        ):
            found.append((Path(output.file.name).name, output))
    return found


def _written_by(output: Any) -> str:
    output.file.flush()
    return Path(output.file.name).read_text(encoding=output.file.encoding)


def _tensorboard(logger: Logger) -> list[TensorBoardOutputFormat]:
    return [o for o in logger.output_formats if isinstance(o, TensorBoardOutputFormat)]


def _event_files(checkpoints: Path) -> set[str]:
    """Return what :func:`note_event_files` has written; nothing of a damaged file."""
    try:
        names = json.loads((checkpoints / EVENT_FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return {n for n in names if isinstance(n, str)} if isinstance(names, list) else set()


def _warn_of(path: Path, error: Exception) -> None:
    warner.warning("%s cannot be put back to the checkpoint: %s", path, error)
