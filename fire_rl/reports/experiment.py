"""Check that runs may be compared: one environment, one length, one measure, each run once."""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium

from fire_rl.interventions import CONTROL
from fire_rl.reports.runs import RETURNS, Run, listed
from fire_rl.runs.layout import RESULT
from fire_rl.runs.lines import step
from fire_rl.utils.plain_text import printable
from fire_rl.utils.validation import check_choice

# Of the longest run: the last episode, or the last line of a log, ends somewhere before the end.
TOLERANCE = 0.05
_MOST_ARMS, _MOST_TASKS = 100, 1000
# How often the 95 % interval of the IQM of so many runs holds the truth, in percent: measured with
# 2,000 samples of normally distributed scores.
_COVERAGE = {2: 51, 3: 73, 4: 87}
# What two runs of an arm may differ in, because it does not change what is learned.
_INCIDENTAL = {
    "arms", "branch", "checkpoint", "device", "env", "eval", "fast_cnn", "imports", "log_interval",
    "metrics", "num_threads", "seed", "tasks.seed", "vec_env",
}  # fmt: skip
_SCORES_FILE = Path(__file__).with_name("atari_scores.csv")
# ALE/Breakout-v5, BreakoutNoFrameskip-v4, Breakout-ramDeterministic-v4. MinAtar/... is not Atari.
_ATARI = re.compile(r"(?:ALE/)?(\w+?)(?:-ram)?(?:NoFrameskip|Deterministic)?-v\d+")


@cache
def atari_scores() -> dict[str, tuple[float, float]]:
    """Return ``(random, human)`` scores of the Atari games by name, such as ``"SpaceInvaders"``."""
    with _SCORES_FILE.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {row["game"]: (float(row["random"]), float(row["human"])) for row in rows}


def atari_game(env: str | None) -> str | None:
    """Return the Atari game that an environment plays, if its scores are known, else None."""
    match = _ATARI.fullmatch(env or "")
    return match[1] if match and match[1] in atari_scores() else None


def reward_threshold(env: str | None) -> float | None:
    """Return the return at which Gymnasium calls an environment solved, None if it is not given.

    Only registered environments are looked up: nothing is imported.
    """
    spec = gymnasium.registry.get(env or "")
    return None if spec is None else spec.reward_threshold


