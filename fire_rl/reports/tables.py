"""The tables of a report: what is in each, and how one is written in Markdown, CSV and JSON."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fire_rl.reports import measures
from fire_rl.reports.experiment import Experiment
from fire_rl.reports.measures import DASH, METRICS, Estimate, estimate, known_mean, shown
from fire_rl.reports.runs import method_of
from fire_rl.reports.statistics import iqm, mean, optimality_gap, probability_of_improvement
from fire_rl.runs.layout import CONTINUAL
from fire_rl.utils.plain_text import csv_text, markdown_text, printable

if TYPE_CHECKING:
    from pandas import DataFrame

Cell = str | int | float | Estimate

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


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Of its files.
        title: A few words.
        about: What the columns mean.
        rows: From column to cell, with the same columns in each; the first one names the row.
    """

    name: str
    title: str
    about: str
    rows: Sequence[Mapping[str, Cell]]

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.rows[0]) if self.rows else []

    def is_text(self, column: str) -> bool:
        """Whether a column holds words only: it is aligned to the left."""
        return all(isinstance(row[column], str) for row in self.rows)

    @property
    def text_columns(self) -> list[str]:
        """The columns that hold words only."""
        return [name for name in self.columns if self.is_text(name)]

    def without_empty_columns(self) -> Table:
        """Leave out the columns that show no value in any row."""
        kept = [n for n in self.columns if any(show(row[n]) != DASH for row in self.rows)]
        return replace(self, rows=[{name: row[name] for name in kept} for row in self.rows])

    def to_markdown(self) -> str:
        """Return it with padded columns."""
        cells = [[_markdown(cell) for cell in row.values()] for row in self.rows]
        names = list(map(markdown_text, self.columns))
        return markdown(names, cells, [self.is_text(name) for name in self.columns])

    def to_frame(self) -> DataFrame:
        """Return it as a data frame of pandas; an estimate has three columns.

        Raises:
            ImportError: If pandas is missing.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("Tables need pandas: pip install 'fire-rl[report]'") from None
        return pandas.DataFrame([_flat(row) for row in self.rows])

    def to_csv(self) -> str:
        """Return it at full precision, as :meth:`to_frame` has it; what is missing is empty.

        No text in it is a formula, whatever names the runs have.
        """
        plain = self.to_frame().rename(columns=csv_text)
        plain = plain.map(lambda cell: csv_text(cell) if isinstance(cell, str) else cell)
        return str(plain.to_csv(index=False, lineterminator="\n"))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        rows = [
            {name: vars(cell) if isinstance(cell, Estimate) else cell for name, cell in row.items()}
            for row in self.rows
        ]
        return {"title": self.title, "about": self.about, "rows": rows}


def _flat(row: Mapping[str, Cell]) -> dict[str, str | float]:
    """Return a row with three columns for each estimate."""
    cells: dict[str, str | float] = {}
    for name, cell in row.items():
        if isinstance(cell, Estimate):
            cells |= {name: cell.value, f"{name} low": cell.low, f"{name} high": cell.high}
        else:
            cells[name] = cell
    return cells


def markdown(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[bool], pad: bool = True
) -> str:
    """Return a table in Markdown.

    Args:
        columns: The names.
        rows: The cells.
        left: Which columns are aligned to the left; the others are to the right.
        pad: Whether all cells of a column get the same width.
    """
    lines = [[text.replace("|", "\\|").replace("\n", " ") for text in line]
             for line in (columns, *rows)]  # fmt: skip
    widths = [max(map(len, cells)) if pad else 1 for cells in zip(*lines, strict=True)]
    sides = ["<" if is_left else ">" for is_left in left]
    form = " | ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    head, *body = (f"| {form.format(*line)} |" for line in lines)
    if pad:
        rule = "|".join(f" {'-' * (width - 1)}{'-' if is_left else ':'} "
                        for width, is_left in zip(widths, left, strict=True))  # fmt: skip
    else:
        rule = "|".join("---" if is_left else "---:" for is_left in left)
    return "\n".join([head, f"|{rule}|", *body])


def show(cell: Cell) -> str:
    """Return a cell as people read it, numbers with four digits, a dash for what is not known."""
    if isinstance(cell, str | Estimate):
        return printable(str(cell)) or DASH
    return f"{cell:,}" if isinstance(cell, int) else shown(cell)


def _markdown(cell: Cell) -> str:
    return markdown_text(show(cell)) if isinstance(cell, str) else show(cell)


def scores_table(experiment: Experiment, kind: str) -> Table:
    """Return the arms' scores, and how they compare with the control's."""
    human, control = experiment.human, experiment.control
    scores = {arm: measures.scores_by_game(experiment, arm, kind, human) for arm in experiment.arms}
    floor, target = (0.0, 1.0) if human else (experiment.floor, experiment.target)
    unit = "human-normalised" if human else "return"
    rows: list[dict[str, Cell]] = []
    for arm, own in scores.items():
        better = missed = Estimate(math.nan)
        if control is not None and arm != control:
            better = estimate(probability_of_improvement, own, scores[control])
        if target is not None:
            missed = estimate(partial(_normalised_gap, floor=floor, target=target), own)
        row: dict[str, Cell] = {"arm": arm, "runs": sum(map(len, own.values()))}
        row |= {f"{unit}, IQM": estimate(iqm, own), f"{unit}, mean": estimate(mean, own)}
        rows.append({**row, f"P(better than {control})": better, "optimality gap": missed})
    start = f", from step {experiment.start:,} on, where the arms branched off"
    about = (
        f"A run's score is {_SCORES[kind]}{start if experiment.start else ''}. IQM is the "
        "interquartile mean. "
    )
    if control is None:
        about += "No arm is the control (--control NAME), so that none is compared with it. "
    else:
        about += (
            f"P(better than {control}) is the probability that a run of the arm scores higher than "
            f"one of {control}: 0.5 is no difference. "
        )
    if target is None:
        about += f"No optimality gap: {experiment.about_target}. "
    else:
        about += "The optimality gap is what scores lack of 1 on average, where "
        about += f"{experiment.about_target}. "
    return Table("scores", "Scores", about + _INTERVAL, rows)


def _normalised_gap(scores: Any, floor: float, target: float) -> Any:
    return optimality_gap(scores, target) / (target - floor)


def games_table(experiment: Experiment, kind: str) -> Table:
    """Return the scores game by game, raw and human-normalised."""
    rows: list[dict[str, Cell]] = []
    for game, arm in itertools.product(experiment.games, experiment.arms):
        raw, normal = (measures.scores_by_game(experiment, arm, kind, human)[game]
                       for human in (False, True))  # fmt: skip
        row: dict[str, Cell] = {"game": game, "arm": arm, "runs": len(raw)}
        row |= {"return": estimate(iqm, raw), "human-normalised": estimate(iqm, normal)}
        rows.append(row)
    about = f"Interquartile means over the runs of one game. {_INTERVAL}"
    return Table("games", "Games", about, rows)


def task_tables(experiment: Experiment) -> list[Table]:
    """Return two tables of each arm's return by phase: mean over the tasks, and task by task."""
    means: list[dict[str, Cell]] = []
    single: list[dict[str, Cell]] = []
    for arm in experiment.arms:
        values = measures.task_values(experiment, arm)
        of_runs = {phase: [known_mean(run) for run in tasks.T] for phase, tasks in values.items()}
        means.append({"arm": arm, **{phase: estimate(iqm, v) for phase, v in of_runs.items()}})
        estimates = measures.task_estimates(experiment, arm)
        for k, task in enumerate(experiment.tasks):
            cells = {phase: found[k] for phase, found in estimates.items()}
            single.append({"arm": arm, "task": task, **cells})
    about = (
        f"Return by phase of a task, mean over the {len(experiment.tasks)} tasks, interquartile "
        "mean over runs. Just after the switch: the first eighth of each task but the first one; "
        f"at its end: the last quarter. Evaluated: by episodes of their own ({CONTINUAL}). "
        f"{_INTERVAL}"
    )
    changing = Table("continual", "Changing tasks", about, means)
    again = f"As above, task by task. {_INTERVAL}"
    return [changing, Table("tasks", "Task by task", again, single)]


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
    rows: list[dict[str, Cell]] = []
    for arm, runs in arms.items():
        events = sum(int(run.get("events", 1)) for run in runs)
        back = sum(int(run.get("regained", not math.isnan(run["steps_to_regain"]))) for run in runs)
        estimates = {
            title.format(control): estimate(mean, [run.get(key, math.nan) for run in runs])
            for key, title in _RECOVERY.items()
        }
        rows.append({"arm": arm, "events": events, "regained": f"{back} of {events}", **estimates})
    return Table("recovery", "Recovery", about, rows).without_empty_columns()


