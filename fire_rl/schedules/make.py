"""Build a schedule from plain values, as YAML files and keyword arguments give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fire_rl.schedules.planned import At, AtFractions, Every, Never, Schedule
from fire_rl.schedules.threshold import Threshold
from fire_rl.utils.validation import check_options, nearest

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
            "a threshold has an `every` and a `stop` of its own."
        )
    if isinstance(spec, Mapping):
        check_options("threshold", Threshold, spec)
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
