"""Pictures of surgery: singular values before and after, squared Frobenius error against DfI."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fire_rl.reports.drawing import COLOURS, GREY, Picture, Style, draw, log_scale, shorten, styles
from fire_rl.reports.experiment import Experiment
from fire_rl.reports.measures import LayerEvent, layer_events, median

_PANELS = 24  # layers in a picture
_FAINT = 40  # events of a layer that are drawn one by one
_TINY = 1e-16  # below it a float64 is rounding
_KEPT = 1e-5  # a relative error that is as good as none
_BEFORE, _AFTER = COLOURS[0], COLOURS[1]

Layers = Mapping[tuple[str, str], Sequence[LayerEvent]]


def draw_surgery(experiment: Experiment) -> list[Picture]:
    """Draw the spectra of each arm that changed any, and SFE against DfI layer by layer."""
    style_of = styles(experiment.arms, experiment.control)
    by_arm = {arm: layer_events(experiment.of(arm)) for arm in experiment.arms}
    found = [_trade_off(by_arm, style_of)] if any(by_arm.values()) else []
    for arm, layers in by_arm.items():
        kept = {
            key: [e for e in events if e.spectrum_before and e.spectrum_after]
            for key, events in layers.items()
        }
        kept = {key: events for key, events in kept.items() if events}
        if kept:
            found.append(
                _spectra(f"spectrum_{len(found)}_{re.sub('[^a-zA-Z0-9]+', '-', arm)}", arm, kept)
            )
    return found


def _spectra(name: str, arm: str, layers: Layers) -> Picture:
    def panel(axis: Any, key: tuple[str, str]) -> None:
        for label, colour, line in (("before", _BEFORE, "-"), ("after", _AFTER, "--")):
            spectra = [getattr(event, f"spectrum_{label}") for event in layers[key]]
            for values in spectra[:: 1 + len(spectra) // _FAINT]:
                _spectrum(axis, values, color=colour, lw=0.6, alpha=0.35)
            sizes = {len(values) for values in spectra}
            if len(sizes) == 1:
                middle = [median(column) for column in zip(*spectra, strict=True)]
                marker = "o" if len(middle) == 1 else None
                _spectrum(axis, middle, color=colour, lw=2, ls=line, label=label, marker=marker)
        axis.axhline(1, color=GREY, lw=0.8, ls=":")
        log_scale(axis)
        axis.set_xlim(-0.04, 1.04)
        axis.set_xticks([0, 1], ["largest", "smallest"])
        for text, side in zip(axis.get_xticklabels(), ("left", "right"), strict=True):
            text.set_ha(side)

    caption = (
        "Singular values over all matrices of a layer, divided by FIRE's scale, from the largest "
        "to the smallest: thick the median over all events of all runs, thin single events. At the "
        f"dotted line the layer is an isometry. {_left_out(layers)}"
    )
    title = f"Singular values before and after: {arm}"
    return _panels(name, title, caption, list(layers), panel, "singular value")


def _spectrum(axis: Any, values: Sequence[float], **kwargs: Any) -> None:
    """Draw singular values; a log axis has no place for those that are 0."""
    array = np.array(values, float)
    place = np.linspace(0, 1, len(array)) if len(array) > 1 else np.array([0.5])
    axis.plot(place, np.where(array > 0, array, np.nan), **kwargs)


def _trade_off(by_arm: Mapping[str, Layers], style_of: Mapping[str, Style]) -> Picture:
    """Draw for each layer what each arm moved (SFE) and what it brought (DfI)."""
    keys = list(dict.fromkeys(key for layers in by_arm.values() for key in layers))
    arms = [arm for arm, layers in by_arm.items() if layers]
    events = [event for layers in by_arm.values() for own in layers.values() for event in own]
    ylimits = _around(
        [value for event in events for value in (event.dfi_before, event.dfi_after)], _TINY
    )
    xlimits = _around([event.relative_sfe for event in events], _KEPT)

    def panel(axis: Any, key: tuple[str, str]) -> None:
        for arm in arms:
            events = by_arm[arm].get(key, [])
            if not events:
                continue
            style = style_of[arm]
            few = events[:: 1 + len(events) // _FAINT]
            axis.plot(
                [max(event.relative_sfe, _KEPT) for event in few],
                [max(event.dfi_after, _TINY) for event in few],
                style.marker, color=style.colour, ms=3, alpha=0.3, mew=0,
            )  # fmt: skip
            x = max(median([event.relative_sfe for event in events]), _KEPT)
            before, after = (
                max(median([getattr(event, name) for event in events]), _TINY)
                for name in ("dfi_before", "dfi_after")
            )
            axis.plot([x, x], [before, after], color=style.colour, lw=0.8, ls=style.line)
            axis.plot(x, before, style.marker, mfc="white", mec=style.colour, ms=6, mew=1.2)
            axis.plot(x, after, style.marker, color=style.colour, ms=7, mec="white", mew=0.5)
        log_scale(axis)
        log_scale(axis, "x")
        axis.set(xlim=xlimits, ylim=ylimits)

    caption = (
        "Large filled marks: medians over all events of all runs; small ones: single events; "
        "hollow marks: the same layer before. Left is better kept (small squared Frobenius error "
        "relative to the squared norm before), low is nearer to isometry (deviation from isometry "
        f"per singular value of the weight over FIRE's scale). {_left_out(dict.fromkeys(keys, ()))}"
    )
    handles = [(shorten(arm, 26), style_of[arm]) for arm in arms]
    return _panels(
        "sfe_dfi", "What surgery moved and what it brought", caption, keys, panel,
        "DfI per singular value", "relative SFE", handles,
    )  # fmt: skip


def _around(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return limits of a log axis; what is smaller than ``least`` is drawn there."""
    known = [max(value, least) for value in values if np.isfinite(value)]
    if not known:
        return least, 1.0
    pad = 2.5 * (max(known) / min(known)) ** 0.05
    return min(known) / pad, max(known) * pad


def _left_out(layers: Mapping[Any, Any]) -> str:
    more = len(layers) - _PANELS
    return f"{more} more layers are in the table." if more > 0 else ""


def _panels(
    name: str,
    title: str,
    caption: str,
    keys: Sequence[tuple[str, str]],
    panel: Callable[[Any, tuple[str, str]], None],
    ylabel: str,
    xlabel: str = "",
    handles: Sequence[tuple[str, Style]] = (),
) -> Picture:
    """Draw a panel for each layer."""
    keys = keys[:_PANELS]
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
        entries: list[Any] = [
            Line2D([], [], color=s.colour, ls=s.line, marker=s.marker, label=text)
            for text, s in handles
        ] or axes[0].get_legend_handles_labels()[0]
        figure.legend(handles=entries, loc="outside upper left", ncols=4, handlelength=3)

    legend = 0.25 * -(-len(handles) // 4)
    size = (max(4.6, 1.2 + 2.1 * columns), 1.2 + 2.05 * lines + legend)
    return draw(name, title, caption.strip(), size, paint)
