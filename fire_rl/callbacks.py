"""SB3 callbacks that apply interventions on a schedule.

Weights change in ``_on_rollout_start`` only: in ``_on_step`` an on-policy algorithm is in the
middle of a rollout, and in ``_on_rollout_end`` its stored values and log-probabilities would be
those of other weights. All callbacks take plain values, so that rl_zoo3 can name them in YAML.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fire_rl.clock import EventClock, Unit
from fire_rl.interventions import Intervention, InterventionReport, make_intervention
from fire_rl.logs import log_folder
from fire_rl.metrics_callback import PlasticityMetricsCallback
from fire_rl.networks import policy_tensors
from fire_rl.rollout_callback import RolloutCallback, logger
from fire_rl.schedules import At, Schedule, Threshold, make_schedule, make_threshold
from fire_rl.surgery import apply_intervention, groups_to_change
from fire_rl.trigger import Trigger

__all__ = ["FireCallback", "InterventionCallback", "PlasticityMetricsCallback"]


class InterventionCallback(RolloutCallback):
    """Apply an intervention to the model's networks on a schedule.

    Args:
        intervention: ``"fire"``, a mapping such as ``{"name": "fire", "strength": 0.5}``, or an
            object such as ``FIRE(strength=0.5)``.
        schedule: ``{"every": 200_000, "stop": 0.8}``, ``{"at": [50_000]}``,
            ``{"fractions": [0.5]}``, ``{"metric": "dormant_ratio", "above": 0.3}`` (see
            :class:`~fire_rl.threshold.Threshold`), or a schedule object. Crossings that one
            rollout skips over act once, at the start of the next rollout.
        horizon: What fractions and ``stop`` refer to, in ``unit``; by default the total of the
            ``learn()`` call. Give it when you call ``learn()`` in chunks.
        unit: ``"timesteps"`` or ``"gradient_updates"``, see :class:`~fire_rl.clock.EventClock`.
        log_dir: Folder for ``interventions.jsonl``; by default that of the model's TensorBoard or
            CSV logs, and none if there are none.
        save_before: Folder for a copy of the model of just before each event.
        probe_size: Observations to measure on before and after; by default ``max(1024, 2 D)``.
        seed: Of the callback's own random numbers; by default the model's.
        verbose: 1 for the planned steps at the start and one line per event.

    Attributes:
        reports: The report of every event so far.

    Raises:
        ValueError: If an option is unknown or out of range.
        RuntimeError: In training, if it sits inside a callback that forwards no rollout hooks.
    """

    def __init__(
        self,
        intervention: Intervention | str | Mapping[str, Any] = "fire",
        schedule: Schedule | Mapping[str, Any] | None = None,
        *,
        horizon: int | None = None,
        unit: Unit = "timesteps",
        log_dir: str | Path | None = None,
        save_before: str | Path | None = None,
        probe_size: int | None = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        clock = EventClock(make_schedule(schedule), horizon, unit)
        super().__init__(clock, probe_size, seed, verbose)
        self.trigger = Trigger(clock.schedule) if isinstance(clock.schedule, Threshold) else None
        self.intervention = make_intervention(intervention)
        self.log_dir = log_dir
        self.save_before = save_before
        self.reports: list[InterventionReport] = []
        self._initial: dict[str, Tensor] = {}
        self._announced: set[int] | None = None

    def _init_callback(self) -> None:
        if self._model is not self.model:
            groups_to_change(self.model, self.intervention)  # a misfit shows before training
            if self.trigger is not None:
                self.trigger.start(self.model)
            tensors = policy_tensors(self.model.policy)
            self._initial = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        super()._init_callback()

    def _on_training_start(self) -> None:
        super()._on_training_start()
        planned = self.clock.planned()
        self._announce(planned)
        self._warn_about_plan(planned)

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        planned_step = self.clock.take()
        if planned_step is None:
            return
        if self.trigger is None:
            self._intervene(planned_step, {})
            return
        assert self.source is not None
        now, horizon = self.clock.now(self.model), self.clock.horizon
        cause = self.trigger.look(self.model, self.source.frozen, now, horizon)
        if cause is not None:
            self._intervene(planned_step, {"trigger": cause})

    def _intervene(self, planned_step: int, cause: Mapping[str, Any]) -> None:
        report = apply_intervention(
            self.model,
            self.intervention,
            save_before=self.save_before,
            initial=self._initial,
            probe=self._probe(),
            seed=None if self.seed is None else self.seed + planned_step,
        )
        self.reports.append(report)
        for key, value in report.scalars().items():
            self.logger.record(key, value)
        # Off-policy algorithms dump when episodes end only, and keep the last value of a key.
        self.logger.dump(self.num_timesteps)
        self._append_to_log({"planned_step": planned_step, **cause, **report.to_dict()})
        self._say(report.summary())

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        reports = [report.to_dict() for report in self.reports]
        own = {"reports": reports, "initial": self._initial, "announced": self._announced}
        trigger = {} if self.trigger is None else {"trigger": self.trigger.get_state()}
        return {**super().get_state(), **own, **trigger}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`, in training."""
        super().set_state(state)
        self.reports = [InterventionReport.from_dict(report) for report in state["reports"]]
        device = self.model.device
        self._initial = {name: tensor.to(device) for name, tensor in state["initial"].items()}
        self._announced = state["announced"]
        if self.trigger is not None and "trigger" in state:
            self.trigger.set_state(state["trigger"])

    def _announce(self, planned: Sequence[int]) -> None:
        """Say what is planned; a later call of ``learn()`` with the same plan is silent."""
        unit = self.clock.unit.replace("_", " ")
        if self.trigger is not None:
            plan = self.trigger.threshold.describe(unit.replace("timesteps", "steps"))
        elif planned or self.clock.horizon is not None:
            steps = ", ".join(f"{step:,}" for step in planned)
            plan = f"planned at {steps} {unit}" if planned else "no event is planned"
        else:
            plan = f"{self.clock.schedule}, in {unit}"
        if self._announced is None or not self._announced.issuperset(planned):
            self._say(f"{self.intervention.name}: {plan}")
        self._announced = (self._announced or set()) | set(planned)

    def _append_to_log(self, entry: Mapping[str, Any]) -> None:
        folder = log_folder(self.logger) if self.log_dir is None else Path(self.log_dir)
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "interventions.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(_without_nan(entry)) + "\n")

    def _warn_about_plan(self, planned: Sequence[int]) -> None:
        starts = getattr(self.model, "learning_starts", 0)
        early = [step for step in planned if step <= starts and self.clock.unit == "timesteps"]
        if early:
            warnings.warn(
                f"`{self.intervention.name}` is planned at step {early[0]:,}, before the model "
                f"starts to learn (`learning_starts` {starts:,}): it changes untrained weights.",
                UserWarning,
                stacklevel=2,
            )
        horizon, schedule = self.clock.horizon, self.clock.schedule
        late = (
            [step for step in schedule.steps if step >= horizon]
            if (isinstance(schedule, At) and horizon is not None)
            else []
        )
        if late:
            # No warning: a caller who trains in chunks will get there.
            logger.warning(
                "%s at step %s lies at or beyond the end of this training (%s steps): it acts only "
                "if learn() is called again.",
                self.intervention.name,
                f"{late[0]:,}",
                f"{horizon:,}",
            )


