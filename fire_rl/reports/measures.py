"""From returns and metrics of comparable runs to scores, curves, tasks, recoveries and layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from fire_rl.metrics.registry import Shown
from fire_rl.reports.experiment import Experiment, atari_game, atari_scores
from fire_rl.reports.runs import Run
from fire_rl.reports.statistics import Array, bootstrap_band, bootstrap_interval, iqm, normalise
from fire_rl.runs.readers import Series
from fire_rl.runs.recovery import Recovery, recovery

Values = Sequence[float] | Array
Layer = tuple[str, str]  # a layer's network and name
LayerEvent = Mapping[str, Any]  # what an event did to a layer, as its report says

DASH = "–"
BINS = 100
_MOST_ROLES = 20  # a log may be a stranger's
# Divisible by 8 for the first eighth of a task, by 4 for its last quarter.
TASK_BINS = 24
# The plasticity metrics of a report, in the order of its columns, and those of them that are drawn
# under the learning curves: log key to title.
METRICS = Shown("table")
CURVES = Shown("curves")
# What is measured of a run in each task.
TASK_PHASES = (
    "mean", "just after the switch", "at its end", "evaluated at its end",
    "evaluated on earlier tasks",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval; the limits are NaN where there is none."""

    value: float
    low: float = np.nan
    high: float = np.nan

    def __str__(self) -> str:
        """Return it with four digits: ``82.41 [80.12, 84.9]``, a dash for what is not known."""
        if np.isnan(self.value):
            return DASH
        limits = DASH if np.isnan(self.low) else f"{shown(self.low)}, {shown(self.high)}"
        return f"{shown(self.value)} [{limits}]"


def shown(value: float) -> str:
    """Return a number with four digits and with commas, a dash if it is not known."""
    if np.isnan(value):
        return DASH
    size = abs(value)
    if size >= 1e15:
        return f"{value:.4g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return "0" if value == 0 else f"{value:.3g}" if size < 0.01 else f"{value:.4g}"


def estimate(statistic: Callable[..., Any], *scores: Any) -> Estimate:
    """Return a statistic of :mod:`fire_rl.reports.statistics` with its bootstrap interval."""
    return Estimate(statistic(*scores), *bootstrap_interval(statistic, *scores))


def known_mean(values: Values, statistic: Callable[[Array], Any] = np.mean) -> float:
    """Return the mean of the finite values, or another statistic of them; NaN if there is none."""
    array = np.asarray(values, np.float64)
    known = array[np.isfinite(array)]
    return float(statistic(known)) if len(known) else np.nan


median = partial(known_mean, statistic=np.median)


def _bin_means(series: Series, edges: Array) -> Array:
    """Return the mean of the values in each ``(edge, next edge]``, NaN where there is none."""
    known = np.isfinite(series.values)
    steps, values = series.steps[known], series.values[known]
    place = np.searchsorted(edges, steps, side="left") - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    count = np.bincount(place[inside], minlength=len(edges) - 1)
    total = np.bincount(place[inside], values[inside], minlength=len(edges) - 1)
    return total / np.where(count, count, np.nan)


def _interpolated(means: Array, outside: float | None = None) -> Array:
    """Interpolate over bins without a value; beyond the ends level, or with a given value."""
    known = np.flatnonzero(np.isfinite(means))
    if not len(known):
        return means
    return np.interp(np.arange(len(means)), known, means[known], left=outside, right=outside)


def _run_bins(run: Run, experiment: Experiment) -> Array:
    """Return the mean return in each of the bins of scores: 100, or 24 per complete task."""
    borders, count = np.array([experiment.start, experiment.end]), BINS
    if experiment.period is not None and (tasks := experiment.tasks):
        borders, count = experiment.period * np.arange(tasks.start, tasks.stop + 1), TASK_BINS
    series = run.returns[experiment.source]
    parts = np.linspace(borders[:-1], borders[1:], count + 1, axis=1)
    return np.concatenate([_interpolated(_bin_means(series, edges)) for edges in parts])


def score(run: Run, experiment: Experiment, kind: str) -> float:
    """Return a run's score: the ``mean`` of its bins, or of those in its last tenth (``final``)."""
    bins = _run_bins(run, experiment)
    if kind == "final":
        bins = bins[-max(1, round(len(bins) / 10)) :]
    return known_mean(bins)


