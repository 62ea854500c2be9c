"""Count steps and remember which scheduled event is due, across calls of ``learn()``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from fire_rl.sb3.internals import total_timesteps
from fire_rl.sb3.model_view import ModelView
from fire_rl.schedules import AtFractions, Schedule
from fire_rl.utils.validation import check_choice, check_int

Unit = Literal["timesteps", "gradient_updates"]


class EventClock:
    """Remember how far a run has come, and which event is due.

    Args:
        schedule: When events happen.
        horizon: What fractions and ``stop`` refer to; by default the total of the ``learn()`` call.
        unit: ``"timesteps"``: environment steps over all environments. ``"gradient_updates"``:
            the largest number of steps of any optimizer, counted from the start of the callback
            (SB3's ``_n_updates`` means something else in every algorithm). Without a
            ``horizon``, ``stop`` then refers to the environment steps.

    Attributes:
        armed: Step of the event that was crossed and has not acted yet, or None.
    """

    def __init__(self, schedule: Schedule, horizon: int | None, unit: Unit) -> None:
        check_choice("unit", unit, ("timesteps", "gradient_updates"))
        self.schedule = schedule
        self.unit = unit
        self.armed: int | None = None
        self._given_horizon = None if horizon is None else check_int("horizon", horizon, 1)
        if unit == "gradient_updates" and isinstance(schedule, AtFractions) and horizon is None:
            raise ValueError(
                "`fractions` of gradient updates need `horizon=`, the number of updates in all: "
                "it cannot be told from the environment steps."
            )
        self._previous: int | None = None
        self._total_timesteps = 0
        self._updates: list[int] = []  # by optimizer
        self._hooks: list[Any] = []

    def start(self, model: BaseAlgorithm) -> None:
        """Begin a ``learn()`` call; an event armed by an earlier one stays armed."""
        self.stop()
        if self._previous is not None and self._total_timesteps:
            self._warn_about_chunks()
        self._total_timesteps = total_timesteps(model)
        if self.unit == "gradient_updates":
            self._count_updates(model)
        now = self.now(model)
        # A fresh clock begins at the model's own step; so does a run that counts from 0 again.
        self._previous = now if self._previous is None else min(self._previous, now)

    def reset(self) -> None:
        """Forget the run so far, for another model."""
        self.armed = self._previous = None
        self._updates = []

    def branch_off(self, model: BaseAlgorithm) -> None:
        """Count from the model's current step on, after a checkpoint was restored.

        An event at exactly this step still fires. Gradient updates are counted from 0.
        """
        self.reset()
        self.start(model)
        assert self._previous is not None
        if self.unit == "timesteps":
            self._previous -= 1

    @contextmanager
    def not_counting(self) -> Iterator[None]:
        """Leave out the gradient updates that are made inside."""
        before = list(self._updates)
        try:
            yield
        finally:
            self._updates[:] = before

    def stop(self) -> None:
        """End a ``learn()`` call: take the hooks off the optimizers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @property
    def horizon(self) -> int | None:
        """The horizon in this clock's unit, None if it is unknown."""
        if self._given_horizon is not None:
            return self._given_horizon
        return self._total_timesteps if self.unit == "timesteps" else None

    def planned(self) -> Sequence[int]:
        """Return the event steps up to the horizon that still lie ahead."""
        previous = self._previous or 0
        return [step for step in self.schedule.planned(self.horizon) if step > previous]

    def now(self, model: BaseAlgorithm) -> int:
        """Return the current step in this clock's unit."""
        if self.unit == "timesteps":
            return model.num_timesteps
        return max(self._updates, default=0)

    def advance(self, model: BaseAlgorithm) -> None:
        """Arm the event that the steps since the last call have crossed, if any."""
        assert self._previous is not None, "start() comes first"
        now = self.now(model)
        if now == self._previous:
            return
        step = self.schedule.crossed(self._previous, now, self.horizon)
        self._previous = now
        if step is not None and not self._past_stop(model):
            self.armed = step

    def take(self) -> int | None:
        """Return the armed event's step and disarm it."""
        step, self.armed = self.armed, None
        return step

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        return {"armed": self.armed, "previous": self._previous, "updates": list(self._updates)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`."""
        self.armed, self._previous = state["armed"], state["previous"]
        self._updates[:] = state["updates"]

    def _warn_about_chunks(self) -> None:
        limited = isinstance(self.schedule, AtFractions) or getattr(self.schedule, "stop", 1.0) < 1
        if limited and self._given_horizon is None:
            what = "`fractions`" if isinstance(self.schedule, AtFractions) else "`stop`"
            warnings.warn(
                f"learn() is called again, and {what} refers to the total of each call: events in "
                "the last part of each are left out. Give `horizon=`, the steps in all.",
                UserWarning,
                stacklevel=2,
            )

    def _past_stop(self, model: BaseAlgorithm) -> bool:
        if self.horizon is not None:
            return False  # the schedule itself has applied it
        stop = float(getattr(self.schedule, "stop", 1.0))
        return model.num_timesteps > stop * self._total_timesteps

    def _count_updates(self, model: BaseAlgorithm) -> None:
        optimizers = ModelView(model).optimizers
        self._updates = self._updates or [0] * len(optimizers)

        def count(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            self._updates[[id(item) for item in optimizers].index(id(optimizer))] += 1

        self._hooks = [optimizer.register_step_post_hook(count) for optimizer in optimizers]
