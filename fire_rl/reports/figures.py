"""Pictures of returns: scores with intervals, learning curves over plasticity, tasks in bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fire_rl.interventions import CONTROL
from fire_rl.reports import measures
from fire_rl.reports.contents import task_estimates
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
)  # fmt: skip
from fire_rl.reports.experiment import Experiment
from fire_rl.reports.measures import CURVES, TASK_PHASES, Curve, Estimate
from fire_rl.reports.tables import Table

_MARKS = 60  # more events than this are drawn as fine strokes


def draw_scores(experiment: Experiment, table: Table, values: dict[str, list[float]]) -> Picture:
    """Draw the scores table: a dot and an interval per arm, single runs as rings.

    Args:
        experiment: The runs.
        table: The scores.
        values: Arm to the scores of its runs.
    """
    style_of = styles(experiment.arms, experiment.control)
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
                _interval(axis, y, row[column], style_of[str(row[0])])
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


def _by_groups(
    experiment: Experiment,
    name: str,
    title: str,
    caption: str,
    size: tuple[float, float],
    paint: Callable[..., None],
) -> list[Picture]:
    """Draw a picture for each group of arms that share an axis; several are numbered.

    ``paint`` is called with a matplotlib figure, ``arms`` and ``style_of``, the styles of all arms.
    """
    style_of = styles(experiment.arms, experiment.control)
    parts = groups(experiment.arms, experiment.control)
    names = [name] if len(parts) == 1 else [f"{name}_{k}" for k in range(1, len(parts) + 1)]
    return [
        draw(file, title, caption, size, partial(paint, arms=arms, style_of=style_of))
        for file, arms in zip(names, parts, strict=True)
    ]


def draw_curves(experiment: Experiment) -> list[Picture]:
    """Draw learning curves with the events marked, and each network's plasticity under them."""
    unit = "human-normalised" if len(experiment.games) > 1 else "return"
    returns = {arm: measures.return_curve(experiment, arm) for arm in experiment.arms}
    found = []
    for role in measures.roles_of(experiment) or [""]:
        rows = {unit: returns}
        for metric in CURVES if role else ():
            tag = measures.plasticity_tag(role, metric)
            curves = {arm: measures.metric_curve(experiment, arm, tag) for arm in experiment.arms}
            known = {arm: curve for arm, curve in curves.items() if curve is not None}
            if known:
                rows[CURVES[metric]] = known
        found += _by_groups(
            experiment,
            f"curves_{role}" if role else "curves",
            "Learning curves" + (f" and plasticity of the {role}" if role else ""),
            _caption(experiment),
            (8.6, 2.9 + 1.35 * (len(rows) - 1)),
            partial(_paint_curves, experiment=experiment, rows=rows),
        )
    return found


def _paint_curves(
    figure: Any,
    experiment: Experiment,
    rows: dict[str, dict[str, Curve]],
    arms: Sequence[str],
    style_of: dict[str, Style],
) -> None:
    heights = [1.7, *[1.0] * (len(rows) - 1)]
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (label, curves) in zip(axes, rows.items(), strict=True):
        for arm in arms:
            if arm in curves:
                _draw_curve(axis, curves[arm], style_of[arm], arm)
        axis.set_ylabel(label.replace(" per singular value", "\nper sing. value"))
        _limit(axis, list(curves.values()), label != "return" and len(experiment.games) < 2)
        if experiment.period is not None:
            for border in range(experiment.period, experiment.end, experiment.period):
                axis.axvline(border, color="#C8C8C8", lw=0.8, zorder=0)
    _mark_events(axes[0], experiment, arms, style_of)
    axes[-1].set_xlabel("environment steps")
    axes[-1].set_xlim(0, experiment.end)
    thousands(axes[-1].xaxis)
    axes[-1].yaxis.set_major_locator(axes[-1].yaxis.get_major_locator())
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        lines, [shorten(text, 30) for text in labels], loc="outside upper left",
        ncols=min(5, len(labels)), handlelength=3,
    )  # fmt: skip


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


def _draw_curve(axis: Any, curve: Curve, style: Style, label: str) -> None:
    """Draw a curve and its band on a matplotlib axis."""
    axis.fill_between(
        curve.steps, curve.low, curve.high, color=style.colour, alpha=0.16, lw=0, zorder=2
    )
    single = np.isfinite(curve.values).sum() == 1
    axis.plot(
        curve.steps, curve.values, color=style.colour, ls=style.line, label=label, zorder=3,
        marker=style.marker if single else None, markersize=4,
    )  # fmt: skip


