"""The SB3 callback that applies an intervention on a schedule.

Weights change in ``_on_rollout_start`` only: in ``_on_step`` an on-policy algorithm is in the
middle of a rollout, and in ``_on_rollout_end`` its stored values and log-probabilities would be
those of other weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from fire_rl.callbacks.base import RolloutCallback, say
from fire_rl.callbacks.checkpoint import restores_next
from fire_rl.callbacks.event_clock import EventClock, Unit
from fire_rl.callbacks.notices import Notices
from fire_rl.callbacks.threshold_monitor import ThresholdMonitor
from fire_rl.interventions import (
    CONTROL,
    Intervention,
    InterventionReport,
    make_intervention,
    published_schedule,
)
from fire_rl.runs.episodes import EpisodeLog
from fire_rl.runs.event_lines import EventLines
from fire_rl.runs.recovery import Recovery, RecoveryLog
from fire_rl.sb3.callback_tree import walk_callbacks
from fire_rl.sb3.exploration import (
    ExplorationRestart,
    as_exploration_restart,
    check_exploration_restart,
    restore_exploration,
)
from fire_rl.sb3.head_refit import HeadRefit, as_head_refit, check_head_refit
from fire_rl.sb3.loggers import log_folder, log_scalars, summary_writer
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.side_effects import check_warm_up, warm_up
from fire_rl.sb3.surgery import apply_intervention, groups_to_change
from fire_rl.schedules import Never, Schedule, Threshold, make_schedule
from fire_rl.utils.validation import check_int


class InterventionCallback(RolloutCallback):
    """Apply an intervention to the model's networks on a schedule.

    Args:
        intervention: ``"fire"``, a mapping such as ``{"name": "fire", "strength": 0.5}``, or an
            object such as ``FIRE(strength=0.5)``.
        schedule: ``{"every": 200_000, "stop": 0.8}``, ``{"at": [50_000]}``,
            ``{"fractions": [0.5]}``, ``{"metric": "dormant_ratio", "above": 0.3}`` (see
            :class:`~fire_rl.Threshold`), or a schedule object. Crossings that one
            rollout skips over act once, at the start of the next rollout. By default that which
            was published for the intervention's preset, if any; else nothing happens.
        horizon: What fractions and ``stop`` refer to, in ``unit``; by default the total of a
            ``learn()`` call that begins at step 0. A call that begins later
            (``reset_num_timesteps=False``: chunks, a model from a file) has no ``stop`` without it,
            and fractions there are an error. Its first rollout start acts on an event that the last
            rollout before it has crossed, unless this callback already did.
        unit: ``"timesteps"`` or ``"gradient_updates"``, see
            :class:`~fire_rl.callbacks.event_clock.EventClock`.
        log_dir: Folder for ``interventions.jsonl``; by default that of the model's TensorBoard or
            CSV logs, and none if there are none.
        save_before: Folder for a copy of the model of just before each event.
        probe_size: Observations to measure on before and after; by default ``max(1024, 2 D)``.
        head_refit: Whether to fit the output layers to their old answers after each event, see
            :class:`~fire_rl.HeadRefit`; its options as a mapping.
        warmup_updates: Gradient steps on the replay buffer after each event, before acting again.
        restart_exploration: Environment steps over which DQN's ε falls from 1 to where it was
            after each event, or a mapping, see :class:`~fire_rl.ExplorationRestart`.
        seed: Of the callback's own random numbers; by default the model's.
        verbose: 1 for the planned steps at the start and one line per event.

    Attributes:
        reports: The report of every event of this model so far; a second model starts clean.
        episodes: All episodes of this training (a call that counts from 0 is a new one);
            ``episodes.csv`` beside ``interventions.jsonl``.

    Raises:
        ValueError: If an option is unknown or out of range.
        RuntimeError: In training, if it sits inside a callback that forwards no rollout hooks.

    Warns:
        UserWarning: If a training whose end is known holds no event, or ends before one that was
            crossed in its last rollout.
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
        head_refit: HeadRefit | Mapping[str, Any] | bool | None = None,
        warmup_updates: int = 0,
        restart_exploration: ExplorationRestart | Mapping[str, Any] | int | None = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        if schedule is None:
            schedule = published_schedule(intervention)
        clock = EventClock(make_schedule(schedule), horizon, unit, catch_up=True)
        super().__init__(clock, probe_size, seed, verbose)
        schedule = clock.schedule
        self.monitor = ThresholdMonitor(schedule) if isinstance(schedule, Threshold) else None
        self.intervention = make_intervention(intervention)
        self.log_dir = log_dir
        self.save_before = save_before
        self.head_refit = as_head_refit(head_refit)
        self.warmup_updates = check_int("warmup_updates", warmup_updates, 0)
        self.restart_exploration = as_exploration_restart(restart_exploration)
        name, acts = self.intervention.name, self.warmup_updates or self.restart_exploration
        self.notices = Notices(clock, name, expected=name != CONTROL or bool(acts))
        self.reports: list[InterventionReport] = []
        self._reset_history()
        self._plan_announced = False

    def _reset_history(self) -> None:
        self.recovery = RecoveryLog(self.intervention.name)
        self._lines = EventLines()
        self._initial: dict[str, Tensor] = {}
        self._restarted: tuple[int, ExplorationRestart] | None = None

    def _start_clean(self) -> None:
        super()._start_clean()
        self.check(self.model)  # a misfit shows before training
        if self.monitor is not None:
            self.monitor.start(self.model)
        self._reset_history()
        again = self._model is self.model
        self.notices.start_clean(again)
        if not again:
            self.reports = []
        tensors = ModelView(self.model).tensors
        self._initial = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        start = [tensor.flatten()[:256].tolist() for tensor in self._initial.values()]
        self._lines = EventLines.of(self.intervention, self.clock.schedule, start)

    def check(self, model: BaseAlgorithm) -> None:
        """Raise ValueError if an option does not fit a model: a role, a layer, an aid."""
        groups = groups_to_change(ModelView(model), self.intervention)
        check_warm_up(model, self.warmup_updates)
        check_exploration_restart(model, self.restart_exploration)
        check_head_refit(model, groups, self.intervention, self.head_refit)
        if self.monitor is not None:
            self.monitor.check(model)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.recovery.start(self.model.num_timesteps)
        if self._restarted is not None:
            if self.num_timesteps < self._restarted[0]:
                self._restarted = None  # a call that counts from 0 again
            else:
                self._restarted[1].apply(self.model, self._restarted[0])
        self._plan_announced = False  # later: the first rollout start may restore a checkpoint
        if not self._waits():
            self.clock.check()

    def _waits(self) -> bool:
        """Whether a checkpoint is about to say what is due in a call that begins at N > 0."""
        ahead = self.clock.began > 0 and not self.clock.restored
        return ahead and restores_next(self.locals.get("callback"))

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        if self._waits():
            return
        planned_step = self.clock.take()
        if planned_step is None:
            return
        if self.monitor is None:
            self._intervene(planned_step, {})
            return
        assert self.source is not None
        now, horizon = self.clock.now(self.model), self.clock.horizon
        cause = self.monitor.measure(self.model, self.source.frozen, now, horizon)
        if cause is not None:
            self._intervene(planned_step, {"trigger": cause})

    def _intervene(self, planned_step: int, cause: Mapping[str, Any]) -> None:
        events = len(self.reports)
        try:
            report = apply_intervention(
                self.model,
                self.intervention,
                save_before=self.save_before,
                initial=self._initial,
                probe=self._probe(),
                seed=None if self.seed is None else self.seed + planned_step,
                head_refit=self.head_refit,
                live=lambda: self.source.live(self.model) if self.source is not None else None,
                on_report=lambda report: self._record(report, planned_step, cause),
                beside=walk_callbacks(filter(None, [self.locals.get("callback")])),
            )
        except BaseException:
            if len(self.reports) == events:  # it was undone, and is still to come
                self.clock.armed = planned_step
            raise
        say(self, report.summary())
        if self.warmup_updates:
            with self.clock.not_counting():
                warm_up(self.model, self.warmup_updates)

    def _record(
        self, report: InterventionReport, planned_step: int, cause: Mapping[str, Any]
    ) -> None:
        """Log an event, its line last: an error on the way undoes the event, and this."""
        events, restarted = len(self.reports), self._restarted
        try:
            if self.restart_exploration is not None:
                self._restarted = (self.num_timesteps, self.restart_exploration)
                self.restart_exploration.apply(self.model, self.num_timesteps)
            log_scalars(self.logger, report.scalars(), self.num_timesteps)
            self.reports.append(report)
            self.recovery.steps.append(report.num_timesteps)
            self._append_to_log({"planned_step": planned_step, **cause, **report.to_dict()})
        except BaseException:
            del self.reports[events:]
            del self.recovery.steps[events:]
            self._restarted = restarted
            raise

    def _on_rollout_end(self) -> None:
        if not isinstance(self.clock.schedule, Never):  # the control needs no observations
            super()._on_rollout_end()

    def _on_step(self) -> bool:
        self._announce_plan()
        self.episodes.record(self.num_timesteps, self.locals["infos"])
        return super()._on_step()

    def _on_training_end(self) -> None:
        self.clock.advance(self.model)  # gradient updates have been made since the last step
        self.notices.at_end(self.model)
        super()._on_training_end()
        restore_exploration(self.model)  # what is left of it begins with the next learn()
        folder = self._folder()
        if folder is not None:
            self.episodes.write(folder)
        writer = summary_writer(self.logger)
        line = self.recovery.log_results(self.num_timesteps, self._append_to_log, writer)
        if line:
            say(self, line)

    @property
    def episodes(self) -> EpisodeLog:
        """All training episodes so far."""
        return self.recovery.episodes

    def recoveries(self) -> list[Recovery]:
        """Return how the training's return went on after each event, up to the next or to now."""
        return self.recovery.results(self.num_timesteps)

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        reports = [report.to_dict() for report in self.reports]
        own = {
            "reports": reports,
            "initial": self._initial,
            "announced": self.notices.announced,
            "recovery": self.recovery.get_state(),
            "lines": self._lines.get_state(),
            "restarted": self._restarted and (self._restarted[0], asdict(self._restarted[1])),
        }
        trigger = {} if self.monitor is None else {"trigger": self.monitor.get_state()}
        return {**super().get_state(), **own, **trigger}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`, in training."""
        super().set_state(state)
        self.reports = [InterventionReport.from_dict(report) for report in state["reports"]]
        self._restore_history(state)
        self.recovery.set_state(state["recovery"])
        self.notices.announced = state["announced"]
        self._lines.set_state(state["lines"])
        self._lines.take_back(self._folder())
        if self.monitor is not None and "trigger" in state:
            self.monitor.set_state(state["trigger"])

    def branch_off(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Begin in a training that was restored from another one's checkpoint.

        The probe, the initial weights and the episodes are those of the other training, if the
        checkpoint holds the state of a fire_rl callback; events are counted from this step on.

        Args:
            states: Of the callbacks in the checkpoint.
        """
        assert self.source is not None
        self._reset_history()
        self.notices.announced = None
        own = [state["own"] for state in states if "own" in state]
        seen = [state["source"] for state in own if "source" in state]
        for source in [s for s in seen if s["frozen"] is not None or s["window"]][:1]:
            self.source.set_state(source, self.model.device)
        for state in [state for state in own if "initial" in state][:1]:
            self._restore_history(state)
        self.clock.branch_off(self.model)
        self._announce_plan()

    def _restore_history(self, state: Mapping[str, Any]) -> None:
        device = self.model.device
        self._initial = {name: tensor.to(device) for name, tensor in state["initial"].items()}
        self.episodes.set_state(state["recovery"]["episodes"])
        if state["restarted"] is not None:
            step, options = state["restarted"]
            self._restarted = (step, ExplorationRestart(**options))
            self._restarted[1].apply(self.model, step)

    def _announce_plan(self) -> None:
        """Say what lies ahead, once in each call of ``learn()``, and warn of what is odd."""
        if self._plan_announced:
            return
        self._plan_announced = True
        self.clock.check()
        line = "" if isinstance(self.clock.schedule, Never) else self.notices.plan()
        if line:  # the control says nothing
            say(self, line)
        self.notices.at_start(self.model)

    def _folder(self) -> Path | None:
        return log_folder(self.logger) if self.log_dir is None else Path(self.log_dir)

    def _append_to_log(self, entry: Mapping[str, Any]) -> None:
        self._lines.append(self._folder(), entry)
