"""Derive a model's networks from its anatomy: by role, each with its target and optimizer.

Roles are those of the log keys: ``actor``, ``critic``, and ``shared`` for an extractor that both
use. The facts per algorithm are data, one :class:`~fire_rl.Anatomy` each; everything else
is derived by walking the policy once, so that a tensor that is registered twice belongs to one
role only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from fire_rl.interventions.base import Network
from fire_rl.sb3.anatomy import Anatomy, known_anatomy
from fire_rl.sb3.contrib_anatomies import contrib_anatomy, known_algorithms, why_refused
from fire_rl.utils.kinds import describe, is_agent
from fire_rl.utils.paths import attribute_at
from fire_rl.utils.torch_internals import uncompiled
from fire_rl.weights.layers import plain_name, weight_layers_of

SHARED = "shared"
HOW_TO_REGISTER = (
    "Say where they are with fire_rl.register_anatomy(YourAlgorithm, fire_rl.Anatomy(...)), or for "
    "the class of your policy; its docstring has an example."
)


@dataclass(frozen=True, eq=False)
class NetworkGroup:
    """One role's networks in a model.

    Attributes:
        role: ``"actor"``, ``"critic"`` or ``"shared"``.
        online: The network that is trained. Names are those in the policy.
        target: Its target network, *under the online names*, or None.
        optimizer: The optimizer that holds its parameters; None if none trains them.
        users: Roles that use it: itself, or those that share it.
    """

    role: str
    online: Network
    target: Network | None
    optimizer: torch.optim.Optimizer | None
    users: tuple[str, ...]


def anatomy_of(model: BaseAlgorithm) -> Anatomy:
    """Return the anatomy of a model: that of its policy's class, or else of its algorithm.

    If the class itself is unknown, that of its nearest known base class.

    Raises:
        TypeError: If ``model`` is no model of SB3.
        ValueError: If the algorithm is unknown, or its policy lacks what the anatomy names.
    """
    check_model(model)
    name = type(model).__name__
    policy = uncompiled(getattr(model, "policy", None))
    for kind in (*type(policy).__mro__, *type(model).__mro__):
        anatomy = known_anatomy(kind) or contrib_anatomy(kind)
        if anatomy is None:
            if why := why_refused(kind):
                raise ValueError(f"`model` is a {name}, which has no use for fire_rl: {why}")
            continue
        for paths in anatomy.parts.values():
            for path in paths:
                if path not in anatomy.optional and attribute_at(model.policy, path) is None:
                    raise ValueError(
                        f"The policy {type(policy).__name__} of {name} has no `{path}`: it "
                        f"is not built like that of {kind.__name__}. {HOW_TO_REGISTER}"
                    )
        return anatomy
    raise ValueError(
        f"`model` is a {name}, whose networks are not known; known are "
        f"{', '.join(known_algorithms())} and their subclasses. {HOW_TO_REGISTER}"
    )


def check_model(model: object) -> None:
    """Raise TypeError unless something is a model of SB3; the message says what to pass."""
    if is_agent(model) or isinstance(model, BaseAlgorithm):
        return
    advice = "Pass the model itself, such as PPO('MlpPolicy', env)."
    if isinstance(model, type):
        advice = "Make a model of it first."
    elif isinstance(model, nn.Module):
        advice = "Pass the model that it belongs to, or use `fire_(module)`, which needs none."
    elif isinstance(model, str | Path):
        advice = "Load the file first, with the `load` of its algorithm."
    raise TypeError(
        f"`model` must be a model of stable_baselines3, got {describe(model)}. {advice}"
    )


def network_groups(model: BaseAlgorithm, anatomy: Anatomy) -> tuple[NetworkGroup, ...]:
    """List a model's trained networks by role, each with its target and optimizer."""
    names = {id(item): name for name, item in _named_items(model.policy)}
    heads = _head_names(model, anatomy, names)
    owners: dict[str, list[str]] = {}
    items: dict[str, nn.Module | Tensor] = {}
    twins: dict[str, nn.Module | Tensor] = {}
    for role, paths in anatomy.parts.items():
        for path in paths:
            part = attribute_at(model.policy, path)
            if part is None:
                continue  # a categorical policy has no `log_std`
            twin = (
                attribute_at(model.policy, anatomy.targets[path])
                if path in anatomy.targets
                else None
            )
            twin_items = dict(_named_items(twin, dedupe=False)) if twin is not None else {}
            for local, item in _named_items(part, dedupe=False):
                name = names[id(item)]
                items[name] = item
                if role not in owners.setdefault(name, []):
                    owners[name].append(role)
                if local in twin_items:
                    twins[name] = twin_items[local]
    for path in anatomy.shared:
        part = attribute_at(model.policy, path)
        for _, item in [] if part is None else _named_items(part, dedupe=False):
            if names[id(item)] not in owners:
                items[names[id(item)]] = item
                owners[names[id(item)]] = list(anatomy.parts)
    _unite_owners_of_tied_weights(items, owners, names)
    groups = []
    for role in (*anatomy.parts, SHARED):
        mine = {name for name, roles in owners.items() if _role(roles) == role}
        online = _network(role, {n: item for n, item in items.items() if n in mine}, heads)
        if not online.tensors:
            continue
        target = _network(role, {n: item for n, item in twins.items() if n in mine}, heads)
        users = tuple(anatomy.parts) if role == SHARED else (role,)
        groups.append(
            NetworkGroup(
                role=role,
                online=online,
                target=target if target.tensors else None,
                optimizer=_optimizer(model, anatomy, users),
                users=users,
            )
        )
    return tuple(groups)


