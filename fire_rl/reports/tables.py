"""Tables: of what cells are made, and how they look in Markdown, CSV, HTML and JSON."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fire_rl.reports.measures import Estimate

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
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def without_empty_columns(self) -> Table:
        """Leave out the columns in which no row has a value."""
        kept = [k for k in range(len(self.columns)) if any(not _empty(row[k]) for row in self.rows)]
        return Table(
            self.name, self.title, self.about, tuple(self.columns[k] for k in kept),
            tuple(tuple(row[k] for k in kept) for row in self.rows),
        )  # fmt: skip

    def to_markdown(self) -> str:
        """Return it with padded columns."""
        lines = [list(self.columns)]
        lines += [[_markdown(show(cell)) for cell in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        left = [self._is_text(k) for k in range(len(self.columns))]
        rule = ["-" * w if t else "-" * (w - 1) + ":" for w, t in zip(widths, left, strict=True)]
        padded = [
            [c.ljust(w) if t else c.rjust(w) for c, w, t in zip(line, widths, left, strict=True)]
            for line in lines
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])

    def to_csv(self) -> str:
        """Return it at full precision: an estimate has three columns, what is missing is empty."""
        estimates = [any(isinstance(row[k], Estimate) for row in self.rows)
                     for k in range(len(self.columns))]  # fmt: skip
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        header: list[str] = []
        for name, is_estimate in zip(self.columns, estimates, strict=True):
            header += [name, f"{name} low", f"{name} high"] if is_estimate else [name]
        writer.writerow(header)
        for row in self.rows:
            cells: list[Any] = []
            for cell, is_estimate in zip(row, estimates, strict=True):
                if isinstance(cell, Estimate):
                    cells += [cell.value, cell.low, cell.high]
                else:
                    cells += [cell, "", ""] if is_estimate else [cell]
            writer.writerow(["" if _is_nan(cell) else cell for cell in cells])
        return text.getvalue()

    def to_html(self) -> str:
        """Return a ``<table>``."""
        left = [' class="text"' if self._is_text(k) else "" for k in range(len(self.columns))]
        head = "".join(
            f"<th{kind} scope='col'>{html.escape(name)}</th>"
            for name, kind in zip(self.columns, left, strict=True)
        )
        body = []
        for row in self.rows:
            first, *rest = (html.escape(show(cell)) for cell in row)
            cells = "".join(f"<td{kind}>{c}</td>" for c, kind in zip(rest, left[1:], strict=True))
            body.append(f"<tr><th{left[0]} scope='row'>{first}</th>{cells}</tr>")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, ready for JSON; what is no number becomes None."""
        rows = [
            {name: _plain(cell) for name, cell in zip(self.columns, row, strict=True)}
            for row in self.rows
        ]
        return {"title": self.title, "about": self.about, "rows": rows}

    def _is_text(self, column: int) -> bool:
        return all(isinstance(row[column], str) for row in self.rows)


def show(cell: Cell) -> str:
    """Return a cell with four digits: ``82.41 [80.12, 84.9]``, and a dash for what is not known."""
    if isinstance(cell, Estimate):
        if _is_nan(cell.value):
            return DASH
        limits = DASH if _is_nan(cell.low) else f"{number(cell.low)}, {number(cell.high)}"
        return f"{number(cell.value)} [{limits}]"
    if isinstance(cell, str):
        return cell or DASH
    return f"{cell:,}" if isinstance(cell, int) else number(cell)


def number(value: float) -> str:
    """Return four digits of a number, with commas."""
    if not math.isfinite(value):
        return DASH if math.isnan(value) else str(value)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return "0" if value == 0 else f"{value:.3g}" if size < 0.01 else f"{value:.4g}"


def sections(tables: Sequence[Table]) -> str:
    """Return all tables in Markdown, each with its title and its explanation."""
    parts = [f"## {table.title}\n\n{table.about}\n\n{table.to_markdown()}\n" for table in tables]
    return "\n".join(parts)


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _empty(cell: Cell) -> bool:
    return _is_nan(cell.value if isinstance(cell, Estimate) else cell) or cell == ""


def _plain(cell: Cell) -> Any:
    if isinstance(cell, Estimate):
        return {"value": _plain(cell.value), "low": _plain(cell.low), "high": _plain(cell.high)}
    return None if _is_nan(cell) else cell
