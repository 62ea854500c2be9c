"""Find run folders, and read each into a frozen record with its arm and its seed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fire_rl.interventions import CONTROL
from fire_rl.runs import layout, readers
from fire_rl.runs.lines import shown
from fire_rl.runs.readers import Series
from fire_rl.utils.limits import Limits
from fire_rl.utils.plain_text import printable

# The return of a run, best first: every episode, or what SB3 logs of them.
RETURNS = (layout.EPISODES, layout.MONITOR, "rollout/ep_rew_mean", "eval/mean_reward")
_SKIPPED = {layout.CHECKPOINTS, layout.VIDEOS, "__pycache__"}
_SEED = re.compile(r"(?:s|seed|run)[_-]?(\d+)", re.IGNORECASE)  # s0, seed_0
_NUMBERED = re.compile(r"(.+?)[_-](?:s|seed|run)?(\d+)", re.IGNORECASE)  # PPO_1, fire_s0

_LONG = 2000  # letters that a configuration may put into a cell of a table

Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Run:
    """One run, as its folder describes it."""

    path: Path
    arm: str  # the method that it is a run of
    seed: int
    env: str | None  # None if it is not recorded
    config: Mapping[str, Any]  # the run's values, or empty
    steps: int  # environment steps it has made
    finished: bool  # whether its result file says that it came to its end
    branch_step: int | None  # where it branched off a trunk, None if it did not
    returns: Mapping[str, Series]  # by source, the names of RETURNS
    scalars: Mapping[str, Series]  # all that was logged, by tag
    events: Sequence[Mapping[str, Any]]  # the reports of its interventions
    task_evaluations: Sequence[Mapping[str, float]]  # evaluations at the end of each task
    note: str = ""  # a note about the files for the reader
    label: str = ""  # its path below the folder that all runs of a comparison have in common

    @property
    def tasks(self) -> Mapping[str, Any] | None:
        """How the environment changes while the agent trains, or None."""
        tasks = self.config.get("tasks")
        return tasks if isinstance(tasks, Mapping) else None

    @property
    def setting(self) -> str:
        """The environment with its options and tasks: what runs must share to be compared."""
        skipped = ("evaluate_earlier", "evaluate_episodes", "seed")  # tasks are draws of one kind
        text = self.env or "an environment that is not recorded"
        for name, values in (("", self.config.get("env_options")), ("tasks ", self.tasks)):
            if isinstance(values, Mapping) and values:
                given = {k: v for k, v in values.items() if v is not None and k not in skipped}
                text += f" with {name}{{{', '.join(f'{k}: {v}' for k, v in given.items())}}}"
        return printable(text, _LONG)


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """Return all run folders at and below some paths, sorted by path, without trunks.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no run at or below one.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"There is no folder {shown(path)}.")
        if not path.is_dir():
            raise ValueError(f"{shown(path)} is a file; give the run folder that it is in.")
        here = list(_folders_with_data(path.resolve()))
        # s<seed>/trunk is the run that an experiment's arms branch off.
        runs = [p for p in here if p.name != layout.TRUNK or not _SEED.fullmatch(p.parent.name)]
        if not runs:
            raise ValueError(_no_run(path, here))
        found |= dict.fromkeys(runs)
    return list(found)


def _folders_with_data(root: Path) -> Iterator[Path]:
    for name, below, _ in os.walk(root):
        below[:] = sorted(n for n in below if n not in _SKIPPED and not n.startswith("."))
        files = (path for pattern in layout.RUN_DATA for path in Path(name).glob(pattern))
        if any(path.is_file() for path in files):
            yield Path(name)


def _no_run(path: Path, trunks: Sequence[Path]) -> str:
    if trunks:
        first = shown(trunks[0])
        return f"{shown(path)} holds trunks only, whose arms have not been trained yet: {first}."
    there = sorted(printable(child.name) for child in path.iterdir())
    what = ", ".join([*there[:5], *(["..."] if there[5:] else [])]) or "nothing"
    return (
        f"{shown(path)} holds no run, nor does any folder in it. A run folder has TensorBoard "
        f"events ({layout.EVENTS}), {layout.PROGRESS}, {layout.EPISODES} or {layout.MONITOR}; "
        f"there is {what}."
    )


def read_runs(
    paths: Sequence[str | Path], arms: Sequence[str], envs: Sequence[str], limits: Limits
) -> list[Run]:
    """Find and read runs; see :func:`~fire_rl.reports.write_report` for the arguments."""
    found = find_runs(paths)
    rules = read_rules(arms, "--arm", found), read_rules(envs, "--env", found)
    for path in found:
        readers.check_files(path, limits)
    return [read_run(path, *rules) for path in found]


