"""Read the files of a run folder: TensorBoard events, CSV, JSON lines. No point is left out."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fire_rl.runs import layout
from fire_rl.runs.episodes import read_episodes


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
        """Make a series of ``(step, value)``, sorted by step; equal steps keep their order."""
        array = np.array(list(points), np.float64).reshape(-1, 2)
        array = array[np.argsort(array[:, 0], kind="stable")]
        return cls(array[:, 0], array[:, 1])

    def until(self, step: float) -> Series:
        """Return the part up to a step."""
        kept = self.steps <= step
        return Series(self.steps[kept], self.values[kept])


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's values; empty if there is none.

    Raises:
        ImportError: If PyYAML is missing.
        ValueError: If it is no mapping.
    """
    path = folder / layout.CONFIG
    if not path.exists():
        return {}
    try:
        import yaml
    except ImportError:
        raise ImportError(_missing("PyYAML", path)) from None
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must be a mapping of a run's values, got {values!r}.")
    return dict(values)


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
    events.Reload()
    return {
        tag: Series.of((point.step, point.value) for point in events.Scalars(tag))
        for tag in events.Tags()["scalars"]
    }


def _read_progress(path: Path) -> tuple[dict[str, Series], str]:
    """Read SB3's CSV log. A row without a step, as callbacks write, gets the step before it."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    step, guessed = 0.0, 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            given = _number(row.get(layout.STEP_COLUMN))
            step, guessed = (step, guessed + 1) if given is None else (given, guessed)
            for tag, text in row.items():
                value = (
                    _number(text) if isinstance(tag, str) and tag != layout.STEP_COLUMN else None
                )
                if value is not None:
                    points[tag].append((step, value))
    note = f"{guessed} rows of {path.name} have no step; the previous row's step is used"
    return {tag: Series.of(found) for tag, found in points.items()}, note if guessed else ""


def _number(text: Any) -> float | None:
    """Return the number that a cell holds, None if it holds none."""
    try:
        return float(text) if text not in (None, "") else None
    except (TypeError, ValueError):
        return None


def read_returns(folder: Path) -> dict[str, Series]:
    """Read the return of every training episode, by the file it comes from."""
    found = {}
    if (folder / layout.EPISODES).exists():
        found[layout.EPISODES] = Series.of(read_episodes(folder))
    monitors = sorted(folder.glob(layout.MONITORS))
    if monitors:
        points: list[tuple[float, float]] = []
        for path in monitors:
            rows = read_monitor(path)[1]
            # Environments side by side: one step of each is as many agent steps.
            steps = np.cumsum([length for _, length in rows]) * len(monitors)
            points += zip(steps.tolist(), [score for score, _ in rows], strict=True)
        found[layout.MONITOR] = Series.of(points)
    return {name: series for name, series in found.items() if len(series.steps)}


def read_monitor(path: Path) -> tuple[str | None, list[tuple[float, int]]]:
    """Read a file of SB3's Monitor: the environment's name, ``(return, length)`` of episodes."""
    with path.open(newline="", encoding="utf-8") as file:
        first = file.readline()
        if first.startswith("#"):
            try:
                about = json.loads(first[1:])
            except json.JSONDecodeError:
                about = {}
        else:
            about = {}
            file.seek(0)
        rows = [
            (float(row["r"]), int(float(row["l"])))
            for row in csv.DictReader(file)
            if _number(row.get("r")) is not None and _number(row.get("l")) is not None
        ]
    name = about.get("env_id") if isinstance(about, Mapping) else None
    return (name if isinstance(name, str) and name != "None" else None), rows


def read_events(folder: Path, name: str = layout.INTERVENTIONS) -> list[dict[str, Any]]:
    """Read the reports of interventions that changed a model; null becomes NaN.

    Lines of other kinds are left out, and a last line that a killed run has not finished.
    """
    path = folder / name
    if not path.exists():
        return []
    reports = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, Mapping) and "networks" in entry and not entry.get("dry_run"):
            reports.append(_with_nan(entry))
    return sorted(reports, key=lambda report: report["num_timesteps"])


def read_tasks(folder: Path) -> list[dict[str, float]]:
    """Read the evaluations at the end of each task, on it and on earlier ones."""
    path = folder / layout.CONTINUAL
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: _number(text) for key, text in row.items()} for row in csv.DictReader(file)]
    return [
        {key: math.nan if value is None else value for key, value in row.items()} for row in rows
    ]


def read_length(folder: Path, series: Sequence[Series]) -> tuple[int, bool]:
    """Return how many steps a run has made, and whether its result file says so."""
    path = folder / layout.RESULT
    if path.exists():
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["num_timesteps"]), True
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            pass
    return int(max((one.steps[-1] for one in series if len(one.steps)), default=0)), False


def _with_nan(value: Any) -> Any:
    """Replace null by NaN in what a report measured; options keep theirs."""
    if isinstance(value, Mapping):
        return {k: v if k == "options" else _with_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
