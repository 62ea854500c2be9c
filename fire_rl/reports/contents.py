"""The tables of a report: which there are, and what stands in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fire_rl.interventions import CONTROL
from fire_rl.reports import measures
from fire_rl.reports.experiment import Experiment
from fire_rl.reports.measures import METRICS, Estimate, estimate
from fire_rl.reports.runs import Run
from fire_rl.reports.statistics import iqm, mean, optimality_gap, probability_of_improvement
from fire_rl.reports.tables import Cell, Table

_INTERVAL = "In brackets: 95 % interval by stratified bootstrap over runs."
_SCORES = {
    "mean": "the mean over the whole run, cut into equal bins of steps",
    "final": "the mean over the last tenth of the steps",
}


def make_tables(experiment: Experiment, kind: str) -> list[Table]:
    """Return the tables for which there are data, the scores first.

    Args:
        experiment: The runs.
        kind: What a run's score is: ``"mean"`` or ``"final"``.
    """
    tables = [scores_table(experiment, kind)]
    if experiment.human:
        tables.append(_games_table(experiment, kind))
    if experiment.tasks:
        tables += [_continual_table(experiment), _tasks_table(experiment)]
    tables += [_recovery_table(experiment), _plasticity_table(experiment)]
    tables += [_surgery_table(experiment), _runs_table(experiment)]
    return [table.without_empty_columns() for table in tables if table.rows]


def scores_table(experiment: Experiment, kind: str) -> Table:
    """Return the arms' scores, and how they compare with the control's."""
    human, control = experiment.human, experiment.control
    scores = {arm: measures.scores_by_game(experiment, arm, kind, human) for arm in experiment.arms}
    target = experiment.target
    gap = None
    if human:
        gap = optimality_gap  # of 1, a human
    elif target is not None:
        gap = partial(_normalised_gap, floor=experiment.floor, target=target)
    unit = "human-normalised" if human else "return"
    columns = ["arm", "runs", f"{unit}, IQM", f"{unit}, mean"]
    columns += [f"P(better than {control})", "optimality gap"]
    rows: list[tuple[Cell, ...]] = []
    for arm, own in scores.items():
        better = Estimate(math.nan)
        if control is not None and arm != control:
            better = estimate(probability_of_improvement, own, scores[control])
        missed = Estimate(math.nan) if gap is None else estimate(gap, own)
        count = sum(map(len, own.values()))
        rows.append((arm, count, estimate(iqm, own), estimate(mean, own), better, missed))
    about = [f"A run's score is {_SCORES[kind]}" + (
        f", from step {experiment.start:,} on, where the arms branched off."
        if experiment.start else "."
    )]  # fmt: skip
    about.append("IQM is the interquartile mean.")
    if control is not None:
        about.append(
            f"P(better than {control}) is the probability that a run of the arm scores higher than "
            f"one of {control}: 0.5 is no difference."
        )
    else:
        about.append("No arm is the control (--control NAME), so that none is compared with it.")
    if gap is None:
        about.append(f"No optimality gap: {experiment.about_target}.")
    else:
        about.append(
            "The optimality gap is what scores lack of 1 on average, where "
            f"{experiment.about_target}."
        )
    return Table("scores", "Scores", " ".join([*about, _INTERVAL]), tuple(columns), tuple(rows))


def _normalised_gap(scores: Any, floor: float, target: float) -> Any:
    """Return the optimality gap of scores of which 0 is the floor and 1 the target."""
    return optimality_gap(scores, target) / (target - floor)


def _games_table(experiment: Experiment, kind: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for game in experiment.games:
        for arm in experiment.arms:
            raw = measures.scores_by_game(experiment, arm, kind, False)[game]
            normal = measures.scores_by_game(experiment, arm, kind, True)[game]
            rows.append((game, arm, len(raw), estimate(iqm, raw), estimate(iqm, normal)))
    about = f"Interquartile means over the runs of one game. {_INTERVAL}"
    columns = ("game", "arm", "runs", "return", "human-normalised")
    return Table("games", "Games", about, columns, tuple(rows))


def _task_values(experiment: Experiment, arm: str) -> dict[str, dict[int, list[float]]]:
    """Return by number and task the values of an arm's runs."""
    found: dict[str, dict[int, list[float]]] = {}
    for run in experiment.of(arm):
        for task, numbers in measures.task_numbers(run, experiment).items():
            for name, value in vars(numbers).items():
                found.setdefault(name, {}).setdefault(task, []).append(value)
    return found


TASK_COLUMNS = {
    "mean": "mean",
    "after": "just after the switch",
    "end": "at its end",
    "evaluated": "evaluated at its end",
    "earlier": "evaluated on earlier tasks",
}


def _continual_table(experiment: Experiment) -> Table:
    """Return each run's mean over its tasks, by arm."""
    rows: list[tuple[Cell, ...]] = []
    for arm in experiment.arms:
        values = _task_values(experiment, arm)
        cells: list[Cell] = [arm]
        for name in TASK_COLUMNS:
            # No switch comes before the first task.
            tasks = [runs for task, runs in values[name].items() if name != "after" or task > 0]
            cells.append(estimate(iqm, [_known_mean(run) for run in zip(*tasks, strict=True)]))
        rows.append(tuple(cells))
    about = (
        f"Return by phase of a task, mean over the {len(experiment.tasks)} tasks, interquartile "
        "mean over runs. Just after the switch: the first eighth of each task but the first one; "
        "at its end: the last quarter. Evaluated: by episodes of their own (continual.csv). "
        f"{_INTERVAL}"
    )
    columns = ("arm", *TASK_COLUMNS.values())
    return Table("continual", "Changing tasks", about, columns, tuple(rows))