def events_table(experiment: Experiment) -> Table:
    """Return the recoveries after the events of each arm that had any."""
    arms: dict[str, list[dict[str, float]]] = {}
    for run in (run for arm in experiment.arms for run in experiment.of(arm)):
        if numbers := measures.recovery_numbers(run, experiment):
            arms.setdefault(run.arm, []).append(numbers)
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


def plasticity_table(experiment: Experiment) -> Table:
    """Return the plasticity metrics of each network, by arm."""
    rows: list[dict[str, Cell]] = []
    for role in measures.roles_of(experiment):
        for arm in experiment.arms:
            cells = {}
            for metric, title in METRICS.items():
                logged = measures.logged(experiment, arm, measures.plasticity_tag(role, metric))
                cells[title] = estimate(iqm, [known_mean(one.values) for _, one in logged])
            if any(show(cell) != DASH for cell in cells.values()):
                rows.append({"network": role, "arm": arm, **cells})
    about = (
        "Mean of all measurements of a run, interquartile mean over runs. DfI is the deviation "
        f"from isometry. {_INTERVAL}"
    )
    return Table("plasticity", "Plasticity", about, rows)


def surgery_table(experiment: Experiment) -> Table:
    """Return what the events did to each layer, by arm."""
    rows: list[dict[str, Cell]] = []
    for arm in experiment.arms:
        for (role, layer), events in measures.layer_events(experiment.of(arm)).items():
            shape = "×".join(map(str, events[0]["shape"]))
            row = {"arm": arm, "network": role, "layer": layer, "shape": shape}
            sfe, before, after = map(measures.median, measures.layer_numbers(events).T)
            numbers = {"relative SFE": sfe, "DfI/sv before": before, "DfI/sv after": after}
            rows.append({**row, "events": len(events), **numbers})
    about = (
        "What the events did to each layer, median over all events of all runs: squared Frobenius "
        "error relative to the squared norm of the weight, deviation from isometry per singular "
        "value before and after. Layers left alone are not in it."
    )
    return Table("surgery", "What surgery did", about, rows)


def runs_table(experiment: Experiment) -> Table:
    """Return what was run: seeds, algorithm and intervention, by arm."""
    rows: list[dict[str, Cell]] = []
    for arm in experiment.arms:
        runs = experiment.of(arm)
        rows.append({
            "arm": arm,
            "runs": len(runs),
            "seeds": ", ".join(map(str, sorted({run.seed for run in runs}))),
            "algorithm": ", ".join(sorted({str(run.config.get("algo", "")) for run in runs})),
            "intervention": method_of(runs),
            "events": sum(len(measures.event_steps(run, experiment)) for run in runs),
        })  # fmt: skip
    settings = sorted({run.setting for run in experiment.runs})
    about = (
        f"{'; '.join(settings)}. {experiment.end:,} steps. The return is taken from "
        f"{experiment.source}."
    )
    return Table("runs", "Runs", about, rows)
