"""Fit output layers after surgery, in closed form, to what they answered before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor, nn

from fire_rl.interventions.base import Intervention, Update
from fire_rl.interventions.operation import Operation, restored, write
from fire_rl.sb3.measurement import Observed, observe
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.networks import NetworkGroup
from fire_rl.sb3.probe import Probe
from fire_rl.utils.validation import check_positive, make_from_options
from fire_rl.weights.layers import WeightLayer, check_writable


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


def as_head_refit(value: HeadRefit | Mapping[str, Any] | bool | None) -> HeadRefit | None:
    """Return a head refit from plain values: ``True``, or its options as a mapping.

    Raises:
        ValueError: If an option is unknown or out of range.
        TypeError: If the value is none of these.
    """
    if isinstance(value, bool) or value is None:
        return HeadRefit() if value else None
    return (
        value if isinstance(value, HeadRefit) else make_from_options(HeadRefit, "head_refit", value)
    )


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
    view: ModelView,
    operation: Operation,
    refit: HeadRefit,
    probe: Probe | None,
    observed: Observed | None,
) -> Operation:
    """Return an operation that also fits the heads to their old answers. The model stays as it is.

    Raises:
        ValueError: If there are no observations, or a head cannot be fitted.
    """
    if probe is None or observed is None:
        raise ValueError("There are no observations yet to fit the heads on (`head_refit`).")
    if not any(operation.plans.values()):
        return operation
    with restored(operation.networks.values()):
        for role, network in operation.networks.items():
            write(network, operation.plans[role])
        new = observe(view, probe).activations.inputs
    old = observed.activations.inputs
    fitted: dict[str, dict[str, Update]] = {}
    for role, network in operation.networks.items():
        updates = fitted[role] = dict(operation.plans[role])
        for layer in network.layers:
            if layer.is_head and not layer.frozen and layer.name in new:
                answers = _answers(layer, old[layer.name])
                if isinstance(view.model, OnPolicyAlgorithm) and role == "actor":
                    answers = answers / refit.temperature
                updates |= _refitted(layer, refit, new[layer.name], answers)
    return replace(operation, plans=fitted)


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
