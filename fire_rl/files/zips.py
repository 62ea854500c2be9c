"""Members of zip files: what they declare is checked before they are read, and bounds the reading.

A small zip may declare to hold terabytes, and may lie about it. Stable-Baselines3 and torch store
their members as they are; deflated ones, as other programs write them, are read with bounds.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fire_rl.utils.limits import Limits

# Random weights hardly shrink; of members beyond this size, what shrinks by more is no model.
_SMALL, _MOST_PACKED = 1e7, 100
_CHUNK = 1 << 20


class Archive:
    """An open zip file.

    Attributes:
        path: What messages call it.
        limits: How much may be read.
        members: What the table of contents says of each member.
        names: The names of its members.
        comment: The comment of the whole.
    """

    def __init__(self, archive: zipfile.ZipFile, path: str, limits: Limits) -> None:
        self.path = path
        self.limits = limits
        self.comment = archive.comment
        self._archive = archive
        self.members: Sequence[zipfile.ZipInfo] = archive.infolist()
        self.names = [info.filename for info in self.members]

    def check(self) -> None:
        """Raise ValueError unless each member is there once, and all of them fit into memory."""
        seen = set[str]()
        for info in self.members:
            if info.filename in seen:
                raise ValueError(f"`{self.path}` holds `{printed(info.filename)}` more than once.")
            seen.add(info.filename)
            _check_packing(info, self.path)
        self.limits.check_size(sum(info.file_size for info in self.members), f"`{self.path}`")

    def read(self, member: str | zipfile.ZipInfo) -> bytes:
        """Read a member: never more than it declares.

        Raises:
            ValueError: If it is damaged or encrypted.
        """
        content = bytearray()
        with _readable(self.path), self._archive.open(member) as opened:
            while chunk := opened.read(_CHUNK):
                content += chunk
        return bytes(content)


@contextmanager
def open_zip(file: Path | IO[bytes], path: str, limits: Limits) -> Iterator[Archive]:
    """Open a zip file.

    Args:
        file: Its path, or an open file.
        path: What messages call it.
        limits: How much of it may be read.

    Raises:
        ValueError: If it is no zip file, or its table of contents is damaged.
    """
    with _readable(path):
        archive = zipfile.ZipFile(file)
    with archive:
        yield Archive(archive, path, limits)


def printed(name: str) -> str:
    """Shorten a stranger's name for a message."""
    return name if len(name) <= 100 else f"{name[:100]}…"


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # zipfile raises whatever its parts raise, struct.error for one
        what = printed(str(error)) or type(error).__name__
        raise ValueError(f"`{path}` is a damaged or encrypted zip: {what}.") from error


def _check_packing(info: zipfile.ZipInfo, path: str) -> None:
    name = printed(info.filename)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"`{path}`: `{name}` is packed by a method that is not read. Unpack and zip it anew."
        )
    if info.file_size > max(_SMALL, _MOST_PACKED * info.compress_size):
        raise ValueError(
            f"`{path}`: `{name}` is {info.compress_size:,} bytes that unpack to "
            f"{info.file_size:,}. No model shrinks so far: it was not unpacked."
        )
