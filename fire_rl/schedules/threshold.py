"""A schedule that fires when a measured metric crosses a line: a pure function of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from fire_rl.metrics.registry import METRICS, find_metric
from fire_rl.schedules.planned import last_multiple, last_step
from fire_rl.utils.validation import as_number, check_choice, check_int, check_positive


@dataclass(frozen=True)
class ThresholdState:
    """What a :class:`Threshold` remembers from one measurement to the next.

    Attributes:
        count: Measurements beyond the line in a row.
        last_event: Step of the last event, or None.
    """

    count: int = 0
    last_event: int | None = None


@dataclass(frozen=True)
class Threshold:
    """An event when a plasticity metric crosses a line, instead of at planned steps.

    A pure function of steps and values: :meth:`crossed` says when to measure, :meth:`decide` what
    follows from the value. :class:`~fire_rl.InterventionCallback` measures, on a frozen
    probe, and not before the model has begun to learn.

    Args:
        metric: Any name in :data:`fire_rl.METRICS`, such as ``dormant_ratio``, or its log key.
        above: Act when the metric is above this number. Exactly one of ``above`` and ``below``.
        below: Act when it is below this number, as ranks are when plasticity is lost.
        every: Period of the measurements in environment steps (in the callback's ``unit``, as all
            steps here).
        patience: Measurements in a row that must be beyond the line; one that is not, or that
            cannot be made (NaN), begins the count anew.
        cooldown: Steps after an event in which nothing acts or counts.
        network: Role of the network to watch: ``"actor"``, ``"critic"`` or ``"shared"``; None for
            all: then the one furthest beyond the line decides.
        stop: Share of the horizon after which nothing happens any more, in (0, 1], see
            :class:`~fire_rl.Every`.

    Raises:
        ValueError: If an argument is unknown, out of range, or a line that can never be crossed.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    every: int = 10_000
    patience: int = 1
    cooldown: int = 0
    network: str | None = None
    stop: float = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", find_metric(self.metric).name)
        lines = [name for name in ("above", "below") if getattr(self, name) is not None]
        if len(lines) != 1:
            raise ValueError(
                f"A threshold for `metric` {self.metric!r} must have exactly one of `above` and "
                f"`below`, got {'both' if lines else 'none of them'}."
            )
        object.__setattr__(self, lines[0], self._checked_line(lines[0]))
        for name, minimum in (("every", 1), ("patience", 1), ("cooldown", 0)):
            object.__setattr__(self, name, check_int(name, getattr(self, name), minimum))
        if self.network is not None:
            check_choice("network", self.network, ("actor", "critic", "shared"))
        object.__setattr__(self, "stop", check_positive("stop", self.stop, 1.0))

    @property
    def log_name(self) -> str:
        """The metric's name in the logs."""
        return METRICS[self.metric].log_key

    @property
    def line(self) -> float:
        """The number that the metric must be above or below."""
        line = self.above if self.above is not None else self.below
        assert line is not None
        return line

    def planned(self, horizon: int | None) -> Sequence[int]:
        """Return no steps: they depend on values that are not measured yet."""
        return ()

    def crossed(self, previous: int, now: int, horizon: int | None) -> int | None:
        """Return the last step in ``(previous, now]`` at which to measure."""
        return last_multiple(self.every, self.stop, previous, now, horizon)

    def worst(self, values: Mapping[str, float]) -> tuple[str, float] | None:
        """Return the network that is furthest beyond the line, or nearest to it, and its value.

        Args:
            values: Role to the metric's value; NaN is no value.

        Returns:
            None if there is no value.
        """
        found = {role: value for role, value in values.items() if not math.isnan(value)}
        if not found:
            return None
        role = (max if self.above is not None else min)(found, key=lambda role: found[role])
        return role, found[role]

    def decide(
        self, state: ThresholdState, step: int, value: float, horizon: int | None
    ) -> tuple[bool, ThresholdState]:
        """Return whether to act on a measurement, and what to remember.

        Args:
            state: What was returned last; ``ThresholdState()`` at first.
            step: The current step.
            value: The metric; NaN for no measurement.
            horizon: What ``stop`` refers to; None if it is unknown.
        """
        last = state.last_event
        if last is not None and step < last:
            last = None  # the run counts from 0 again
        closing = horizon is not None and step > last_step(self.stop, horizon)
        cooling = last is not None and step < last + self.cooldown
        beyond = value > self.line if self.above is not None else value < self.line
        if closing or cooling or not beyond:
            return False, ThresholdState(0, last)
        if state.count + 1 < self.patience:
            return False, ThresholdState(state.count + 1, last)
        return True, ThresholdState(0, step)

    def describe(self, unit: str = "steps") -> str:
        """Say when it acts, for people."""
        sign = ">" if self.above is not None else "<"
        repeated = f" {self.patience} times in a row" if self.patience > 1 else ""
        return (
            f"when {self.network or 'any'} {self.metric} {sign} {self.line:g}{repeated}, "
            f"measured every {self.every:,} {unit}"
        )

    def _checked_line(self, name: str) -> float:
        value = as_number(getattr(self, name))
        above, ratio = name == "above", METRICS[self.metric].ratio
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        fits = is_number and math.isfinite(value) and (value >= 0 if above else value > 0)
        if not fits or (ratio and (value >= 1 if above else value > 1)):
            bounds = "of at least 0" if above else "above 0"
            if ratio:
                bounds += " and below 1" if above else " and at most 1"
            raise ValueError(
                f"`{name}` must be a number {bounds} for {self.metric}, got {value!r}."
            )
        return float(value)
