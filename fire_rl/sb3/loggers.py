"""What SB3's logger writes, how TensorBoard shows it, and how a resumed run goes on with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    DISABLED,
    CSVOutputFormat,
    Logger,
    TensorBoardOutputFormat,
)

from fire_rl.metrics.registry import Shown
from fire_rl.runs.layout import CONTINUED_LOGS
from fire_rl.sb3.internals import event_file


def summary_writer(logger: Logger) -> Any | None:
    """Return the logger's TensorBoard ``SummaryWriter``, or None if it has none."""
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            return output.writer
    return None


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
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.write(dict(values), nowhere, step)
    for key, value in values.items():
        logger.record(key, value, exclude="tensorboard")


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
    """Return how long each log file is now, by its name, everything logged so far included."""
    folder = log_folder(logger)
    if folder is None:
        return {}
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.writer.flush()
        elif isinstance(output, CSVOutputFormat):
            output.file.flush()
    return {path.name: path.stat().st_size for path in _log_files(folder)}


def cut_logs(logger: Logger, sizes: Mapping[str, int]) -> None:
    """Cut log files back to :func:`log_sizes`: what came later is about to be logged again.

    Event files that did not exist then are deleted, but for the logger's own. SB3 begins
    ``progress.csv`` anew when a logger is made: see :func:`continue_csv`.
    """
    folder = log_folder(logger)
    if folder is None:
        return
    own = {event_file(o) for o in logger.output_formats if isinstance(o, TensorBoardOutputFormat)}
    for path in _log_files(folder):
        if path.name in own or path.suffix == ".csv":
            continue
        if path.name in sizes:
            os.truncate(path, min(sizes[path.name], path.stat().st_size))
        else:
            path.unlink()


def continue_csv(logger: Logger, text: str) -> None:
    """Let a new logger's CSV file go on from an earlier one's content."""
    for output in logger.output_formats:
        if isinstance(output, CSVOutputFormat) and text:
            output.file.write(text)
            output.file.flush()
            output.keys = text.partition("\n")[0].split(output.separator)


def _log_files(folder: Path) -> list[Path]:
    return [path for name in CONTINUED_LOGS for path in folder.glob(name)]
