"""Write files so that a kill, an error or a full disk leaves them whole: the old one or the new."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file by rename: yield where to write, and put that into place at the end.

    After an error or a kill the file is as it was, and an ``OSError`` names it. A symbolic link at
    ``path`` is replaced, and not followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path):
            temporary.unlink(missing_ok=True)  # of a killed process; no link is followed, either
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """Open a file for writing that takes the place of ``path`` at the end: :func:`whole_file`."""
    with whole_file(path) as temporary, temporary.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a text file by rename, see :func:`whole_file`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table by rename, see :func:`whole_file`."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def append_whole(path: Path, text: str) -> None:
    """Append lines to a file: all of them or, after an error, none.

    A line that a kill has cut off before is ended first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            text = text if file.read(1) == b"\n" else f"\n{text}"
        try:
            _write(file, text.encode())
        except BaseException:
            file.truncate(size)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an ``OSError`` say which file it is about: a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _write(file: io.FileIO, data: bytes) -> None:
    while data:  # a disk that becomes full takes a part of it first
        data = data[file.write(data) :]
