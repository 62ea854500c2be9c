"""What an intervention did: layer by layer, and for a whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fire_rl.interventions.base import Network, Update
from fire_rl.metrics.registry import METRICS
from fire_rl.weights.layers import WeightLayer
from fire_rl.weights.orthogonal import (
    deviation_from_isometry,
    singular_values,
    squared_frobenius_error,
)
from fire_rl.weights.unread import unread_modules

# SB3's stdout table raises where two keys share their first 36 characters.
_SHORT = {"action_difference": "action_diff"}
# Of a layer's singular values: enough for a picture, small enough for a log of many events.
_SPECTRUM_POINTS = 17


@dataclass(frozen=True)
class LayerChange:
    """How one layer's weight has changed.

    Attributes:
        name: Dotted name of the layer.
        kind: ``"linear"``, ``"conv"`` or ``"recurrent"``.
        shape: Shape of the weight.
        action: What was done; ``"keep"`` if nothing.
        sfe: Squared Frobenius error ``‖new - old‖_F²``, summed over the layer's matrices.
        dfi_before: Deviation from isometry of ``W / s`` before, summed over the matrices.
        dfi_after: The same after.
        norm_before: Frobenius norm of the weight before.
        norm_after: The same after.
        num_singular_values: By which DfI is divided to compare layers.
        units: Number of units that were recycled.
        frozen: Whether the weight was left alone because the user has frozen it.
        blocks: Where the weight was split into blocks of rows: what was done to each.
        gates: Names of these blocks, if they are the gates of a recurrent weight.
        spectrum_before: Singular values of ``W / s`` over all of the layer's matrices, the largest
            first; of more than 17 the evenly spaced ones, with the largest and the smallest. Empty
            where nothing was done, or where they are no numbers.
        spectrum_after: The same after.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    action: str
    sfe: float
    dfi_before: float
    dfi_after: float
    norm_before: float
    norm_after: float
    num_singular_values: int
    units: int = 0
    frozen: bool = False
    blocks: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    spectrum_before: tuple[float, ...] = ()
    spectrum_after: tuple[float, ...] = ()


@dataclass(frozen=True)
class Changes:
    """How one network has changed.

    Attributes:
        layers: How its weight layers have changed, in order.
        others: Names of other tensors that changed, and what was done.
        kept: Names of weights that were left alone for what they are: ``"frozen"``,
            ``"embedding"``, ``"noise"`` (the scales of a noisy layer), ``"empty"`` (no entries), or
            the class of a module in another layout, such as ``"LSTM"``.
    """

    layers: tuple[LayerChange, ...]
    others: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)


@torch.no_grad()
def describe_changes(network: Network, updates: Mapping[str, Update]) -> Changes:
    """Compare a network with the updates planned for it, before they are written."""
    layers = []
    for layer in _layers_of(network, updates):
        update = next((updates[name] for name in layer.weight_names if name in updates), None)
        if update is not None and update.blocks:
            layer = replace(layer, blocks=len(update.blocks))
        old = layer.matrices()
        old = old.to(torch.promote_types(old.dtype, torch.float32))
        scale: float | Tensor = layer.scale
        if update is not None and update.scale is not None:
            scale = update.scale
        if isinstance(scale, Tensor):
            scale = scale.to(old).reshape(-1, 1, 1)
        dfi_before = float(deviation_from_isometry(old / scale).sum())
        norm_before = float(torch.linalg.vector_norm(old))
        sfe, dfi_after, norm_after = 0.0, dfi_before, norm_before
        spectrum_before: tuple[float, ...] = ()
        spectrum_after: tuple[float, ...] = ()
        if update is not None:
            # As the layer will hold it: rounded to its dtype.
            held = {n: network.tensors[n] for n in layer.weight_names}
            planned = {n: updates[n].value.to(t) for n, t in held.items() if n in updates}
            new = layer.matrices(layer.weight_from({**held, **planned})).to(old.dtype)
            sfe = float(squared_frobenius_error(new, old).sum())
            dfi_after = float(deviation_from_isometry(new / scale).sum())
            norm_after = float(torch.linalg.vector_norm(new))
            spectrum_before, spectrum_after = _spectrum(old / scale), _spectrum(new / scale)
        layers.append(
            LayerChange(
                name=layer.name,
                kind=layer.kind,
                shape=tuple(layer.weight.shape),
                action="keep" if update is None else update.action,
                sfe=sfe,
                dfi_before=dfi_before,
                dfi_after=dfi_after,
                norm_before=norm_before,
                norm_after=norm_after,
                num_singular_values=layer.num_singular_values,
                units=0 if update is None else update.units,
                frozen=update is None and layer.frozen,
                blocks=() if update is None else update.blocks,
                gates=layer.block_names if layer.blocks == len(layer.block_names) else (),
                spectrum_before=spectrum_before,
                spectrum_after=spectrum_after,
            )
        )
    weights = {name for layer in _layers_of(network, updates) for name in layer.weight_names}
    others = {name: update.action for name, update in updates.items() if name not in weights}
    return Changes(tuple(layers), others, _kept(network, updates))


def _layers_of(network: Network, updates: Mapping[str, Update]) -> list[WeightLayer]:
    """Return the layers of a report: of the recurrent weights those that become isometries."""
    isometric = {name for name, update in updates.items() if update.scale is not None}
    found = [layer for layer in network.recurrent_layers if isometric & {*layer.weight_names}]
    return [*network.layers, *found]


