"""ReDo: recycle dormant units (Sokar et al. 2023)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fire_rl.interventions.base import Context, Network, Update, select_layers
from fire_rl.interventions.options import LayerOptions
from fire_rl.metrics.features import dormant_mask
from fire_rl.metrics.unit_readers import incoming_entries, outgoing_entries
from fire_rl.utils.validation import check_non_negative
from fire_rl.weights.layers import WeightLayer, check_writable


@dataclass(frozen=True)
class ReDo(LayerOptions):
    """Give dormant units new incoming weights and no outgoing ones.

    "The Dormant Neuron Phenomenon in Deep Reinforcement Learning" (Sokar et al. 2023, section 4).
    Unit i of a hidden layer is dormant on the probe observations if

        ``s_i = E|h_i| / mean_k E|h_k| ≤ τ``,

    where a convolution's unit is a channel. Then its incoming weights and bias come from an
    initialisation and its outgoing weights become zero, in every layer that reads it, in other
    networks too. What the networks compute stays exactly the same if τ is 0 (and no norm layer
    stands between a unit and its reader). All layers are judged on the same pass. A weight between
    two recycled units becomes zero, as in the authors' code.

    Not touched: output layers' own units, the biases of the layers that read, norm layers,
    ``log_std`` (gSDE's noise, which also reads the last hidden layer, does change), frozen layers
    and what they read. A layer is left alone unless all networks that read it are acted on, such
    as PPO's shared extractor with ``networks=["actor"]``; and if it is not certain who reads it,
    such as where its activation is called as a function, which a warning says once. Units of tanh
    are hardly ever dormant.

    Optimizer moments of the changed entries are forgotten, and the step counts of their tensors,
    see :func:`~fire_rl.interventions.optimizer_state.forget_entries` for what the latter does to
    other entries.

    Args:
        tau: Threshold τ, at least 0: 0 recycles only dead units; 0.025 and 0.1 are customary.
        include: Names or shell patterns of the only layers whose units to recycle; empty means
            all. The layers that read them change whatever their names.
        exclude: Names or shell patterns of layers whose units to leave alone.
        source: Where new incoming weights come from: ``"fresh"`` or ``"initial"``, see
            :class:`~fire_rl.interventions.options.LayerOptions`.
        target: ``"keep"`` target networks as the authors do, ``"copy"`` into them, or do the
            ``"same"`` to the same units of theirs.
        networks, optimizer_state, entropy_temperature, vecnormalize, replay_buffer: See
            :class:`~fire_rl.interventions.options.Options`.

    Raises:
        ValueError: If ``tau`` is no number of at least 0, or an option no known choice.

    Example:
        >>> ReDo(tau=0.1, networks=["critic"])  # doctest: +ELLIPSIS
        ReDo(networks=('critic',), ...)
    """

    tau: float = 0.025
    target: Literal["copy", "keep", "same"] = field(default="keep", kw_only=True)

    name: ClassVar[str] = "redo"
    only_agents: ClassVar[bool] = True
    may_change_nothing: ClassVar[bool] = True
    refuses_head_refit: ClassVar[str | None] = "recycled units have outgoing weights of 0"
    # In environment steps; see `paper`.
    schedules: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"every": 1_000}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(tau=check_non_negative("tau", self.tau))

    @classmethod
    def paper(cls, **options: Any) -> ReDo:
        """Return ReDo as published for DQN: τ = 0.025.

        Its schedule is every 1,000 environment steps, as in timoklein/redo, where one update is
        made in each; at another replay ratio give ``unit="gradient_updates"``.
        """
        return cls(**{"tau": 0.025, **options})

    def check(self, networks: Sequence[Network]) -> None:
        """Raise ValueError if a name pattern matches no layer, or a layer cannot be written."""
        super().check(networks)
        for network in networks:
            for layer in self.selected(network):
                if not layer.is_head:
                    check_writable(layer)

    @torch.no_grad()
    def plan(self, network: Network, context: Context) -> dict[str, Update]:
        """Compute the new weights of a network; a target network's by the online one's units."""
        dormant = self._dormant(context)
        self._warn_about_unknown(network, context)
        silenced: dict[str, Tensor] = {}  # reader to those of its inputs that become zero
        for name, units in dormant.items():
            for connection in context.connections()[name]:
                inputs = connection.inputs(units)
                silenced[connection.consumer] = inputs | silenced.get(connection.consumer, inputs)
        updates: dict[str, Update] = {}
        for layer in network.layers:
            if layer.name in silenced or layer.name in dormant:
                recycled = dormant.get(layer.name)
                new = context.source(self.source) if recycled is not None else {}
                updates |= _recycle(layer, recycled, silenced.get(layer.name), new)
        return updates

    def _dormant(self, context: Context) -> dict[str, Tensor]:
        """Return masks of the units to recycle, by layer, in all networks acted on."""
        found = {}
        activations, connections = context.activations(), context.connections()
        for layer in select_layers(context.acted_on.values(), self.include, self.exclude):
            readers = [connection.consumer for connection in connections.get(layer.name, ())]
            if layer.is_head or not readers or layer.name not in activations:
                continue
            involved = [context.acted_on.get(name) for name in (layer.name, *readers)]
            if all(layer is not None and _may_change(layer) for layer in involved):
                units = dormant_mask(activations[layer.name], self.tau)
                if bool(units.any()):
                    found[layer.name] = units
        return found

    def _warn_about_unknown(self, network: Network, context: Context) -> None:
        known = context.connections()
        unknown = [
            layer.name
            for layer in self.selected(network)
            if not layer.is_head and layer.name not in known
        ]
        if unknown:
            # Python shows the same warning once.
            warnings.warn(
                f"ReDo leaves {', '.join(unknown)} alone: it cannot be seen which layers read "
                "these units, because their activation is called as a function (use a module such "
                "as torch.nn.ReLU), they are added to others, or they go into a layer that is "
                "neither linear nor a convolution. Name them in `exclude` to silence this.",
                UserWarning,
                stacklevel=2,
            )


def _recycle(
    layer: WeightLayer, units: Tensor | None, inputs: Tensor | None, new: Mapping[str, Tensor]
) -> dict[str, Update]:
    """Plan new weights into some units of a layer, and none from some of its inputs.

    Args:
        layer: The layer.
        units: ``(out,)``, those to recycle.
        inputs: ``(in,)``, those that are to be silent.
        new: Tensors of an initialisation.
    """
    updates = {}
    value = layer.weight.detach()
    entries = torch.zeros_like(value, dtype=torch.bool)
    if units is not None:
        entries = incoming_entries(layer, units)
        value = torch.where(entries, new[layer.tensor_name("weight")], value)
        if layer.bias is not None and layer.bias.requires_grad:
            bias = layer.tensor_name("bias")
            updates[bias] = Update(
                torch.where(units, new[bias], layer.bias), "recycle", entries=units
            )
    if inputs is not None:
        # Last, so that no layer reads a recycled unit, other recycled units included.
        silent = outgoing_entries(layer, inputs)
        value, entries = value.masked_fill(silent, 0), entries | silent
    updates[layer.tensor_name("weight")] = Update(
        value,
        "zero" if units is None else "recycle",
        entries=entries,
        units=0 if units is None else int(units.sum()),
    )
    return updates


def _may_change(layer: WeightLayer) -> bool:
    """Tell whether the weight is trained, and no parametrization computes it."""
    return not layer.frozen and "weight" in layer.parts
