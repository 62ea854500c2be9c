"""When an event happens: pure functions of the interval of steps that has just passed.

Vector environments jump over exact steps, so an event is *crossed*: it lies in the half-open
interval ``(previous, now]``. Several events in one interval act once. Steps are environment steps
over all environments unless the callback counts something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from fire_rl._steps import last_multiple, last_step
from fire_rl._validation import check_int, check_positive, nearest
from fire_rl.threshold import Threshold

__all__ = [
    "At",
    "AtFractions",
    "Every",
    "Never",
    "Schedule",
    "Threshold",
    "make_schedule",
    "make_threshold",
]


@runtime_checkable
class Schedule(Protocol):
    """What a schedule must be able to tell."""

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
            of :class:`~fire_rl.callbacks.FireCallback`, 0.8, leaves time to recover: in the
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
        return tuple(step for step in self.steps if horizon is None or step <= horizon)

    def crossed(self, previous: int, now: int, horizon: int | None) -> int | None:
        """Return the last of the steps in ``(previous, now]``."""
        return max((step for step in self.steps if previous < step <= now), default=None)


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
        planned = self.planned(horizon)
        return max((step for step in planned if previous < step <= now), default=None)


_PLANNED = ("every", "at", "fractions")
_WATCHED = tuple(field.name for field in fields(Threshold))
_KEYS = (*_PLANNED, "stop", *(key for key in _WATCHED if key not in ("every", "stop")))


def make_schedule(spec: Schedule | Mapping[str, Any] | None) -> Schedule:
    """Build a schedule from plain values.

    Args:
        spec: ``{"every": 200_000}`` with an optional ``"stop"`` (default 0.8), ``{"at": [...]}``,
            ``{"fractions": [...]}``, or with a ``"metric"`` the arguments of :class:`Threshold`,
            such as ``{"metric": "dormant_ratio", "above": 0.3}``; a schedule is returned as it
            is, None is :class:`Never`.

    Raises:
        ValueError: If a key is unknown, keys do not go together, or a value is out of range.
        TypeError: If ``spec`` is none of these.
    """
    if spec is None:
        return Never()
    if isinstance(spec, Schedule) and not isinstance(spec, type):
        return spec
    if not isinstance(spec, Mapping):
        raise TypeError(
            "`schedule` must be a mapping such as {'every': 200000} or a schedule object, got "
            f"{spec!r}."
        )
    given = {key: value for key, value in spec.items() if value is not None}
    for key in given:
        if key not in _KEYS:
            raise ValueError(
                f"`schedule` has an unknown key {key!r}; known are {', '.join(_KEYS)}."
                f"{nearest(key, _KEYS)}"
            )
    if "metric" not in given:
        return _make_planned(given)
    for key in given:
        if key not in _WATCHED:
            raise ValueError(
                f"`{key}` does not go with `metric`, which acts when a line is crossed. Leave one "
                "of them out."
            )
    return Threshold(**given)


def make_threshold(spec: Threshold | Mapping[str, Any], others: Mapping[str, Any]) -> Threshold:
    """Build a threshold that stands beside other arguments that say when, none of them given.

    Raises:
        ValueError: If one of ``others`` is not None, ``spec`` is no threshold, or as in
            :func:`make_schedule`.
    """
    given = [f"`{key}`" for key, value in others.items() if value is not None]
    if given:
        raise ValueError(
            f"`threshold` says when on its own, got {', '.join(given)} beside it. Leave them out; "
            "a threshold's own `every` and `stop` stand in it."
        )
    schedule = make_schedule(spec) if isinstance(spec, Mapping) and "metric" in spec else spec
    if not isinstance(schedule, Threshold):
        raise ValueError(
            "`threshold` must be a mapping such as {'metric': 'dormant_ratio', 'above': 0.3} or a "
            f"Threshold, got {spec!r}."
        )
    return schedule


def _make_planned(given: Mapping[str, Any]) -> Schedule:
    for key in given:
        if key not in (*_PLANNED, "stop"):
            raise ValueError(
                f"`{key}` needs a `metric` to watch, for example {{'metric': 'dormant_ratio', "
                "'above': 0.3}."
            )
    kinds = [key for key in _PLANNED if key in given]
    if len(kinds) != 1:
        raise ValueError(
            "`schedule` must have exactly one of every, at and fractions, got "
            f"{', '.join(kinds) if kinds else 'none of them, and no metric to watch either'}."
        )
    if kinds == ["every"]:
        return Every(given["every"], given.get("stop", 0.8))
    if "stop" in given:
        raise ValueError(f"`stop` limits `every` only: `{kinds[0]}` always acts. Leave it out.")
    return At(given["at"]) if kinds == ["at"] else AtFractions(given["fractions"])
