"""Whether runs may be compared: one environment, one length, one measure, each run once."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fire_rl.reports.runs import RETURNS, Run
from fire_rl.reports.targets import atari_game

# Of the longest run: the last episode, or the last line of a log, ends somewhere before the end.
TOLERANCE = 0.05
# What two runs of an arm may differ in, for it does not change what is learned.
_INCIDENTAL = {
    "arms", "branch", "checkpoint", "device", "env", "eval", "fast_cnn", "imports", "log_interval",
    "metrics", "num_threads", "seed", "tasks.seed", "vec_env",
}  # fmt: skip


class Shower:
    """Show runs by paths that tell them apart and no more."""

    def __init__(self, runs: Sequence[Run], root: Path | None) -> None:
        parents = [run.path.parts for run in runs]
        same = [len(set(parts)) == 1 for parts in zip(*(p[:-1] for p in parents), strict=False)]
        depth = len(list(itertools.takewhile(bool, same)))
        self.root = Path(*parents[0][:depth]) if root is None and depth else root

    def __call__(self, run: Run) -> str:
        """Return the path of a run below what all have in common."""
        inside = self.root is not None and run.path.is_relative_to(self.root)
        return str(run.path.relative_to(self.root)) if inside and self.root else str(run.path)

    def groups(self, groups: Mapping[Any, Sequence[Run]], limit: int = 4) -> str:
        """List what differs, and which runs have it."""
        lines = []
        for what, members in groups.items():
            named = ", ".join(self(run) for run in members[:limit])
            more = f" and {len(members) - limit} more" if len(members) > limit else ""
            lines.append(f"  {what}: {named}{more}")
        return "\n" + "\n".join(lines)


def group(runs: Sequence[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    """Return runs by a key."""
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return dict(groups)


def check_environments(runs: Sequence[Run], show: Shower) -> list[str]:
    """Return the environments' names; raise ValueError for a mixture."""
    known = [run for run in runs if run.env is not None]
    settings = group(known, lambda run: run.setting)
    if len(settings) > 1:
        same_but_game = {run.setting.replace(str(run.env), "", 1) for run in known}
        if not all(atari_game(run.env) for run in known) or len(same_but_game) > 1:
            raise ValueError(
                "Runs of different environments cannot be compared; make a report of each. (Only "
                f"Atari games can, with the same options.) There are{show.groups(settings)}"
            )
        if len(known) < len(runs):
            unknown = [run for run in runs if run.env is None]
            raise ValueError(
                "Which game these runs play is not recorded; say it with --env GAME=GLOB: "
                f"{', '.join(map(show, unknown))}."
            )
        if any(run.tasks for run in known):
            raise ValueError(f"Runs with tasks need one environment.{show.groups(settings)}")
        games = group(known, lambda run: run.env)
        arms = {env: {run.arm for run in members} for env, members in games.items()}
        every = set().union(*arms.values())
        if any(there != every for there in arms.values()):
            lacking = {e: ", ".join(sorted(every - t)) for e, t in arms.items() if every - t}
            told = "; ".join(f"{env} lacks {names}" for env, names in lacking.items())
            raise ValueError(f"Every arm needs runs of every game: {told}.")
    return sorted({str(run.env) for run in known})


def check_seeds(runs: Sequence[Run], show: Shower) -> None:
    """Raise ValueError where an arm has a seed twice."""
    groups = group(runs, lambda run: (run.arm, run.env, run.seed))
    for (arm, env, seed), members in groups.items():
        if len(members) > 1:
            raise ValueError(
                f"Arm {arm!r} has seed {seed} {len(members)} times{f' on {env}' if env else ''}: "
                f"{', '.join(map(show, members))}. A run counts once. Name the arms with --arm "
                "NAME=GLOB, or put runs into <arm>/s<seed>."
            )


def check_settings(runs: Sequence[Run], show: Shower) -> None:
    """Raise ValueError where one arm holds different methods."""
    for arm, members in group(runs, lambda run: run.arm).items():
        told = [(run, _flat(run.config)) for run in members if run.config]
        for (first, one), (run, other) in itertools.pairwise(told):
            keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
            if keys:
                what = "; ".join(f"`{k}` is {one.get(k)!r} and {other.get(k)!r}" for k in keys[:4])
                raise ValueError(
                    f"Arm {arm!r} holds runs with different settings: {what} in {show(first)} and "
                    f"{show(run)}. Name two arms with --arm NAME=GLOB, or put the runs into "
                    "<arm>/s<seed>."
                )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if f"{prefix}{key}" in _INCIDENTAL:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def common_source(runs: Sequence[Run], show: Shower) -> str:
    """Return the best measure of the return that every run has."""
    for source in RETURNS:
        if all(source in run.returns for run in runs):
            return source
    groups = group(runs, lambda run: ", ".join(run.returns) or "no return at all")
    raise ValueError(
        f"The runs have no measure of the return in common (of {', '.join(RETURNS)}):"
        f"{show.groups(groups)}"
    )


def check_length(runs: Sequence[Run], until: int | None, show: Shower) -> int:
    """Return the last step that all runs have reached."""
    lengths = {f"{run.steps:,} steps": run.steps for run in runs}
    longest, end = max(lengths.values()), min(lengths.values())
    if until is not None and until <= end:
        return until
    if until is not None or end < (1 - TOLERANCE) * longest:
        wanted = "all of the same length" if until is None else f"at least {until:,} steps long"
        groups = group(sorted(runs, key=lambda run: run.steps), lambda run: f"{run.steps:,} steps")
        raise ValueError(
            f"Runs must be {wanted}; finish the short ones, leave them out, or compare the first "
            f"steps only, with --until {end}. There are{show.groups(groups)}"
        )
    return end