def _limit(axis: Any, curves: Sequence[Curve], may_be_log: bool) -> None:
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


def _mark_events(
    axis: Any, experiment: Experiment, arms: Sequence[str], style_of: dict[str, Style]
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
                color=style_of[arm].colour, ms=5, clip_on=False, ls="none",
                transform=axis.get_xaxis_transform(),
            )  # fmt: skip
            row += 1


def draw_games(experiment: Experiment) -> list[Picture]:
    """Draw the learning curves of each game, where there are several."""
    if len(experiment.games) < 2:
        return []
    curves = {
        game: {arm: measures.return_curve(experiment, arm, game) for arm in experiment.arms}
        for game in experiment.games
    }
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)

    def paint(figure: Any, arms: Sequence[str], style_of: dict[str, Style]) -> None:
        axes = figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()
        for axis, (game, own) in zip(axes, curves.items(), strict=False):
            for arm in arms:
                _draw_curve(axis, own[arm], style_of[arm], shorten(arm, 30))
            _limit(axis, list(own.values()), False)
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

    size = (8.6, 0.9 + 2.0 * lines)
    title = "Learning curves by game"
    return _by_groups(experiment, "games", title, _caption(experiment), size, paint)


def draw_tasks(experiment: Experiment) -> list[Picture]:
    """Draw bars by task: the mean, just after the switch, at the end, on earlier tasks."""
    if not experiment.tasks:
        return []
    values = {arm: task_estimates(experiment, arm) for arm in experiment.arms}
    names = [
        name for name in TASK_PHASES
        if any(np.isfinite(one.value) for own in values.values() for one in own[name])
    ]  # fmt: skip

    def paint(figure: Any, arms: Sequence[str], style_of: dict[str, Style]) -> None:
        from matplotlib.patches import Patch

        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axis, name in zip(axes, names, strict=True):
            for k, arm in enumerate(arms):
                place = (k - (len(arms) - 1) / 2) * 0.8 / len(arms)
                first = 1 if name == "after" and experiment.tasks.start == 0 else 0
                tasks = np.array(experiment.tasks)[first:] + place
                _bars(axis, tasks, values[arm][name][first:], 0.8 / len(arms), style_of[arm])
            axis.set_title(TASK_PHASES[name])
            axis.grid(axis="x", visible=False)
            axis.axhline(0, color="#555555", lw=0.8)
        axes[-1].set_xlabel("task")
        axes[-1].set_xticks(experiment.tasks[:: 1 + len(experiment.tasks) // 40])
        figure.supylabel("return")
        handles = [Patch(color=style_of[arm].colour, label=shorten(arm, 30)) for arm in arms]
        figure.legend(handles=handles, loc="outside upper left", ncols=5)

    caption = (
        "Interquartile mean over runs, with 95 % bootstrap intervals where there are two runs or "
        "more. Just after the switch: the first eighth of a task; at its end: the last quarter."
    )
    together = len(groups(experiment.arms, experiment.control)[0])
    width = min(14.0, max(8.6, 0.16 * len(experiment.tasks) * (together + 1)))
    size = (width, 0.9 + 1.45 * len(names))
    return _by_groups(experiment, "tasks", "Task by task", caption, size, paint)


def _bars(axis: Any, x: Any, estimates: Sequence[Estimate], width: float, style: Style) -> None:
    heights = np.array([one.value for one in estimates])
    below = [max(one.value - one.low, 0) for one in estimates]
    above = [max(one.high - one.value, 0) for one in estimates]
    errors = np.where(np.isfinite([below, above]), [below, above], 0)
    kept = np.isfinite(heights)
    axis.bar(x[kept], heights[kept], width, color=style.colour, edgecolor="white", linewidth=0.3)
    kept = kept & errors.any(axis=0)  # no interval, no bar of it
    if kept.any():
        for colour, thickness in (("white", 2.4), ("#444444", 1.0)):  # to be seen on any bar
            axis.errorbar(
                x[kept], heights[kept], errors[:, kept], fmt="none", ecolor=colour,
                elinewidth=thickness,
            )  # fmt: skip
