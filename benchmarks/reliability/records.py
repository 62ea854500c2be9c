"""Everything that a run folder recorded, as entries that two runs can be compared by."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

from fire_rl.files.formats import read_model_file
from fire_rl.runs import layout

# What a clock or the process decides, not the training; SB3 counts iterations in each `learn()`.
CLOCK = ("time/fps", "time/time_elapsed", "time/iterations", "final/steps_per_second")
CLOCK_KEYS = {"seconds", "steps_per_second", "time", "checkpoint"}
EVENTS = "events"  # of TensorBoard, whatever their names
# Layouts and session names that TensorBoard's plugins write once in each event file.
PLUGINS = ("_hparams_/", "custom_scalars__config__")

Entry = tuple[str, Hashable, str]  # file, what it is about, its value


@dataclass(frozen=True)
class Difference:
    """How the records of a disturbed run differ from those of the undisturbed one.

    Attributes:
        entries: How many the undisturbed run has.
        different: Entries about the same thing with another value.
        lost: Entries that are missing.
        doubled: Entries that are there more often, or that the undisturbed run has not.
        examples: A few of them, to look at.
    """

    entries: int
    different: int
    lost: int
    doubled: int
    examples: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is no difference."""
        return not (self.different or self.lost or self.doubled)


def compare(whole: Path, cut: Path, without: str = "") -> Difference:
    """Compare what two run folders hold.

    Args:
        whole: The undisturbed run.
        cut: The other one.
        without: Name of a file that is left out.
    """
    kept = lambda entry: Path(entry[0]).name != without  # noqa: E731
    expected = Counter(filter(kept, records(whole)))
    found = Counter(filter(kept, records(cut)))
    missing, more = expected - found, found - expected
    about = Counter((file, key) for file, key, _ in missing.elements())
    also = Counter((file, key) for file, key, _ in more.elements())
    different = sum((about & also).values())
    examples = [f"missing {entry}" for entry in list(missing)[:3]]
    examples += [f"more {entry}" for entry in list(more)[:3]]
    return Difference(
        entries=expected.total(),
        different=different,
        lost=about.total() - different,
        doubled=also.total() - different,
        examples=tuple(example[:300] for example in examples),
    )


def records(folder: Path) -> Iterator[Entry]:
    """Read every record of a folder and of the folders in it, checkpoints left out."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and layout.CHECKPOINTS not in path.relative_to(folder).parts:
            for key, value in _entries(path):
                yield _where(name), key, value.replace(str(folder), "FOLDER")


def _where(name: str) -> str:
    """Return a file's name; event files, of which each attempt writes one, count as one."""
    path = Path(name)
    return str(path.with_name(EVENTS)) if path.match(layout.EVENTS) else name


def _entries(path: Path) -> Iterator[tuple[Hashable, str]]:
    if path.match(layout.EVENTS):
        yield from _events(path)
    elif path.suffix == ".csv":
        yield from _rows(path)
    elif path.suffix == ".jsonl":
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                yield "damaged", line
                continue
            about = (entry.get("num_timesteps", entry.get("step")), "recovery" in entry)
            yield about, json.dumps(_without_clock(entry), sort_keys=True)
    elif path.name in (layout.RESULT, layout.RECOVERY):
        value = json.loads(path.read_text(encoding="utf-8"))
        yield "", json.dumps(_without_clock(value), sort_keys=True)
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            for key in arrays.files:
                for row, value in enumerate(np.atleast_1d(arrays[key])):
                    yield (key, row), repr(value.tolist())
    elif path.suffix == ".zip":
        yield "weights", weights(path)


def weights(path: Path) -> str:
    """Return a digest of the policy's weights in a model's zip file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_model_file(path).tensors.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _events(path: Path) -> Iterator[tuple[Hashable, str]]:
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.tag not in CLOCK and not value.tag.startswith(PLUGINS):
                yield (value.tag, event.step), repr(make_ndarray(value.tensor).tolist())


def _rows(path: Path) -> Iterator[tuple[Hashable, str]]:
    """Read a CSV file; a row is about its step, or about its number where it has none."""
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            kept = {k: v for k, v in row.items() if k not in CLOCK and v not in (None, "")}
            step = row.get(layout.STEP_COLUMN) or row.get("step") or number
            yield step, repr(sorted(kept.items(), key=repr))


def _without_clock(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_clock(v) for k, v in value.items() if k not in CLOCK_KEYS}
    return [_without_clock(item) for item in value] if isinstance(value, list) else value
