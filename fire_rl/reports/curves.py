"""Pictures of returns: scores with intervals, learning curves over plasticity, tasks in bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fire_rl.interventions import CONTROL
from fire_rl.metrics.registry import Shown
from fire_rl.reports import measures
from fire_rl.reports.contents import TASK_COLUMNS, task_estimates
from fire_rl.reports.drawing import (
    GREY,
    Picture,
    Style,
    draw,
    groups,
    log_scale,
    shorten,
    styles,
    thousands,
)
from fire_rl.reports.experiment import Experiment
from fire_rl.reports.measures import Curve, Estimate
from fire_rl.reports.tables import Table

# Of the metrics, for which there is room under the return.
_SHOWN = Shown("curves")
_MARKS = 60  # more events than this are drawn as fine strokes


def draw_scores(experiment: Experiment, table: Table, values: dict[str, list[float]]) -> Picture:
    """Draw the scores table: a dot and an interval per arm, single runs as rings.

    Args:
        experiment: The runs.
        table: The scores.
        values: Arm to the scores of its runs.
    """
    look = styles(experiment.arms, experiment.control)
    columns = [
        k for k, name in enumerate(table.columns)
        if k == 2 or name.startswith("P(") or name == "optimality gap"
    ]  # fmt: skip

    def paint(figure: Any) -> None:
        axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axis, column in zip(axes, columns, strict=True):
            for y, row in enumerate(table.rows):
                if column == 2:
                    points = values[str(row[0])]
                    axis.plot(points, [y] * len(points), "o", mfc="none", mec=GREY, ms=4, mew=0.8)
                _interval(axis, y, row[column], look[str(row[0])])
            axis.set_title(table.columns[column])
            axis.grid(axis="y", visible=False)
            axis.locator_params(axis="x", nbins=5)
            if table.columns[column].startswith("P("):
                axis.axvline(0.5, color=GREY, lw=0.8, ls="--")
                axis.set_xlim(-0.03, 1.03)
        axes[0].set_yticks(range(len(table.rows)), [shorten(str(r[0]), 28) for r in table.rows])
        axes[0].set_ylim(len(table.rows) - 0.4, -0.6)

    size = (3.2 + 2.3 * len(columns), 0.9 + 0.3 * len(table.rows))
    caption = "Dots and bars: the table's values and intervals. Rings: single runs."
    return draw("scores", "Scores", caption, size, paint)


def _interval(axis: Any, y: float, cell: Any, style: Style) -> None:
    if isinstance(cell, Estimate) and np.isfinite(cell.value):
        axis.plot([cell.low, cell.high], [y, y], color=style.colour, lw=2.2, solid_capstyle="butt")
        axis.plot(cell.value, y, style.marker, color=style.colour, ms=6)


def draw_curves(experiment: Experiment) -> list[Picture]:
    """Draw learning curves with the events marked, and each network's plasticity under them."""
    found = []
    roles = measures.roles_of(experiment) or [""]
    parts = groups(experiment.arms, experiment.control)
    returns = {arm: measures.return_curve(experiment, arm) for arm in experiment.arms}
    for role in roles:
        rows: dict[str, dict[str, Curve]] = {}
        for metric in _SHOWN if role else ():
            curves = {
                arm: measures.metric_curve(experiment, arm, f"plasticity/{role}/{metric}")
                for arm in experiment.arms
            }
            known = {arm: curve for arm, curve in curves.items() if curve is not None}
            if known:
                rows[_SHOWN[metric]] = known
        for number, arms in enumerate(parts, start=1):
            tail = [role] if role else []
            tail += [str(number)] if len(parts) > 1 else []
            found.append(
                _curves("_".join(["curves", *tail]), experiment, role, arms, returns, rows)
            )
    return found


