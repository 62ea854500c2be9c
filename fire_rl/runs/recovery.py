"""What an intervention cost and what it brought: dip, recovery and plateau of the return.

Everything here is a pure function of training episodes, ``(step at which it ended, return)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fire_rl.utils.validation import check_int

Episodes = Sequence[tuple[int, float]]

_Array = NDArray[np.float64]

BINS = 20
# Of the bins: how many before the event are "before", and at the end "the plateau".
_LEVEL_BINS = 4
# Where a task is solved, noise alone keeps a curve below its own mean for ever.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Recovery:
    """How the return went on after an event. NaN where there were no episodes to tell from.

    The steps from the event to the end are cut into 20 equal bins. The curve is each bin's mean
    return, interpolated over bins in which no episode ended; a level is the mean over a fifth of
    these steps, four bins.

    Attributes:
        step: Environment steps of the event.
        end: Up to which step it was observed.
        before: Level just before.
        dip: How far the lowest bin lies below ``before``, at least 0. So it does a little by noise
            alone: compare it with the control's.
        steps_to_regain: Environment steps from the event to the end of the first bin that is back
            at ``before``, but for 5 % of its magnitude, and from which on that level holds; 0 if
            the curve never fell below that, NaN if it is not regained.
        area_lost: ``∫ max(before - curve, 0)`` up to the end, in return times steps.
        plateau: Level at the end.
        episodes: Number of episodes after the event.
        gain: Mean of the curve minus that of the control; NaN without a control. So are the next.
        plateau_gain: Plateau minus that of the control.
        dip_below_control: How far the curve falls below the control's in any bin, at least 0.
        steps_to_reach_control: As ``steps_to_regain``, with the control's curve for ``before``.
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
    steps_to_reach_control: float = math.nan

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
    step = check_int("step", step, 0)
    if end <= step:
        raise ValueError(f"`end` must lie after the event at step {step:,}, got {end:,}.")
    width = (end - step) / BINS
    before = _mean(episodes, step - _LEVEL_BINS * width, step)
    curve = _curve(episodes, step, width)
    below = before - curve
    result = Recovery(
        step=step,
        end=end,
        before=before,
        dip=float(np.maximum(below, 0).max()),
        steps_to_regain=width * _bins_until(curve, np.full(BINS, before)),
        area_lost=float(np.maximum(below, 0).sum() * width),
        plateau=_mean(episodes, end - _LEVEL_BINS * width, end),
        episodes=sum(step < at <= end for at, _ in episodes),
    )
    if control is None:
        return result
    reference = _curve(control, step, width)
    return replace(
        result,
        gain=float((curve - reference).mean()),
        plateau_gain=result.plateau - _mean(control, end - _LEVEL_BINS * width, end),
        dip_below_control=float(np.maximum(reference - curve, 0).max()),
        steps_to_reach_control=width * _bins_until(curve, reference),
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
        "steps_to_reach_control": "steps to reach none",
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


def _curve(episodes: Episodes, step: int, width: float) -> _Array:
    """Mean return of each bin after a step, interpolated where no episode ended."""
    edges = step + width * np.arange(BINS + 1)
    means = np.array([_mean(episodes, a, b) for a, b in pairwise(edges)])
    known = np.flatnonzero(np.isfinite(means))
    return np.interp(np.arange(BINS), known, means[known]) if len(known) else means


def _bins_until(curve: _Array, reference: _Array) -> float:
    """Number of bins until a curve is back at a reference for good, see :class:`Recovery`."""
    if not np.isfinite(curve - reference).all():
        return math.nan
    above = curve - reference + _TOLERANCE * np.abs(reference)
    # Each bin, and the four that begin with it: one lucky bin is no recovery.
    levels = np.array([above[k : k + _LEVEL_BINS].mean() for k in range(BINS)])
    fallen = np.flatnonzero(above < 0)
    if len(fallen) == 0:
        return 0.0
    back = [k for k in range(fallen[0], BINS) if above[k] >= 0 and levels[k] >= 0]
    return back[0] + 1.0 if back else math.nan


def _cell(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    mean = f"{np.mean(known):,.4g}" if abs(np.mean(known)) < 1e4 else f"{np.mean(known):,.0f}"
    if len(known) < 2:
        return mean
    spread = np.std(known, ddof=1)
    return f"{mean} ± {spread:,.2g}" if spread < 1e4 else f"{mean} ± {spread:,.0f}"