def read_run(path: Path, arms: Rules = (), envs: Rules = ()) -> Run:
    """Read a run folder; rules for the names of its arm and its environment come before all else.

    Raises:
        ImportError: If a package to read it is missing.
        ValueError: If a file cannot be read.
    """
    config = readers.read_config(path)
    arm, seed = arm_and_seed(path, config, arms)
    scalars, about_scalars = readers.read_scalars(path)
    returns, about_returns = readers.read_returns(path)
    returns |= {tag: scalars[tag] for tag in RETURNS if tag in scalars}
    logged = {tag: s for tag, s in scalars.items() if not tag.startswith("recovery/")}
    steps, finished = readers.read_length(path, [*logged.values(), *returns.values()])
    return Run(
        path=path,
        arm=printable(arm),
        seed=seed,
        env=by_rule(path, envs) or _environment(path, config),
        config=config,
        steps=steps,
        finished=finished or not config,
        branch_step=_branch_step(config),
        returns=returns,
        scalars=scalars,
        events=readers.read_events(path),
        task_evaluations=readers.read_tasks(path),
        note="; ".join(filter(None, (about_scalars, about_returns))),
    )


def _environment(path: Path, config: Mapping[str, Any]) -> str | None:
    """Return the environment's name: the configuration's, else SB3's Monitor's."""
    if "env" in config:
        return printable(str(config["env"]), 200)
    name = readers.read_environment(path)
    return None if name is None else printable(name, 200)


def _branch_step(config: Mapping[str, Any]) -> int | None:
    """Return the step of the checkpoint that a run branched off, None if it is no branch."""
    branch = config.get("branch")
    try:
        return layout.checkpoint_step(str(branch["checkpoint"])) if branch else None
    except (KeyError, TypeError, ValueError):
        return None


def read_rules(texts: Sequence[str], flag: str, paths: Sequence[Path]) -> Rules:
    """Read rules of the form ``NAME=GLOB``, given by a flag.

    Raises:
        ValueError: If one is something else, or matches none of the paths.
    """
    rules = []
    for text in texts:
        name, _, glob = (part.strip() for part in text.partition("="))
        if not (name and glob):
            raise ValueError(
                f"`{flag}` must be NAME=GLOB, such as slow=lr_1e-4/s*, matched against the end of "
                f"each run folder's path; got {text!r}."
            )
        if not any(by_rule(path, [(name, glob)]) for path in paths):
            raise ValueError(
                f"`{flag} {name}={glob}` matches none of the run folders: "
                f"{listed(list(map(shown, paths)))}."
            )
        rules.append((name, glob))
    return rules


def by_rule(path: Path, rules: Rules) -> str | None:
    """Return the name of the first rule whose pattern matches a path or the end of it."""
    text = path.as_posix()
    ends = (name for name, glob in rules if any(fnmatchcase(text, g) for g in (glob, f"*/{glob}")))
    return next(ends, None)


def arm_and_seed(path: Path, config: Mapping[str, Any], rules: Rules) -> tuple[str, int]:
    """Return the arm and the seed of a run.

    ``<arm>/s<seed>`` and ``s<seed>/<arm>`` give both; else the configuration does; else names such
    as ``PPO_1`` and ``fire_s1``; else the folder's name is the arm, and the seed 0.
    """
    own, parent = _SEED.fullmatch(path.name), _SEED.fullmatch(path.parent.name)
    if own:
        arm, seed = path.parent.name, int(own[1])
    elif parent:
        arm, seed = path.name, int(parent[1])
    elif config:
        arm, seed = _by_config(config)
    else:
        numbered = _NUMBERED.fullmatch(path.name)
        arm, seed = (numbered[1], int(numbered[2])) if numbered else (path.name, 0)
    return by_rule(path, rules) or arm, seed


def _by_config(config: Mapping[str, Any]) -> tuple[str, int]:
    """Return the branch's arm or the interventions' names, and the seed."""
    branch, seed = config.get("branch"), config.get("seed", 0)
    if isinstance(branch, Mapping) and branch.get("arm"):
        arm = str(branch["arm"])
    else:
        names = [e.get("name") if isinstance(e, Mapping) else e for e in _interventions(config)]
        arm = "+".join(map(str, names)) or CONTROL
    return arm, seed if isinstance(seed, int) else 0


def _interventions(config: Mapping[str, Any]) -> list[Any]:
    given = config.get("intervention") or []
    return given if isinstance(given, list) else [given]


def method_of(runs: Sequence[Run]) -> str:
    """Describe what an arm does: as configured, else by the interventions that acted."""
    config = runs[0].config
    words = [", ".join(f"{k}: {_short(v)}" for k, v in entry.items() if v is not None)
             for entry in _interventions(config) if isinstance(entry, Mapping)]  # fmt: skip
    if words and isinstance(config.get("schedule"), Mapping):
        words[-1] += f", schedule: {_short(config['schedule'])}"
    if not words:
        words = sorted({str(event.get("intervention")) for run in runs for event in run.events})
    return printable("; ".join(words), _LONG) or CONTROL


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return str(value)


def listed(words: Sequence[str], limit: int = 6) -> str:
    """Return words with commas, the first ones only if there are many."""
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
