"""Shrink and perturb: mix the weights with an initialisation (Ash & Adams 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fire_rl.interventions.base import Context, Network, Update, weight_updates
from fire_rl.interventions.options import LayerOptions
from fire_rl.utils.validation import check_choice, check_share
from fire_rl.weights.layers import WeightLayer, check_assignable


@dataclass(frozen=True)
class ShrinkAndPerturb(LayerOptions):
    """Keep a share of every weight and take the rest from an initialisation.

    ``θ ← keep · θ + (1 - keep) · ψ`` ("On Warm-Starting Neural Network Training", Ash & Adams
    2020). Papers disagree about which side their coefficient multiplies; ``keep`` is the share of
    the **old** weights. Biases are mixed like the weight of their layer. Running statistics of
    norm layers are kept.

    Args:
        keep: In [0, 1]: 0 is a reset, 1 changes nothing. FIRE's authors keep 0.2 (their
            ``shrink_coef`` of 0.8 is the share of the initialisation), D'Oro et al. 2023 keep 0.8.
        hidden: ``keep`` of linear layers that are no heads, where it differs.
        conv: The same for convolutions.
        head: The same for output layers.
        others: ``"mix"`` the other trainable parameters, such as those of norm layers and
            ``log_std``, with ``keep``; or ``"keep"`` them as they are.
        include, exclude, source: See :class:`~fire_rl.interventions.options.LayerOptions`. With
            ``include``, only the layers that it names are touched.
        networks, target, optimizer_state, entropy_temperature, vecnormalize, replay_buffer: See
            :class:`~fire_rl.interventions.options.Options`.

    Raises:
        ValueError: If a share is outside [0, 1], or an option no known choice.
    """

    keep: float = 0.2
    hidden: float | None = None
    conv: float | None = None
    head: float | None = None
    others: Literal["mix", "keep"] = "mix"

    name: ClassVar[str] = "shrink_and_perturb"
    # FIRE's authors intervene once, at the midpoint (FIRE repository, `rl/`).
    schedules: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "sr_dqn": {"fractions": [0.5]},
        "paper_sac": {"fractions": [0.5]},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(keep=check_share("keep", self.keep))
        for kind in ("hidden", "conv", "head"):
            if getattr(self, kind) is not None:
                self._set(**{kind: check_share(kind, getattr(self, kind))})
        check_choice("others", self.others, ("mix", "keep"))
        kinds = [k for k in (self.hidden, self.conv, self.head) if k is not None]
        self._set(may_change_nothing=all(share == 1 for share in (self.keep, *kinds)))

    @classmethod
    def sr_dqn(cls, **options: Any) -> ShrinkAndPerturb:
        """Return SR-DQN, the baseline of FIRE's authors (FIRE repository, ``rl/dqn``).

        Linear layers go back to the weights the run began with, convolutions keep 0.2; the target
        network's own weights are treated in the same way, Adam's state is kept.
        """
        preset: dict[str, Any] = {
            "hidden": 0.0,
            "head": 0.0,
            "conv": 0.2,
            "source": "initial",
            "target": "same",
            "optimizer_state": "keep",
        }
        return cls(**{**preset, **options})

    @classmethod
    def paper_sac(cls, **options: Any) -> ShrinkAndPerturb:
        """Return the SAC baseline of FIRE's authors (FIRE repository, ``rl/sac``, ``snp``).

        Everything keeps 0.2; optimizers and the entropy temperature start anew.
        """
        preset: dict[str, Any] = {
            "keep": 0.2,
            "source": "initial",
            "optimizer_state": "all",
            "entropy_temperature": "reset",
        }
        return cls(**{**preset, **options})

    @classmethod
    def sr_spr(cls, **options: Any) -> ShrinkAndPerturb:
        """Return SR-SPR (D'Oro et al. 2023): the encoder keeps 0.8, linear layers are reset."""
        return cls(**{"keep": 0.8, "hidden": 0.0, "head": 0.0, **options})

    def check(self, networks: Sequence[Network]) -> None:
        """Raise ValueError if a name pattern matches no layer, or a layer cannot be written."""
        super().check(networks)
        for network in networks:
            for layer in self.selected(network):
                check_assignable(layer)

    @torch.no_grad()
    def plan(self, network: Network, context: Context) -> dict[str, Update]:
        """Compute the new tensors of a network. Frozen parameters are kept."""
        shares: dict[str, float] = {}
        if self.others == "mix" and not self.include:
            shares = {
                name: self.keep
                for name, tensor in network.tensors.items()
                if tensor.requires_grad and tensor.is_floating_point()
            }
        of_layers = {layer.tensor_name(part) for layer in network.layers for part in layer.parts}
        shares = {name: keep for name, keep in shares.items() if name not in of_layers}
        layers = [layer for layer in self.selected(network) if self._share(layer) < 1]
        for layer in layers:
            if layer.bias is not None and layer.bias.requires_grad:
                shares[layer.tensor_name("bias")] = self._share(layer)
        shares = {name: keep for name, keep in shares.items() if keep < 1}
        if not shares and not layers:
            return {}
        new = context.source(self.source)
        updates = {
            name: _mixed(new[name], network.tensors[name], keep) for name, keep in shares.items()
        }
        for layer in layers:
            mixed = _mixed(layer.weight_from(new), layer.weight, self._share(layer))
            updates |= weight_updates(layer, mixed)
        return updates

    def _share(self, layer: WeightLayer) -> float:
        kind = self.head if layer.is_head else self.conv if layer.kind == "conv" else self.hidden
        return self.keep if kind is None else kind


def _mixed(new: Tensor, old: Tensor, keep: float) -> Update:
    return Update(torch.lerp(new, old, keep), "shrink_and_perturb" if keep > 0 else "reset")