def _optimizer(
    model: BaseAlgorithm, anatomy: Anatomy, users: Sequence[str]
) -> torch.optim.Optimizer | None:
    """Return the optimizer of the first of some roles that has one."""
    path = next((anatomy.optimizers[role] for role in users if role in anatomy.optimizers), None)
    optimizer: torch.optim.Optimizer | None = (
        None if path is None else attribute_at(model.policy, path)
    )
    return optimizer


def _unite_owners_of_tied_weights(
    items: Mapping[str, nn.Module | Tensor],
    owners: dict[str, list[str]],
    names: Mapping[int, str],
) -> None:
    """If several roles share a module's weight, assign the whole module to all of them."""
    modules = {name: item for name, item in items.items() if isinstance(item, nn.Module)}
    united = True
    while united:
        united = False
        for name, module in modules.items():
            own = [names[id(p)] for p in module.parameters(recurse=False)]
            members = [name, *(n for n in own if n in owners)]
            roles = list(dict.fromkeys(role for member in members for role in owners[member]))
            for member in members:
                if len(roles) > 1 and set(owners[member]) != set(roles):
                    owners[member], united = roles, True


def _role(owners: Sequence[str]) -> str:
    return owners[0] if len(owners) == 1 else SHARED


def _network(role: str, items: Mapping[str, nn.Module | Tensor], heads: Sequence[str]) -> Network:
    modules = {name: item for name, item in items.items() if isinstance(item, nn.Module)}
    tensors = {name: item for name, item in items.items() if isinstance(item, Tensor)}
    return Network(role, modules, tensors, tuple(name for name in heads if name in modules))


def _named_items(
    root: nn.Module | Tensor, dedupe: bool = True
) -> list[tuple[str, nn.Module | Tensor]]:
    """Every submodule, parameter and buffer with its dotted name."""
    if isinstance(root, Tensor):
        return [("", root)]
    named = [
        *root.named_modules(remove_duplicate=dedupe),
        *root.named_parameters(remove_duplicate=dedupe),
        *root.named_buffers(remove_duplicate=dedupe),
    ]
    return [(plain_name(name), item) for name, item in named]


def _head_names(
    model: BaseAlgorithm, anatomy: Anatomy, names: Mapping[int, str]
) -> tuple[str, ...]:
    heads = []
    for path in anatomy.heads:
        found = attribute_at(model.policy, path.removesuffix(".*"))
        if found is None:
            continue
        for module in found if path.endswith(".*") else [found]:
            named = module.named_modules() if isinstance(module, nn.Module) else ()
            layers = weight_layers_of(named)
            if layers:
                heads.append(names[id(layers[-1].module)])
    return tuple(heads)
