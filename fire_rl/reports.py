"""What an intervention cost and what it brought: dip, recovery and plateau of the return.

Everything here is a pure function of training episodes, ``(step at which it ended, return)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fire_rl._validation import check_int

Episodes = Sequence[tuple[int, float]]

BINS = 20
# Of the bins: how many before the event are "before", and at the end "the plateau".
_LEVEL_BINS = 4


@dataclass(frozen=True)
class Recovery:
    """How the return went on after an event. NaN where there were no episodes to tell from.

    The steps from the event to the end are cut into equal bins; the curve is each bin's mean
    return, and a level is the mean return over a fifth of these steps.

    Attributes:
        step: Environment steps of the event.
        end: Up to which step it was observed.
        before: Mean return just before.
        dip: How far the lowest bin lies below ``before``, at least 0.
        steps_to_regain: Environment steps from the event to the end of the first bin that is back
            at ``before`` after the curve fell below it; 0 if it never fell, NaN if it has not
            regained it.
        area_lost: ``∫ max(before - curve, 0)`` until then, in return times steps.
        plateau: Mean return at the end.
        episodes: Number of episodes after the event.
        gain: Mean of the curve minus that of the control; NaN without a control. So are the next.
        plateau_gain: Plateau minus that of the control.
        dip_below_control: How far the curve falls below the control's in any bin, at least 0.
    """

    step: int
    end: int
    before: float
    dip: float
    steps_to_regain: float
    area_lost: float
    plateau: float
    episodes: int
    gain: float = math.nan
    plateau_gain: float = math.nan
    dip_below_control: float = math.nan

    def to_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)


def recovery(episodes: Episodes, step: int, end: int, control: Episodes | None = None) -> Recovery:
    """Measure the dip, the recovery and the plateau of the return after an event.

    Args:
        episodes: Of the run, before and after the event: step at which it ended, return.
        step: Environment steps of the event; an episode that ends at this step came before.
        end: Up to which step to look: the end of the run, or the next event.
        control: The episodes of the run without the event, from the same checkpoint and seed.

    Raises:
        ValueError: If ``end`` does not lie after ``step``.
    """
    check_int("step", step, 0)
    if end <= step:
        raise ValueError(f"`end` must lie after the event at step {step:,}, got {end:,}.")
    width = (end - step) / BINS
    before = _mean(episodes, step - _LEVEL_BINS * width, step)
    curve = _curve(episodes, step, width)
    low = np.flatnonzero(curve < before)
    first = int(low[0]) if len(low) else BINS
    back = np.flatnonzero(curve[first:] >= before)
    regained = first + int(back[0]) + 1 if len(back) else BINS
    steps_to_regain = math.nan
    if not math.isnan(before) and np.isfinite(curve).any():
        steps_to_regain = 0.0 if first == BINS else regained * width if len(back) else math.nan
    lost = np.maximum(before - curve[:regained], 0)
    result = Recovery(
        step=step,
        end=end,
        before=before,
        dip=max(0.0, before - float(np.nanmin(curve))) if np.isfinite(curve).any() else math.nan,
        steps_to_regain=steps_to_regain,
        area_lost=float(np.nansum(lost) * width) if not math.isnan(before) else math.nan,
        plateau=_mean(episodes, end - _LEVEL_BINS * width, end),
        episodes=sum(step < at <= end for at, _ in episodes),
    )
    if control is None:
        return result
    difference = curve - _curve(control, step, width)
    known = np.isfinite(difference)
    return Recovery(
        **{
            **asdict(result),
            "gain": float(difference[known].mean()) if known.any() else math.nan,
            "plateau_gain": result.plateau - _mean(control, end - _LEVEL_BINS * width, end),
            "dip_below_control": max(0.0, -float(difference[known].min()))
            if known.any()
            else math.nan,
        }
    )


def recovery_table(arms: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return a table of arms in Markdown: mean ± standard deviation over their seeds.

    Args:
        arms: Arm to one mapping per seed: :meth:`Recovery.to_dict`, and any of ``policy_kl``,
            ``action_difference`` and ``value_shift`` at the moment of surgery.

    ``regained`` counts the seeds that regained the return; the steps are the mean over these.
    """
    columns = {
        "before": "before",
        "dip": "dip",
        "steps_to_regain": "steps to regain",
        "area_lost": "area lost",
        "plateau": "plateau",
        "plateau_gain": "plateau - none",
        "gain": "mean - none",
        "policy_kl": "policy KL",
        "action_difference": "action diff",
        "value_shift": "value shift",
    }
    rows = [seed for seeds in arms.values() for seed in seeds]
    shown = {key: label for key, label in columns.items() if any(key in row for row in rows)}
    header = ["arm", "seeds", "regained", *shown.values()]
    lines = [header]
    for arm, seeds in arms.items():
        regained = sum(not math.isnan(seed["steps_to_regain"]) for seed in seeds)
        cells = [_cell([seed.get(key, math.nan) for seed in seeds]) for key in shown]
        lines.append([arm, str(len(seeds)), f"{regained} of {len(seeds)}", *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def _mean(episodes: Episodes, after: float, until: float) -> float:
    """Mean return of the episodes that ended in ``(after, until]``."""
    returns = [score for at, score in episodes if after < at <= until]
    return float(np.mean(returns)) if returns else math.nan


def _curve(episodes: Episodes, step: int, width: float) -> NDArray[np.float64]:
    """Mean return of each bin after a step; NaN where no episode ended."""
    edges = step + width * np.arange(BINS + 1)
    return np.array([_mean(episodes, a, b) for a, b in pairwise(edges)])


def _cell(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    mean = f"{np.mean(known):,.4g}" if abs(np.mean(known)) < 1e4 else f"{np.mean(known):,.0f}"
    if len(known) < 2:
        return mean
    spread = np.std(known, ddof=1)
    return f"{mean} ± {spread:,.2g}" if spread < 1e4 else f"{mean} ± {spread:,.0f}"
