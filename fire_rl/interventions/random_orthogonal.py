"""The control for FIRE's choice of directions: random isometries of the same scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fire_rl.interventions.base import (
    Context,
    Network,
    Update,
    check_chosen,
    select_layers,
    weight_updates,
)
from fire_rl.interventions.options import RulesByKind
from fire_rl.utils.validation import as_number, check_choice, check_positive
from fire_rl.weights.layers import WeightLayer, check_assignable
from fire_rl.weights.orthogonal import polar_factor

Rule = Literal["draw", "reset", "keep"]


@dataclass(frozen=True)
class RandomOrthogonal(RulesByKind):
    """Replace each weight by a random isometry at FIRE's scale: ``W ← s · polar(G)``.

    ``G`` is a standard normal matrix, so that the isometry is uniformly distributed. The deviation
    from isometry is that of exact FIRE; of the weight's own directions nothing is kept. What FIRE
    does better than this is worth what it keeps. Biases and everything else are treated as FIRE
    treats them.

    Args:
        scale: ``"published"``, see :class:`~fire_rl.FIRE`, or a positive number.
        hidden: What happens to linear layers that are no heads: ``"draw"`` an isometry,
            ``"reset"`` (weight and bias anew, see ``source``) or ``"keep"``.
        conv: The same for convolutions.
        head: The same for output layers.
        include, exclude, source: See :class:`~fire_rl.interventions.options.LayerOptions`.
        recurrent: Weights of LSTMs, GRUs and RNNs: ``"keep"``, or ``"draw"`` an isometry for each
            of their gates.
        networks, target, optimizer_state, entropy_temperature, vecnormalize, replay_buffer: See
            :class:`~fire_rl.interventions.options.Options`.

    Raises:
        ValueError: If an option is out of range or no known choice.
    """

    scale: Literal["published"] | float = "published"
    hidden: Rule = "draw"
    conv: Rule = "draw"
    head: Rule = "draw"
    recurrent: Literal["keep", "draw"] = "keep"

    name: ClassVar[str] = "random_orthogonal"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(scale=as_number(self.scale))
        if isinstance(self.scale, str):
            check_choice("scale", self.scale, ("published",))
        else:
            self._set(scale=check_positive("scale", self.scale))
        for rule in ("hidden", "conv", "head"):
            check_choice(rule, getattr(self, rule), ("draw", "reset", "keep"))
        check_choice("recurrent", self.recurrent, ("keep", "draw"))

    def check(self, networks: Sequence[Network]) -> None:
        """Raise ValueError if a name pattern matches no layer, or a layer cannot be written."""
        super().check(networks)
        candidates = [layer for network in networks for layer in self.candidates(network)]
        named = select_layers(candidates, self.include, self.exclude)
        chosen = [layer for layer in named if self.rule(layer) != "keep"]
        check_chosen(self.name, chosen, networks)
        for layer in chosen:
            if not layer.frozen:
                check_assignable(layer)

    @torch.no_grad()
    def plan(self, network: Network, context: Context) -> dict[str, Update]:
        """Compute the new weights of a network. Frozen weights are kept."""
        updates: dict[str, Update] = {}
        for layer in self.selected(network):
            rule = self.rule(layer)
            if rule == "draw":
                updates |= weight_updates(layer, self._draw(layer, context.generator))
            elif rule == "reset":
                new = context.source(self.source)
                updates |= {name: Update(new[name], "reset") for name in layer.weight_names}
                if layer.bias is not None and layer.bias.requires_grad:
                    bias = layer.tensor_name("bias")
                    updates[bias] = Update(new[bias], "reset")
        return updates

    def _draw(self, layer: WeightLayer, generator: torch.Generator) -> Update:
        old = layer.matrices()
        # Drawn where the generator lives, so that every device gets the same numbers.
        normal = torch.randn(old.shape, generator=generator, dtype=torch.float64)
        scale = layer.scale if isinstance(self.scale, str) else self.scale
        factor = (polar_factor(normal) * scale).to(old)
        return Update(layer.from_matrices(factor), "draw", scale)