def _tasks_table(experiment: Experiment) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for arm in experiment.arms:
        values = _task_values(experiment, arm)
        for task in experiment.tasks:
            cells = [estimate(iqm, values[name][task]) for name in TASK_COLUMNS]
            if task == 0:
                cells[1] = Estimate(math.nan)
            rows.append((arm, task, *cells))
    about = f"As above, task by task. {_INTERVAL}"
    columns = ("arm", "task", *TASK_COLUMNS.values())
    return Table("tasks", "Task by task", about, columns, tuple(rows))


def task_estimates(experiment: Experiment, arm: str) -> dict[str, list[Estimate]]:
    """Return by number the estimates of all tasks, for the bars."""
    values = _task_values(experiment, arm)
    return {name: [estimate(iqm, values[name][t]) for t in experiment.tasks] for name in values}


_RECOVERY = {
    "before": "before",
    "dip": "dip",
    "steps_to_regain": "steps to regain",
    "area_lost": "area lost",
    "plateau": "plateau",
    "dip_below_control": "dip below {}",
    "steps_to_reach_control": "steps to reach {}",
    "plateau_gain": "plateau - {}",
    "gain": "mean - {}",
}


def _recovery_table(experiment: Experiment) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for arm in experiment.arms:
        found = [measures.recoveries(run, experiment) for run in experiment.of(arm)]
        events = [one for run in found for one in run if one.episodes]
        if not events:
            continue
        regained = sum(not math.isnan(one.steps_to_regain) for one in events)
        cells: list[Cell] = [arm, len(events), f"{regained} of {len(events)}"]
        for name in _RECOVERY:
            runs = [[getattr(one, name) for one in run if one.episodes] for run in found if run]
            cells.append(estimate(mean, [_known_mean(run) for run in runs]))
        rows.append(tuple(cells))
    names = (name.format(experiment.control) for name in _RECOVERY.values())
    about = (
        "From each event up to the next one or the end: return just before, how deep it falls, "
        "steps until it is back for good (mean over the events that came back), return lost on the "
        "way, return at the end. Mean over a run's events, then over runs. "
    )
    if any(run.branch_step is not None for run in experiment.runs):
        about += "Of branches the event is the branching off, whatever the arm does later. "
    if experiment.control is not None:
        about += (
            f"Read the row {experiment.control} first: it says what noise alone does, measured at "
            "the steps of the others' events. "
        )
    if experiment.source.count("/"):
        about += f"{experiment.source} is itself a mean over past episodes, which smooths the dip. "
    columns = ("arm", "events", "regained", *names)
    return Table("recovery", "Recovery", about + _INTERVAL, columns, tuple(rows))


def _plasticity_table(experiment: Experiment) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for role in measures.roles_of(experiment):
        for arm in experiment.arms:
            cells = []
            for metric in METRICS:
                tag = f"plasticity/{role}/{metric}"
                logged = [run.scalars[tag] for run in experiment.of(arm) if tag in run.scalars]
                values = [_known_mean(s.until(experiment.end).values.tolist()) for s in logged]
                cells.append(estimate(iqm, values))
            if not all(math.isnan(cell.value) for cell in cells):
                rows.append((role, arm, *cells))
    about = (
        "Mean of all measurements of a run, interquartile mean over runs. DfI is the deviation "
        f"from isometry. {_INTERVAL}"
    )
    columns = ("network", "arm", *METRICS.values())
    return Table("plasticity", "Plasticity", about, columns, tuple(rows))


def _surgery_table(experiment: Experiment) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for arm in experiment.arms:
        for (role, layer), events in measures.layer_events(experiment.of(arm)).items():
            numbers = [
                measures.median([getattr(event, name) for event in events])
                for name in ("relative_sfe", "dfi_before", "dfi_after")
            ]
            shape = "×".join(map(str, events[0].shape))
            rows.append((arm, role, layer, shape, len(events), *numbers))
    about = (
        "What the events did to each layer, median over all events of all runs: squared Frobenius "
        "error relative to the squared norm of the weight, deviation from isometry per singular "
        "value before and after. Layers left alone are not in it."
    )
    columns = ("arm", "network", "layer", "shape", "events", "relative SFE", "DfI/sv before",
               "DfI/sv after")  # fmt: skip
    return Table("surgery", "What surgery did", about, columns, tuple(rows))


def _runs_table(experiment: Experiment) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for arm in experiment.arms:
        runs = experiment.of(arm)
        seeds = sorted({run.seed for run in runs})
        rows.append((
            arm, len(runs), ", ".join(map(str, seeds)),
            ", ".join(sorted({str(run.config.get("algo", "")) for run in runs})),
            _methods(runs), sum(len(measures.event_steps(run, experiment)) for run in runs),
        ))  # fmt: skip
    settings = sorted({run.setting for run in experiment.runs})
    about = (
        f"{'; '.join(settings)}. {experiment.end:,} steps. The return is taken from "
        f"{experiment.source}."
    )
    columns = ("arm", "runs", "seeds", "algorithm", "intervention", "events")
    return Table("runs", "Runs", about, columns, tuple(rows))


def _methods(runs: Sequence[Run]) -> str:
    """Say what an arm does: as configured, else as its events tell."""
    given = runs[0].config.get("intervention")
    entries = given if isinstance(given, list) else [given] if given else []
    told = [", ".join(f"{k}: {_short(v)}" for k, v in e.items() if v is not None)
            for e in entries if isinstance(e, Mapping)]  # fmt: skip
    schedule = runs[0].config.get("schedule")
    if told and isinstance(schedule, Mapping):
        told[-1] += f", schedule: {_short(schedule)}"
    if not told:
        told = sorted({str(event.get("intervention")) for run in runs for event in run.events})
    return "; ".join(told) or CONTROL


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return str(value)


def _known_mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
