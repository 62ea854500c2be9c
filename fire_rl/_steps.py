"""Arithmetic of event steps: multiples of a period, up to a share of a horizon."""

from __future__ import annotations


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
