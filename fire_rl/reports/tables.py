"""A table, and the one way it is printed: Markdown, CSV, plain values, a data frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fire_rl.reports.measures import Estimate

if TYPE_CHECKING:
    from pandas import DataFrame

DASH = "–"
Cell = str | int | float | Estimate


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Of its files.
        title: A few words.
        about: What the columns mean.
        columns: Their names; the first one names the row.
        rows: Of as many cells.
    """

    name: str
    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def is_text(self, column: int) -> bool:
        """Whether a column holds words only: it is aligned to the left."""
        return all(isinstance(row[column], str) for row in self.rows)

    def without_empty_columns(self) -> Table:
        """Leave out the columns in which no row has a value."""
        columns = range(len(self.columns))
        kept = [k for k in columns if not all(_is_empty(row[k]) for row in self.rows)]
        rows = [[row[k] for k in kept] for row in self.rows]
        return replace(self, columns=[self.columns[k] for k in kept], rows=rows)

    def to_markdown(self) -> str:
        """Return it with padded columns."""
        left = [self.is_text(k) for k in range(len(self.columns))]
        return markdown(self.columns, [[show(cell) for cell in row] for row in self.rows], left)

    def to_frame(self) -> DataFrame:
        """Return it as a data frame of pandas; an estimate has three columns.

        Raises:
            ImportError: If pandas is missing.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("Tables need pandas: pip install 'fire-rl[report]'") from None
        frame: dict[str, list[Any]] = {}
        for name, cells in zip(self.columns, zip(*self.rows, strict=True), strict=True):
            if any(isinstance(cell, Estimate) for cell in cells):
                for end, key in (("", "value"), (" low", "low"), (" high", "high")):
                    frame[name + end] = [getattr(cell, key, math.nan) for cell in cells]
            else:
                frame[name] = list(cells)
        return pandas.DataFrame(frame)

    def to_csv(self) -> str:
        """Return it at full precision, as :meth:`to_frame` has it; what is missing is empty."""
        text: str = self.to_frame().to_csv(index=False, lineterminator="\n")
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        rows = [
            {name: vars(cell) if isinstance(cell, Estimate) else cell
             for name, cell in zip(self.columns, row, strict=True)}
            for row in self.rows
        ]  # fmt: skip
        return {"title": self.title, "about": self.about, "rows": rows}


def markdown(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[bool], pad: bool = True
) -> str:
    """Return a table in Markdown.

    Args:
        columns: The names.
        rows: The cells.
        left: Which columns are aligned to the left; the others are to the right.
        pad: Whether all cells of a column get the same width.
    """
    lines = [[text.replace("|", "\\|").replace("\n", " ") for text in line]
             for line in (columns, *rows)]  # fmt: skip
    widths = [max(map(len, cells)) if pad else 1 for cells in zip(*lines, strict=True)]
    sides = ["<" if is_left else ">" for is_left in left]
    form = " | ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    head, *body = (f"| {form.format(*line)} |" for line in lines)
    if pad:
        rule = "|".join(f" {'-' * (width - 1)}{'-' if is_left else ':'} "
                        for width, is_left in zip(widths, left, strict=True))  # fmt: skip
    else:
        rule = "|".join("---" if is_left else "---:" for is_left in left)
    return "\n".join([head, f"|{rule}|", *body])


def show(cell: Cell) -> str:
    """Return a cell with four digits: ``82.41 [80.12, 84.9]``, and a dash for what is not known."""
    if isinstance(cell, Estimate):
        if math.isnan(cell.value):
            return DASH
        limits = DASH if math.isnan(cell.low) else f"{_number(cell.low)}, {_number(cell.high)}"
        return f"{_number(cell.value)} [{limits}]"
    if isinstance(cell, str):
        return cell or DASH
    return f"{cell:,}" if isinstance(cell, int) else _number(cell)


def _number(value: float) -> str:
    """Return four digits of a number, with commas."""
    if not math.isfinite(value):
        return DASH if math.isnan(value) else str(value)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return "0" if value == 0 else f"{value:.3g}" if size < 0.01 else f"{value:.4g}"


def _is_empty(cell: Cell) -> bool:
    value = cell.value if isinstance(cell, Estimate) else cell
    return value == "" if isinstance(value, str) else math.isnan(value)
