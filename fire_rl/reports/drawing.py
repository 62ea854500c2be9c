"""Style of the pictures, for colour-blind readers too, and drawing one as PNG and SVG."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Okabe & Ito 2008, "Color Universal Design"; without its yellow, which paper does not show.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CONTROL_COLOUR = "#000000"
GREY = "#767676"
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("s", "^", "D", "v", "P", "X", "<")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Rivals that one axis holds beside the control.
_TOGETHER = 4

_STYLE: Any = {
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "grid.color": "#E2E2E2",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "fire-rl",  # the same picture is the same file
    "text.parse_math": False,  # a dollar in an arm's name is a dollar
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure."""

    name: str  # of its files
    title: str  # a few words
    caption: str  # how to read it
    png: bytes  # the files' contents
    svg: bytes
    width: int  # in pixels of a page


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


def draw(
    name: str, title: str, caption: str, size: tuple[float, float], paint: Callable[[Any], None]
) -> Picture:
    """Make a picture of ``size`` inches; ``paint`` draws on a matplotlib figure.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Pictures need matplotlib: pip install 'fire-rl[report]'") from None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
        figure.set_layout_engine("none")  # keeps what was laid out, and need not do it again
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(name, title, caption, png.getvalue(), svg.getvalue(), round(size[0] * 100))


def thousands(axis: Any) -> None:
    """Label an axis of steps: 250k, 1M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(EngFormatter(sep=""))


def log_scale(axis: Any, which: str = "y") -> None:
    """Make an axis logarithmic, its labels powers of ten in plain characters."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set(**{f"{which}scale": "log"})
    one = axis.yaxis if which == "y" else axis.xaxis
    one.set_major_locator(LogLocator(numticks=7))
    one.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    one.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    exponent = round(math.log10(value)) if value > 0 else 0
    if -3 < exponent < 4:
        return f"{value:g}"
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def shorten(text: str, limit: int) -> str:
    """Cut a long name in its middle."""
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[: limit - 1 - half]}…{text[-half:]}"
