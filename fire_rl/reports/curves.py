"""Pictures of curves: returns over plasticity, and singular values before and after surgery."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fire_rl.interventions import CONTROL
from fire_rl.reports import measures
from fire_rl.reports.experiment import Experiment
from fire_rl.reports.figures import COLOURS, GREY, Picture, Style, log_scale, shorten, styles
from fire_rl.reports.measures import CURVES, Curve, Layer, LayerEvent, layer_events, median
from fire_rl.reports.statistics import Array

_MARKS = 60  # more events than this are drawn as fine strokes
_PANELS = 24  # layers in a picture
_FAINT = 40  # events of a layer that are drawn one by one
_TINY = 1e-16  # below it a float64 is rounding
_KEPT = 1e-5  # a relative error that is as good as none

Layers = Mapping[Layer, Sequence[LayerEvent]]


def draw_curves(experiment: Experiment) -> list[Picture]:
    """Draw learning curves with the events marked, and each network's plasticity under them."""
    unit = "human-normalised" if len(experiment.games) > 1 else "return"
    returns = {arm: measures.return_curve(experiment, arm) for arm in experiment.arms}
    found = []
    for role in measures.roles_of(experiment) or [""]:
        rows = {unit: returns}
        for metric, label in CURVES.items() if role else ():
            tag = measures.plasticity_tag(role, metric)
            curves = {arm: measures.metric_curve(experiment, arm, tag) for arm in experiment.arms}
            if known := {arm: curve for arm, curve in curves.items() if curve is not None}:
                rows[label] = known
        found += Picture(
            f"curves_{_in_a_path(role)}" if role else "curves",
            "Learning curves" + (f" and plasticity of the {role}" if role else ""),
            _caption(experiment),
            (8.6, 2.9 + 1.35 * (len(rows) - 1)),
            partial(_paint_curves, experiment, rows),
        ).by_groups(experiment)
    return found


def _in_a_path(name: str) -> str:
    """Return what of a name may stand in a file's."""
    return re.sub("[^a-zA-Z0-9_]+", "-", name)[:60]


def _paint_curves(
    experiment: Experiment,
    rows: Mapping[str, Mapping[str, Curve]],
    figure: Any,
    arms: Mapping[str, Style],
) -> None:
    heights = [1.7, *[1.0] * (len(rows) - 1)]
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (label, curves) in zip(axes, rows.items(), strict=True):
        _draw_arms(axis, curves, arms, label != "return" and len(experiment.games) < 2)
        axis.set_ylabel(label.replace(" per singular value", "\nper sing. value"))
        if experiment.period is not None:
            for border in range(experiment.period, experiment.end, experiment.period):
                axis.axvline(border, color="#C8C8C8", lw=0.8, zorder=0)
    _mark_events(axes[0], experiment, arms)
    axes[-1].set_xlabel("environment steps")
    _step_axis(axes[-1], experiment.end)
    axes[-1].yaxis.set_major_locator(axes[-1].yaxis.get_major_locator())
    _legend(figure, axes[0].get_legend_handles_labels()[0])


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


def _draw_arms(
    axis: Any, curves: Mapping[str, Curve], arms: Mapping[str, Style], may_be_log: bool = False
) -> None:
    """Draw the curves of some arms with their bands.

    The limits are those of all curves; over three decades an axis may be logarithmic.
    """
    for arm, style in arms.items():
        if arm in curves:
            curve = curves[arm]
            band = {"color": style.colour, "alpha": 0.16, "lw": 0, "zorder": 2}
            axis.fill_between(curve.steps, curve.low, curve.high, **band)
            single = np.isfinite(curve.values).sum() == 1
            axis.plot(
                curve.steps, curve.values, color=style.colour, ls=style.line, zorder=3,
                label=shorten(arm, 30), marker=style.marker if single else None, markersize=4,
            )  # fmt: skip
    values = np.concatenate([np.r_[c.values, c.low, c.high] for c in curves.values()])
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if may_be_log and low > 0 and high > 1000 * low:
        log_scale(axis)
        axis.set_ylim(low / 1.6, high * 1.6)
    else:
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axis.set_ylim(low - pad, high + pad)


