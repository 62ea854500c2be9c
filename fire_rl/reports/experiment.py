"""Runs that may be compared with one another: of one environment, one length and one measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fire_rl.interventions import CONTROL
from fire_rl.reports.checks import (
    TOLERANCE,
    Shower,
    check_environments,
    check_length,
    check_seeds,
    check_settings,
    common_source,
    group,
)
from fire_rl.reports.naming import listed
from fire_rl.reports.runs import Run
from fire_rl.reports.targets import atari_game, atari_scores, reward_threshold
from fire_rl.utils.validation import check_choice

# How often the 95 % interval of the IQM of so many runs holds the truth, in percent: measured with
# 2,000 samples of normally distributed scores.
_COVERAGE = {2: 51, 3: 73, 4: 87}


@dataclass(frozen=True)
class Experiment:
    """Comparable runs.

    Attributes:
        runs: All of them, until the common end.
        arms: Their names, the control first.
        control: The arm that others are compared with, or None.
        games: The environments' names; more than one only for Atari games.
        source: Where the return comes from, one of :data:`RETURNS`.
        start: The step from which on scores count: where the arms branched off, or 0.
        end: The last common step.
        period: Steps of a task where tasks follow one another, else None.
        target: The return that counts as solved, None if there is none. For Atari it is the
            human's, see ``human``.
        floor: The return that counts as nothing.
        about_target: Where the target comes from, or why there is none.
        human: Whether scores are human-normalised: Atari without tasks.
        notes: What the reader has to know.
    """

    runs: tuple[Run, ...]
    arms: tuple[str, ...]
    control: str | None
    games: tuple[str, ...]
    source: str
    start: int
    end: int
    period: int | None
    target: float | None
    floor: float
    about_target: str
    human: bool
    notes: tuple[str, ...]

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

    def control_of(self, run: Run) -> Run | None:
        """Return the control with a run's game and seed, None if it is the control itself."""
        if self.control is None or run.arm == self.control:
            return None
        same = (r for r in self.of(self.control) if (r.env, r.seed) == (run.env, run.seed))
        return next(same, None)


def make_experiment(
    runs: Sequence[Run],
    *,
    control: str | None = None,
    target: float | None = None,
    floor: float | None = None,
    until: int | None = None,
    root: Path | None = None,
) -> Experiment:
    """Check that runs may be compared, and how.

    Args:
        runs: At least one.
        control: Name of the arm to compare with; ``"none"`` if it is there.
        target: The return that counts as solved; by default what is known of the environment.
        floor: The return that counts as nothing; 0 by default.
        until: Leave out what comes after this step.
        root: What paths are shown relative to.

    Raises:
        ValueError: If they may not, or an argument makes no sense.
    """
    show = Shower(runs, root)
    games = check_environments(runs, show)
    check_seeds(runs, show)
    check_settings(runs, show)
    source = common_source(runs, show)
    end = check_length(runs, until, show)
    arms = sorted(dict.fromkeys(run.arm for run in runs), key=lambda arm: arm != CONTROL)
    if control is not None:
        check_choice("--control", control, arms)
        arms.sort(key=lambda arm: arm != control)
    elif CONTROL in arms and len(arms) > 1:
        control = CONTROL
    branches = {run.branch_step for run in runs}
    start = branches.pop() if len(branches) == 1 else None
    tasks = runs[0].tasks
    atari = bool(games) and all(map(atari_game, games))
    human = atari and tasks is None and target is None and floor is None
    target, floor, about = _target(games, tasks, target, floor, human)
    return Experiment(
        runs=tuple(runs),
        arms=tuple(arms),
        control=control,
        games=tuple(games),
        source=source,
        start=start or 0,
        end=end,
        period=None if tasks is None else int(tasks["every"]),
        target=target,
        floor=floor,
        about_target=about,
        human=human,
        notes=tuple(_notes(runs, arms, games, show)),
    )


def _target(
    games: Sequence[str],
    tasks: Mapping[str, Any] | None,
    target: float | None,
    floor: float | None,
    human: bool,
) -> tuple[float | None, float, str]:
    """Return the target, the floor and a sentence about them."""
    if human:
        source = "1 is a human tester, 0 random play (Wang et al. 2016)"
        if len(games) == 1:
            low, high = atari_scores()[str(atari_game(games[0]))]
            return high, low, source
        return None, 0.0, source
    about = "given by --target"
    low = 0.0 if floor is None else floor
    if target is None:
        target = reward_threshold(games[0]) if games else None
        about = f"at which Gymnasium calls {games[0]} solved" if games else ""
    elif not target > low:
        raise ValueError(
            f"`--target` must lie above --floor, {low:g}, got {target:g}: give both, for example "
            "--floor -500 --target -100."
        )
    if target is None:
        what = games[0] if games else "the environment, which is not recorded,"
        return None, low, f"no target is known for {what}; give --target"
    if not target > low:
        return None, low, (
            f"the target {target:g}, {about}, does not lie above the floor {low:g}; give --floor"
        )  # fmt: skip
    return target, low, f"1 is a return of {target:g}, {about}, 0 one of {low:g}"


def _notes(
    runs: Sequence[Run], arms: Sequence[str], games: Sequence[str], show: Shower
) -> list[str]:
    """Return what the reader has to know about the runs."""
    notes = []
    ordered = sorted(runs, key=lambda run: arms.index(run.arm))
    groups = group(ordered, lambda run: (run.arm, run.env))
    single = [f"{arm}{f' ({env})' if len(games) > 1 else ''}" for arm, env in groups
              if len(groups[arm, env]) == 1]  # fmt: skip
    if single:
        notes.append(
            f"A single seed: {', '.join(single)}. One run says nothing about others, so that there "
            "are no intervals (–)."
        )
    few = min((len(members) for members in groups.values() if len(members) > 1), default=5)
    if few < 5:
        notes.append(
            f"{few} seeds are few: a 95 % interval of so few holds the truth in about "
            f"{_COVERAGE[few]} % of cases, and one without width says that no resample differs, "
            "not that the value is known."
        )
    unknown = [run for run in runs if run.env is None]
    if unknown and games:
        notes.append(
            f"The environment of {listed(list(map(show, unknown)))} is not recorded; taken to be "
            "that of the others."
        )
    unfinished = [run for run in runs if not run.finished]
    if unfinished:
        notes.append(f"Not finished (no result.json): {listed(list(map(show, unfinished)))}.")
    notes += [f"{show(run)}: {run.note}." for run in runs if run.note]
    return notes
