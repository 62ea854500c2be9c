"""A stranger's run folder: nothing in it runs code, or writes or deletes outside of it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.reliability.trial import Trial, train_py
from fire_rl.runs import layout

OUTSIDE = "outside.txt"


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def _module(folder: Path) -> str:
    """Write a module that leaves a trace when it is imported; return its name."""
    (folder / "stranger_module.py").write_text(
        f"import os\nos.makedirs({str(folder / 'canary')!r}, exist_ok=True)\n"
        "class Net: pass\nclass Wrap: pass\n",
        encoding="utf-8",
    )
    sys.path.insert(0, str(folder))
    return "stranger_module"


def _config(run: Path, **changes: Any) -> None:
    path = run / layout.CONFIG
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if isinstance(value, dict):
            values[key] = {**(values.get(key) or {}), **value}
        else:
            values[key] = value
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def _imports(run: Path, folder: Path) -> None:
    _config(run, imports=[_module(folder)])


def _extractor(run: Path, folder: Path) -> None:
    name = f"{_module(folder)}.Net"
    _config(run, agent={"policy_kwargs": {"features_extractor_class": name}})


def _policy(run: Path, folder: Path) -> None:
    _config(run, agent={"policy": f"{_module(folder)}.Net"})


def _optimizer(run: Path, folder: Path) -> None:
    _config(run, agent={"policy_kwargs": {"optimizer_class": f"{_module(folder)}.Net"}})


def _buffer(run: Path, folder: Path) -> None:
    _config(run, agent={"replay_buffer_class": f"{_module(folder)}.Net"})


def _environment(run: Path, folder: Path) -> None:
    _config(run, env=f"{_module(folder)}:CartPole-v1")


def _vecnormalize(run: Path, folder: Path) -> None:
    found = list(run.rglob(layout.VECNORMALIZE))
    for path in found or [run / layout.VECNORMALIZE]:
        path.write_bytes(pickle.dumps(Canary(folder / "canary")))


def _zip(run: Path, folder: Path) -> None:
    import base64

    poison = base64.b64encode(pickle.dumps(Canary(folder / "canary"))).decode()
    for path in run.rglob(layout.MODEL):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        data = json.loads(members["data"])
        data["policy_class"] = {":type:": "<class 'abc.ABCMeta'>", ":serialized:": poison}
        data["lr_schedule"] = {":type:": "<class 'function'>", ":serialized:": poison}
        members["data"] = json.dumps(data).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)


def _weights(run: Path, folder: Path) -> None:
    for path in run.rglob("*.pt"):
        path.write_bytes(pickle.dumps(Canary(folder / "canary")))


def _links(*names: str) -> Callable[[Path, Path], None]:
    def link(run: Path, folder: Path) -> None:
        for name in names:
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(folder / OUTSIDE)

    return link


def _linked_step(run: Path, folder: Path) -> None:
    """A checkpoint's folder that leads elsewhere, where removing the old would delete."""
    target = folder / "elsewhere"
    oldest = layout.checkpoint_paths(run / layout.CHECKPOINTS)[0]
    shutil.move(oldest, target)
    oldest.symlink_to(target)


ATTACKS: dict[str, Callable[[Path, Path], None]] = {
    "imports": _imports,
    "a feature extractor of its own": _extractor,
    "a policy of its own": _policy,
    "an optimizer of its own": _optimizer,
    "a replay buffer of its own": _buffer,
    "an environment's module": _environment,
    "a pickle as vecnormalize.pkl": _vecnormalize,
    "pickles in model.zip": _zip,
    "pickles as tensors": _weights,
    "a link called model.zip": _links(layout.MODEL),
    "a link called interventions.jsonl": _links(layout.INTERVENTIONS),
    "a link called progress.csv": _links(layout.PROGRESS),
    "a link called episodes.csv": _links(layout.EPISODES),
    "a link called result.json": _links(layout.RESULT),
    "links called best_model.zip and evaluations.npz": _links(
        layout.BEST_MODEL, layout.EVALUATIONS
    ),
    "a linked checkpoint": _linked_step,
}


def trials(prepared: Path) -> Iterator[tuple[str, Trial]]:
    """Yield every attack in every command that reads a run."""
    commands = {"--resume": _resume, "--play": _play, "--branch-from": _branch}
    for name, attack in ATTACKS.items():
        for flag, command in commands.items():
            run = partial(_try, prepared, attack, command)
            yield "a stranger's run folder", Trial(f"{name}: {flag}", run)


def _resume(run: Path, folder: Path) -> Any:
    return train_py("--resume", run)


def _play(run: Path, folder: Path) -> Any:
    return train_py("--play", run, "--episodes", 1)


def _branch(run: Path, folder: Path) -> Any:
    newest = layout.checkpoint_paths(run / layout.CHECKPOINTS)[-1]
    into = folder / "branch"
    return train_py(
        "--branch-from", newest, "--intervention", "reset", "--log-dir", into, "--at", 1_000
    )


def _try(
    prepared: Path,
    attack: Callable[[Path, Path], None],
    command: Callable[[Path, Path], Any],
    folder: Path,
) -> str | None:
    run, outside = folder / "run", folder / OUTSIDE
    outside.write_text("mine", encoding="utf-8")
    shutil.copytree(prepared / "cut", run, symlinks=True)
    attack(run, folder)
    elsewhere = folder / "elsewhere"
    kept = sorted(p.name for p in elsewhere.rglob("*"))
    ending = command(run, folder)
    if (folder / "canary").exists():
        return "code of the folder was run"
    if outside.read_text(encoding="utf-8") != "mine":
        return "a file outside was written through a link"
    if sorted(p.name for p in elsewhere.rglob("*")) != kept:
        return "files outside were changed through a link"
    if "Traceback" in ending.err:
        return f"traceback: {ending.err.strip().splitlines()[-1][:300]}"
    return None if ending.code in (0, 2) else f"exit code {ending.code}: {ending.err[:300]}"