def _mark_events(axis: Any, experiment: Experiment, arms: Mapping[str, Style]) -> None:
    """Mark the steps of interventions above an axis, a line for each arm that has any."""
    row = 0
    for arm, style in arms.items():
        events = [event for run in experiment.of(arm) for event in run.events]
        steps = {int(e["num_timesteps"]) for e in events if e.get("intervention") != CONTROL}
        steps = {step for step in steps if step <= experiment.end}
        if steps:
            axis.plot(
                sorted(steps), [1.03 + 0.055 * row] * len(steps),
                "v" if len(steps) <= _MARKS else "|", color=style.colour, ms=5,
                clip_on=False, ls="none", transform=axis.get_xaxis_transform(),
            )  # fmt: skip
            row += 1


def _step_axis(axis: Any, end: int) -> None:
    """Label an axis of steps: 250k, 1M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_xlim(0, end)
    axis.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _legend(figure: Any, handles: Sequence[Any], columns: int = 5) -> None:
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3)


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

    def paint(figure: Any, arms: Mapping[str, Style]) -> None:
        axes = figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()
        for axis, (game, own) in zip(axes, curves.items(), strict=False):
            _draw_arms(axis, own, arms)
            axis.set_title(game)
            _step_axis(axis, experiment.end)
        for axis in axes[len(curves) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(curves) - columns) : len(curves)]:  # nothing is below them
            axis.tick_params(labelbottom=True)
        figure.supxlabel("environment steps")
        figure.supylabel("return")
        _legend(figure, axes[0].get_legend_handles_labels()[0])

    title, size = "Learning curves by game", (8.6, 0.9 + 2.0 * lines)
    return Picture("games", title, _caption(experiment), size, paint).by_groups(experiment)


def draw_surgery(experiment: Experiment) -> list[Picture]:
    """Draw the spectra of each arm that changed any, and SFE against DfI layer by layer."""
    style_of = styles(experiment.arms, experiment.control)
    by_arm = {arm: layer_events(experiment.of(arm)) for arm in experiment.arms}
    found = [_trade_off(by_arm, style_of)] if any(by_arm.values()) else []
    for arm, layers in by_arm.items():
        known = {
            key: [e for e in events if e.get("spectrum_before") and e.get("spectrum_after")]
            for key, events in layers.items()
        }
        if any(known.values()):
            layers = {key: own for key, own in known.items() if own}
            found.append(_spectra(len(found), arm, layers))
    return found


def _spectra(number: int, arm: str, layers: Layers) -> Picture:
    """Draw the singular values of each layer before and after."""

    def draw(axis: Any, values: Sequence[float], **style: Any) -> None:
        array = np.array(values, float)
        place = np.linspace(0, 1, len(array)) if len(array) > 1 else np.array([0.5])
        axis.plot(place, np.where(array > 0, array, np.nan), **style)  # a log axis has no 0

    def panel(axis: Any, key: Layer) -> None:
        for label, colour, line in (("before", COLOURS[0], "-"), ("after", COLOURS[1], "--")):
            spectra = [event[f"spectrum_{label}"] for event in layers[key]]
            for values in spectra[:: 1 + len(spectra) // _FAINT]:
                draw(axis, values, color=colour, lw=0.6, alpha=0.35)
            if len({len(values) for values in spectra}) == 1:
                middle = [median(column) for column in zip(*spectra, strict=True)]
                marker = "o" if len(middle) == 1 else None
                draw(axis, middle, color=colour, lw=2, ls=line, label=label, marker=marker)
        axis.axhline(1, color=GREY, lw=0.8, ls=":")
        log_scale(axis)
        axis.set_xlim(-0.04, 1.04)
        axis.set_xticks([0, 1], ["largest", "smallest"])
        for text, side in zip(axis.get_xticklabels(), ("left", "right"), strict=True):
            text.set_ha(side)

    caption = (
        "Singular values over all matrices of a layer, divided by FIRE's scale, from the largest "
        "to the smallest: thick the median over all events of all runs, thin single events. At the "
        "dotted line the layer is an isometry."
    )
    name = f"spectrum_{number}_{_in_a_path(arm)}"
    title = f"Singular values before and after: {arm}"
    return _panels(name, title, caption, list(layers), panel, "singular value")


def _trade_off(by_arm: Mapping[str, Layers], style_of: Mapping[str, Style]) -> Picture:
    """Draw for each layer what each arm moved (SFE) and what it brought (DfI)."""
    numbers = {
        (arm, key): measures.layer_numbers(events)
        for arm, layers in by_arm.items()
        for key, events in layers.items()
    }
    arms, keys = (list(dict.fromkeys(names)) for names in zip(*numbers, strict=True))
    together = np.concatenate(list(numbers.values()))
    xlimits, ylimits = _around(together[:, 0], _KEPT), _around(together[:, 1:], _TINY)

    def panel(axis: Any, key: Layer) -> None:
        for arm in arms:
            if (arm, key) not in numbers:
                continue
            rows, style = numbers[arm, key], style_of[arm]
            colour, least = style.colour, [_KEPT, _TINY, _TINY]
            few = np.maximum(rows[:: 1 + len(rows) // _FAINT], least)
            axis.plot(few[:, 0], few[:, 2], style.marker, color=colour, ms=3, alpha=0.3, mew=0)
            x, before, after = np.maximum([median(column) for column in rows.T], least)
            axis.plot([x, x], [before, after], color=colour, lw=0.8, ls=style.line)
            axis.plot(x, before, style.marker, mfc="white", mec=colour, ms=6, mew=1.2)
            axis.plot(x, after, style.marker, color=colour, ms=7, mec="white", mew=0.5)
        log_scale(axis)
        log_scale(axis, "x")
        axis.set(xlim=xlimits, ylim=ylimits)

    caption = (
        "Large filled marks: medians over all events of all runs; small ones: single events; "
        "hollow marks: the same layer before. Left is better kept (small squared Frobenius error "
        "relative to the squared norm before), low is nearer to isometry (deviation from isometry "
        "per singular value of the weight over FIRE's scale)."
    )
    title = "What surgery moved and what it brought"
    handles = {arm: style_of[arm] for arm in arms}
    y, x = "DfI per singular value", "relative SFE"
    return _panels("sfe_dfi", title, caption, keys, panel, y, x, handles)


def _around(values: Array, least: float) -> tuple[float, float]:
    """Return limits of a log axis; what is smaller than ``least`` is drawn there."""
    known = np.maximum(values[np.isfinite(values)], least)
    if not len(known):
        return least, 1.0
    low, high = float(known.min()), float(known.max())
    pad = 2.5 * (high / low) ** 0.05
    return low / pad, high * pad


def _panels(
    name: str,
    title: str,
    caption: str,
    layers: Sequence[Layer],
    panel: Callable[[Any, Layer], None],
    ylabel: str,
    xlabel: str = "",
    handles: Mapping[str, Style] | None = None,
) -> Picture:
    """Draw a panel for each layer, up to 24 of them."""
    keys = layers[:_PANELS]
    if len(layers) > _PANELS:
        caption += f" {len(layers) - _PANELS} more layers are in the table."
    columns = min(4, len(keys)) if len(keys) != 5 else 3
    lines = -(-len(keys) // columns)

    def paint(figure: Any) -> None:
        from matplotlib.lines import Line2D

        axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axis, key in zip(axes, keys, strict=False):
            panel(axis, key)
            axis.set_title(f"{key[0]}\n{shorten(key[1], 30)}", fontsize=8)
        for axis in axes[len(keys) :]:
            axis.set_visible(False)
        figure.supylabel(ylabel)
        if xlabel:
            figure.supxlabel(xlabel)
        entries = [
            Line2D([], [], color=s.colour, ls=s.line, marker=s.marker, label=shorten(arm, 26))
            for arm, s in (handles or {}).items()
        ]
        _legend(figure, entries or axes[0].get_legend_handles_labels()[0], 4)

    legend = 0.25 * -(-len(handles or ()) // 4)
    size = (max(4.6, 1.2 + 2.1 * columns), 1.2 + 2.05 * lines + legend)
    return Picture(name, title, caption, size, paint)
