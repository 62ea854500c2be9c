"""Rows of CSV and values of JSON and YAML from files that may be cut, damaged or made to harm.

What cannot be read is left out and counted; it never ends the reading of the rest.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fire_rl.utils.plain_text import printable

# No return and no metric is larger; sums and squares of what is smaller are finite.
HUGE = 1e100
# No training has more steps; float64 holds all whole numbers up to here.
LAST_STEP = 10**15


def shown(path: Path) -> str:
    """Return a path for a message: in one line, whatever its name."""
    return printable(str(path))


def number(value: Any) -> float | None:
    """Return the number in a cell or in JSON, NaN for an infinite or huge one, None for none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except OverflowError:
        return math.nan
    except ValueError:
        return None
    return found if abs(found) <= HUGE else math.nan


def step(value: Any) -> int | None:
    """Return a number of steps, None for what is none: negative, infinite or enormous."""
    found = number(value)
    return int(found) if found is not None and 0 <= found <= LAST_STEP else None


def with_nan(value: Any) -> Any:
    """Replace null and numbers that are too large by NaN; options keep theirs."""
    if isinstance(value, Mapping):
        return {k: v if k == "options" else with_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    if value is None:
        return math.nan
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return math.nan if is_number and not abs(value) <= HUGE else value


def from_json(text: str, change: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return the value of a JSON text, changed by a function; None if it is none."""
    try:
        return change(json.loads(text))
    except (ValueError, RecursionError):  # also a number of more digits than Python reads
        return None


def read_text(path: Path, most: int) -> str:
    """Read a small text file.

    Raises:
        ValueError: If it has more bytes than ``most``, or is not UTF-8.
    """
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{shown(path)} has {size:,} bytes, expected at most {most:,}.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(path)} is not UTF-8: {error}.") from None


class Rows:
    """The rows of a CSV file by column, one after the other.

    Attributes:
        damaged: How many rows have been left out so far.
    """

    def __init__(self, path: Path) -> None:
        self.damaged = 0
        self._path = path

    def __iter__(self) -> Iterator[dict[str, str]]:
        """Yield the rows; a first line that begins with ``#`` is a comment."""
        with self._path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            lines = (line for k, line in enumerate(file) if k or not line.startswith("#"))
            reader = csv.reader(lines)
            columns: list[str] = []
            while True:
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error:
                    self.damaged += 1
                    continue
                if not columns:
                    columns = cells
                elif len(cells) > len(columns):
                    self.damaged += 1
                elif cells:
                    yield dict(zip(columns, cells, strict=False))

    @property
    def note(self) -> str:
        """What was left out, for the reader; empty if nothing was."""
        return left_out(self.damaged, self._path)


def left_out(count: int, path: Path) -> str:
    """Say how many lines of a file were left out; empty if none."""
    what = "line is" if count == 1 else "lines are"
    return f"{count} damaged {what} left out of {printable(path.name)}" if count else ""
