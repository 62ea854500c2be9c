"""Measure the metric of a :class:`~fire_rl.Threshold` and decide whether an event is due."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from fire_rl.interventions.operation import non_finite
from fire_rl.metrics.registry import METRICS
from fire_rl.sb3.loggers import log_scalars
from fire_rl.sb3.measurement import activation_metrics, observe, parameter_metrics
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.networks import NetworkGroup
from fire_rl.sb3.probe import Probe
from fire_rl.schedules.threshold import Threshold, ThresholdState
from fire_rl.utils.validation import check_choice


class ThresholdMonitor:
    """A threshold with what it has seen of one model.

    Args:
        threshold: When to act.

    Attributes:
        state: See :class:`~fire_rl.schedules.threshold.ThresholdState`.
    """

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold
        self.state = ThresholdState()
        self._warned = False

    def start(self, model: BaseAlgorithm) -> None:
        """Begin with a new model."""
        self.check(model)
        self.state = ThresholdState()
        self._warned = False

    def check(self, model: BaseAlgorithm) -> None:
        """Raise ValueError if a model has no network of the role that is watched."""
        if self.threshold.network is not None:
            check_choice("network", self.threshold.network, ModelView(model).roles)

    def measure(
        self, model: BaseAlgorithm, probe: Probe | None, step: int, horizon: int | None
    ) -> dict[str, Any] | None:
        """Measure, log the values, and return what set an event off, as plain values, or None.

        Nothing is measured before the model has begun to learn, nor units before there is a probe;
        training is not changed.

        Args:
            model: The model, in training.
            probe: The frozen probe, None if there is none yet.
            step: The current step, in the schedule's unit.
            horizon: What ``stop`` refers to, in the same unit.
        """
        threshold = self.threshold
        values = self._values(model, probe)
        logged = {f"trigger/{role}/{threshold.log_name}": v for role, v in values.items()}
        log_scalars(model.logger, logged, model.num_timesteps)
        role, value = threshold.worst(values) or ("", math.nan)
        act, self.state = threshold.decide(self.state, step, value, horizon)
        if not act:
            return None
        return {
            "metric": threshold.metric,
            "value": value,
            "network": role,
            "threshold": threshold.line,
        }

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        return dataclasses.asdict(self.state)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`."""
        self.state = ThresholdState(**state)

    def _values(self, model: BaseAlgorithm, probe: Probe | None) -> dict[str, float]:
        """The metric by role, of the networks that are watched and have it."""
        if model.num_timesteps <= getattr(model, "learning_starts", 0):
            return {}  # untrained weights: there is no plasticity to restore
        wanted = self.threshold.network
        view = ModelView(model)
        groups = [group for group in view.groups if wanted in (None, group.role)]
        name = self.threshold.log_name
        if METRICS[self.threshold.metric].reads == "weights":
            found = {group.role: parameter_metrics(group).pooled for group in groups}
        elif probe is not None:
            activations = observe(view, probe).activations
            found = {
                group.role: activation_metrics(group, activations, per_layer=False).pooled
                for group in groups
            }
        else:
            return {}
        values = {role: metrics[name] for role, metrics in found.items() if name in metrics}
        if self.threshold.worst(values) is None:
            self._warn(groups)
        return values

    def _warn(self, groups: Sequence[NetworkGroup]) -> None:
        if not self._warned:
            self._warned = True
            roles = " and ".join(group.role for group in groups)
            found = [text for group in groups if (text := non_finite(group.online)) is not None]
            if found:
                warnings.warn(
                    f"{'; '.join(found)}, so `{self.threshold.metric}` cannot be measured and this "
                    "threshold does not act. Training has diverged: go back to an earlier "
                    "checkpoint.",
                    UserWarning,
                    stacklevel=2,
                )
                return
            warnings.warn(
                f"`{self.threshold.metric}` cannot be measured on the {roles}, so this threshold "
                "does not act: ranks need a probe of at least as many observations as feature "
                "dimensions (see `probe_size`), ratios of units need activation modules such as "
                "torch.nn.ReLU() (saturation: tanh), and all need finite values.",
                UserWarning,
                stacklevel=2,
            )
