"""The contents of a report's tables: scores, games, tasks, recoveries, plasticity, layers, runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fire_rl.interventions import CONTROL
from fire_rl.reports import measures
from fire_rl.reports.experiment import Experiment
from fire_rl.reports.measures import METRICS, TASK_PHASES, Estimate, estimate, known_mean
from fire_rl.reports.runs import Run
from fire_rl.reports.statistics import iqm, mean, optimality_gap, probability_of_improvement
from fire_rl.reports.tables import Cell, Table
from fire_rl.runs.layout import CONTINUAL

_NOTHING = Estimate(math.nan)
_INTERVAL = "In brackets: 95 % interval by stratified bootstrap over runs."
_SCORES = {
    "mean": "the mean over the whole run, cut into equal bins of steps",
    "final": "the mean over the last tenth of the steps",
}
# The numbers of a recovery, and what surgery did to the policy's answers: name to title.
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
    "policy_kl": "policy KL",
    "action_difference": "action diff",
    "value_shift": "value shift",
}


def make_tables(experiment: Experiment, kind: str) -> list[Table]:
    """Return the tables for which there are data, the scores first.

    Args:
        experiment: The runs.
        kind: What a run's score is: ``"mean"`` or ``"final"``.
    """
    tables = [_scores_table(experiment, kind)]
    if experiment.human:
        tables.append(_games_table(experiment, kind))
    if experiment.tasks:
        tables += [_continual_table(experiment), _tasks_table(experiment)]
    tables += [_events_table(experiment), _plasticity_table(experiment)]
    tables += [_surgery_table(experiment), _runs_table(experiment)]
    return [table.without_empty_columns() for table in tables if table.rows]


def _scores_table(experiment: Experiment, kind: str) -> Table:
    """Return the arms' scores, and how they compare with the control's."""
    human, control = experiment.human, experiment.control
    scores = {arm: measures.scores_by_game(experiment, arm, kind, human) for arm in experiment.arms}
    gap: Callable[..., Any] | None = None
    if human:
        gap = optimality_gap  # of 1, a human
    elif experiment.target is not None:
        gap = partial(_normalised_gap, floor=experiment.floor, target=experiment.target)
    rows: list[list[Cell]] = []
    for arm, own in scores.items():
        better = _NOTHING
        if control is not None and arm != control:
            better = estimate(probability_of_improvement, own, scores[control])
        missed = _NOTHING if gap is None else estimate(gap, own)
        count = sum(map(len, own.values()))
        rows.append([arm, count, estimate(iqm, own), estimate(mean, own), better, missed])
    start = f", from step {experiment.start:,} on, where the arms branched off"
    about = [f"A run's score is {_SCORES[kind]}{start if experiment.start else ''}."]
    about.append("IQM is the interquartile mean.")
    if control is not None:
        about.append(
            f"P(better than {control}) is the probability that a run of the arm scores higher than "
            f"one of {control}: 0.5 is no difference."
        )
    else:
        about.append("No arm is the control (--control NAME), so that none is compared with it.")
    about.append(
        f"No optimality gap: {experiment.about_target}." if gap is None else
        f"The optimality gap is what scores lack of 1 on average, where {experiment.about_target}."
    )  # fmt: skip
    unit = "human-normalised" if human else "return"
    columns = ["arm", "runs", f"{unit}, IQM", f"{unit}, mean", f"P(better than {control})"]
    text = " ".join([*about, _INTERVAL])
    return Table("scores", "Scores", text, [*columns, "optimality gap"], rows)


def _normalised_gap(scores: Any, floor: float, target: float) -> Any:
    return optimality_gap(scores, target) / (target - floor)


def _games_table(experiment: Experiment, kind: str) -> Table:
    rows: list[list[Cell]] = []
    for game in experiment.games:
        for arm in experiment.arms:
            raw = measures.scores_by_game(experiment, arm, kind, False)[game]
            normal = measures.scores_by_game(experiment, arm, kind, True)[game]
            rows.append([game, arm, len(raw), estimate(iqm, raw), estimate(iqm, normal)])
    about = f"Interquartile means over the runs of one game. {_INTERVAL}"
    columns = ["game", "arm", "runs", "return", "human-normalised"]
    return Table("games", "Games", about, columns, rows)


def _continual_table(experiment: Experiment) -> Table:
    """Return each run's mean over its tasks, by arm."""
    rows: list[list[Cell]] = []
    for arm in experiment.arms:
        cells: list[Cell] = [arm]
        for phase, by_task in measures.task_values(experiment, arm).items():
            # No switch comes before the first task.
            tasks = [runs for task, runs in by_task.items() if phase != "after" or task > 0]
            cells.append(estimate(iqm, [known_mean(run) for run in zip(*tasks, strict=True)]))
        rows.append(cells)
    about = (
        f"Return by phase of a task, mean over the {len(experiment.tasks)} tasks, interquartile "
        "mean over runs. Just after the switch: the first eighth of each task but the first one; "
        f"at its end: the last quarter. Evaluated: by episodes of their own ({CONTINUAL}). "
        f"{_INTERVAL}"
    )
    columns = ["arm", *TASK_PHASES.values()]
    return Table("continual", "Changing tasks", about, columns, rows)


def _tasks_table(experiment: Experiment) -> Table:
    rows: list[list[Cell]] = []
    for arm in experiment.arms:
        phases = task_estimates(experiment, arm)
        for k, task in enumerate(experiment.tasks):
            cells = [_NOTHING if phase == "after" and task == 0 else estimates[k]
                     for phase, estimates in phases.items()]  # fmt: skip
            rows.append([arm, task, *cells])
    about = f"As above, task by task. {_INTERVAL}"
    return Table("tasks", "Task by task", about, ["arm", "task", *TASK_PHASES.values()], rows)