def _spectrum(matrices: Tensor) -> tuple[float, ...]:
    """Return singular values for a report, see :class:`LayerChange`."""
    if not bool(torch.isfinite(matrices).all()):
        return ()
    values = singular_values(matrices).flatten().sort(descending=True).values
    if len(values) > _SPECTRUM_POINTS:
        values = values[torch.linspace(0, len(values) - 1, _SPECTRUM_POINTS).round().long()]
    return tuple(float(f"{value:.4g}") for value in values.tolist())


def _kept(network: Network, updates: Mapping[str, Update]) -> dict[str, str]:
    """Return the weights that no update is about, and what keeps them."""
    kept: dict[str, str] = {}
    names = {id(tensor): name for name, tensor in network.tensors.items()}
    for unread in unread_modules(network.modules.items()):
        own = (names.get(id(parameter)) for parameter in unread.parameters.values())
        kept |= {name: unread.reason for name in own if name}
    layers = (*network.layers, *network.recurrent_layers)
    frozen = [n for layer in layers if layer.frozen for n in layer.weight_names]
    kept |= dict.fromkeys(frozen, "frozen")
    return {name: reason for name, reason in kept.items() if name not in updates}


@dataclass(frozen=True)
class InterventionReport:
    """What one intervention did to a model.

    Attributes:
        intervention: Its name.
        options: All its options, as plain values.
        num_timesteps: Environment steps of the model at that moment.
        dry_run: Whether the model was left as it was.
        networks: Role to the changes of its network; roles not acted on are missing.
        before: Role to metric to its value on the probe just before: those of
            :data:`fire_rl.METRICS` that have an ``event_key``.
        after: The same just after.
        policy_change: See :func:`fire_rl.sb3.measurement.policy_change`.
        probe_observations: Number of observations that the last three rest on.
        optimizer_entries_forgotten: Number of parameters whose optimizer state was forgotten.
        around: What else was changed: ``entropy_temperature`` before and after, ``vecnormalize``,
            ``replay_buffer``.
        seconds: Duration, measuring included.
    """

    intervention: str
    options: Mapping[str, Any]
    num_timesteps: int
    dry_run: bool
    networks: Mapping[str, Changes]
    before: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    after: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    policy_change: dict[str, float] = field(default_factory=dict)
    probe_observations: int = 0
    optimizer_entries_forgotten: int = 0
    around: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def layers(self) -> tuple[LayerChange, ...]:
        """The changes of all networks' layers, in order."""
        return tuple(layer for changes in self.networks.values() for layer in changes.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InterventionReport:
        """Return the report that :meth:`to_dict` has described."""
        networks = {
            role: Changes(
                **{**changes, "layers": tuple(LayerChange(**item) for item in changes["layers"])}
            )
            for role, changes in values["networks"].items()
        }
        return cls(**{**values, "networks": networks})

    def scalars(self) -> dict[str, float]:
        """Return the pooled numbers by log key, ``intervention/<role>/<name>``."""
        found: dict[str, float] = {}
        for role, changes in self.networks.items():
            prefix = f"intervention/{role}"
            singular_values = sum(layer.num_singular_values for layer in changes.layers) or 1
            norm = sum(layer.norm_before**2 for layer in changes.layers)
            found[f"{prefix}/sfe"] = sum(layer.sfe for layer in changes.layers)
            found[f"{prefix}/relative_sfe"] = found[f"{prefix}/sfe"] / norm if norm else 0.0
            units = sum(layer.units for layer in changes.layers)
            if units:
                found[f"{prefix}/recycled_units"] = units
            for when in ("before", "after"):
                total = sum(getattr(layer, f"dfi_{when}") for layer in changes.layers)
                found[f"{prefix}/dfi_{when}"] = total / singular_values
                for name, value in getattr(self, when).get(role, {}).items():
                    found[f"{prefix}/{METRICS[name].event_key}_{when}"] = value
        for name, value in self.policy_change.items():
            role = "critic" if name == "value_shift" or "actor" not in self.before else "actor"
            found[f"intervention/{role}/{_SHORT.get(name, name)}"] = value
        return found

    def summary(self) -> str:
        """Return one readable line."""
        parts = [f"{self.intervention} at step {self.num_timesteps:,}"]
        numbers = self.scalars()
        for role, changes in self.networks.items():
            touched = sum(layer.action != "keep" for layer in changes.layers)
            text = f"{role}: {touched} of {len(changes.layers)} layers"
            frozen = sum(layer.frozen for layer in changes.layers)
            text += f" ({frozen} frozen)" if frozen else ""
            if f"intervention/{role}/recycled_units" in numbers:
                text += f", {numbers[f'intervention/{role}/recycled_units']:g} units recycled"
            for name in ("dfi", *(metric.event_key for metric in METRICS.values())):
                before = numbers.get(f"intervention/{role}/{name}_before")
                after = numbers.get(f"intervention/{role}/{name}_after")
                if before is not None and after is not None:
                    label = "DfI/sv" if name == "dfi" else name
                    text += f", {label} {before:.3g} → {after:.3g}"
            parts.append(text)
        parts += [f"{name} {value:.3g}" for name, value in self.policy_change.items()]
        return "; ".join([*parts, f"{self.seconds:.2f} s"])
