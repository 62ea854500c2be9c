"""When an event happens: pure functions of the interval of steps that has just passed.

Vector environments jump over exact steps, so an event is *crossed*: it lies in the half-open
interval ``(previous, now]``. Several events in one interval act once. Steps are environment steps
over all environments unless the callback counts something else. Nothing here grows with the number
of events: ``every=1`` of a billion steps costs no more than one event.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from fire_rl.utils.validation import check_int, check_positive

_SHOWN = 10  # steps that are printed in full


@runtime_checkable
class Schedule(Protocol):
    """What every schedule answers."""

    def planned(self, horizon: int | None) -> Sequence[int]:
        """Return the event steps up to ``horizon``, ascending."""
        ...

    def crossed(self, previous: int, now: int, horizon: int | None) -> int | None:
        """Return the last event step in ``(previous, now]``, or None."""
        ...


@dataclass(frozen=True)
class Never:
    """No events: the control."""

    def planned(self, horizon: int | None) -> Sequence[int]:
        """Return no steps."""
        return ()

    def crossed(self, previous: int, now: int, horizon: int | None) -> int | None:
        """Return None."""
        return None


@dataclass(frozen=True)
class Every:
    """Events at each multiple of ``steps``, up to a share of the horizon.

    Args:
        steps: The period, at least 1.
        stop: Share of the horizon after which nothing happens any more, in (0, 1]. The default
            of :class:`~fire_rl.FireCallback`, 0.8, leaves time to recover: in the
            published DQN runs FIRE needed 7 to 21 % of the training to regain the return.
    """

    steps: int
    stop: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_int("every", self.steps, 1))
        object.__setattr__(self, "stop", check_positive("stop", self.stop, 1.0))

    def planned(self, horizon: int | None) -> Sequence[int]:
        """Return the multiples up to ``stop * horizon``; none if the horizon is unknown."""
        last = 0 if horizon is None else last_step(self.stop, horizon)
        return range(self.steps, last + 1, self.steps)

    def dropped(self, horizon: int) -> Sequence[int]:
        """Return the multiples past ``stop * horizon``; at the horizon itself none could act."""
        return steps_after(range(self.steps, horizon, self.steps), last_step(self.stop, horizon))

    def crossed(self, previous: int, now: int, horizon: int | None) -> int | None:
        """Return the last multiple in ``(previous, now]`` that is not past the stop."""
        return last_multiple(self.steps, self.stop, previous, now, horizon)


@dataclass(frozen=True)
class At:
    """Events at explicit steps, which always act.

    Args:
        steps: Ascending positive steps; one number is a list of one.
    """

    steps: tuple[int, ...]

    def __init__(self, steps: int | Sequence[int]) -> None:
        given: list[Any] = [steps] if isinstance(steps, int | Real | str) else list(steps)
        checked = tuple(check_int("at", step, 1) for step in given)
        if not checked or list(checked) != sorted(set(checked)):
            raise ValueError(f"`at` must be ascending steps without repeats, got {given!r}.")
        object.__setattr__(self, "steps", checked)

    def planned(self, horizon: int | None) -> Sequence[int]:
        """Return the steps up to the horizon."""
        return self.steps[: None if horizon is None else bisect_right(self.steps, horizon)]

    def crossed(self, previous: int, now: int, horizon: int | None) -> int | None:
        """Return the last of the steps in ``(previous, now]``."""
        return _last_of(self.steps, previous, now)


@dataclass(frozen=True)
class AtFractions:
    """Events at shares of the horizon, which always act.

    Args:
        fractions: Ascending numbers in (0, 1); one number is a list of one. FIRE's authors
            intervene once, at 0.5.
    """

    fractions: tuple[float, ...]

    def __init__(self, fractions: float | Sequence[float]) -> None:
        given: list[Any] = (
            [fractions] if isinstance(fractions, float | Real | str) else list(fractions)
        )
        checked = tuple(check_positive("fractions", fraction, 1.0) for fraction in given)
        if not checked or list(checked) != sorted(set(checked)) or checked[-1] == 1:
            raise ValueError(
                f"`fractions` must be ascending numbers in (0, 1) without repeats, got {given!r}."
            )
        object.__setattr__(self, "fractions", checked)

    def planned(self, horizon: int | None) -> Sequence[int]:
        """Return the steps that the fractions stand for."""
        if horizon is None:
            return ()
        return tuple(max(1, round(fraction * horizon)) for fraction in self.fractions)

    def crossed(self, previous: int, now: int, horizon: int | None) -> int | None:
        """Return the last of the steps in ``(previous, now]``."""
        return _last_of(self.planned(horizon), previous, now)


def steps_after(steps: Sequence[int], previous: int) -> Sequence[int]:
    """Return the ascending steps that lie after ``previous``; of a range, a range."""
    return steps[bisect_right(steps, previous) :]


def steps_as_text(steps: Sequence[int]) -> str:
    """Write ascending steps for people: all of them if they are few, else the ends and how many."""
    if len(steps) <= _SHOWN:
        return ", ".join(f"{step:,}" for step in steps)
    first = ", ".join(f"{step:,}" for step in steps[:3])
    return f"{first}, … {steps[-1]:,} ({len(steps):,} events)"


def last_step(stop: float, horizon: int) -> int:
    """Return the last step that lies in a share ``stop`` of the horizon."""
    # 0.8 * 15 is 12.000000000000002 or 11.999999999999998: the step itself still counts.
    return int(stop * horizon + 1e-6)


def last_multiple(
    period: int, stop: float, previous: int, now: int, horizon: int | None
) -> int | None:
    """Return the last multiple in ``(previous, now]`` that is not past the stop, or None."""
    last = now if horizon is None else min(now, last_step(stop, horizon))
    step = last // period * period
    return step if step > previous else None


def _last_of(steps: Sequence[int], previous: int, now: int) -> int | None:
    """Return the last of the ascending steps in ``(previous, now]``, or None."""
    count = bisect_right(steps, now)
    return steps[count - 1] if count and steps[count - 1] > previous else None
