"""What there is to know about a model's networks: found once, handed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from fire_rl.interventions.base import named_tensors
from fire_rl.sb3.anatomy import Anatomy, PolicyOutputs
from fire_rl.sb3.networks import NetworkGroup, anatomy_of, network_groups
from fire_rl.sb3.optimizers import find_optimizers
from fire_rl.sb3.probe import Probe
from fire_rl.utils.rng import isolated_rng
from fire_rl.utils.validation import nearest
from fire_rl.weights.layers import WeightLayer


@dataclass(frozen=True, eq=False)
class ModelView:
    """The networks of a model, as they are built now; its weights may change meanwhile.

    Make one for each event or measurement and hand it on: walking the policy takes milliseconds,
    and a network that is replaced later is not seen.

    Attributes:
        model: The model.
        beside: Objects outside of it that may hold optimizers of its parameters: callbacks.

    Raises:
        ValueError: At the first question, if the algorithm is unknown, or its policy lacks what its
            anatomy names.
    """

    model: BaseAlgorithm
    beside: tuple[object, ...] = ()

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where the model keeps its networks."""
        return anatomy_of(self.model)

    @cached_property
    def groups(self) -> tuple[NetworkGroup, ...]:
        """The trained networks by role, each with its target and optimizer."""
        return network_groups(self.model, self.anatomy)

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """Every parameter and buffer of the policy once, by the names that networks use."""
        return named_tensors(self.model.policy)

    @cached_property
    def layers(self) -> Mapping[str, WeightLayer]:
        """The weight layers of all online networks by name, in order."""
        return {layer.name: layer for group in self.groups for layer in group.online.layers}

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the networks."""
        return tuple(group.role for group in self.groups)

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of all output layers."""
        return tuple(name for group in self.groups for name in group.online.heads)

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The optimizers of the networks, each once."""
        found = {id(group.optimizer): group.optimizer for group in self.groups}
        return tuple(optimizer for optimizer in found.values() if optimizer is not None)

    @cached_property
    def all_optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Every optimizer of the model, its policy and what is beside it; the roles' come first."""
        found = (*self.optimizers, *find_optimizers(self.model, self.beside).values())
        return tuple({id(optimizer): optimizer for optimizer in found}.values())

    def select(self, networks: Sequence[str] | None) -> tuple[NetworkGroup, ...]:
        """Return the groups of the named roles; ``shared`` also when all its users are named.

        Raises:
            ValueError: If a role is unknown for this model.
        """
        if networks is None:
            return self.groups
        for name in networks:
            if name not in self.roles:
                raise ValueError(
                    f"`networks` must name roles of this model ({', '.join(self.roles)}), got "
                    f"{name!r}.{nearest(name, self.roles)}"
                )
        return tuple(
            group
            for group in self.groups
            if group.role in networks or set(group.users) <= set(networks)
        )

    def forward(self, probe: Probe) -> PolicyOutputs:
        """Return what the networks answer on some observations, all at once."""
        return self.anatomy.forward(self.model.policy, probe.observations, probe.actions)

    def fresh_policy(self, seed: int) -> nn.Module:
        """Build a new policy of the model's own class and arguments, initialised as SB3 does.

        Random states outside are untouched. The policy is on the model's device.
        """
        with isolated_rng(seed):
            policy = self.anatomy.fresh(self.model)
        return policy.to(self.model.device)
