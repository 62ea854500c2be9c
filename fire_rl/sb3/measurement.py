"""Measure a model's networks on a probe: plasticity by role and layer, and how answers changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.distributions import kl_divergence
from torch import Tensor

from fire_rl.metrics.activations import Activations, capture_activations
from fire_rl.metrics.features import Features, Units
from fire_rl.metrics.registry import measure
from fire_rl.metrics.unit_readers import Connection, trace_connections
from fire_rl.metrics.weights import LayerWeight
from fire_rl.sb3.anatomy import PolicyOutputs
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.networks import NetworkGroup
from fire_rl.sb3.probe import MIN_PROBE_SIZE, Probe
from fire_rl.utils.rng import isolated_rng

Metrics = dict[str, float]
Parts = Sequence[Tensor]  # of one layer, from a pass in several parts
# 128 stacks of four Atari frames go through NatureCNN in half the time per frame that 1024 need.
_ELEMENTS_AT_ONCE = 128 * 4 * 84 * 84


@dataclass(frozen=True)
class Measurement:
    """Metrics of one network.

    Attributes:
        pooled: Log key of a metric (see :data:`fire_rl.METRICS`) to its value over the whole
            network. What reads units is pooled over them; what reads features is that of the
            penultimate layer, averaged over several heads' inputs.
        layers: The same by layer name.
    """

    pooled: Metrics
    layers: Mapping[str, Metrics]


@dataclass(frozen=True, eq=False)
class Observed:
    """One pass over a probe: what the policy answers, part by part, and what its units do."""

    outputs: tuple[PolicyOutputs, ...]
    activations: Activations


def observe(view: ModelView, probe: Probe) -> Observed:
    """Run a model's networks over a probe, in evaluation mode, and keep activations.

    Of convolutional maps the mean magnitude over positions, ``(N, C, 1)``.
    """
    layers = {name: layer.module for name, layer in view.layers.items()}
    outputs: list[PolicyOutputs] = []

    def forward() -> None:
        for part in probe.split(_ELEMENTS_AT_ONCE):
            outputs.append(view.forward(part))

    with isolated_rng(0):  # networks may draw noise, also in evaluation mode
        activations = capture_activations(layers, [view.model.policy], forward, view.heads, _kept)
    return Observed(tuple(outputs), activations)


def observe_connections(view: ModelView, probe: Probe) -> dict[str, tuple[Connection, ...]]:
    """Find out which layers read whose units; the model is left as it was.

    See :func:`~fire_rl.metrics.unit_readers.trace_connections`. One observation of the probe is
    used.
    """
    part = probe.split(1)[0]
    with isolated_rng(0):
        return trace_connections(view.layers, [view.model.policy], lambda: view.forward(part))


def activation_metrics(
    group: NetworkGroup, activations: Activations, per_layer: bool = True
) -> Measurement:
    """Measure what one network's units do, see :class:`Measurement`."""
    parts = {
        layer.name: activations.parts[layer.name]
        for layer in group.online.layers
        if layer.name in activations.parts
    }
    units = Units.observed(parts, activations.kinds)
    measured: dict[tuple[int, ...], Metrics] = {}  # penultimate features may be a layer's output

    def features(maps: Parts) -> Metrics:
        key = _identity(maps)
        if key not in measured:
            measured[key] = measure("features", Features(torch.cat(list(maps))))
        return measured[key]

    pooled = measure("units", units) if parts else {}
    ranks = [features(maps) for maps in _penultimate(group, activations)]
    for name in dict.fromkeys(name for rank in ranks for name in rank):
        known = [rank[name] for rank in ranks if name in rank]
        pooled[name] = sum(known) / len(known)
    layers: dict[str, Metrics] = {}
    for name, maps in parts.items() if per_layer else ():
        layers[name] = measure("units", units.of_layer(name))
        if maps[0].ndim == 2:
            layers[name] |= features(maps)
    return Measurement(pooled, layers)