def _curves(
    name: str,
    experiment: Experiment,
    role: str,
    arms: Sequence[str],
    returns: dict[str, Curve],
    metrics: dict[str, dict[str, Curve]],
) -> Picture:
    look = styles(experiment.arms, experiment.control)
    normalised = len(experiment.games) > 1
    rows = {"human-normalised" if normalised else "return": returns, **metrics}

    def paint(figure: Any) -> None:
        heights = [1.7, *[1.0] * len(metrics)]
        axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=heights)[
            :, 0
        ]
        for axis, (label, curves) in zip(axes, rows.items(), strict=True):
            for arm in arms:
                if arm in curves:
                    draw_curve(axis, curves[arm], look[arm], arm)
            axis.set_ylabel(label.replace(" per singular value", "\nper sing. value"))
            limit(axis, list(curves.values()), label != "return" and not normalised)
            for border in _borders(experiment):
                axis.axvline(border, color="#C8C8C8", lw=0.8, zorder=0)
        _mark_events(axes[0], experiment, arms, look)
        axes[-1].set_xlabel("environment steps")
        axes[-1].set_xlim(0, experiment.end)
        thousands(axes[-1].xaxis)
        axes[-1].yaxis.set_major_locator(axes[-1].yaxis.get_major_locator())
        lines, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            lines, [shorten(text, 30) for text in labels], loc="outside upper left",
            ncols=min(5, len(labels)), handlelength=3,
        )  # fmt: skip

    title = "Learning curves" + (f" and plasticity of the {role}" if role else "")
    return draw(name, title, _caption(experiment), (8.6, 2.9 + 1.35 * len(metrics)), paint)


def _caption(experiment: Experiment) -> str:
    text = (
        "Interquartile mean over runs; bands: pointwise 95 % bootstrap intervals, where there are "
        "two runs or more. Marks above the return: interventions, by arm."
    )
    if experiment.period is not None:
        text += " Grey lines: the task changes."
    if experiment.start:
        text += f" The arms branched off at step {experiment.start:,}."
    return text


def draw_curve(axis: Any, curve: Curve, style: Style, label: str) -> None:
    """Draw a curve and its band on a matplotlib axis."""
    axis.fill_between(
        curve.steps, curve.low, curve.high, color=style.colour, alpha=0.16, lw=0, zorder=2
    )
    single = np.isfinite(curve.values).sum() == 1
    axis.plot(
        curve.steps, curve.values, color=style.colour, ls=style.line, label=label, zorder=3,
        marker=style.marker if single else None, markersize=4,
    )  # fmt: skip


def limit(axis: Any, curves: Sequence[Curve], may_be_log: bool) -> None:
    """Choose the same limits for all pictures of the same curves; a log axis over three decades."""
    values = np.concatenate([np.r_[c.values, c.low, c.high] for c in curves])
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    positive = values[values > 0]
    if may_be_log and len(positive) == len(values) and high > 1000 * low:
        log_scale(axis)
        axis.set_ylim(low / 1.6, high * 1.6)
    else:
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axis.set_ylim(low - pad, high + pad)


def _borders(experiment: Experiment) -> list[int]:
    if experiment.period is None:
        return []
    return list(range(experiment.period, experiment.end, experiment.period))


def _mark_events(
    axis: Any, experiment: Experiment, arms: Sequence[str], look: dict[str, Style]
) -> None:
    """Mark the steps of interventions above an axis, a line for each arm that has any."""
    row = 0
    for arm in arms:
        steps = sorted(
            {
                int(event["num_timesteps"])
                for run in experiment.of(arm)
                for event in run.events
                if event["num_timesteps"] <= experiment.end and event.get("intervention") != CONTROL
            }
        )
        if steps:
            axis.plot(
                steps, [1.03 + 0.055 * row] * len(steps), "v" if len(steps) <= _MARKS else "|",
                color=look[arm].colour, ms=5, clip_on=False, ls="none",
                transform=axis.get_xaxis_transform(),
            )  # fmt: skip
            row += 1


