"""Count steps and remember which scheduled event is due, across calls of ``learn()``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from fire_rl.sb3.continuation import rollout_steps, updates_made, updates_per_rollout
from fire_rl.sb3.internals import total_timesteps
from fire_rl.sb3.model_view import ModelView
from fire_rl.schedules import AtFractions, Every, Schedule
from fire_rl.schedules.planned import steps_after
from fire_rl.utils.validation import check_choice, check_int

Unit = Literal["timesteps", "gradient_updates"]
# Gradient updates of a model in this process, by optimizer, as a clock has counted them.
_COUNTED: WeakKeyDictionary[BaseAlgorithm, list[int]] = WeakKeyDictionary()


class EventClock:
    """Remember how far a run has come, and which event is due.

    People call ``learn()`` in chunks, and go on from files. A call that begins at step 0 is a new
    training, and its total is what ``stop`` and fractions refer to. A call that begins later has
    no end that is known: without ``horizon`` nothing stops there, and fractions mean nothing.

    Args:
        schedule: When events happen.
        horizon: What fractions and ``stop`` refer to; by default the total of the ``learn()`` call
            that begins at step 0.
        unit: ``"timesteps"``: environment steps over all environments. ``"gradient_updates"``:
            the largest number of steps of any optimizer, counted from the start of the callback
            (SB3's ``_n_updates`` means something else in every algorithm); a new callback in a call
            that begins later goes on from what the optimizers have counted (SGD counts nothing), or
            another callback of this model, in this process.
            Without a ``horizon``, ``stop`` then refers to the environment steps.
        catch_up: Whether a call that begins at step N > 0 has crossed, at its first rollout start,
            what lies in (N - R, N], R one rollout: events that were due when the call before ended.

    Attributes:
        armed: Step of the event that was crossed and has not acted yet, or None.
        done: Step of the event that was taken last, or None.
        began: Step at which the present call of ``learn()`` has begun.
        restored: Whether a checkpoint has set it in the present call.
        fresh: Whether the present call is the first one of this training that it counts.
    """

    def __init__(
        self, schedule: Schedule, horizon: int | None, unit: Unit, *, catch_up: bool = False
    ) -> None:
        check_choice("unit", unit, ("timesteps", "gradient_updates"))
        self.schedule = schedule
        self.unit = unit
        self.given_horizon = None if horizon is None else check_int("horizon", horizon, 1)
        if unit == "gradient_updates" and isinstance(schedule, AtFractions) and horizon is None:
            raise ValueError(
                "`fractions` of gradient updates need `horizon=`, the number of updates in all: "
                "it cannot be told from the environment steps."
            )
        self._catch_up = catch_up
        self._hooks: list[Any] = []
        self.reset()

    def reset(self) -> None:
        """Forget the run so far, for another training."""
        self.stop()
        self.armed: int | None = None
        self.done: int | None = None
        self.began = self.total = 0
        self.restored, self.fresh = False, True
        self._previous: int | None = None
        self._updates: list[int] = []  # by optimizer

    def start(self, model: BaseAlgorithm) -> None:
        """Begin a ``learn()`` call; an event armed by an earlier one stays armed."""
        self.stop()
        self.began, self.total = model.num_timesteps, total_timesteps(model)
        self.restored, self.fresh = False, self._previous is None
        if self.unit == "gradient_updates":
            self._count_updates(model)
        now = self.now(model)
        # A fresh clock begins at the model's own step; so does a run that counts from 0 again.
        self._previous = now if self._previous is None else min(self._previous, now)
        if self._catch_up and self.began > 0:
            self._previous = self._before_the_last_rollout(model)

    def branch_off(self, model: BaseAlgorithm) -> None:
        """Count from the model's current step on, after a checkpoint was restored.

        An event at exactly this step still fires. Gradient updates are counted from 0.
        """
        self.armed = self.done = None
        self._updates[:] = [0] * len(self._updates)
        self._previous = self.now(model) - (self.unit == "timesteps")
        self.restored = True

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

    def check(self) -> None:
        """Raise ValueError if the schedule means nothing in the present call."""
        if isinstance(self.schedule, AtFractions) and self.began > 0 and self.horizon is None:
            raise ValueError(
                f"`fractions` (a preset's midpoint, too) are shares of a training from step 0, but "
                f"this call of learn() begins at step {self.began:,}. Give `horizon=`, the steps "
                "in all, or say when by `every` or `at`."
            )

    @property
    def horizon(self) -> int | None:
        """The horizon in this clock's unit, None if it is unknown."""
        if self.given_horizon is not None:
            return self.given_horizon
        return self.total if self.unit == "timesteps" and self.began == 0 else None

    def planned(self) -> Sequence[int]:
        """Return the event steps up to the horizon that still lie ahead."""
        return steps_after(self.schedule.planned(self.horizon), self._previous or 0)

    def dropped(self) -> Sequence[int]:
        """Return the event steps that ``stop`` leaves out, where it refers to the present call."""
        known = self.given_horizon is None and self.horizon is not None
        return (
            self.schedule.dropped(self.total) if known and isinstance(self.schedule, Every) else ()
        )

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
        self.done = self.done if step is None else step
        return step

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values; its size is constant."""
        return {
            "armed": self.armed,
            "previous": self._previous,
            "updates": list(self._updates),
            "done": self.done,
            "began": self.began,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`."""
        self.armed, self._previous = state["armed"], state["previous"]
        self._updates[:] = state["updates"]
        self.done, self.began = state.get("done"), state.get("began", 0)
        self.restored = True

    def _before_the_last_rollout(self, model: BaseAlgorithm) -> int:
        """Return from where on to cross at the first rollout start of a call at a later step."""
        now = self.now(model)
        if self.done is not None and self.done > now:
            self.armed = self.done = None  # the model was put back to an earlier step
        if self.unit == "timesteps":
            start = now - rollout_steps(model)
        else:  # these are crossed at rollout starts only: those of the last rollout are not yet
            assert self._previous is not None
            start = min(self._previous, now - updates_per_rollout(model))
        return max(0, start, self.done or 0)

    def _past_stop(self, model: BaseAlgorithm) -> bool:
        if self.horizon is not None or self.began > 0:
            return False  # the schedule itself has applied it, or there is none
        stop = float(getattr(self.schedule, "stop", 1.0))
        return model.num_timesteps > stop * self.total

    def _count_updates(self, model: BaseAlgorithm) -> None:
        optimizers = ModelView(model).optimizers
        for optimizer in optimizers:
            if not hasattr(optimizer, "register_step_post_hook"):
                raise ValueError(
                    "`unit='gradient_updates'` cannot count the steps of "
                    f"{type(optimizer).__name__}, which is no torch.optim.Optimizer (it has no "
                    "`register_step_post_hook`). Use `unit='timesteps'`."
                )
        if not self._updates:
            earlier = self._catch_up and self.began > 0
            self._updates = [0] * len(optimizers)
            if earlier:
                counted = (updates_made(model), _COUNTED.get(model, []), self._updates)
                self._updates = [max(counts) for counts in zip_longest(*counted, fillvalue=0)]
        if self._catch_up:
            _COUNTED[model] = self._updates

        def count(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            self._updates[[id(item) for item in optimizers].index(id(optimizer))] += 1

        self._hooks = [optimizer.register_step_post_hook(count) for optimizer in optimizers]
