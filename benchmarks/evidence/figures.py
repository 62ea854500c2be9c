"""The pictures of docs/evidence.md, from the rows of benchmarks/results/continual.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from benchmarks.common import ROOT
from benchmarks.evidence.suite import ARMS, BINS, CONTROL, HEADLINE, SIX, compared
from fire_rl.reports.figures import COLOURS, CONTROL_COLOUR

IMAGES = ROOT / "docs" / "images"
# The report's colours, which the colour-blind tell apart; dashes and markers for print.
_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY = COLOURS
STYLES: dict[str, dict[str, Any]] = {
    "none": {"color": CONTROL_COLOUR, "linestyle": "-", "marker": "o"},
    "fire": {"color": _BLUE, "linestyle": "-", "marker": "s"},
    "fire_exact": {"color": _SKY, "linestyle": "--", "marker": "D"},
    "fire_half": {"color": _GREEN, "linestyle": "-.", "marker": "^"},
    "reset": {"color": _RED, "linestyle": ":", "marker": "v"},
    "shrink_and_perturb": {"color": _ORANGE, "linestyle": "--", "marker": "P"},
    "optimizer_reset": {"color": _PINK, "linestyle": (0, (1, 1)), "marker": "X"},
}
# The other arms: hollow, where all of them are in one picture.
HOLLOW = {
    "fire_heads_kept": "<",
    "fire_heads_reset": ">",
    "fire_sfe_scale": "h",
    "fire_head_refit": "*",
    "fire_on_dfi": "p",
    "redo": "d",
    "random_orthogonal": "o",
}
CURVES = ("none", "fire", "fire_half", "reset", "optimizer_reset")
METRICS = {
    "plasticity/actor/dfi_per_sv": "DfI per singular value\n(actor)",
    "live/actor/dormant_ratio": "dormant ratio\n(actor, live)",
    "live/actor/effective_rank": "effective rank\n(actor, live)",
}


def draw(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
    """Draw all pictures."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"svg.hashsalt": "fire_rl", "axes.spines.top": False, "font.size": 9}
    mpl.rcParams |= {"axes.spines.right": False, "figure.dpi": 130}
    headline = [name for name in HEADLINE if name in found]
    if headline:
        _save(curves(rows, headline), "evidence_curves")
        _save(arms(found, headline), "evidence_arms")
        _save(trade_off(found, headline), "evidence_trade_off")
    _save(settings(found), "evidence_settings")


