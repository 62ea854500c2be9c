"""Read the files of a run folder: TensorBoard events, CSV, JSON lines. No point is left out.

The folder may be a stranger's, or that of a run that was killed: lines that are cut or damaged are
left out and counted in a note, and what no run writes is an error that names the file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fire_rl.runs import layout
from fire_rl.runs.lines import (
    HUGE,
    LAST_STEP,
    Rows,
    from_json,
    left_out,
    number,
    read_text,
    shown,
    step,
    with_nan,
)
from fire_rl.utils.limits import Limits
from fire_rl.utils.plain_text import printable

_LONG_LINE = 20_000_000  # of a report; one event of a large network has a tenth of it
_SMALL = 300_000  # bytes of a configuration or a result, at most
# What a report reads; TensorBoard takes every file for events that has this in its name.
_READ = (
    *("*tfevents*", layout.PROGRESS, layout.MONITORS, layout.EPISODES, layout.CONTINUAL),
    *(layout.INTERVENTIONS, layout.CONFIG, layout.RESULT),
)
_STEPS = (layout.EPISODE_COLUMNS[0], "l")  # columns of whole numbers
_OBJECTS = 16  # bytes of memory for a byte of text, as Python's objects
# Of a layer in the report of an intervention.
_LAYER_NUMBERS = ("num_singular_values", "norm_before", "sfe", "dfi_before", "dfi_after")
_SPECTRA = ("spectrum_before", "spectrum_after")


@dataclass(frozen=True)
class Series:
    """Values at environment steps, in order.

    Attributes:
        steps: Of shape ``(points,)``.
        values: Of shape ``(points,)``; NaN where that was logged.
    """

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, points: Iterable[tuple[float, float]]) -> Series:
        """Make a series of ``(step, value)``, sorted by step; equal steps keep their order.

        A step that no training has is left out; an infinite value, or a huge one, is NaN.
        """
        array = np.array(list(points), np.float64).reshape(-1, 2)
        array = array[(array[:, 0] >= 0) & (array[:, 0] <= LAST_STEP)]
        array = array[np.argsort(array[:, 0], kind="stable")]
        steps, values = array.T
        return cls(steps, np.where(np.abs(values) <= HUGE, values, np.nan))

    def until(self, step: float) -> Series:
        """Return the part up to a step."""
        kept = self.steps <= step
        return Series(self.steps[kept], self.values[kept])


def check_files(folder: Path, limits: Limits) -> None:
    """Check the files of a run folder before any of them is opened.

    Raises:
        ValueError: If one is no regular file (a pipe would never end), or all are too large.
    """
    size = 0
    for path in sorted({path for pattern in _READ for path in folder.glob(pattern)}):
        if not path.is_file():
            raise ValueError(
                f"{shown(path)} is no file: a folder, a pipe, a device or a dead link."
            )
        size += path.stat().st_size
    limits.check_size(size, f"{shown(folder)}", _OBJECTS)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's values; empty if there is none.

    Raises:
        ImportError: If PyYAML is missing.
        ValueError: If it is no mapping, or its aliases stand for more than any run's values.
    """
    path = folder / layout.CONFIG
    if not path.exists():
        return {}
    try:
        from yaml import SafeLoader

        from fire_rl.utils.bounded_yaml import load_yaml
    except ImportError:
        raise ImportError(_missing("PyYAML", path)) from None
    text = read_text(path, _SMALL)
    try:
        values = load_yaml(text, SafeLoader)
    except ValueError as error:
        raise ValueError(
            f"{shown(path)} cannot be read as YAML: {printable(str(error), 300)}"
        ) from None
    if not isinstance(values, Mapping):
        given = printable(repr(values), 100)
        raise ValueError(f"{shown(path)} must be a mapping of a run's values, got {given}.")
    return {str(name): value for name, value in values.items()}


def read_scalars(folder: Path) -> tuple[dict[str, Series], str]:
    """Read all scalars by tag, from TensorBoard events if there are any, else from SB3's CSV log.

    Returns:
        The scalars, and a note about them for the reader, or an empty string.

    Raises:
        ImportError: If there are events only and tensorboard is missing.
    """
    has_events = any(folder.glob(layout.EVENTS))
    has_csv = (folder / layout.PROGRESS).exists()
    if has_events:
        try:
            return _read_events(folder), ""
        except ImportError:
            if not has_csv:
                raise ImportError(_missing("tensorboard", folder)) from None
    return _read_progress(folder / layout.PROGRESS) if has_csv else ({}, "")


def _missing(package: str, path: Path) -> str:
    return f"Reading {path} needs {package}: pip install 'fire-rl[report]'"


def _read_events(folder: Path) -> dict[str, Series]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0 keeps every point of a tag; by default a sample of 10,000 is kept. Other kinds are not
    # read: the first entry is enough.
    guidance = {"scalars": 0, "tensors": 1, "images": 1, "audio": 1, "histograms": 1}
    events = EventAccumulator(
        str(folder), size_guidance={**guidance, "compressedHistograms": 1},
        purge_orphaned_data=False,
    )  # fmt: skip
    try:
        events.Reload()
    except Exception as error:  # a damaged file makes the packages below raise anything
        what = printable(str(error), 200) or type(error).__name__
        raise ValueError(
            f"The TensorBoard events ({layout.EVENTS}) in {shown(folder)} are damaged: {what}"
        ) from None
    return {
        tag: Series.of((point.step, point.value) for point in events.Scalars(tag))
        for tag in events.Tags()["scalars"]
    }


