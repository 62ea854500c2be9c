"""What all pictures share, colours for colour-blind readers too; the scores and tasks of arms."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from fire_rl.reports import measures
from fire_rl.reports.experiment import Experiment
from fire_rl.reports.measures import TASK_PHASES, Estimate
from fire_rl.reports.tables import Table

# Okabe & Ito 2008, "Color Universal Design"; without its yellow, which paper does not show.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CONTROL_COLOUR = "#000000"
GREY = "#767676"
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("s", "^", "D", "v", "P", "X", "<")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TOGETHER = 4  # rivals that one axis holds beside the control
# What differs from matplotlib's defaults.
_STYLE: Any = {
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "font.size": 9,
    "grid.color": "#E2E2E2",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "fire-rl",  # the same picture is the same file
    "text.parse_math": False,  # a dollar in an arm's name is a dollar
}


@dataclass(frozen=True)
class Picture:
    """A picture: what is told of it, and how it is drawn."""

    name: str  # of its files
    title: str  # a few words
    caption: str  # how to read it
    size: tuple[float, float]  # in inches
    paint: Callable[..., None]  # draws on a matplotlib figure

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The files' contents, by format: ``png`` and ``svg``.

        Raises:
            ImportError: If matplotlib is missing.
        """
        try:
            import matplotlib.style
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("Pictures need matplotlib: pip install 'fire-rl[report]'") from None
        with matplotlib.style.context(_STYLE, after_reset=True):
            figure = Figure(figsize=self.size, layout="constrained")
            FigureCanvasAgg(figure)
            self.paint(figure)
            png, svg = io.BytesIO(), io.BytesIO()
            figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
            figure.set_layout_engine("none")  # keeps what was laid out, and need not do it again
            figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        return {"png": png.getvalue(), "svg": svg.getvalue()}

    def by_groups(self, experiment: Experiment) -> list[Picture]:
        """Return a picture for each group of arms that share an axis; several are numbered.

        ``paint`` is given ``arms``, a mapping from each of them to its style, too.
        """
        look = styles(experiment.arms, experiment.control)
        parts = groups(experiment.arms, experiment.control)
        names = [f"{self.name}_{k}" for k, _ in enumerate(parts, 1)] if parts[1:] else [self.name]
        paints = [partial(self.paint, arms={arm: look[arm] for arm in arms}) for arms in parts]
        return [replace(self, name=n, paint=p) for n, p in zip(names, paints, strict=True)]


@dataclass(frozen=True)
class Style:
    """How an arm is drawn, the same in all pictures."""

    colour: str
    line: Any
    marker: str


def styles(arms: Sequence[str], control: str | None) -> dict[str, Style]:
    """Return each arm's style: no two of thirty share colour and line; the control is black."""
    rivals = [arm for arm in arms if arm != control]
    kinds = zip(*map(itertools.cycle, (COLOURS, _LINES, _MARKERS)), strict=False)
    found = {arm: Style(*kind) for arm, kind in zip(rivals, kinds, strict=False)}
    if control is not None:
        found[control] = Style(CONTROL_COLOUR, "-", "o")
    return found