def curves(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Learning curves with the changes of task, and the metrics under them on the same axis."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1 + len(METRICS), len(names), figsize=(4.2 * len(names), 8.4), sharex="col", sharey="row",
        squeeze=False, layout="constrained", gridspec_kw={"height_ratios": [1.7, 1, 1, 1]},
    )  # fmt: skip
    for column, name in zip(axes.T, names, strict=True):
        config = yaml.safe_load((ROOT / "configs/continual" / f"{name}.yaml").read_text())
        total, period = config["total_timesteps"], config["tasks"]["every"]
        for axis in column:
            for step in range(period, total, period):
                axis.axvline(step, color="#bbbbbb", linewidth=0.8, zorder=0)
        for arm in CURVES:
            runs = [row for row in rows if row["setting"] == name and row["arm"] == arm]
            if not runs:
                continue
            style = {k: v for k, v in STYLES[arm].items() if k != "marker"}
            values = np.array([run["curve"] for run in runs])
            steps = (np.arange(values.shape[1]) + 0.5) * period / BINS
            _band(column[0], steps, values, style, arm)
            for axis, key in zip(column[1:], METRICS, strict=True):
                points = [dict(map(tuple, run["plasticity"].get(key, []))) for run in runs]
                common = sorted(set.intersection(*(set(p) for p in points)))
                if common:
                    _band(axis, common, np.array([[p[s] for s in common] for p in points]), style)
        column[0].set_title(name.replace("_", ", ", 1), fontsize=10)
        column[1].set_yscale("log")
        column[-1].set_xlabel("environment steps")
        column[-1].xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
    axes[0, 0].set_ylabel("return in training")
    for axis, label in zip(axes[1:, 0], METRICS.values(), strict=True):
        axis.set_ylabel(label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def arms(found: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Mean return of every arm, with its interval and its seeds."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(names), figsize=(3.6 * len(names) + 1, 4.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    order = list(ARMS)[::-1]
    for axis, name in zip(axes[0], names, strict=True):
        cells = {arm: found[name]["arms"][arm]["mean_return"] for arm in order
                 if arm in found[name]["arms"]}  # fmt: skip
        axis.axvline(cells[CONTROL]["value"], color="#bbbbbb", zorder=0)
        for arm, cell in cells.items():
            height = order.index(arm)
            is_fire = arm.startswith("fire")
            color = _BLUE if is_fire else CONTROL_COLOUR if arm == CONTROL else _RED
            axis.plot(cell["runs"], [height] * len(cell["runs"]), "|", color=color, alpha=0.5)
            axis.plot([cell["low"], cell["high"]], [height, height], color=color, linewidth=2)
            axis.plot(cell["value"], height, "s" if is_fire else "o", color=color, markersize=5)
        axis.set_title(name.replace("_", ", ", 1), fontsize=10)
        axis.set_xlabel("mean return after the first change")
        axis.grid(axis="y", color="#eeeeee")
    axes[0, 0].set_yticks(range(len(order)), order)
    return figure


def trade_off(found: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Stability against plasticity: return on earlier tasks against return at a task's end."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(names), figsize=(3.9 * len(names), 4.3), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        for arm, cells in found[name]["arms"].items():
            x, y = cells["at_end"]["value"], cells["earlier_tasks"]["value"]
            color = STYLES[arm]["color"] if arm in STYLES else "#555555"
            marker = STYLES[arm]["marker"] if arm in STYLES else HOLLOW[arm]
            fill = color if arm in STYLES else "none"
            label = arm if name == names[0] else None
            axis.plot(x, y, marker, color=color, markerfacecolor=fill, markersize=8, label=label)
        axis.set_title(name.replace("_", ", ", 1), fontsize=10)
        axis.set_xlabel("plasticity: return at a task's end")
        axis.margins(x=0.1, y=0.1)
    axes[0, 0].set_ylabel("stability: return on earlier tasks")
    figure.legend(loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    return figure


def settings(found: Mapping[str, Any]) -> Any:
    """What each arm gains over `none` in every setting, as a share of the level of `none`."""
    from matplotlib import pyplot as plt

    others = [arm for arm in SIX if arm != CONTROL]
    names = list(compared(found))[::-1]
    figure, axis = plt.subplots(figsize=(8.2, 0.62 * len(names) + 1.3), layout="constrained")
    axis.axvline(0, color="#000000", linewidth=0.8)
    for height, name in enumerate(names):
        level = abs(found[name]["arms"][CONTROL]["mean_return"]["value"])
        for offset, arm in zip(np.linspace(0.28, -0.28, len(others)), others, strict=True):
            if arm not in found[name]["arms"]:
                continue
            gain = found[name]["arms"][arm]["gain"]
            style, y = STYLES[arm], height + offset
            label = arm if height == 0 else None
            low, high = 100 * gain["low"] / level, 100 * gain["high"] / level
            axis.plot([low, high], [y, y], color=style["color"], linewidth=1.5)
            axis.plot(100 * gain["value"] / level, y, style["marker"], color=style["color"],
                      markersize=5, label=label)  # fmt: skip
        axis.axhline(height - 0.5, color="#eeeeee", zorder=0)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.5, len(names) - 0.5)
    axis.set_xscale("symlog", linthresh=50)
    axis.set_xticks([-50, 0, 50, 100, 200, 500], ["−50", "0", "50", "100", "200", "500"])
    axis.set_xlabel("gain over none, % of its mean return (mean over seeds, 95 % interval)")
    figure.legend(loc="outside lower center", ncols=len(others), frameon=False)
    return figure


def _band(axis: Any, steps: Any, values: Any, style: Mapping[str, Any], label: str = "") -> None:
    """Draw the mean over runs and the span from the lowest to the highest run."""
    axis.plot(steps, values.mean(axis=0), label=label or None, linewidth=1.4, **style)
    axis.fill_between(
        steps, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.09, linewidth=0
    )


def _save(figure: Any, name: str) -> None:
    from matplotlib import pyplot as plt

    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / f"{name}.png")
    figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
