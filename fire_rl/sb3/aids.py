"""Aids after surgery: fit the heads to the old answers, warm up, explore again."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor, nn

from fire_rl.interventions.base import Intervention, Update, write
from fire_rl.sb3.measurement import Observed, observe
from fire_rl.sb3.networks import NetworkGroup, network_groups, restored
from fire_rl.sb3.probe import Probe
from fire_rl.utils.validation import check_int, check_options, check_positive, check_share
from fire_rl.weights.layers import WeightLayer, check_writable

Plans = dict[str, dict[str, Update]]


@dataclass(frozen=True)
class HeadRefit:
    """Fit output layers to what they answered before the layers below them changed.

    With the new features ``X`` of the probe observations and the old answers ``Y``,
    ``min_W ‖X Wᵀ + b - Y‖² + λ ‖W‖²`` in closed form, means removed first. On a task that stays,
    this keeps the policy; where the task shifts it carries the old confidence over. Not published.

    Args:
        ridge: λ as a share of the features' mean variance, above 0. More is stronger smoothing:
            a large one leaves only the mean answers.
        temperature: Divides the logits of a categorical policy before they are matched; above 1
            the policy is less certain than it was. For other answers it must be 1.

    Raises:
        ValueError: If a number is out of range.
    """

    ridge: float = 1e-3
    temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ridge", check_positive("ridge", self.ridge))
        object.__setattr__(self, "temperature", check_positive("temperature", self.temperature))

    @torch.no_grad()
    def fit(self, features: Tensor, answers: Tensor, bias: bool = True) -> tuple[Tensor, Tensor]:
        """Return weight ``(K, D)`` and bias ``(K,)`` from ``(N, D)`` and ``(N, K)``, in float64."""
        features, answers = features.double(), answers.double()
        mean, level = features.mean(0) * bias, answers.mean(0) * bias
        centred = features - mean
        gram = centred.T @ centred / len(features)
        penalty = self.ridge * gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        gram.diagonal().add_(penalty)
        weight = torch.linalg.solve(gram, centred.T @ (answers - level) / len(features)).T
        return weight, level - weight @ mean


@dataclass(frozen=True)
class ExplorationRestart:
    """Explore again for a while: DQN's ε starts at ``initial`` and falls to where it was.

    Args:
        steps: Environment steps over which it falls, at least 1.
        initial: ε right after the event, in [0, 1].

    Raises:
        ValueError: If a number is out of range.
    """

    steps: int
    initial: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_int("steps", self.steps, 1))
        object.__setattr__(self, "initial", check_share("initial", self.initial))

    def apply(self, model: BaseAlgorithm, step: int) -> None:
        """Replace DQN's schedule of ε until ``steps`` have passed since an event at ``step``."""
        explorer: Any = model  # DQN and QR-DQN name these alike
        restore_exploration(model)
        if step <= model.num_timesteps < step + self.steps:
            restarted = _Restarted(self, model, step, explorer.exploration_schedule)
            explorer.exploration_schedule = restarted
            explorer.exploration_rate = restarted(model._current_progress_remaining)


def restore_exploration(model: BaseAlgorithm) -> None:
    """Put the usual schedule of ε back."""
    schedule = getattr(model, "exploration_schedule", None)
    if isinstance(schedule, _Restarted):
        model.exploration_schedule = schedule.usual  # type: ignore[attr-defined]


class _Restarted:
    """A schedule of ε that is higher for a while. Nothing of it is left in a saved model."""

    def __init__(
        self, restart: ExplorationRestart, model: BaseAlgorithm, step: int, usual: Any
    ) -> None:
        self.restart, self.model, self.step, self.usual = restart, model, step, usual

    def __call__(self, progress_remaining: float) -> float:
        usual = float(self.usual(progress_remaining))
        passed = (self.model.num_timesteps - self.step) / self.restart.steps
        if not 0 <= passed < 1:  # over, or another call of learn() that counts from 0
            return usual
        return max(usual, self.restart.initial + (usual - self.restart.initial) * passed)

    def __reduce__(self) -> Any:
        return copy.copy, (self.usual,)


def as_head_refit(value: HeadRefit | Mapping[str, Any] | bool | None) -> HeadRefit | None:
    """Return a head refit from plain values: ``True``, or its options as a mapping.

    Raises:
        ValueError: If an option is unknown or out of range.
        TypeError: If the value is none of these.
    """
    if isinstance(value, bool) or value is None:
        return HeadRefit() if value else None
    return value if isinstance(value, HeadRefit) else _made(HeadRefit, "head_refit", value)


def as_exploration_restart(
    value: ExplorationRestart | Mapping[str, Any] | int | None,
) -> ExplorationRestart | None:
    """Return a restart of exploration from plain values: a number of steps, or a mapping.

    Raises:
        ValueError: If an option is unknown, missing or out of range.
        TypeError: If the value is none of these.
    """
    if value is None or isinstance(value, ExplorationRestart):
        return value
    if isinstance(value, Mapping):
        made: ExplorationRestart = _made(ExplorationRestart, "restart_exploration", value)
        return made
    return ExplorationRestart(check_int("restart_exploration", value, 1))


