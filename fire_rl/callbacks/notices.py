"""What a user hears of an intervention's events: those planned, those left out, those not done.

What can be a mistake is a real warning, so that a callback with ``verbose=0`` is heard too, and
said once for each model. What a caller who trains in chunks may well mean is logged.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from stable_baselines3.common.base_class import BaseAlgorithm

from fire_rl.callbacks.base import logger
from fire_rl.callbacks.event_clock import EventClock
from fire_rl.sb3.continuation import has_learned
from fire_rl.schedules import At, AtFractions, Every, Threshold
from fire_rl.schedules.planned import last_step, steps_after, steps_as_text

# What has been said to wait, by model: intervention, unit and schedule.
_WAITS: WeakKeyDictionary[BaseAlgorithm, set[tuple[str, ...]]] = WeakKeyDictionary()


class Notices:
    """The messages about one intervention's events.

    Args:
        clock: Counts them.
        name: The intervention's name.
        expected: Whether it matters to anyone if they happen: the control changes nothing.

    Attributes:
        announced: Of the plan that was printed last: its last step, 0 if it has no known end.
    """

    def __init__(self, clock: EventClock, name: str, expected: bool) -> None:
        self.clock = clock
        self.name = name
        self.expected = expected
        self.announced: int | None = None
        self._said: set[str] = set()
        self._again = False

    def start_clean(self, again: bool) -> None:
        """Begin with another model, or with the same one that counts from 0 ``again``."""
        self.announced = None
        self._again = again
        self._said &= {"nothing", "again"} if again else set()

    def plan(self) -> str:
        """Return the plan as a line; nothing if a call of ``learn()`` before had the same one."""
        planned = self.clock.planned()
        last = planned[-1] if planned else 0
        known = self.announced is not None and (last == self.announced or not planned)
        if not planned and not self._is_over():  # without an end
            known = self.announced == 0
        if known:
            return ""
        self.announced = last
        return f"{self.name}: {self._plan_as_text(planned)}"

    def at_start(self, model: BaseAlgorithm) -> None:
        """Warn of a plan that holds nothing, or that acts too early or too late."""
        if self.expected:
            self._check_early(model)
            self._check_none()
            self._check_again(model)
            self._check_late()

    def at_end(self, model: BaseAlgorithm) -> None:
        """Warn of an event that was due and has not happened."""
        clock, step = self.clock, self.clock.armed
        if not self.expected or isinstance(clock.schedule, Threshold):
            return
        now, unit = clock.now(model), "step" if clock.unit == "timesteps" else "update"
        if clock.given_horizon is not None and now < clock.given_horizon:
            return  # a chunk of what the user has said comes
        goes_on = isinstance(clock.schedule, Every) and clock.done is not None
        if goes_on and (unit == "update" or (step or 0) >= clock.total):
            return  # a period that ends with the training: nothing learns after this event
        if step is not None and self._is_first_of(model):
            self._warn(
                "not done",
                f"`{self.name}` planned at {unit} {step:,} has not happened: the last rollout has "
                f"crossed it, and weights change at the start of a rollout only. The next "
                f"learn(reset_num_timesteps=False) does it. To have it in this call, plan it a "
                "rollout earlier or train longer.",
            )
        elif (
            step is None and unit == "update" and not (clock.began or clock.restored or clock.done)
        ):
            self._warn(
                "nothing",
                f"`{self.name}` has not acted in this training of {now:,} updates: none was "
                "planned before its last rollout and its `stop`. Plan it earlier or train longer.",
            )

    def _plan_as_text(self, planned: Sequence[int]) -> str:
        schedule, unit = self.clock.schedule, self.clock.unit.replace("_", " ")
        if isinstance(schedule, Threshold):
            return schedule.describe(unit.replace("timesteps", "steps"))
        if planned:
            text = f"planned at {steps_as_text(planned)} {unit}"
        elif self._is_over():
            text = "no event is planned"
        elif isinstance(schedule, Every):
            text = f"every {schedule.steps:,} {unit}"
            if self.clock.began > 0 and schedule.stop < 1:
                text += f" (no `stop`: this call begins at step {self.clock.began:,}, not at 0)"
        else:
            text = f"{schedule}, in {unit}"
        if dropped := self.clock.dropped():
            text += f"; not at {steps_as_text(dropped)}, past the `stop` of this call"
        return text

    def _is_over(self) -> bool:
        """Whether an empty plan means that nothing comes."""
        return self.clock.horizon is not None or isinstance(self.clock.schedule, At)

    def _check_early(self, model: BaseAlgorithm) -> None:
        starts, planned = getattr(model, "learning_starts", 0), self.clock.planned()
        if planned and planned[0] <= starts and self.clock.unit == "timesteps":
            self._warn(
                "early",
                f"`{self.name}` is planned at step {planned[0]:,}, before the model starts to "
                f"learn (`learning_starts` {starts:,}): it changes untrained weights.",
            )

    def _check_none(self) -> None:
        """Warn if a training whose end is known holds no event."""
        schedule, horizon = self.clock.schedule, self.clock.horizon
        if horizon is None:
            return
        if isinstance(schedule, Every) and not schedule.planned(horizon):
            reason = f"the first multiple of `every` is {schedule.steps:,}"
            if schedule.stop < 1:
                last = last_step(schedule.stop, horizon)
                reason += f", and nothing acts after {last:,} (`stop={schedule.stop:g}`)"
        elif isinstance(schedule, At) and schedule.steps[0] > max(horizon, self._end_of_call()):
            reason = f"`at` begins with {schedule.steps[0]:,}"
        else:
            return
        unit, advice = self.clock.unit.replace("_", " "), ""
        if self.clock.given_horizon is None:
            advice = "; if you call learn() in chunks, give `horizon=`, the steps in all"
        self._warn(
            "nothing",
            f"`{self.name}` will not act in this training of {horizon:,} {unit}: {reason}. Plan it "
            f"earlier or train longer{advice}.",
        )

    def _check_again(self, model: BaseAlgorithm) -> None:
        """Warn if chunks of a horizon all begin at step 0."""
        clock = self.clock
        end, horizon = self._end_of_call(), clock.given_horizon or 0
        if clock.began > 0 or clock.restored or horizon <= end:
            return
        missed = steps_after(clock.schedule.planned(horizon), end)
        within = clock.schedule.crossed(0, end, horizon) is not None
        if missed and (self._again or (not within and has_learned(model))):
            self._warn(
                "again",
                f"learn() counts from step 0 again and ends at step {end:,}, so `{self.name}` "
                f"planned at {steps_as_text(missed)} of `horizon={horizon:,}` never happens. To "
                "train in chunks, give reset_num_timesteps=False.",
            )

    def _check_late(self) -> None:
        """Log what lies behind or beyond this call, which is no fault in chunks."""
        clock, schedule = self.clock, self.clock.schedule
        planned = clock.planned()
        is_new = clock.began > 0 and clock.fresh and not clock.restored and clock.done is None
        bounded = isinstance(schedule, At | AtFractions | Every) and self._is_over()
        if is_new and bounded and not planned:
            logger.warning(
                "%s has no event ahead: this call of learn() begins at step %s, and all that is "
                "planned lies before it.",
                self.name,
                f"{clock.began:,}",
            )
        horizon = clock.horizon
        if isinstance(schedule, At) and horizon is not None and planned:
            for step in steps_after(schedule.steps, horizon - 1)[:1]:
                logger.warning(
                    "%s at step %s lies at or beyond the end of this training (%s steps): it acts "
                    "only if learn() is called again.",
                    self.name,
                    f"{step:,}",
                    f"{horizon:,}",
                )

    def _is_first_of(self, model: BaseAlgorithm) -> bool:
        """Whether no callback like this one has said in this training that an event waits.

        One that is made anew for each chunk would say it in each.
        """
        said = _WAITS.setdefault(model, set())
        if self.clock.began == 0:
            said.clear()
        key = (self.name, self.clock.unit, repr(self.clock.schedule))
        is_first = key not in said
        said.add(key)
        return is_first

    def _end_of_call(self) -> int:
        """The step at which the present call ends, 0 where the unit is another one."""
        return self.clock.total if self.clock.unit == "timesteps" else 0

    def _warn(self, topic: str, message: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            warnings.warn(message, UserWarning, stacklevel=2)
