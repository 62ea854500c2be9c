"""SB3's ``progress.csv``, of which a kill, an error or a full disk leaves whole rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import CSVOutputFormat, filter_excluded_keys

from fire_rl.utils.files import append_whole, write_whole


class WholeCSV(CSVOutputFormat):
    """Write what SB3's CSV output writes, row by row, and the whole file where that is not enough.

    SB3 empties the file as it opens it, and rewrites it in place when a column appears. Here it is
    not touched before the first row, so that a process that is refused leaves it alone; a new
    column, and a file that is not as it was left, are written by rename. All rows are in memory.

    Args:
        path: Of the file.

    Attributes:
        rows: All rows so far, each with its end of line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.keys: list[str] = []
        self.separator, self.quotechar = ",", '"'
        self.rows: list[str] = []
        self._size: int | None = None  # of the file as it was left; None: write all of it

    @classmethod
    def instead_of(cls, output: CSVOutputFormat) -> WholeCSV:
        """Go on for an output of SB3's."""
        output.file.flush()
        whole = cls(output.file.name)
        whole.keys = list(output.keys)
        if whole.path.exists():
            whole.rows = _rows(whole.path.read_text(encoding=output.file.encoding))[1:]
        output.close()
        return whole

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Add a row.

        Raises:
            OSError: Naming the file, if it cannot be written; then it holds the rows before.
        """
        known = len(self.keys)
        wanted = filter_excluded_keys(key_values, key_excluded, "csv")
        self.keys += [key for key in wanted if key not in self.keys]
        line = io.StringIO()
        self.file = line  # type: ignore[assignment]  # where SB3 writes to
        try:
            super().write(key_values, key_excluded, step)  # all columns are known: one row
        except BaseException:
            del self.keys[known:]
            raise
        row, new = line.getvalue(), len(self.keys) - known
        if new:
            self.rows = [f"{row[:-1]}{self.separator * new}\n" for row in self.rows]
        self.rows.append(row)
        size, self._size = self._size, None
        if new or size is None or not self.path.is_file() or self.path.stat().st_size != size:
            self.write_all()
        else:
            append_whole(self.path, row)
            self._size = size + len(row.encode())

    def write_all(self) -> None:
        """Write the whole file, by rename."""
        text = self.text()
        write_whole(self.path, text)
        self._size = len(text.encode())

    def text(self) -> str:
        """Return what the file holds: a line of columns, and the rows; empty before the first."""
        header = self.separator.join(self.keys) + "\n" if self.keys else ""
        return header + "".join(self.rows)

    def go_on(self, keys: list[str], text: str) -> None:
        """Go on behind what an earlier process has written; later rows in the file are dropped."""
        self.keys, self.rows, self._size = list(keys), _rows(text)[1:], None
        self.write_all()

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _rows(text: str) -> list[str]:
    """Split a CSV file into rows; quoted ends of lines are none, and a row without one is cut."""
    rows, row = [], ""
    for line in text.split("\n")[:-1]:
        row += f"{line}\n"
        if row.count('"') % 2 == 0:
            rows.append(row)
            row = ""
    return rows