def check_aids(
    model: BaseAlgorithm, warmup_updates: int, restart: ExplorationRestart | None
) -> None:
    """Raise ValueError for an aid that the algorithm has no use for."""
    if warmup_updates and not isinstance(model, OffPolicyAlgorithm):
        raise ValueError(
            f"`warmup_updates` needs a replay buffer, and {type(model).__name__} has none: leave "
            "it out."
        )
    if restart is not None and not hasattr(model, "exploration_schedule"):
        raise ValueError(
            "`restart_exploration` is about the ε of DQN and QR-DQN, and "
            f"{type(model).__name__} has none: leave it out."
        )


def warm_up(model: BaseAlgorithm, updates: int) -> None:
    """Make gradient steps on the replay buffer, as the training does between rollouts.

    Before the model has begun to learn, nothing is done. DQN's target network follows its own
    schedule, in environment steps: it stays during these updates.
    """
    assert isinstance(model, OffPolicyAlgorithm)
    if updates and model.num_timesteps > model.learning_starts:
        model.train(gradient_steps=updates, batch_size=model.batch_size)


def check_head_refit(
    model: BaseAlgorithm,
    groups: Sequence[NetworkGroup],
    intervention: Intervention,
    refit: HeadRefit | None,
) -> None:
    """Raise ValueError if the heads cannot be fitted, or fitting them would be wrong."""
    if refit is None:
        return
    if intervention.aftermath.target == "same":
        raise ValueError(
            "`head_refit` fits the online heads only, and `target='same'` would leave the target's "
            "unfitted: use target='copy' or 'keep'."
        )
    reason = getattr(intervention, "refuses_head_refit", None)
    if reason is not None:
        raise ValueError(
            f"`head_refit` would undo `{intervention.name}`, whose {reason}: leave it out."
        )
    heads = {name: group.role for group in groups for name in group.online.heads}
    if not heads:
        raise ValueError(
            f"`head_refit` needs a network with an output layer among those acted on; there is "
            f"none in {', '.join(group.role for group in groups)}."
        )
    logits = isinstance(model, OnPolicyAlgorithm) and "actor" in heads.values()
    discrete = isinstance(
        model.action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    )
    if refit.temperature != 1 and not (logits and discrete):
        raise ValueError(
            "`temperature` is about the logits of a categorical policy, and there is none among "
            f"the networks of this {type(model).__name__} that are acted on: leave it at 1."
        )


def with_head_refit(
    model: BaseAlgorithm,
    groups: Sequence[NetworkGroup],
    plans: Plans,
    refit: HeadRefit,
    probe: Probe | None,
    observed: Observed | None,
) -> Plans:
    """Return plans that also fit the heads to their old answers. The model is left as it is.

    Raises:
        ValueError: If there are no observations, or a head cannot be fitted.
    """
    if probe is None or observed is None:
        raise ValueError("There are no observations yet to fit the heads on (`head_refit`).")
    if not any(plans.values()):
        return plans
    every_group = network_groups(model)
    with restored(groups):
        for group in groups:
            write(group.online, plans[group.role])
        new = observe(model, every_group, probe).activations.inputs
    old = observed.activations.inputs
    fitted: Plans = {}
    for group in groups:
        updates = dict(plans[group.role])
        for layer in group.online.layers:
            if layer.is_head and not layer.frozen and layer.name in new:
                answers = _answers(layer, old[layer.name])
                if isinstance(model, OnPolicyAlgorithm) and group.role == "actor":
                    answers = answers / refit.temperature
                updates |= _refitted(layer, refit, new[layer.name], answers)
        fitted[group.role] = updates
    return fitted


def _refitted(
    layer: WeightLayer, refit: HeadRefit, features: Tensor, answers: Tensor
) -> dict[str, Update]:
    weight, bias = refit.fit(features, answers, layer.bias is not None)
    updates = {layer.tensor_name("weight"): Update(weight.to(layer.weight), "refit")}
    if layer.bias is not None:
        updates[layer.tensor_name("bias")] = Update(bias.to(layer.bias), "refit")
    return updates


def _answers(layer: WeightLayer, features: Tensor) -> Tensor:
    check_writable(layer)
    if not isinstance(layer.module, nn.Linear):
        raise ValueError(f"`head_refit` fits linear heads, and `{layer.name}` is none.")
    answers: Tensor = layer.module(features)
    return answers.detach()


def _made(kind: Any, argument: str, options: Any) -> Any:
    if not isinstance(options, Mapping):
        raise TypeError(f"`{argument}` must be a mapping of options, got {options!r}.")
    check_options(argument, kind, options)
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(
            f"`{argument}` needs {dataclasses.fields(kind)[0].name!r}, got {dict(options)!r}."
        ) from error
