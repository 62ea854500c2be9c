"""Turn the rows of benchmarks/results/continual.json into tables and pictures.

    python -m benchmarks.evidence.tables

Writes benchmarks/results/evidence.json (every number of docs/evidence.md), the tables of
docs/evidence.md and README.md, between their marks, and docs/images/evidence_*.png and .svg.
Nothing is trained; the same rows give the same numbers.

A run's score is its mean return after the first change of task: the means of the eighths of each
task but the first, which all arms share. Statistics are those of `fire_rl.reports.statistics`:
interquartile means over seeds with 95 % bootstrap intervals, and the probability that a run is
better than one of the arm `none`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, ROOT
from benchmarks.evidence.figures import draw
from benchmarks.evidence.suite import ARMS, BINS, CONTROL, FULL, HEADLINE, RESULT, SIX, compared
from fire_rl.reports.measures import DASH
from fire_rl.reports.statistics import bootstrap_interval, iqm, mean, probability_of_improvement
from fire_rl.reports.tables import markdown
from fire_rl.utils.jsonable import without_nan

Row = Mapping[str, Any]
Cell = dict[str, float]

# What a row of a table says of an arm, from one run each. Tasks after the first one.
MEASURES: dict[str, Callable[[Row], float]] = {
    "mean_return": lambda row: float(np.mean(_later(row))),
    "after_switch": lambda row: float(np.mean(_later(row)[:, 0])),
    "at_end": lambda row: float(np.mean(_later(row)[:, -2:])),
    "earlier_tasks": lambda row: _evaluated(row, lambda trained, task: trained != task),
}
# Of the actor, mean over the last third of a run's measurements: name in the table -> log key.
PLASTICITY = {
    "DfI per singular value": "plasticity/actor/dfi_per_sv",
    "dormant ratio": "live/actor/dormant_ratio",
    "effective rank": "live/actor/effective_rank",
}
HEADS = {
    "mean_return": "mean return",
    "gain": "gain over `none`",
    "better_than_none": "P(better than `none`)",
    "after_switch": "just after a change",
    "at_end": "at a task's end",
    "earlier_tasks": "on earlier tasks",
    "events": "events",
}


def main() -> None:
    """Compute, write the JSON, the tables and the pictures."""
    rows = json.loads((RESULTS / f"{RESULT}.json").read_text())["rows"]
    found = summary(rows)
    text = json.dumps(without_nan(found), indent=1, allow_nan=False)
    (RESULTS / "evidence.json").write_text(text + "\n")
    for path in (ROOT / "docs" / "evidence.md", ROOT / "README.md"):
        path.write_text(filled(path.read_text(encoding="utf-8"), found), encoding="utf-8")
    draw(rows, found)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the statistics of each setting and arm, and how the first task went."""
    found: dict[str, Any] = {}
    for name in FULL:
        mine = [row for row in rows if row["setting"] == name]
        if mine:
            arms = {arm: [row for row in mine if row["arm"] == arm] for arm in ARMS}
            control = arms[CONTROL]
            found[name] = {
                "config": mine[0]["config"],
                "commits": sorted({row["commit"] for row in mine}),
                "first_task": first_task(control),
                "arms": {arm: arm_summary(arms[arm], control) for arm in ARMS if arms[arm]},
            }
    return found


def first_task(control: Sequence[Row]) -> dict[str, list[float]]:
    """Return what `none` reached in the first task, a number for each seed."""
    evaluated = [[score for t, k, score in row["evaluated"] if t == k == 0] for row in control]
    return {
        "at_start": [round(row["after_switch"][0], 1) for row in control],
        "at_end": [round(row["at_end"][0], 1) for row in control],
        "evaluated": [scores[0] for scores in evaluated if scores],
    }


def arm_summary(runs: Sequence[Row], control: Sequence[Row]) -> dict[str, Any]:
    """Return an arm's statistics over its seeds."""
    scores = {name: [measure(run) for run in runs] for name, measure in MEASURES.items()}
    cells: dict[str, Any] = {
        "seeds": len(runs),
        "events": round(float(np.mean([len(run["events"]) for run in runs])), 1),
    }
    for name, values in scores.items():
        cells[name] = _cell(iqm(values), bootstrap_interval(iqm, values))
        cells[name]["runs"] = [round(value, 1) for value in values]
    cells["plasticity"] = {
        key: round(float(np.mean([late(run["plasticity"][key]) for run in runs])), 2)
        for key in PLASTICITY.values()
        if all(key in run["plasticity"] for run in runs)
    }
    ours, theirs = scores["mean_return"], [MEASURES["mean_return"](run) for run in control]
    if runs[0]["arm"] != CONTROL:
        chance = probability_of_improvement(ours, theirs)
        interval = bootstrap_interval(probability_of_improvement, ours, theirs)
        cells["better_than_none"] = _cell(chance, interval, digits=2)
        by_seed = {run["seed"]: value for run, value in zip(control, theirs, strict=True)}
        gains = [v - by_seed[run["seed"]] for run, v in zip(runs, ours, strict=True)]
        cells["gain"] = _cell(mean(gains), bootstrap_interval(mean, gains))
        cells["gain"]["runs"] = [round(value, 1) for value in gains]
    return cells