@dataclass(frozen=True)
class Experiment:
    """Comparable runs."""

    runs: tuple[Run, ...]
    arms: tuple[str, ...]  # the control first
    control: str | None  # the arm that others are compared with
    games: tuple[str, ...]  # names of environments; more than one only for Atari games
    source: str  # where the return comes from, one of runs.RETURNS
    start: int  # the step from which on scores count: where the arms branched off, or 0
    end: int  # the last common step
    period: int | None  # steps of a task where tasks follow one another
    target: float | None  # the return that counts as solved; for Atari the human's
    floor: float  # the return that counts as nothing
    about_target: str  # where the target comes from, or why there is none
    human: bool  # whether scores are human-normalised: Atari without tasks
    notes: tuple[str, ...]  # what the reader has to know

    @property
    def tasks(self) -> range:
        """The numbers of the complete tasks."""
        if self.period is None:
            return range(0)
        first = -(-self.start // self.period)
        return range(first, int((self.end + TOLERANCE * self.period) // self.period))

    def of(self, arm: str) -> list[Run]:
        """Return an arm's runs."""
        return [run for run in self.runs if run.arm == arm]


def make_experiment(
    runs: Sequence[Run],
    *,
    control: str | None = None,
    target: float | None = None,
    floor: float | None = None,
    until: int | None = None,
) -> Experiment:
    """Check that runs may be compared, and choose how.

    At least one run is needed. For the other arguments see :func:`~fire_rl.reports.write_report`.

    Raises:
        ValueError: If they may not, or an argument makes no sense.
    """
    folder = os.path.commonpath([run.path.parent for run in runs])
    runs = [replace(run, label=printable(str(run.path.relative_to(folder)))) for run in runs]
    games = _check_environments(runs)
    _check_arms(runs)
    source = _common_source(runs)
    end = _check_length(runs, until)
    arms = sorted(dict.fromkeys(run.arm for run in runs), key=lambda arm: arm != CONTROL)
    if len(arms) > _MOST_ARMS:
        raise ValueError(
            f"{len(arms)} arms are too many for one report, {_MOST_ARMS} are the most: give fewer "
            "runs, or say which runs make up an arm with --arm NAME=GLOB."
        )
    if control is not None:
        check_choice("--control", control, arms)
        arms.sort(key=lambda arm: arm != control)
    elif CONTROL in arms and len(arms) > 1:
        control = CONTROL
    start = runs[0].branch_step if len({run.branch_step for run in runs}) == 1 else None
    tasks = runs[0].tasks
    atari = bool(games) and all(map(atari_game, games))
    human = atari and tasks is None and target is None and floor is None
    target, floor, about = _target(games, target, floor, human)
    return Experiment(
        runs=tuple(runs),
        arms=tuple(arms),
        control=control,
        games=tuple(games),
        source=source,
        start=start or 0,
        end=end,
        period=None if tasks is None else _period(runs[0], end),
        target=target,
        floor=floor,
        about_target=about,
        human=human,
        notes=tuple(_notes(runs, arms, games)),
    )


def _period(run: Run, end: int) -> int:
    """Return the steps of a task; raise ValueError if a run's configuration does not say it."""
    given = (run.tasks or {}).get("every")
    period = step(given)
    if not period or end / period > _MOST_TASKS:
        raise ValueError(
            f"{run.label}: `tasks.every` in its config.yaml must be the steps of a task, at most "
            f"{_MOST_TASKS:,} tasks in {end:,} steps; got {printable(repr(given), 60)}."
        )
    return period


def _group(runs: Sequence[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def _lines(groups: Mapping[Any, Sequence[Run]]) -> str:
    """List what differs, and which runs have it, a line for each."""
    return "".join(
        f"\n  {what}: {listed([run.label for run in own], 4)}" for what, own in groups.items()
    )


def _check_environments(runs: Sequence[Run]) -> list[str]:
    """Return the environments' names; raise ValueError for a mixture."""
    known = [run for run in runs if run.env is not None]
    settings = _group(known, lambda run: run.setting)
    if len(settings) < 2:
        return sorted({str(run.env) for run in known})
    same_but_game = {run.setting.replace(str(run.env), "", 1) for run in known}
    if not all(atari_game(run.env) for run in known) or len(same_but_game) > 1:
        raise ValueError(
            "Runs of different environments cannot be compared; make a report of each. (Only "
            f"Atari games can, with the same options.) There are{_lines(settings)}"
        )
    if unknown := [run for run in runs if run.env is None]:
        raise ValueError(
            "Which game these runs play is not recorded; say it with --env GAME=GLOB: "
            f"{', '.join(run.label for run in unknown)}."
        )
    if any(run.tasks for run in known):
        raise ValueError(f"Runs with tasks need one environment.{_lines(settings)}")
    arms = {env: {r.arm for r in own} for env, own in _group(known, lambda run: run.env).items()}
    every = set().union(*arms.values())
    if lacking := {env: every - there for env, there in arms.items() if every - there}:
        texts = (f"{env} lacks {', '.join(sorted(names))}" for env, names in lacking.items())
        raise ValueError(f"Every arm needs runs of every game: {'; '.join(texts)}.")
    return sorted(arms)


def _check_arms(runs: Sequence[Run]) -> None:
    """Raise ValueError where an arm has a seed twice, or holds different methods."""
    for (arm, env, seed), own in _group(runs, lambda run: (run.arm, run.env, run.seed)).items():
        if len(own) > 1:
            raise ValueError(
                f"Arm {arm!r} has seed {seed} {len(own)} times{f' on {env}' if env else ''}: "
                f"{', '.join(run.label for run in own)}. A run counts once. Name the arms with "
                "--arm NAME=GLOB, or put runs into <arm>/s<seed>."
            )
    for arm, own in _group(runs, lambda run: run.arm).items():
        known = [(run, _flat(run.config)) for run in own if run.config]
        for (first, one), (run, other) in itertools.pairwise(known):
            keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
            if keys:
                values = [[printable(repr(c.get(k)), 80) for c in (one, other)] for k in keys[:4]]
                pairs = zip(keys, values, strict=False)
                what = "; ".join(f"`{printable(k, 80)}` is {a} and {b}" for k, (a, b) in pairs)
                raise ValueError(
                    f"Arm {arm!r} holds runs with different settings: {what} in {first.label} and "
                    f"{run.label}. Name two arms with --arm NAME=GLOB, or put the runs into "
                    "<arm>/s<seed>."
                )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key, without those that do not change what is learned."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if f"{prefix}{key}" in _INCIDENTAL:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _common_source(runs: Sequence[Run]) -> str:
    """Return the best measure of the return that every run has."""
    for source in RETURNS:
        if all(source in run.returns for run in runs):
            return source
    groups = _group(runs, lambda run: ", ".join(run.returns) or "no return at all")
    raise ValueError(
        f"The runs have no measure of the return in common (of {', '.join(RETURNS)}):"
        f"{_lines(groups)}"
    )


def _check_length(runs: Sequence[Run], until: int | None) -> int:
    """Return the last step that all runs have reached."""
    longest, end = max(run.steps for run in runs), min(run.steps for run in runs)
    if end == 0 or (until is not None and until < 1):
        raise ValueError("Runs must have made a step, and --until must be at least 1.")
    if branched := [run for run in runs if (run.branch_step or 0) >= min(end, until or end)]:
        raise ValueError(
            "Runs must go on after the step where they branched off: "
            f"{listed([run.label for run in branched])}."
        )
    if until is not None and until <= end:
        return until
    if until is not None or end < (1 - TOLERANCE) * longest:
        wanted = "all of the same length" if until is None else f"at least {until:,} steps long"
        ordered = sorted(runs, key=lambda run: run.steps)
        raise ValueError(
            f"Runs must be {wanted}; finish the short ones, leave them out, or compare the first "
            f"steps only, with --until {end}. There are"
            f"{_lines(_group(ordered, lambda run: f'{run.steps:,} steps'))}"
        )
    return end


def _target(
    games: Sequence[str], target: float | None, floor: float | None, human: bool
) -> tuple[float | None, float, str]:
    """Return the target, the floor and a sentence about them."""
    if human:
        source = "1 is a human tester, 0 random play (Wang et al. 2016)"
        if len(games) > 1:
            return None, 0.0, source
        low, high = atari_scores()[str(atari_game(games[0]))]
        return high, low, source
    given, low = target is not None, 0.0 if floor is None else floor
    about = "given by --target"
    if target is None and games:
        target, about = reward_threshold(games[0]), f"at which Gymnasium calls {games[0]} solved"
    if target is None:
        what = games[0] if games else "the environment, which is not recorded,"
        return None, low, f"no target is known for {what}; give --target"
    if target > low:
        return target, low, f"1 is a return of {target:g}, {about}, 0 one of {low:g}"
    if given:
        raise ValueError(
            f"`--target` must lie above --floor, {low:g}, got {target:g}: give both, for example "
            "--floor -500 --target -100."
        )
    why = f"the target {target:g}, {about}, does not lie above the floor {low:g}; give --floor"
    return None, low, why


def _notes(runs: Sequence[Run], arms: Sequence[str], games: Sequence[str]) -> list[str]:
    """Return what the reader has to know about the runs."""
    notes = []
    ordered = sorted(runs, key=lambda run: arms.index(run.arm))
    groups = _group(ordered, lambda run: (run.arm, run.env))
    single = [f"{arm}{f' ({env})' if len(games) > 1 else ''}" for (arm, env), own in groups.items()
              if len(own) == 1]  # fmt: skip
    if single:
        notes.append(
            f"A single seed: {', '.join(single)}. One run says nothing about others, so that there "
            "are no intervals (–)."
        )
    few = min((len(own) for own in groups.values() if len(own) > 1), default=5)
    if few < 5:
        notes.append(
            f"{few} seeds are few: a 95 % interval of so few holds the truth in about "
            f"{_COVERAGE[few]} % of cases, and one without width says that no resample differs, "
            "not that the value is known."
        )
    if games and (unknown := [run for run in runs if run.env is None]):
        notes.append(
            f"The environment of {listed([run.label for run in unknown])} is not recorded; taken "
            "to be that of the others."
        )
    if unfinished := [run for run in runs if not run.finished]:
        notes.append(f"Not finished (no {RESULT}): {listed([run.label for run in unfinished])}.")
    return notes + [f"{run.label}: {run.note}." for run in runs if run.note]
