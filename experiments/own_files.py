"""The files of a run folder that train.py has written: only these are ever removed or replaced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from experiments.plain_yaml import ConfigError
from fire_rl.runs import layout

_LOCK = ".lock"
_OF_A_START = {
    Path(layout.CHECKPOINTS), Path(layout.CHECKPOINTS, _LOCK), Path(f".{layout.CONFIG}.tmp"),
}  # fmt: skip


def check_free(folder: Path) -> None:
    """Raise FileExistsError if there is something in a folder: no run is overwritten.

    What a run leaves that was killed while it made its folder does not count.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or not _OF_A_START.issuperset(_entries(folder)):
        raise FileExistsError(
            f"The run folder {folder} exists and is not empty; no run is overwritten. "
            "Choose another with --log-dir, or move or delete it."
        )


def check_links(folder: Path, is_ours: bool = True) -> None:
    """Refuse what is no plain file where train.py writes one, symbolic links above all.

    The folder itself may be a link. In a run that is ours so may ``checkpoints/``, to another disk,
    and whatever train.py does not write.

    Raises:
        ConfigError: Naming each.
    """
    faults = []
    for path in _entries(folder):
        there, is_own = folder / path, layout.is_written(path) or path.match(layout.EVENTS)
        if there.is_symlink():
            link = (
                f"{there} is a symbolic link: train.py writes and deletes nothing through links "
                "inside a run. Put what it points to there, or remove the link."
            )
            if is_own or (path.parts[0] == layout.CHECKPOINTS and len(path.parts) > 1):
                faults.append(link)
            elif not is_ours:
                faults.append(f"{link} Or make the run yours with --trust.")
        elif is_own and not there.is_file():
            faults.append(f"{there} is no file, and train.py writes one there. Move it away.")
    if faults:
        raise ConfigError(faults)


def remove_written(folder: Path, keep: tuple[str, ...] = ()) -> list[Path]:
    """Remove what train.py has written, file by file, and the folders that this empties.

    Args:
        folder: A run folder that is locked.
        keep: Names of files that stay.

    Returns:
        The other files in the folder; they are left as they are.

    Raises:
        ConfigError: If other files lie among the checkpoints, where a run could not go on.
    """
    check_links(folder)
    paths = list(_entries(folder))
    files = [path for path in paths if not (folder / path).is_dir() or (folder / path).is_symlink()]
    own = [path for path in files if layout.is_written(path)]
    others = [path for path in files if path not in set(own)]
    if among := [path for path in others if path.parts[0] == layout.CHECKPOINTS]:
        raise ConfigError(
            [f"{folder / path} is not of train.py: it is not removed, and a run that begins anew "
             "needs the place. Move it away." for path in among]
        )  # fmt: skip
    for path in own:
        if path.name not in (*keep, _LOCK):
            (folder / path).unlink()
    emptied = {parent for path in own for parent in path.parents if len(parent.parts) > 1}
    for path in sorted(emptied, reverse=True):  # from the inside out
        with contextlib.suppress(OSError):
            (folder / path).rmdir()
    return others


def remove_folder(folder: Path) -> None:
    """Remove a run in which nothing was learned; what is not of train.py stays."""
    remove_written(folder)
    checkpoints = folder / layout.CHECKPOINTS
    (checkpoints / _LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # linked, or something else is in it
        checkpoints.rmdir()
        folder.rmdir()


def _entries(folder: Path) -> Iterator[Path]:
    """Yield what is in a run folder and among its checkpoints, relative to it, links not followed.

    Folders of somebody else are not entered.
    """
    for path in sorted(folder.iterdir()):
        yield path.relative_to(folder)
    for where, folders, files in os.walk(folder / layout.CHECKPOINTS):  # follows no inner link
        for name in sorted([*folders, *files]):
            yield (Path(where) / name).relative_to(folder)