def _human_normalised(value: Any, env: str | None) -> Any:
    """Return an Atari score, or an array of them, with 0 for random play and 1 for a human."""
    return normalise(value, *atari_scores()[str(atari_game(env))])


def scores_by_game(
    experiment: Experiment, arm: str, kind: str, normalised: bool
) -> dict[str, list[float]]:
    """Return an arm's scores by game, human-normalised or raw; in the order of the seeds."""
    found: dict[str, list[float]] = {game: [] for game in experiment.games or ["None"]}
    for run in sorted(experiment.of(arm), key=lambda run: run.seed):
        value = score(run, experiment, kind)
        game = run.env if run.env in found else next(iter(found))
        found[str(game)].append(_human_normalised(value, run.env) if normalised else value)
    return found


@dataclass(frozen=True)
class Curve:
    """The interquartile mean of an arm at some steps, and its pointwise 95 % interval."""

    steps: Array
    values: Array
    low: Array
    high: Array


def return_curve(experiment: Experiment, arm: str, game: str | None = None) -> Curve:
    """Return an arm's learning curve, human-normalised if there are several games; or of one, raw.

    ``game`` is the only game whose runs count.
    """
    count = BINS
    if experiment.period is not None and len(experiment.tasks):
        bins = min(8, max(2, 240 // len(experiment.tasks)))
        count = bins * round(experiment.end / experiment.period)
    runs = [run for run in experiment.of(arm) if game in (None, run.env)]
    returns = [(run.env, run.returns[experiment.source]) for run in runs]
    normalised = game is None and len(experiment.games) > 1
    return _binned_curve(returns, experiment.end, count, normalised)


def metric_curve(experiment: Experiment, arm: str, tag: str) -> Curve | None:
    """Return the curve of a logged scalar, None if no run has a number of it.

    At the steps at which it was logged, where these are those of every seed; else in bins.
    """
    runs = [(env, series) for env, series in logged(experiment, arm, tag)
            if np.isfinite(series.values).any()]  # fmt: skip
    if not runs:
        return None
    steps = runs[0][1].steps
    if all(np.array_equal(series.steps, steps) for _, series in runs):
        return _curve(steps, [(env, series.values) for env, series in runs])
    longest = max(len(series.steps) for _, series in runs)
    return _binned_curve(runs, experiment.end, min(BINS, longest))


def logged(experiment: Experiment, arm: str, tag: str) -> list[tuple[str | None, Series]]:
    """Return what an arm's runs logged of a scalar up to the end, each with its game."""
    runs = [run for run in experiment.of(arm) if tag in run.scalars]
    return [(run.env, run.scalars[tag].until(experiment.end)) for run in runs]


def _binned_curve(
    runs: Sequence[tuple[str | None, Series]], end: int, count: int, normalised: bool = False
) -> Curve:
    """Return the curve of runs in equal bins of steps; NaN outside of a run's own points."""
    edges = np.linspace(0, end, count + 1)
    binned = [(env, _interpolated(_bin_means(series, edges), np.nan)) for env, series in runs]
    if normalised:
        binned = [(env, _human_normalised(means, env)) for env, means in binned]
    return _curve((edges[1:] + edges[:-1]) / 2, binned)


def _curve(steps: Array, runs: Sequence[tuple[str | None, Array]]) -> Curve:
    """Return the curve of runs, each with its game: their interquartile mean at each step."""
    games = dict.fromkeys(str(game) for game, _ in runs)
    scores = {one: np.transpose([v for game, v in runs if str(game) == one]) for one in games}
    return Curve(steps, iqm(scores), *bootstrap_band(iqm, scores))


def plasticity_tag(role: str, metric: str) -> str:
    """Return the log key of a metric of a network."""
    return f"plasticity/{role}/{metric}"


def roles_of(experiment: Experiment) -> list[str]:
    """Return the networks whose plasticity was logged: ``actor``, ``critic``, ..."""
    tags = {tuple(tag.split("/")) for run in experiment.runs for tag in run.scalars}
    found = {parts[1] for parts in tags if len(parts) == 3 and parts[0] == "plasticity"}
    return sorted(role for role in found if role.isprintable() and len(role) <= 60)[:_MOST_ROLES]


def task_values(experiment: Experiment, arm: str) -> dict[str, Array]:
    """Return by phase, one of :data:`TASK_PHASES`, an array of shape ``(tasks, runs)``.

    It is NaN where there was no evaluation, and just after the switch in the first task, before
    which nothing is switched.
    """
    found = []
    for run in experiment.of(arm):
        bins = _run_bins(run, experiment).reshape(-1, TASK_BINS)
        after = bins[:, : TASK_BINS // 8].mean(axis=1)
        after[np.array(experiment.tasks) == 0] = np.nan
        # A task that recurs is evaluated under its first number, the last of its lines.
        lines = [[line["return"] for line in run.task_evaluations if line.get("trained_task") == k]
                 for k in experiment.tasks]  # fmt: skip
        evaluated = [returns[-1] if returns else np.nan for returns in lines]
        earlier = [np.mean(returns[:-1]) if returns[1:] else np.nan for returns in lines]
        end = bins[:, -TASK_BINS // 4 :].mean(axis=1)
        found.append([bins.mean(axis=1), after, end, evaluated, earlier])
    return dict(zip(TASK_PHASES, np.transpose(np.array(found), (1, 2, 0)), strict=True))


def task_estimates(experiment: Experiment, arm: str) -> dict[str, list[Estimate]]:
    """Return by phase the interquartile mean over an arm's runs in each task."""
    values = task_values(experiment, arm)
    return {phase: [estimate(iqm, runs) for runs in tasks] for phase, tasks in values.items()}


def event_steps(run: Run, experiment: Experiment) -> list[int]:
    """Return the steps of a run's interventions; of a branch, the step where it branched off."""
    if run.branch_step is not None:
        return [run.branch_step]
    steps = sorted({int(event["num_timesteps"]) for event in run.events})
    return [step for step in steps if step < experiment.end]


def recoveries(run: Run, experiment: Experiment) -> list[Recovery]:
    """Return how a run went on after each event, up to the next one, beside its control.

    A control without events is measured at those of another arm with its seed, for comparison.
    """
    steps = event_steps(run, experiment)
    same = [one for one in experiment.runs if (one.env, one.seed) == (run.env, run.seed)]
    control = None
    if run.arm != experiment.control:
        control = next((one for one in same if one.arm == experiment.control), None)
    elif not steps:
        all_steps = {tuple(event_steps(one, experiment)) for one in same} - {()}
        steps = list(all_steps.pop()) if len(all_steps) == 1 else []
    found = []
    for step, end in pairwise([*steps, experiment.end]):
        after = step - (end - step)
        own = _episodes(run, experiment, after, end)
        other = None if control is None else _episodes(control, experiment, after, end)
        found.append(recovery(own, step, end, other))
    return found


def recovery_numbers(run: Run, experiment: Experiment) -> dict[str, float]:
    """Return the means over a run's recoveries, and how many there are; empty if there is none."""
    found = [one for one in recoveries(run, experiment) if one.episodes]
    if not found:
        return {}
    numbers = {key: known_mean([getattr(one, key) for one in found]) for key in vars(found[0])}
    back = sum(not np.isnan(one.steps_to_regain) for one in found)
    return {**numbers, "events": len(found), "regained": back}


def _episodes(
    run: Run, experiment: Experiment, after: float, until: float
) -> list[tuple[int, float]]:
    series = run.returns[experiment.source]
    kept = (series.steps > after) & (series.steps <= until) & np.isfinite(series.values)
    steps, values = series.steps[kept].astype(int), series.values[kept]
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def layer_events(runs: Sequence[Run]) -> dict[Layer, list[LayerEvent]]:
    """Return by network and layer what all events of some runs did to it, if they did anything."""
    found: dict[Layer, list[LayerEvent]] = {}
    for event in (event for run in runs for event in run.events):
        for role, changes in event["networks"].items():
            for layer in changes["layers"]:
                if layer.get("action") != "keep":
                    found.setdefault((role, str(layer["name"])), []).append(layer)
    return found


def layer_numbers(events: Sequence[LayerEvent]) -> Array:
    """Return a row for each event of a layer: relative SFE, DfI per singular value before, after.

    The squared Frobenius error is relative to the squared norm before.
    """
    rows = []
    for event in events:
        count, square = event["num_singular_values"] or np.nan, event["norm_before"] ** 2
        relative = event["sfe"] / square if square else np.nan
        rows.append([relative, event["dfi_before"] / count, event["dfi_after"] / count])
    return np.array(rows)
