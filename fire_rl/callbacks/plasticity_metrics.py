"""The SB3 callback that measures plasticity beside the returns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from fire_rl.callbacks.base import RolloutCallback, say
from fire_rl.callbacks.event_clock import EventClock
from fire_rl.interventions.operation import non_finite
from fire_rl.metrics.registry import METRICS
from fire_rl.sb3.loggers import custom_scalars_layout, log_scalars, summary_writer
from fire_rl.sb3.measurement import Measurement, activation_metrics, observe, parameter_metrics
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.networks import NetworkGroup
from fire_rl.sb3.unknown_parts import warn_of_unknown_parts
from fire_rl.schedules import Every


class PlasticityMetricsCallback(RolloutCallback):
    """Measure the plasticity of every trained network, and log it beside the returns.

    Pooled metrics go to TensorBoard at the step at which they were measured, and to the logger's
    other outputs in their next row; what SB3 and you log stays where it is without us:
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
        history: ``(step, {log key: value})`` of every measurement of this model so far; a second
            model starts clean.
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

    def _start_clean(self) -> None:
        super()._start_clean()
        if self._model is not self.model:
            self.history, self._warned = [], set()

    def _on_training_start(self) -> None:
        super()._on_training_start()
        view = ModelView(self.model)
        warn_of_unknown_parts(view)
        writer = summary_writer(self.logger)
        if writer is not None:
            writer.add_custom_scalars(custom_scalars_layout(view.roles))

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        self._measure_if_due()

    def _on_training_end(self) -> None:
        self._measure_if_due()
        super()._on_training_end()

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        return {**super().get_state(), "history": self.history, "warned": self._warned}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`, in training."""
        super().set_state(state)
        self.history, self._warned = state["history"], state["warned"]

    def _measure_if_due(self) -> None:
        if self.clock.take() is None:
            return
        assert self.source is not None
        view = ModelView(self.model)
        pooled: dict[str, float] = {}
        layers: dict[str, float] = {}
        for group in view.groups:
            _collect(group, "plasticity", parameter_metrics(group), pooled, layers)
        for prefix, probe in (
            ("plasticity", self.source.frozen),
            ("live", self.source.live(self.model)),
        ):
            if probe is not None:
                activations = observe(view, probe).activations
                self._warn_about_unhooked(activations.unhooked)
                for group in view.groups:
                    found = activation_metrics(group, activations)
                    _collect(group, prefix, found, pooled, layers)
        self._log(pooled, layers)

    def _log(self, pooled: dict[str, float], layers: dict[str, float]) -> None:
        self._warn_about_nan(pooled)
        self.history.append((self.num_timesteps, pooled))
        log_scalars(self.logger, pooled, self.num_timesteps)
        writer = summary_writer(self.logger)
        if self.per_layer and writer is not None:
            for key, value in layers.items():
                writer.add_scalar(key, value, self.num_timesteps)
        shown = [f"{k} {v:.3g}" for k, v in pooled.items() if k.startswith("plasticity/")]
        say(self, f"step {self.num_timesteps:,}: {', '.join(shown)}")

    def _warn_about_nan(self, pooled: Mapping[str, float]) -> None:
        """Say why numbers are missing: weights, too few observations, or the features."""
        if not any(math.isnan(value) for value in pooled.values()):
            return
        found = [non_finite(group.online) for group in ModelView(self.model).groups]
        diverged = [text for text in found if text is not None]
        if diverged:
            self._warn(
                "weights",
                f"{'; '.join(diverged)} at step {self.num_timesteps:,}: what is measured of them "
                "is NaN. Training has diverged: go back to an earlier checkpoint.",
            )
            return
        features = [m for m in METRICS.values() if m.reads == "features"]
        ranks = tuple(f"/{m.log_key}" for m in features if m.worse == "lower")
        others = [k for k, v in pooled.items() if math.isnan(v) and not k.endswith(ranks)]
        if others:
            self._warn(
                "features",
                f"All weights are finite, but {', '.join(others)} are NaN: the observations or "
                "what the networks make of them are not finite, or the weights are too large.",
            )
        else:
            self._warn(
                "rank",
                "A rank needs at least as many observations as feature dimensions; with fewer "
                "(early in training, or a small `probe_size`) it is NaN.",
            )

    def _warn_about_unhooked(self, unhooked: Sequence[str]) -> None:
        if unhooked:
            left_out = ", ".join(m.log_key for m in METRICS.values() if m.reads == "units")
            self._warn(
                "unhooked",
                f"No activation module follows {', '.join(unhooked)} (an activation called as a "
                f"function, or none): these layers are left out of {left_out}. Use modules such as "
                "torch.nn.ReLU() to have them measured.",
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