def draw_games(experiment: Experiment) -> list[Picture]:
    """Draw the learning curves of each game, where there are several."""
    if len(experiment.games) < 2:
        return []
    look = styles(experiment.arms, experiment.control)
    curves = {
        game: {arm: measures.return_curve(experiment, arm, game) for arm in experiment.arms}
        for game in experiment.games
    }
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)

    def painter(arms: Sequence[str]) -> Callable[[Any], None]:
        def paint(figure: Any) -> None:
            axes = figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()
            for axis, (game, own) in zip(axes, curves.items(), strict=False):
                for arm in arms:
                    draw_curve(axis, own[arm], look[arm], shorten(arm, 30))
                limit(axis, list(own.values()), False)
                axis.set_title(game)
                axis.set_xlim(0, experiment.end)
                thousands(axis.xaxis)
            for axis in axes[len(curves) :]:
                axis.set_visible(False)
            for axis in axes[max(0, len(curves) - columns) : len(curves)]:  # nothing is below them
                axis.tick_params(labelbottom=True)
            figure.supxlabel("environment steps")
            figure.supylabel("return")
            handles = axes[0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside upper left", ncols=5, handlelength=3)

        return paint

    parts = groups(experiment.arms, experiment.control)
    names = ["games"] if len(parts) == 1 else [f"games_{k}" for k in range(1, len(parts) + 1)]
    size = (8.6, 0.9 + 2.0 * lines)
    return [
        draw(name, "Learning curves by game", _caption(experiment), size, painter(arms))
        for name, arms in zip(names, parts, strict=True)
    ]


def draw_tasks(experiment: Experiment) -> list[Picture]:
    """Draw bars by task: the mean, just after the switch, at the end, on earlier tasks."""
    if not experiment.tasks:
        return []
    values = {arm: task_estimates(experiment, arm) for arm in experiment.arms}
    names = [
        name for name in TASK_COLUMNS
        if any(np.isfinite(one.value) for own in values.values() for one in own[name])
    ]  # fmt: skip
    parts = groups(experiment.arms, experiment.control)
    files = ["tasks"] if len(parts) == 1 else [f"tasks_{k}" for k in range(1, len(parts) + 1)]
    look = styles(experiment.arms, experiment.control)
    caption = (
        "Interquartile mean over runs, with 95 % bootstrap intervals where there are two runs or "
        "more. Just after the switch: the first eighth of a task; at its end: the last quarter."
    )
    width = min(14.0, max(8.6, 0.16 * len(experiment.tasks) * (len(parts[0]) + 1)))

    def painter(arms: Sequence[str]) -> Callable[[Any], None]:
        def paint(figure: Any) -> None:
            axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
            for axis, name in zip(axes, names, strict=True):
                for k, arm in enumerate(arms):
                    place = (k - (len(arms) - 1) / 2) * 0.8 / len(arms)
                    first = 1 if name == "after" and experiment.tasks.start == 0 else 0
                    _bars(axis, experiment, values[arm][name], place, len(arms), look[arm], first)
                axis.set_title(TASK_COLUMNS[name])
                axis.grid(axis="x", visible=False)
                axis.axhline(0, color="#555555", lw=0.8)
            axes[-1].set_xlabel("task")
            axes[-1].set_xticks(experiment.tasks[:: 1 + len(experiment.tasks) // 40])
            figure.supylabel("return")
            from matplotlib.patches import Patch

            handles = [Patch(color=look[arm].colour, label=shorten(arm, 30)) for arm in arms]
            figure.legend(handles=handles, loc="outside upper left", ncols=5)

        return paint

    size = (width, 0.9 + 1.45 * len(names))
    return [
        draw(file, "Task by task", caption, size, painter(arms))
        for file, arms in zip(files, parts, strict=True)
    ]


def _bars(
    axis: Any,
    experiment: Experiment,
    estimates: Sequence[Estimate],
    place: float,
    count: int,
    style: Style,
    first: int,
) -> None:
    x = np.array(experiment.tasks)[first:] + place
    shown = estimates[first:]
    heights = np.array([one.value for one in shown])
    below = [max(one.value - one.low, 0) for one in shown]
    above = [max(one.high - one.value, 0) for one in shown]
    errors = np.where(np.isfinite([below, above]), [below, above], 0)
    kept = np.isfinite(heights)
    axis.bar(
        x[kept], heights[kept], 0.8 / count, color=style.colour,
        edgecolor="white", linewidth=0.3,
    )  # fmt: skip
    kept = kept & errors.any(axis=0)  # no interval, no bar of it
    if kept.any():
        for colour, thickness in (("white", 2.4), ("#444444", 1.0)):  # to be seen on any bar
            axis.errorbar(
                x[kept], heights[kept], errors[:, kept], fmt="none", ecolor=colour,
                elinewidth=thickness,
            )  # fmt: skip
