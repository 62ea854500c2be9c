"""SB3 callbacks: apply interventions on a schedule, and measure plasticity beside returns.

Weights change in ``_on_rollout_start`` only: in ``_on_step`` an on-policy algorithm is in the
middle of a rollout, and in ``_on_rollout_end`` its stored values and log-probabilities would be
those of other weights. Both callbacks take plain values, so that rl_zoo3 can name them in YAML.
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
from fire_rl.measurement import Measurement, activation_metrics, observe, parameter_metrics
from fire_rl.networks import NetworkGroup, network_groups, policy_tensors
from fire_rl.rollout_callback import RolloutCallback, logger
from fire_rl.schedules import At, Every, Schedule, make_schedule
from fire_rl.surgery import apply_intervention, groups_to_change
from fire_rl.tensorboard import custom_scalars_layout, log_folder, summary_writer


class InterventionCallback(RolloutCallback):
    """Apply an intervention to the model's networks on a schedule.

    Args:
        intervention: ``"fire"``, a mapping such as ``{"name": "fire", "strength": 0.5}``, or an
            object such as ``FIRE(strength=0.5)``.
        schedule: ``{"every": 200_000, "stop": 0.8}``, ``{"at": [50_000]}``,
            ``{"fractions": [0.5]}``, or a schedule object. Crossings that one rollout skips over
            act once, at the start of the next rollout.
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
        self.intervention = make_intervention(intervention)
        self.log_dir = log_dir
        self.save_before = save_before
        self.reports: list[InterventionReport] = []
        self._initial: dict[str, Tensor] = {}
        self._announced: set[int] | None = None

    def _init_callback(self) -> None:
        if self._model is not self.model:
            groups_to_change(self.model, self.intervention)  # a misfit shows before training
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
        if planned_step is not None:
            self._intervene(planned_step)

    def _intervene(self, planned_step: int) -> None:
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
        self._append_to_log({"planned_step": planned_step, **report.to_dict()})
        self._say(report.summary())

    def _announce(self, planned: Sequence[int]) -> None:
        """Say what is planned; a later call of ``learn()`` with the same plan is silent."""
        unit = self.clock.unit.replace("_", " ")
        if planned or self.clock.horizon is not None:
            plan = "planned at " + (", ".join(f"{step:,}" for step in planned) or "no event")
        else:
            plan = f"{self.clock.schedule},"
        if self._announced is None or not self._announced.issuperset(planned):
            self._say(f"{self.intervention.name}: {plan} {unit}")
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

    One of ``every``, ``at`` and ``fractions`` says when.

    Args:
        every: Period in environment steps over all environments.
        at: Ascending steps.
        fractions: Ascending shares of the horizon, such as ``[0.5]``.
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
        super().__init__(
            make_intervention({"name": "fire", "preset": preset, **options}),
            make_schedule({"every": every, "at": at, "fractions": fractions, "stop": stop}),
            horizon=horizon,
            unit=unit,
            log_dir=log_dir,
            save_before=save_before,
            probe_size=probe_size,
            seed=seed,
            verbose=verbose,
        )


class PlasticityMetricsCallback(RolloutCallback):
    """Measure the plasticity of every trained network, and log it beside the returns.

    Pooled metrics go through the model's logger, at the step at which they were measured:
    ``plasticity/<role>/<metric>`` on a frozen probe (the first ``probe_size`` observations that
    exist, as network inputs) and from the weights, ``live/<role>/<metric>`` on what the networks
    train on now. Metrics of single layers go to TensorBoard only, under
    ``plasticity_layers/<role>/<layer>/<metric>``. Measuring draws from no random generator of the
    training, and changes nothing: weights are bit-equal with and without it.

    Args:
        every: Period in environment steps over all environments.
        probe_size: Number of observations; by default ``max(1024, 2 D)`` for features of width D.
        per_layer: Whether to log single layers too.
        seed: Of the callback's own random numbers; by default the model's.
        verbose: 1 for one line per measurement.

    Attributes:
        history: ``(step, {log key: value})`` of every measurement so far.
    """

    def __init__(
        self,
        every: int = 10_000,
        *,
        probe_size: int | None = None,
        per_layer: bool = True,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(EventClock(Every(every), None, "timesteps"), probe_size, seed, verbose)
        self.per_layer = per_layer
        self.history: list[tuple[int, dict[str, float]]] = []
        self._warned: set[str] = set()

    def _on_training_start(self) -> None:
        super()._on_training_start()
        writer = summary_writer(self.logger)
        if writer is not None:
            roles = [group.role for group in network_groups(self.model)]
            writer.add_custom_scalars(custom_scalars_layout(roles))

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        self._measure_if_due()

    def _on_training_end(self) -> None:
        self._measure_if_due()
        super()._on_training_end()

    def _measure_if_due(self) -> None:
        if self.clock.take() is None:
            return
        assert self.source is not None
        groups = network_groups(self.model)
        pooled: dict[str, float] = {}
        layers: dict[str, float] = {}
        for group in groups:
            _collect(group, "plasticity", parameter_metrics(group), pooled, layers)
        for prefix, probe in (
            ("plasticity", self.source.frozen),
            ("live", self.source.live(self.model)),
        ):
            if probe is not None:
                activations = observe(self.model, groups, probe).activations
                self._warn_about_unhooked(activations.unhooked)
                for group in groups:
                    found = activation_metrics(group, activations)
                    _collect(group, prefix, found, pooled, layers)
        self._log(pooled, layers)

    def _log(self, pooled: dict[str, float], layers: dict[str, float]) -> None:
        if any(math.isnan(value) for key, value in pooled.items() if "rank" in key):
            self._warn(
                "rank",
                "A rank needs at least as many observations as feature dimensions; with fewer "
                "(early in training, or a small `probe_size`) it is NaN.",
            )
        self.history.append((self.num_timesteps, pooled))
        for key, value in pooled.items():
            self.logger.record(key, value)
        # Off-policy algorithms dump when episodes end only, and keep the last value of a key.
        self.logger.dump(self.num_timesteps)
        writer = summary_writer(self.logger)
        if self.per_layer and writer is not None:
            for key, value in layers.items():
                writer.add_scalar(key, value, self.num_timesteps)
        shown = [f"{k} {v:.3g}" for k, v in pooled.items() if k.startswith("plasticity/")]
        self._say(f"step {self.num_timesteps:,}: {', '.join(shown)}")

    def _warn_about_unhooked(self, unhooked: Sequence[str]) -> None:
        if unhooked:
            self._warn(
                "unhooked",
                f"No activation module follows {', '.join(unhooked)} (an activation called as a "
                "function, or none): these layers are left out of dormant_ratio, zero_activation "
                "and saturation_ratio. Use modules such as torch.nn.ReLU() to have them measured.",
            )

    def _warn(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, UserWarning, stacklevel=2)


def _collect(
    group: NetworkGroup,
    prefix: str,
    found: Measurement,
    pooled: dict[str, float],
    layers: dict[str, float],
) -> None:
    for name, value in found.pooled.items():
        pooled[f"{prefix}/{group.role}/{name}"] = value
    for layer, metrics in found.layers.items():
        for name, value in metrics.items():
            layers[f"{prefix}_layers/{group.role}/{layer}/{name}"] = value


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity by None: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
