"""How the return went on after an intervention: its dip, its recovery and its plateau.

:func:`recovery` is a pure function of training episodes, ``(step at which it ended, return)``;
:class:`RecoveryLog` collects them while a model trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fire_rl.runs.episodes import EpisodeLog
from fire_rl.utils.validation import check_int

Episodes = Sequence[tuple[int, float]]

_Array = NDArray[np.float64]

BINS = 20
# Of the bins: how many before the event are "before", and at the end "the plateau".
_LEVEL_BINS = 4
# Where a task is solved, noise alone keeps a curve below its own mean for ever.
_TOLERANCE = 0.05
# What a training logs of each recovery; the rest compares it with a control.
_SHOWN = ("before", "dip", "steps_to_regain", "area_lost", "plateau")


@dataclass(frozen=True)
class Recovery:
    """How the return went on after an event. NaN where no episode ended.

    The steps from the event to the end are cut into 20 equal bins. The curve is each bin's mean
    return, interpolated over bins in which no episode ended; a level is the mean over a fifth of
    these steps, four bins.

    Attributes:
        step: Environment steps of the event.
        end: Up to which step it was observed.
        before: Level just before.
        dip: How far the lowest bin lies below ``before``, at least 0. Noise alone makes a small
            dip: compare it with the control's.
        steps_to_regain: Environment steps from the event to the end of the first bin that is within
            5 % of ``before`` and from which on the level stays there; 0 if the curve never fell
            below that, NaN if it is not regained.
        area_lost: ``∫ max(before - curve, 0)`` up to the end, in return times steps.
        plateau: Level at the end.
        episodes: Number of episodes after the event.
        gain: Mean of the curve minus that of the control. This and what follows is NaN without a
            control.
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
        end: The last step to measure: the end of the run, or the next event.
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


class RecoveryLog:
    """Collect a training's episodes and events; log the recovery from each event at the end.

    Args:
        name: The intervention's name.

    Attributes:
        episodes: All training episodes.
        steps: The step of each event.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.episodes = EpisodeLog()
        self.steps: list[int] = []
        self._logged = 0  # events whose recovery is logged

    def start(self, step: int) -> None:
        """Begin a call of ``learn()``; forget everything where it counts steps from 0 again."""
        if self.episodes.episodes and step < self.episodes.episodes[-1][0]:
            self.episodes, self.steps, self._logged = EpisodeLog(), [], 0

    def results(self, now: int, first: int = 0) -> list[Recovery]:
        """Return the recovery from each event, up to the next one or to now."""
        found = []
        for step, end in pairwise([*self.steps[first:], now]):
            if end > step:
                near = self.episodes.between(step - (end - step), end)
                found.append(recovery(near, step, end))
        return found

    def log_results(
        self, now: int, append: Callable[[Mapping[str, Any]], None], writer: Any
    ) -> str:
        """Log the recoveries that are not logged yet; return the last one as a line of text.

        Args:
            now: The last step.
            append: Adds an entry to a file of JSON lines.
            writer: TensorBoard's, or None.
        """
        new = [result for result in self.results(now, self._logged) if result.episodes]
        for result in new:
            numbers = result.to_dict()
            append({"recovery": self.name, **numbers})
            if writer is not None:
                for key in _SHOWN:
                    writer.add_scalar(f"recovery/{self.name}/{key}", numbers[key], result.step)
        # A later call of learn() goes on from the last event: its recovery is logged again.
        self._logged = max(self._logged, len(self.steps) - 1)
        if not new:
            return ""
        words = [f"{key.replace('_', ' ')} {getattr(new[-1], key):,.4g}" for key in _SHOWN]
        more = f" (the last of {len(new)} events)" if len(new) > 1 else ""
        event = f"{self.name} at step {new[-1].step:,}{more}"
        return f"recovery from {event}: {', '.join(words)}"

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        return {"episodes": self.episodes.get_state(), "steps": self.steps, "told": self._logged}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`."""
        self.episodes.set_state(state["episodes"])
        self.steps, self._logged = list(state["steps"]), state["told"]


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
