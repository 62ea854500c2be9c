"""The steps of one intervention: check, plan, describe, write, forget; weights change here only.

Everything is checked and computed before the first weight changes. An agent takes these steps in
:func:`fire_rl.apply_intervention`, a plain module in :func:`fire_rl.intervene_`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fire_rl.interventions.base import Context, Intervention, Network, Update
from fire_rl.interventions.optimizer_state import forget, forget_entries
from fire_rl.interventions.report import Changes, describe_changes
from fire_rl.utils.rng import isolated_rng
from fire_rl.utils.undo import all_or_nothing

Plans = Mapping[str, Mapping[str, Update]]  # role to tensor name to update


@dataclass(frozen=True, eq=False)
class Operation:
    """What an intervention is about to do: planned and checked, nothing changed yet.

    Attributes:
        intervention: What is done.
        networks: Role to network.
        targets: Role to its target network, for those that have one.
        plans: Role to the updates of the network, by tensor name.
        target_plans: The same of target networks, where the intervention treats them alike.

    Raises:
        ValueError: If a planned value is not finite.
    """

    intervention: Intervention
    networks: Mapping[str, Network]
    targets: Mapping[str, Network]
    plans: Plans
    target_plans: Plans = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role, updates in self.plans.items():
            name = _first_non_finite((name, update.value) for name, update in updates.items())
            if name is not None:
                raise ValueError(
                    f"The intervention would make `{name}` ({role}) non-finite; nothing was "
                    "changed."
                )

    @classmethod
    def plan(
        cls,
        intervention: Intervention,
        networks: Mapping[str, Network],
        targets: Mapping[str, Network],
        context: Context,
        seed: int,
    ) -> Operation:
        """Compute the new value of every tensor that is to change.

        Args:
            intervention: What is to be done.
            networks: Role to network; :func:`check_finite` comes before.
            targets: Role to its target network.
            context: What the intervention may ask for.
            seed: Of random numbers that a plan draws elsewhere than from the context's generator.
        """
        alike = targets if intervention.aftermath.target == "same" else {}
        with isolated_rng(seed):
            plans = {
                role: intervention.plan(network, context) for role, network in networks.items()
            }
            target_plans = {role: intervention.plan(n, context) for role, n in alike.items()}
        return cls(intervention, networks, targets, plans, target_plans)

    def check_changes(self) -> None:
        """Raise ValueError if nothing is going to change, though the intervention is meant to.

        Interventions that may change nothing say so with ``may_change_nothing``: controls, and
        methods that may find nothing to do.
        """
        if any(self.plans.values()) or getattr(self.intervention, "may_change_nothing", False):
            return
        kept = {name: why for c in self.describe().values() for name, why in c.kept.items()}
        listed = ", ".join(f"`{name}` ({why})" for name, why in list(kept.items())[:5])
        layers = [layer.name for network in self.networks.values() for layer in network.layers]
        raise ValueError(
            f"`{self.intervention.name}` would change no weight of {', '.join(self.networks)}: "
            + (f"it keeps {listed}. " if kept else f"it leaves {', '.join(layers)} alone. ")
            + "Unfreeze or select what it is to change, or use the intervention `none`."
        )

    def describe(self) -> dict[str, Changes]:
        """Compare the networks with their plans, before these are written."""
        return {
            role: describe_changes(network, self.plans[role])
            for role, network in self.networks.items()
        }

    def write(self) -> None:
        """Change the weights in place: the networks, then their targets."""
        for role, network in self.networks.items():
            write(network, self.plans[role])
            target = self.targets.get(role)
            if target is None or not self.plans[role]:
                continue
            if self.intervention.aftermath.target == "copy":
                write(target, {n: Update(network.tensors[n], "copy") for n in target.tensors})
            elif self.intervention.aftermath.target == "same":
                write(target, self.target_plans[role])

    def forget(self, optimizers: Iterable[torch.optim.Optimizer]) -> int:
        """Forget what optimizers remember, as the intervention says; return of how many parameters.

        A parameter that two optimizers hold (SAC's shared extractor) counts twice.
        """
        extent = self.intervention.aftermath.optimizer_state
        if extent == "keep":
            return 0
        whole: list[Tensor] = []
        entries: list[tuple[Tensor, Tensor]] = []
        for role, network in self.networks.items():
            if extent == "all":
                whole += network.tensors.values()
                continue
            for name, update in self.plans[role].items():
                if update.entries is None:
                    whole.append(network.tensors[name])
                else:
                    entries.append((network.tensors[name], update.entries))
        return sum(forget(o, whole) + forget_entries(o, entries) for o in optimizers)


def check_finite(network: Network) -> None:
    """Raise ValueError if a tensor of the network holds NaN or infinity, naming it."""
    found = non_finite(network)
    if found is not None:
        raise ValueError(
            f"{found} before the intervention; nothing was changed. Training has diverged: go back "
            "to an earlier checkpoint."
        )


def non_finite(network: Network) -> str | None:
    """Say which tensor of a network is the first to hold NaN or infinity; None if none does."""
    name = _first_non_finite(network.tensors.items())
    return None if name is None else f"`{name}` ({network.role}) holds NaN or infinite values"


def restored(networks: Iterable[Network]) -> AbstractContextManager[None]:
    """Put every tensor of some networks back at the end."""
    return all_or_nothing((t for n in networks for t in n.tensors.values()), always=True)


@torch.no_grad()
def write(network: Network, updates: Mapping[str, Update]) -> None:
    """Put planned values into the network, in place.

    ``copy_`` keeps the Parameter objects, their storage and their memory format: optimizers,
    SB3's aliases and compiled graphs hold references to them.
    """
    for name, update in updates.items():
        network.tensors[name].copy_(update.value)


@torch.no_grad()
def _first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None