def late(points: Sequence[Sequence[float]]) -> float:
    """Return the mean of the last third of a metric's ``[step, value]``."""
    values = [value for _, value in points]
    return float(np.mean(values[-max(1, len(values) // 3) :]))


def arms_table(setting: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return a table of arms, the highest mean return first."""
    arms = setting["arms"]
    order = sorted(arms, key=lambda arm: -arms[arm]["mean_return"]["value"])
    rows = [[f"`{arm}`", *(_text(arms[arm].get(c), c) for c in columns)] for arm in order]
    return _markdown(["arm", *(HEADS[column] for column in columns)], rows)


def overview(found: Mapping[str, Any]) -> str:
    """Return a table of settings: the gain of each of six arms over `none`, seed by seed."""
    arms = [arm for arm in SIX if arm != CONTROL]
    rows = []
    for name, setting in compared(found).items():
        level = f"{setting['arms'][CONTROL]['mean_return']['value']:.1f}"
        gains = [_text(setting["arms"].get(arm, {}).get("gain"), "gain") for arm in arms]
        rows.append([f"`{name}`", level, *gains])
    return _markdown(["setting", "`none`", *(f"`{arm}`" for arm in arms)], rows)


def plasticity(found: Mapping[str, Any]) -> str:
    """Return a table: the actor's metrics in the headline's settings."""
    rows = []
    for name in HEADLINE:
        for arm in ("none", "optimizer_reset", "fire", "random_orthogonal", "reset"):
            values = [found[name]["arms"][arm]["plasticity"][key] for key in PLASTICITY.values()]
            cells = [f"{value:,.1f}" if value > 1 else f"{value:.2f}" for value in values]
            rows.append([f"`{name}`", f"`{arm}`", *cells])
    return _markdown(["setting", "arm", *PLASTICITY], rows, words=2)


def first_tasks(found: Mapping[str, Any]) -> str:
    """Return a table: what `none` reached in the first task of each setting."""
    rows = []
    for name, setting in found.items():
        values = setting["first_task"].values()
        rows.append([f"`{name}`", *(", ".join(f"{v:.1f}" for v in own) or DASH for own in values)])
    return _markdown(["setting", "training, first eighth", "last quarter", "evaluated"], rows)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return a table in Markdown, numbers to the right of so many columns of words."""
    return markdown(columns, rows, [k < words for k in range(len(columns))], pad=False)


def filled(text: str, found: Mapping[str, Any]) -> str:
    """Return a page with its tables, each between ``<!-- table NAME -->`` and ``<!-- end -->``."""
    short = ("mean_return", "gain", "after_switch", "at_end", "earlier_tasks")
    tables: dict[str, Callable[[], str]] = {
        **{name: lambda name=name: arms_table(found[name], list(HEADS)) for name in HEADLINE},
        "readme": lambda: arms_table(found["cartpole_permutation"], short),
        "overview": lambda: overview(found),
        "plasticity": lambda: plasticity(found),
        "first_tasks": lambda: first_tasks(found),
    }

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{tables[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- table (\w+) -->)\n.*?(<!-- end -->)", fill, text, flags=re.S)


def _later(row: Row) -> Any:
    """Return a run's curve after the first change, shape ``(tasks, BINS)``; else its only task."""
    curve = np.array(row["curve"]).reshape(-1, BINS)
    return curve[1:] if len(curve) > 1 else curve


def _evaluated(row: Row, wanted: Callable[[int, int], bool]) -> float:
    scores = [
        score for trained, task, score in row["evaluated"] if trained and wanted(trained, task)
    ]
    return float(np.mean(scores)) if scores else float("nan")


def _cell(value: float, interval: tuple[float, float], digits: int = 1) -> Cell:
    low, high = interval
    return {"value": round(value, digits), "low": round(low, digits), "high": round(high, digits)}


def _text(cell: Any, column: str) -> str:
    if cell is None:
        return DASH
    if column == "events":
        return f"{cell:g}"
    if np.isnan(cell["value"]):
        return DASH
    sign = "+" if column == "gain" else ""
    style = f"{sign}.2f" if column == "better_than_none" else f"{sign}.1f"
    text = format(cell["value"], style)
    if column in ("mean_return", "better_than_none", "gain") and not np.isnan(cell["low"]):
        text += f" [{cell['low']:{style}}, {cell['high']:{style}}]"
    return text


if __name__ == "__main__":
    main()
