"""Damage one file of a run folder, and go on with the run."""

from __future__ import annotations

import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import DQN

from benchmarks.reliability.records import EVENTS, compare, weights
from benchmarks.reliability.trial import Trial, train_py
from fire_rl.runs import layout

CONFIG = """
algo: dqn
env: CartPole-v1
total_timesteps: 1_200
seed: 0
num_threads: 1
n_envs: 2
normalize: true
agent: {learning_starts: 100, buffer_size: 1_000, train_freq: 4, policy_kwargs: {net_arch: [16]}}
metrics: {every: 200, probe_size: 32}
eval: {every: 400, episodes: 1}
checkpoint: {every: 200, keep_last: 2}
"""
INTERVENTION = "intervention: fire\nschedule: {at: [400, 800]}\n"


def _empty(data: bytes, seed: int) -> bytes:
    return b""


def _half(data: bytes, seed: int) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes, seed: int) -> bytes:
    changed = bytearray(data)
    changed[random.Random(seed).randrange(len(data))] ^= 0x10
    return bytes(changed)


def _noise(data: bytes, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(len(data))


DAMAGES: dict[str, Callable[[bytes, int], bytes] | None] = {
    "empty": _empty,
    "cut in half": _half,
    "one bit flipped": _flip,
    "random bytes": _noise,
    "deleted": None,
}


def prepare(folder: Path) -> None:
    """Make an undisturbed run, the same run stopped on its way, and an experiment of two arms."""
    config = folder / layout.CONFIG
    config.write_text(CONFIG + INTERVENTION, encoding="utf-8")
    _run("--config", config, "--log-dir", folder / "whole")
    config.write_text(CONFIG, encoding="utf-8")
    _run("--config", config, "--arms", "none,fire", "--log-dir", folder / "experiment")
    _cut(folder)


def _cut(folder: Path) -> None:
    """Stop a run as a kill does: an error in the middle, after two checkpoints."""
    config = folder / layout.CONFIG
    config.write_text(CONFIG + INTERVENTION, encoding="utf-8")
    update = DQN.train

    def stop(model: DQN, *args: Any, **options: Any) -> None:
        if model.num_timesteps >= 900:
            raise SystemExit(9)
        update(model, *args, **options)

    DQN.train = stop  # type: ignore[method-assign]
    try:
        train_py("--config", config, "--log-dir", folder / "cut")
    finally:
        DQN.train = update  # type: ignore[method-assign]


def _run(*arguments: object) -> None:
    ending = train_py(*arguments)
    if ending.code != 0:
        raise RuntimeError(ending.err)


def trials(prepared: Path) -> Iterator[tuple[str, Trial]]:
    """Yield the areas and their trials: every file, every damage, every way to go on."""
    cut = prepared / "cut"
    for path in _files(cut):
        area = "checkpoint files" if layout.CHECKPOINTS in path.parts else "run folder files"
        for name in DAMAGES:
            yield f"{area}: --resume", _trial(_resume, prepared, path, name)
            yield f"{area}: --play", _trial(_play, prepared, path, name)
    experiment = prepared / "experiment"
    for path in _files(experiment):
        if layout.CHECKPOINTS not in path.parts:
            for name in DAMAGES:
                yield "experiment files: --arms again", _trial(_again, prepared, path, name)


def _trial(go_on: Callable[..., str | None], prepared: Path, path: Path, name: str) -> Trial:
    return Trial(f"{path}: {name}", partial(go_on, prepared, path, name))


def _files(folder: Path) -> list[Path]:
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def _damaged(source: Path, path: Path, name: str, target: Path) -> Path:
    shutil.copytree(source, target, symlinks=True)
    file, change = target / path, DAMAGES[name]
    if change is None:
        file.unlink()
    elif file.stat().st_size:
        file.write_bytes(change(file.read_bytes(), zlib.crc32(f"{path} {name}".encode())))
    return file


def _resume(prepared: Path, path: Path, name: str, folder: Path) -> str | None:
    """It ends as the undisturbed run, or says which file is damaged.

    What a damaged log held is lost. It must be said if the log has become shorter, and nothing else
    may be lost.
    """
    copy = folder / "cut"
    _damaged(prepared / "cut", path, name, copy)
    ending = train_py("--resume", copy)
    if (wrong := ending.names(path.name, str(path.parent))) or ending.code != 0:
        return wrong
    if weights(copy / layout.MODEL) != weights(prepared / "whole" / layout.MODEL):
        return "the run ends with other weights, and nothing says so"
    damaged = EVENTS if path.match(layout.EVENTS) else path.name
    shorter = name in ("empty", "cut in half", "deleted")
    whole = compare(prepared / "whole", copy).is_empty
    if not whole and shorter and path.name not in ending.out + ending.err:
        return f"{path.name} has lost entries, and nothing says so"
    others = compare(prepared / "whole", copy, without=damaged)
    return None if others.is_empty else f"other logs differ: {others}"


def _play(prepared: Path, path: Path, name: str, folder: Path) -> str | None:
    copy = folder / "cut"
    _damaged(prepared / "cut", path, name, copy)
    ending = train_py("--play", copy, "--episodes", 1)
    return ending.names(path.name, str(path.parent))


def _again(prepared: Path, path: Path, name: str, folder: Path) -> str | None:
    """The experiment is whole afterwards, or an error names the file."""
    copy = folder / "experiment"
    _damaged(prepared / "experiment", path, name, copy)
    config = folder / layout.CONFIG
    config.write_text(CONFIG, encoding="utf-8")
    ending = train_py("--config", config, "--arms", "none,fire", "--log-dir", copy)
    return ending.names(path.name, str(path.parent))