def parameter_metrics(group: NetworkGroup) -> Measurement:
    """Measure one network's weights."""
    weights = [LayerWeight.measured(layer) for layer in group.online.layers]
    return Measurement(
        measure("weights", weights) if weights else {},
        {weight.layer.name: measure("weights", [weight]) for weight in weights},
    )


@torch.no_grad()
def policy_change(before: Sequence[PolicyOutputs], after: Sequence[PolicyOutputs]) -> Metrics:
    """Compare two answers to the same observations, both given in the same parts.

    Returns:
        ``policy_kl``: mean KL divergence from the old to the new action distribution, in nats (for
        squashed actions that of the Gaussians underneath, which is the same number);
        ``action_difference``: share of observations whose greedy action differs, or mean absolute
        difference of the deterministic continuous action; ``value_shift``: mean absolute
        difference of the values. Only what the algorithm has.
    """
    differences: dict[str, list[Tensor]] = {}
    for old, new in zip(before, after, strict=True):
        for name, difference in _differences(old, new).items():
            differences.setdefault(name, []).append(difference)
    return {name: float(torch.cat(parts).mean()) for name, parts in differences.items()}


def _differences(old: PolicyOutputs, new: PolicyOutputs) -> dict[str, Tensor]:
    """Return what :func:`policy_change` averages, one row per observation."""
    differences: dict[str, Tensor] = {}
    if old.distribution is not None and new.distribution is not None:
        divergence = _divergence(old.distribution, new.distribution)
        # Independent components of an action, ``(N, D)``, add up.
        differences["policy_kl"] = (
            divergence.flatten(1).sum(1) if divergence.ndim > 1 else divergence
        )
    if old.action is not None and new.action is not None:
        if old.action.is_floating_point():
            differences["action_difference"] = (old.action - new.action).abs()
        else:
            differences["action_difference"] = (old.action != new.action).float()
    if old.values is not None and new.values is not None:
        differences["value_shift"] = (old.values - new.values).abs()
    return differences


def _divergence(old: Any, new: Any) -> Tensor:
    """Return the KL divergence of actions, ``(N,)`` or ``(N, D)`` by component."""
    parts, others = getattr(old, "distributions", None), getattr(new, "distributions", None)
    if parts and others:  # sb3-contrib's masked distributions are none of SB3's
        pairs = zip(parts, others, strict=True)
        return torch.stack([torch.distributions.kl_divergence(p, q) for p, q in pairs], dim=1)
    return kl_divergence(old, new)


def probe_size(groups: Iterable[NetworkGroup]) -> int:
    """Return ``max(1024, 2 D)`` for the widest features whose rank is measured."""
    widths = [
        size
        for group in groups
        for layer in group.online.layers
        if layer.kind == "linear"
        for size in (layer.weight.shape[1 if layer.is_head else 0],)
    ]
    return max(MIN_PROBE_SIZE, 2 * max(widths, default=0))


def _penultimate(group: NetworkGroup, activations: Activations) -> list[Parts]:
    """Inputs of the heads, once each; a shared extractor's are its last linear features."""
    heads = [name for name in group.online.heads if name in activations.input_parts]
    inputs = [activations.input_parts[name] for name in heads]
    if not inputs:
        linear = [
            activations.parts[layer.name]
            for layer in group.online.layers
            if layer.kind == "linear" and layer.name in activations.parts
        ]
        inputs = linear[-1:]
    return list({_identity(parts): parts for parts in inputs}.values())


def _kept(units: Tensor, kind: str) -> Tensor:
    """Average the magnitude of maps over their positions: all that the ratios of units need.

    ``(N, C, *spatial)`` becomes ``(N, C, 1)``. Saturation is a matter of single values.
    """
    if units.ndim == 2 or kind == "Tanh":
        return units
    return units.abs().flatten(2).mean(dim=2, keepdim=True)


def _identity(parts: Parts) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in parts)