def task_estimates(experiment: Experiment, arm: str) -> dict[str, list[Estimate]]:
    """Return the estimates of all tasks by phase."""
    values = measures.task_values(experiment, arm)
    return {
        phase: [estimate(iqm, by_task[task]) for task in experiment.tasks]
        for phase, by_task in values.items()
    }


def recovery_table(
    arms: Mapping[str, Sequence[Mapping[str, float]]], control: str | None, about: str = ""
) -> Table:
    """Return how the return went on after the events of each arm: means over runs.

    Args:
        arms: Arm to one mapping per run: the numbers of a :class:`~fire_rl.reports.Recovery`, and
            any of ``policy_kl``, ``action_difference`` and ``value_shift``; with several events,
            means over them, ``events`` (how many) and ``regained`` (after how many of them the
            return came back).
        control: Name of the arm that they are compared with.
        about: What the columns mean.
    """
    rows: list[list[Cell]] = []
    for arm, runs in arms.items():
        events = sum(int(run.get("events", 1)) for run in runs)
        back = sum(int(run.get("regained", not math.isnan(run["steps_to_regain"]))) for run in runs)
        estimates = [estimate(mean, [run.get(key, math.nan) for run in runs]) for key in _RECOVERY]
        rows.append([arm, events, f"{back} of {events}", *estimates])
    columns = ["arm", "events", "regained", *(t.format(control) for t in _RECOVERY.values())]
    return Table("recovery", "Recovery", about, columns, rows).without_empty_columns()


def _events_table(experiment: Experiment) -> Table:
    """Return the recoveries after the events of each arm that had any."""
    arms: dict[str, list[dict[str, float]]] = {}
    for arm in experiment.arms:
        for run in experiment.of(arm):
            events = [e for e in measures.recoveries(run, experiment) if e.episodes]
            if events:
                numbers = {
                    key: known_mean([getattr(e, key) for e in events]) for key in vars(events[0])
                }
                back = sum(not math.isnan(event.steps_to_regain) for event in events)
                counts = {"events": len(events), "regained": back}
                arms.setdefault(arm, []).append({**numbers, **counts})
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
    return recovery_table(arms, experiment.control, about + _INTERVAL)


def _plasticity_table(experiment: Experiment) -> Table:
    rows: list[list[Cell]] = []
    for role in measures.roles_of(experiment):
        for arm in experiment.arms:
            cells = []
            for metric in METRICS:
                tag = measures.plasticity_tag(role, metric)
                logged = [run.scalars[tag] for run in experiment.of(arm) if tag in run.scalars]
                values = [known_mean(s.until(experiment.end).values.tolist()) for s in logged]
                cells.append(estimate(iqm, values))
            if not all(math.isnan(cell.value) for cell in cells):
                rows.append([role, arm, *cells])
    about = (
        "Mean of all measurements of a run, interquartile mean over runs. DfI is the deviation "
        f"from isometry. {_INTERVAL}"
    )
    return Table("plasticity", "Plasticity", about, ["network", "arm", *METRICS.values()], rows)


def _surgery_table(experiment: Experiment) -> Table:
    rows: list[list[Cell]] = []
    for arm in experiment.arms:
        for (role, layer), events in measures.layer_events(experiment.of(arm)).items():
            numbers = [
                measures.median([getattr(event, name) for event in events])
                for name in ("relative_sfe", "dfi_before", "dfi_after")
            ]
            shape = "×".join(map(str, events[0].shape))
            rows.append([arm, role, layer, shape, len(events), *numbers])
    about = (
        "What the events did to each layer, median over all events of all runs: squared Frobenius "
        "error relative to the squared norm of the weight, deviation from isometry per singular "
        "value before and after. Layers left alone are not in it."
    )
    columns = ["arm", "network", "layer", "shape", "events", "relative SFE", "DfI/sv before",
               "DfI/sv after"]  # fmt: skip
    return Table("surgery", "What surgery did", about, columns, rows)


def _runs_table(experiment: Experiment) -> Table:
    rows: list[list[Cell]] = []
    for arm in experiment.arms:
        runs = experiment.of(arm)
        rows.append([
            arm, len(runs), ", ".join(map(str, sorted({run.seed for run in runs}))),
            ", ".join(sorted({str(run.config.get("algo", "")) for run in runs})),
            _methods(runs), sum(len(measures.event_steps(run, experiment)) for run in runs),
        ])  # fmt: skip
    settings = sorted({run.setting for run in experiment.runs})
    about = (
        f"{'; '.join(settings)}. {experiment.end:,} steps. The return is taken from "
        f"{experiment.source}."
    )
    columns = ["arm", "runs", "seeds", "algorithm", "intervention", "events"]
    return Table("runs", "Runs", about, columns, rows)


def _methods(runs: Sequence[Run]) -> str:
    """Describe what an arm does: as configured, else by the interventions that acted."""
    given = runs[0].config.get("intervention")
    entries = given if isinstance(given, list) else [given] if given else []
    words = [", ".join(f"{k}: {_short(v)}" for k, v in e.items() if v is not None)
             for e in entries if isinstance(e, Mapping)]  # fmt: skip
    schedule = runs[0].config.get("schedule")
    if words and isinstance(schedule, Mapping):
        words[-1] += f", schedule: {_short(schedule)}"
    if not words:
        words = sorted({str(event.get("intervention")) for run in runs for event in run.events})
    return "; ".join(words) or CONTROL


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return str(value)
