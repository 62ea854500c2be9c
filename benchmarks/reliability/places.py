"""Where a run lies and who else is there: paths, links, copies, full disks, second processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.reliability.damage import CONFIG, INTERVENTION
from benchmarks.reliability.records import compare
from benchmarks.reliability.trial import Ending, Trial, train_py
from fire_rl.checkpoints.folder import locked
from fire_rl.runs import layout

SIZES = (100, 200, 300, 400, 600, 800, 1_200)  # KB of a file system that fills up


def trials(prepared: Path) -> Iterator[tuple[str, Trial]]:
    """Yield every place, then every size of a disk."""
    for name, move in PLACES.items():
        yield "places and paths", Trial(name, partial(_moved, prepared, move))
    yield "two processes", Trial("a second --resume", partial(_second, prepared))
    yield "two processes", Trial("the same experiment again", partial(_second_arms, prepared))
    for size in SIZES:
        yield "full disks", Trial(f"{size} KB", partial(_full, prepared, size))


def _named(name: str) -> Callable[[Path, Path], Path]:
    def move(run: Path, folder: Path) -> Path:
        shutil.copytree(run, folder / name, symlinks=True)
        return folder / name

    return move


def _linked(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "scratch", symlinks=True)
    (folder / "run").symlink_to(folder / "scratch")
    return folder / "run"


def _linked_checkpoints(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "run", symlinks=True)
    shutil.move(folder / "run" / layout.CHECKPOINTS, folder / "scratch")
    (folder / "run" / layout.CHECKPOINTS).symlink_to(folder / "scratch")
    return folder / "run"


def _old(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "run", symlinks=True)
    for number, path in enumerate(sorted((folder / "run").rglob("*"))):
        os.utime(path, (1e9 - number, 1e9 - number))
    return folder / "run"


def _foreign(run: Path, folder: Path) -> Path:
    """Other people's things in the folders of a run."""
    copy = _named("run")(run, folder)
    for place in (copy, copy / layout.CHECKPOINTS):
        (place / "notes.txt").write_text("mine", encoding="utf-8")
        (place / "abc").mkdir()
        (place / "abc" / "thesis.tex").write_text("mine", encoding="utf-8")
    (copy / layout.CHECKPOINTS / "100").write_text("a file", encoding="utf-8")
    (copy / layout.CHECKPOINTS / "99").mkdir()
    return copy


PLACES: dict[str, Callable[[Path, Path], Path]] = {
    "copied": _named("copy"),
    "a name with spaces": _named("my run (1)"),
    "a name in Japanese": _named("実験"),
    "a name with brackets": _named("[run]*"),
    "a name that looks like a flag": _named("--run"),
    "a linked folder": _linked,
    "linked checkpoints": _linked_checkpoints,
    "old times": _old,
    "foreign files": _foreign,
}


def _moved(prepared: Path, move: Callable[[Path, Path], Path], folder: Path) -> str | None:
    run = move(prepared / "cut", folder)
    foreign = {p for p in run.rglob("*") if p.name in ("notes.txt", "thesis.tex", "100")}
    ending = train_py(f"--resume={run}")
    if gone := [str(path) for path in foreign if not path.exists()]:
        return f"removed: {gone}"
    for path in foreign:  # ours alone are compared
        path.unlink()
    return _whole(prepared, run, ending)


def _whole(prepared: Path, run: Path, ending: Ending) -> str | None:
    if ending.code != 0:
        return f"exit code {ending.code}: {ending.err[-300:]}"
    difference = compare(prepared / "whole", run)
    return None if difference.is_empty else f"{difference}"


def _second(prepared: Path, folder: Path) -> str | None:
    """A second process is refused before it changes anything."""
    run = _named("run")(prepared / "cut", folder)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with locked(run / layout.CHECKPOINTS):
        ending = _elsewhere("--resume", str(run))
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    if ending.returncode != 2 or "Traceback" in ending.stderr:
        return f"exit code {ending.returncode}: {ending.stderr[-300:]}"
    return None if before == after else "the refused process changed files"


def _second_arms(prepared: Path, folder: Path) -> str | None:
    """The same experiment, started while its trunk has no checkpoint yet."""
    config = folder / layout.CONFIG
    config.write_text(CONFIG, encoding="utf-8")
    trunk = layout.arm_folder(folder / "arms", 0, layout.TRUNK)
    shutil.copytree(layout.arm_folder(prepared / "experiment", 0, layout.TRUNK), trunk)
    shutil.rmtree(trunk / layout.CHECKPOINTS)
    before = {path: path.read_bytes() for path in trunk.rglob("*") if path.is_file()}
    with locked(trunk / layout.CHECKPOINTS):
        arguments = ("--arms", "none,fire", "--log-dir", str(folder / "arms"))
        ending = _elsewhere("--config", str(config), *arguments)
    after = {p: p.read_bytes() for p in before if p.exists()}
    if ending.returncode != 2 or "Traceback" in ending.stderr:
        return f"exit code {ending.returncode}: {ending.stderr[-300:]}"
    return None if before == after else "the running trunk was changed"


def _elsewhere(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@contextmanager
def _disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    subprocess.run(options, check=True, capture_output=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def _full(prepared: Path, kilobytes: int, folder: Path) -> str | None:
    """A run on a disk that fills up ends with an error; on a larger one it goes on, or anew."""
    config = folder / layout.CONFIG
    config.write_text(CONFIG + INTERVENTION, encoding="utf-8")
    with _disk(folder, kilobytes) as disk:
        first = _elsewhere("--config", str(config), "--log-dir", str(disk / "run"))
        if first.returncode == 0:
            return _whole(prepared, disk / "run", Ending(0, "", ""))
        if "No space left" not in first.stderr or str(disk) not in first.stderr:
            return f"the file is not named: {first.stderr[-300:]}"
        size = ["mount", "-o", "remount,size=100m", str(disk)]
        subprocess.run(size, check=True, capture_output=True)
        if not layout.checkpoint_paths(disk / "run" / layout.CHECKPOINTS):
            return None  # nothing to go on from, and the error said so
        again = _elsewhere("--resume", str(disk / "run"))
        ending = Ending(again.returncode, again.stdout, again.stderr)
        return _whole(prepared, disk / "run", ending)
