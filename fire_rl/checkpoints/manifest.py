"""The manifest of a checkpoint: what it consists of, and which training it belongs to.

Keys: ``format``, ``algorithm``, ``num_timesteps``, ``total_timesteps``, ``files`` and ``replay``
with their checksums, ``logs``; ``run`` and ``writer``, the training and the model object that wrote
it; ``number``, which counts the checkpoints of a folder as they are written; ``finite``, whether
all weights are finite numbers; ``checksum`` of all that.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fire_rl.runs.layout import MANIFEST

FORMAT = 2
REPLAY, STATE = "replay", "state"

Manifest = dict[str, Any]

_TYPES = {
    "num_timesteps": int, "total_timesteps": int, "files": list, "replay": dict | None,
    "logs": dict, "run": str, "writer": str, "number": int, "finite": bool,
}  # fmt: skip
_FILE_TYPES = {"file": str, "folder": str, "bytes": int, "sha256": str}
_TOO_LARGE = 100_000_000  # bytes; of a real one a segment of the replay buffer needs about 200


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which, and what holds now."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been compared with their checksums, all of them.

    Attributes:
        path: Its folder.
        manifest: What it consists of: steps, files with their checksums, sizes of logs.
    """

    path: Path
    manifest: Mapping[str, Any]


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a checkpoint's folder; its files are not looked at.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged, or one of another version.
    """
    file = path / MANIFEST
    if not file.is_file() or file.stat().st_size > _TOO_LARGE:  # a pipe would be waited for
        raise ValueError(f"it has no {MANIFEST}" if not file.exists() else f"{MANIFEST} is no file")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest.pop("checksum") != checksum(manifest):
            raise ValueError("its checksum is another one")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is damaged: {error}") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(f"its format is {manifest.get('format')!r}, this version reads {FORMAT}")
    if not _has_types(manifest, _TYPES) or not _lists_files(manifest):
        raise ValueError(f"{MANIFEST} holds something else than a checkpoint of this version")
    return dict(manifest)


def checksum(manifest: Mapping[str, Any]) -> str:
    """Return a checksum of a manifest that is independent of its layout."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sealed(manifest: Mapping[str, Any]) -> str:
    """Return the text of a manifest with its checksum."""
    return json.dumps({**manifest, "checksum": checksum(manifest)}, indent=1) + "\n"


def files_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every file of a checkpoint, its replay segments included."""
    replay = manifest["replay"] or {"segments": []}
    return [*manifest["files"], *({**item, "folder": REPLAY} for item in replay["segments"])]


def segment_names(manifest: Mapping[str, Any] | None) -> set[str]:
    """Return the names of a checkpoint's replay segments."""
    files = files_of(manifest) if manifest is not None else []
    return {item["file"] for item in files if item["folder"] == REPLAY}


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is there as a whole or as it was before.

    Raises:
        OSError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an OSError inside say which file it is about: a full disk alone names none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync(path: Path) -> None:
    """Make sure that a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _has_types(item: Any, types: Mapping[str, Any]) -> bool:
    return isinstance(item, dict) and all(
        key in item and isinstance(item[key], kind) for key, kind in types.items()
    )


def _lists_files(manifest: Mapping[str, Any]) -> bool:
    replay = manifest["replay"]
    if replay is not None and not isinstance(replay.get("segments"), list):
        return False
    segments = replay["segments"] if replay is not None else []
    types = {key: kind for key, kind in _FILE_TYPES.items() if key != "folder"}
    return all(_has_types(item, _FILE_TYPES) for item in manifest["files"]) and all(
        _has_types(item, types) for item in segments
    )