class FireCallback(InterventionCallback):
    """Apply FIRE to an SB3 model's networks while it trains.

    One of ``every``, ``at``, ``fractions`` and ``threshold`` says when.

    Args:
        every: Period in environment steps over all environments.
        at: Ascending steps.
        fractions: Ascending shares of the horizon, such as ``[0.5]``.
        threshold: A :class:`~fire_rl.threshold.Threshold` or its arguments as a mapping, such as
            ``{"metric": "dormant_ratio", "above": 0.3}``; its own ``stop`` stands in it.
        stop: Share of the horizon after which ``every`` does nothing; 0.8 unless given, so that
            the agent can recover.
        horizon: As in :class:`InterventionCallback`; so are the next six.
        unit: ``"timesteps"`` or ``"gradient_updates"``.
        log_dir: Folder for ``interventions.jsonl``.
        save_before: Folder for models of just before each event.
        probe_size: Observations to measure on.
        seed: Of the callback's own random numbers.
        verbose: 1 for one line per event.
        preset: ``"paper_dqn"`` or ``"paper_sac"``, see :class:`~fire_rl.interventions.fire.FIRE`.
        **options: Options of :class:`~fire_rl.interventions.fire.FIRE`.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0)
        >>> callback = FireCallback(every=128, method="exact")
        >>> model = model.learn(512, callback=callback)
        >>> [report.num_timesteps for report in callback.reports]
        [128, 256, 384]
    """

    def __init__(
        self,
        every: int | None = None,
        at: int | Sequence[int] | None = None,
        fractions: float | Sequence[float] | None = None,
        *,
        threshold: Threshold | Mapping[str, Any] | None = None,
        stop: float | None = None,
        horizon: int | None = None,
        unit: Unit = "timesteps",
        log_dir: str | Path | None = None,
        save_before: str | Path | None = None,
        probe_size: int | None = None,
        seed: int | None = None,
        verbose: int = 0,
        preset: str | None = None,
        **options: Any,
    ) -> None:
        planned = {"every": every, "at": at, "fractions": fractions, "stop": stop}
        super().__init__(
            make_intervention({"name": "fire", "preset": preset, **options}),
            make_schedule(planned) if threshold is None else make_threshold(threshold, planned),
            horizon=horizon,
            unit=unit,
            log_dir=log_dir,
            save_before=save_before,
            probe_size=probe_size,
            seed=seed,
            verbose=verbose,
        )


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity by None: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