def groups(arms: Sequence[str], control: str | None) -> list[list[str]]:
    """Return the arms that share an axis: the control in each group, and up to four others.

    As even as possible, so that no arm stands alone.
    """
    rivals = [arm for arm in arms if arm != control]
    first = [] if control is None else [control]
    size = _TOGETHER if first else _TOGETHER + 1
    count = max(1, -(-len(rivals) // size))
    cuts = [round(k * len(rivals) / count) for k in range(count + 1)]
    return [first + rivals[a:b] for a, b in itertools.pairwise(cuts)]


def log_scale(axis: Any, which: str = "y") -> None:
    """Make an axis logarithmic, its labels powers of ten in plain characters."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def power(value: float, _: int) -> str:
        exponent = round(math.log10(value)) if value > 0 else 0
        small = -3 < exponent < 4
        return f"{value:g}" if small else "10" + str(exponent).translate(_SUPERSCRIPTS)

    axis.set(**{f"{which}scale": "log"})
    one = axis.yaxis if which == "y" else axis.xaxis
    one.set_major_locator(LogLocator(numticks=7))
    one.set_major_formatter(FuncFormatter(power))
    one.set_minor_formatter(NullFormatter())


def shorten(text: str, limit: int) -> str:
    """Cut a long name in its middle."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}…{text[-((limit - 1) // 2) :]}"


def draw_scores(experiment: Experiment, table: Table, kind: str) -> Picture:
    """Draw the scores table: a dot and an interval per arm, single runs as rings."""
    style_of = styles(experiment.arms, experiment.control)
    shown = [name for name in table.columns[2:] if not name.endswith(", mean")]

    def paint(figure: Any) -> None:
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axis, column in zip(axes, shown, strict=True):
            for y, row in enumerate(table.rows):
                arm, cell = str(row["arm"]), row[column]
                if column == shown[0]:
                    games = measures.scores_by_game(experiment, arm, kind, experiment.human)
                    points = [value for runs in games.values() for value in runs]
                    axis.plot(points, [y] * len(points), "o", mfc="none", mec=GREY, ms=4, mew=0.8)
                if isinstance(cell, Estimate) and np.isfinite(cell.value):
                    colour, limits = style_of[arm].colour, [cell.low, cell.high]
                    axis.plot(limits, [y, y], color=colour, lw=2.2, solid_capstyle="butt")
                    axis.plot(cell.value, y, style_of[arm].marker, color=colour, ms=6)
            axis.set_title(column)
            axis.grid(axis="y", visible=False)
            axis.locator_params(axis="x", nbins=5)
            if column.startswith("P("):
                axis.axvline(0.5, color=GREY, lw=0.8, ls="--")
                axis.set_xlim(-0.03, 1.03)
        labels = [shorten(str(row["arm"]), 28) for row in table.rows]
        axes[0].set_yticks(range(len(labels)), labels)
        axes[0].set_ylim(len(labels) - 0.4, -0.6)

    size = (3.2 + 2.3 * len(shown), 0.9 + 0.3 * len(table.rows))
    caption = "Dots and bars: the table's values and intervals. Rings: single runs."
    return Picture("scores", "Scores", caption, size, paint)


def draw_tasks(experiment: Experiment) -> list[Picture]:
    """Draw bars by task: the mean, just after the switch, at the end, on earlier tasks."""
    if not experiment.tasks:
        return []
    values = {arm: measures.task_estimates(experiment, arm) for arm in experiment.arms}
    names = [
        name for name in TASK_PHASES
        if any(np.isfinite(one.value) for own in values.values() for one in own[name])
    ]  # fmt: skip

    def paint(figure: Any, arms: Mapping[str, Style]) -> None:
        from matplotlib.patches import Patch

        width = 0.8 / len(arms)
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axis, name in zip(axes, names, strict=True):
            for k, arm in enumerate(arms):
                places = np.array(experiment.tasks) + (k - (len(arms) - 1) / 2) * width
                _bars(axis, places, values[arm][name], width, arms[arm].colour)
            axis.set_title(name)
            axis.grid(axis="x", visible=False)
            axis.axhline(0, color="#555555", lw=0.8)
        axes[-1].set_xlabel("task")
        axes[-1].set_xticks(experiment.tasks[:: 1 + len(experiment.tasks) // 40])
        figure.supylabel("return")
        handles = [Patch(color=arms[arm].colour, label=shorten(arm, 30)) for arm in arms]
        figure.legend(handles=handles, loc="outside upper left", ncols=5)

    caption = (
        "Interquartile mean over runs, with 95 % bootstrap intervals where there are two runs or "
        "more. Just after the switch: the first eighth of a task; at its end: the last quarter."
    )
    together = len(groups(experiment.arms, experiment.control)[0])
    width = min(14.0, max(8.6, 0.16 * len(experiment.tasks) * (together + 1)))
    size = (width, 0.9 + 1.45 * len(names))
    return Picture("tasks", "Task by task", caption, size, paint).by_groups(experiment)


def _bars(axis: Any, x: Any, estimates: Sequence[Estimate], width: float, colour: str) -> None:
    heights, low, high = np.array([[one.value, one.low, one.high] for one in estimates]).T
    errors = np.fmax([heights - low, high - heights], 0)
    kept = np.isfinite(heights)
    axis.bar(x[kept], heights[kept], width, color=colour, edgecolor="white", linewidth=0.3)
    kept = kept & errors.any(axis=0)  # no interval, no bar of it
    if kept.any():
        for ecolor, thickness in (("white", 2.4), ("#444444", 1.0)):  # to be seen on any bar
            axis.errorbar(
                x[kept], heights[kept], errors[:, kept], fmt="none", ecolor=ecolor,
                elinewidth=thickness,
            )  # fmt: skip