def _read_progress(path: Path) -> tuple[dict[str, Series], str]:
    """Read SB3's CSV log. A row without a step, as callbacks write, gets the step before it."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    last, guessed = 0.0, 0
    rows = Rows(path)
    for row in rows:
        given = number(row.get(layout.STEP_COLUMN))
        last, guessed = (last, guessed + 1) if given is None else (given, guessed)
        for tag, text in row.items():
            value = number(text) if tag != layout.STEP_COLUMN else None
            if value is not None:
                points[tag].append((last, value))
    note = f"{guessed} rows of {path.name} have no step; the previous row's step is used"
    notes = [note if guessed else "", rows.note]
    return {tag: Series.of(found) for tag, found in points.items()}, "; ".join(filter(None, notes))


def read_returns(folder: Path) -> tuple[dict[str, Series], str]:
    """Read the return of every training episode, by the file it comes from; and a note."""
    found, notes = {}, []
    if (path := folder / layout.EPISODES).exists():
        rows, note = _numbers(path, (*layout.EPISODE_COLUMNS[:2],))
        found[layout.EPISODES] = Series.of((at, score) for at, score in rows)
        notes.append(note)
    monitors = sorted(folder.glob(layout.MONITORS))
    if monitors:
        points: list[tuple[float, float]] = []
        for path in monitors:
            rows, note = _numbers(path, ("r", "l"))
            notes.append(note)
            # Environments side by side: one step of each is as many agent steps.
            steps = np.cumsum([length for _, length in rows]) * len(monitors)
            points += zip(steps.tolist(), [score for score, _ in rows], strict=True)
        found[layout.MONITOR] = Series.of(points)
    known = {name: series for name, series in found.items() if len(series.steps)}
    return known, "; ".join(filter(None, notes))


def _numbers(path: Path, columns: tuple[str, str]) -> tuple[list[tuple[float, float]], str]:
    """Read two columns of a CSV file, and say how many rows lack one; steps are whole numbers."""
    rows, found, damaged = Rows(path), [], 0
    for row in rows:
        one, other = ((step if name in _STEPS else number)(row.get(name)) for name in columns)
        if one is None or other is None:
            damaged += 1
        else:
            found.append((one, other))
    return found, left_out(rows.damaged + damaged, path)


def read_environment(folder: Path) -> str | None:
    """Read the environment's name from the files of SB3's Monitor, None if they do not say it."""
    for path in sorted(folder.glob(layout.MONITORS)):
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline()
        about = from_json(first[1:]) if first.startswith("#") else None
        name = about.get("env_id") if isinstance(about, Mapping) else None
        if isinstance(name, str) and name not in ("", "None"):
            return name
    return None


def read_events(folder: Path, name: str = layout.INTERVENTIONS) -> list[dict[str, Any]]:
    """Read the reports of interventions that changed a model; null becomes NaN.

    Lines of other kinds are left out, and those that are damaged: the last one of a killed run.
    """
    path = folder / name
    if not path.exists():
        return []
    reports: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            entry = from_json(line, with_nan) if len(line) < _LONG_LINE else None
            if isinstance(entry, dict) and _is_report(entry):
                reports.append(entry)
    return sorted(reports, key=lambda report: report["num_timesteps"])


def _is_report(entry: dict[str, Any]) -> bool:
    """Tell whether an entry reports a change; numbers of layers that are missing become NaN."""
    networks, at = entry.get("networks"), step(entry.get("num_timesteps"))
    if at is None or not isinstance(networks, Mapping) or entry.get("dry_run") is True:
        return False
    entry["num_timesteps"] = at
    for network in networks.values():
        layers = network.get("layers") if isinstance(network, Mapping) else None
        if not isinstance(layers, list) or not all(isinstance(one, dict) for one in layers):
            return False
        for layer in layers:
            layer["name"] = str(layer.get("name"))
            layer["shape"] = _list(layer.get("shape"))
            layer |= {key: _number(layer.get(key)) for key in _LAYER_NUMBERS}
            layer |= {key: [*map(_number, _list(layer.get(key)))] for key in _SPECTRA}
    return True


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> Any:
    """Return a number, NaN for anything else; a number keeps its type."""
    return value if number(value) is not None and not isinstance(value, str) else math.nan


def read_tasks(folder: Path) -> list[dict[str, float]]:
    """Read the evaluations at the end of each task, on it and on earlier ones."""
    path = folder / layout.CONTINUAL
    if not path.exists():
        return []
    found = []
    for row in Rows(path):
        values = {name: number(row.get(name)) for name in (*layout.CONTINUAL_COLUMNS, *row)}
        found.append({name: math.nan if v is None else v for name, v in values.items()})
    return found


def read_length(folder: Path, series: Sequence[Series]) -> tuple[int, bool]:
    """Return how many steps a run has made, and whether its result file says so."""
    path = folder / layout.RESULT
    if path.exists():
        result = from_json(read_text(path, _SMALL))
        steps = step(result.get("num_timesteps")) if isinstance(result, Mapping) else None
        if steps is not None:
            return steps, True
    return int(max((one.steps[-1] for one in series if len(one.steps)), default=0)), False
