"""Files that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """Open a file for writing that takes the place of ``path`` when the block ends without error.

    A kill at any byte leaves the old file as it was. A symbolic link at ``path`` is replaced, and
    not followed.

    Args:
        path: The file; what is there before the block ends is the old one.

    Raises:
        OSError: If it cannot be written; then the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # of a killed process; a link is not followed, either
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file by :func:`replacing`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
