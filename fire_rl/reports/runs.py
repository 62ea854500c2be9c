"""Find run folders and read each into a frozen record."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fire_rl.reports import naming
from fire_rl.runs import readers
from fire_rl.runs.episodes import FILE as EPISODES
from fire_rl.runs.readers import Series

# The return of a run, best first: every episode, or what SB3 logs of them.
RETURNS = (EPISODES, "monitor.csv", "rollout/ep_rew_mean", "eval/mean_reward")
_SKIPPED = {"checkpoints", "videos", "__pycache__"}


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells it.

    Attributes:
        path: The folder.
        arm: What it is compared as.
        seed: Of the run.
        env: Name of the environment; None if nothing tells it.
        config: ``config.yaml``, or empty.
        steps: How many environment steps it has made.
        finished: Whether a ``result.json`` says that it came to its end.
        branch_step: The step at which it branched off a trunk, None if it did not.
        returns: The return by source, the names of :data:`RETURNS`.
        scalars: All logged scalars by tag.
        events: The reports of its interventions.
        task_evaluations: The rows of ``continual.csv``.
        note: What has to be said about the files, or an empty string.
    """

    path: Path
    arm: str
    seed: int
    env: str | None
    config: Mapping[str, Any]
    steps: int
    finished: bool
    branch_step: int | None
    returns: Mapping[str, Series]
    scalars: Mapping[str, Series]
    events: Sequence[Mapping[str, Any]]
    task_evaluations: Sequence[Mapping[str, float]]
    note: str = ""

    @property
    def tasks(self) -> Mapping[str, Any] | None:
        """How the environment changes while the agent trains, or None."""
        tasks = self.config.get("tasks")
        return tasks if isinstance(tasks, Mapping) else None

    @property
    def setting(self) -> str:
        """The environment with its options and tasks: what runs must share to be compared."""
        parts = [self.env or "an environment that is not recorded"]
        options = self.config.get("env_options")
        if isinstance(options, Mapping) and options:
            parts.append(f"with {_plain(options)}")
        if self.tasks:
            parts.append(f"with tasks {_plain(self.tasks)}")
        return " ".join(parts)


def _plain(values: Mapping[str, Any]) -> str:
    skipped = ("evaluate_earlier", "evaluate_episodes", "seed")  # the tasks are draws of one kind
    items = [f"{k}: {v}" for k, v in values.items() if v is not None and k not in skipped]
    return "{" + ", ".join(items) + "}"


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """Return all run folders at and below some paths, sorted by path, without trunks.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no run at or below one.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise FileNotFoundError(f"There is no folder {path}.")
        if not path.is_dir():
            raise ValueError(f"{path} is a file; give the run folder that it is in.")
        here = [folder for folder in _folders(path.resolve()) if _has_data(folder)]
        runs = [folder for folder in here if not naming.is_trunk(folder)]
        if not runs:
            raise ValueError(_no_run(path, here))
        found |= dict.fromkeys(runs)
    return list(found)


def _folders(root: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(root):
        names[:] = sorted(n for n in names if n not in _SKIPPED and not n.startswith("."))
        yield Path(folder)


def _has_data(folder: Path) -> bool:
    return any(path.is_file() for pattern in readers.DATA for path in folder.glob(pattern))


def _no_run(path: Path, trunks: Sequence[Path]) -> str:
    if trunks:
        return f"{path} holds trunks only, whose arms have not been trained yet: {trunks[0]}."
    there = sorted(child.name for child in path.iterdir())[:5]
    return (
        f"{path} holds no run, nor does any folder in it. A run folder has TensorBoard events "
        f"({readers.EVENTS}), {readers.PROGRESS}, {EPISODES} or monitor.csv; there is "
        f"{', '.join(there) + (', ...' if len(there) == 5 else '') if there else 'nothing'}."
    )


def read_run(path: Path, arms: naming.Rules = (), envs: naming.Rules = ()) -> Run:
    """Read a run folder.

    Args:
        path: The folder.
        arms: Names of arms by patterns of paths, before all else.
        envs: Names of environments by patterns of paths, before all else.

    Raises:
        ImportError: If a package to read it is missing.
        ValueError: If a file cannot be read.
    """
    config = readers.read_config(path)
    arm, seed = naming.arm_and_seed(path, config, arms)
    scalars, note = readers.read_scalars(path)
    returns = readers.read_returns(path)
    returns |= {tag: scalars[tag] for tag in RETURNS if tag in scalars}
    logged = {tag: s for tag, s in scalars.items() if not tag.startswith("recovery/")}
    steps, finished = readers.read_length(path, [*logged.values(), *returns.values()])
    return Run(
        path=path,
        arm=arm,
        seed=seed,
        env=naming.by_rule(path, envs) or _environment(path, config),
        config=config,
        steps=steps,
        finished=finished or not config,
        branch_step=_branch_step(config),
        returns=returns,
        scalars=scalars,
        events=readers.read_events(path),
        task_evaluations=readers.read_tasks(path),
        note=note,
    )


def _environment(path: Path, config: Mapping[str, Any]) -> str | None:
    """Return the environment's name: the configuration's, else SB3's Monitor's."""
    if "env" in config:
        return str(config["env"])
    names = (readers.read_monitor(file)[0] for file in sorted(path.glob(readers.MONITORS)))
    return next(filter(None, names), None)


def _branch_step(config: Mapping[str, Any]) -> int | None:
    """Return the step of the checkpoint that a run branched off, the name of its folder."""
    branch = config.get("branch")
    if not isinstance(branch, Mapping):
        return None
    step = Path(str(branch.get("checkpoint", ""))).name.partition(".")[0]
    return int(step) if step.isdigit() else None
