"""Mutated files in ``fire-rl inspect``, ``apply`` and ``report``, and in ``train.py --resume``."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.reliability import mutations
from benchmarks.reliability.trial import Trial, train_py
from fire_rl.runs import layout

FILES, FOLDERS, CHECKPOINTS = 200, 30, 80  # how many mutations of each


def trials(prepared: Path) -> Iterator[tuple[str, Trial]]:
    """Yield mutations of a model's file, of a run folder and of a checkpoint, by seed."""
    for seed in range(FILES):
        yield "fire-rl inspect, apply", Trial(f"seed {seed}", partial(_file, prepared, seed))
    for seed in range(FOLDERS):
        yield "fire-rl report", Trial(f"seed {seed}", partial(_folder, prepared, seed))
    for seed in range(CHECKPOINTS):
        run = partial(_checkpoint, prepared, seed)
        yield "hostile checkpoints: --resume", Trial(f"seed {seed}", run)


def _file(prepared: Path, seed: int, folder: Path) -> str | None:
    rng, trap, path = random.Random(seed), folder / "trap", folder / layout.MODEL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about what is deprecated
        source = (prepared / "whole" / layout.MODEL).read_bytes()
        what, raw = mutations.mutated_zip(source, rng, trap)
    path.write_bytes(raw)
    for words in (["inspect", path], ["apply", path, "--out", folder / "new.zip"]):
        if fault := mutations.fault_of(words, trap, named=path):
            return f"{words[0]}, {what}: {fault}"
    if left := {p.name for p in folder.iterdir()} - {layout.MODEL, "new.zip"}:
        return f"{what}: left {left}"
    return None if path.read_bytes() == raw else f"{what}: the file was changed"


def _folder(prepared: Path, seed: int, folder: Path) -> str | None:
    rng, trap, run = random.Random(seed), folder / "trap", folder / "run"
    shutil.copytree(prepared / "whole", run, symlinks=True)
    what = mutations.mutate_folder(run, rng, trap)
    fault = mutations.fault_of(["report", run, "--out", folder / "report"], trap, named=run)
    return f"{what}: {fault}" if fault else None


def _checkpoint(prepared: Path, seed: int, folder: Path) -> str | None:
    """A changed checkpoint, its checksums made to fit or not, is refused, passed over or used."""
    rng, trap, run = random.Random(seed), folder / "trap", folder / "run"
    shutil.copytree(prepared / "cut", run, symlinks=True)
    newest = layout.checkpoint_paths(run / layout.CHECKPOINTS)[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        what, sealed = mutations.mutate_checkpoint(newest, rng, trap)
    ending = train_py("--resume", run)
    if trap.exists():
        return f"{what}, sealed again: {sealed}: code was run"
    fault = ending.names(newest.name, str(run))
    return f"{what}, sealed again: {sealed}: {fault}" if fault else None
