"""The SB3 adapter: which networks a model has, under which role, with which target and optimizer.

Roles are those of the log keys: ``actor``, ``critic``, and ``shared`` for an extractor that both
use. The facts per algorithm are data, one :class:`~fire_rl.Anatomy` each; everything else
is derived by walking the policy once, so that a tensor that is registered twice belongs to one
role only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor, nn

from fire_rl.interventions.base import Network, named_tensors
from fire_rl.sb3.anatomy import Anatomy, known_anatomy
from fire_rl.sb3.contrib_anatomies import contrib_anatomy, known_algorithms, why_refused
from fire_rl.utils.rng import isolated_rng
from fire_rl.utils.validation import nearest
from fire_rl.weights.layers import plain_name, weight_layers, weight_layers_of

SHARED = "shared"
_HOW_TO_REGISTER = (
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
    """Return the anatomy of a model: what is registered for its policy, or that of its algorithm.

    Of its algorithm that of the nearest base class that is known.

    Raises:
        ValueError: If the algorithm is unknown, or its policy lacks what the anatomy names.
    """
    name = type(model).__name__
    policy = getattr(model, "policy", None)
    policy = getattr(policy, "_orig_mod", policy)  # as it was before torch.compile
    for kind in (*type(policy).__mro__, *type(model).__mro__):
        anatomy = known_anatomy(kind) or contrib_anatomy(kind)
        if anatomy is None:
            if why := why_refused(kind):
                raise ValueError(f"`model` is a {name}, which has no use for fire_rl: {why}")
            continue
        for paths in anatomy.parts.values():
            for path in paths:
                if path not in anatomy.optional and _get(model, path) is None:
                    raise ValueError(
                        f"The policy {type(policy).__name__} of {name} has no `{path}`: it "
                        f"is not built like that of {kind.__name__}. {_HOW_TO_REGISTER}"
                    )
        return anatomy
    raise ValueError(
        f"`model` is a {name}, whose networks are not known; known are "
        f"{', '.join(known_algorithms())} and their subclasses. {_HOW_TO_REGISTER}"
    )


def network_groups(model: BaseAlgorithm) -> tuple[NetworkGroup, ...]:
    """List a model's trained networks by role, each with its target and optimizer.

    Raises:
        ValueError: If the algorithm is unknown.
    """
    anatomy = anatomy_of(model)
    names = {id(item): name for name, item in _named_items(model.policy)}
    heads = _head_names(model, anatomy, names)
    owners: dict[str, list[str]] = {}
    items: dict[str, nn.Module | Tensor] = {}
    twins: dict[str, nn.Module | Tensor] = {}
    for role, paths in anatomy.parts.items():
        for path in paths:
            part = _get(model, path)
            if part is None:
                continue  # a categorical policy has no `log_std`
            twin = _get(model, anatomy.targets[path]) if path in anatomy.targets else None
            twin_items = dict(_named_items(twin, dedupe=False)) if twin is not None else {}
            for local, item in _named_items(part, dedupe=False):
                name = names[id(item)]
                items[name] = item
                if role not in owners.setdefault(name, []):
                    owners[name].append(role)
                if local in twin_items:
                    twins[name] = twin_items[local]
    for path in anatomy.shared:
        part = _get(model, path)
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


def warn_of_unknown_parts(model: BaseAlgorithm, groups: Sequence[NetworkGroup]) -> None:
    """Name, in a warning, what a policy of one's own has and the anatomy does not know.

    Weight layers that an optimizer of the model trains and that belong to no role; roles of which
    no output layer is found, so that options about heads do not reach them.
    """
    policy, anatomy = type(model.policy).__name__, anatomy_of(model)
    known = {id(tensor) for group in groups for tensor in group.online.tensors.values()}
    optimizers = {id(group.optimizer): group.optimizer for group in groups}.values()
    held = {id(p) for o in optimizers if o for held in o.param_groups for p in held["params"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent layers are named elsewhere
        layers = weight_layers_of(model.policy.named_modules())
    strangers = [
        plain_name(layer.name)
        for layer in layers
        if not layer.frozen
        and any(id(part) in held and id(part) not in known for part in layer.parts.values())
    ]
    if strangers:
        warnings.warn(
            f"{policy} trains `{'`, `'.join(strangers)}`, which belongs to none of the roles "
            f"{', '.join(anatomy.parts)}: left as it is, and not measured. {_HOW_TO_REGISTER}",
            UserWarning,
            stacklevel=2,
        )
    for role, paths in anatomy.parts.items():
        heads = [h for h in anatomy.heads if any(f"{h}.".startswith(f"{p}.") for p in paths)]
        if heads and all(_get(model, head.removesuffix(".*")) is None for head in heads):
            warnings.warn(
                f"{policy} has no `{'`, `'.join(heads)}`: the output layers of its {role} are not "
                "known and count as hidden ones, whatever an option says of heads. Name them in "
                f"`heads`. {_HOW_TO_REGISTER}",
                UserWarning,
                stacklevel=2,
            )


def select_groups(
    groups: Sequence[NetworkGroup], networks: Sequence[str] | None
) -> tuple[NetworkGroup, ...]:
    """Return the groups of the named roles; ``shared`` also when all its users are named.

    Raises:
        ValueError: If a role is unknown for this model.
    """
    if networks is None:
        return tuple(groups)
    roles = [group.role for group in groups]
    for name in networks:
        if name not in roles:
            raise ValueError(
                f"`networks` must name roles of this model ({', '.join(roles)}), got {name!r}."
                f"{nearest(name, roles)}"
            )
    return tuple(
        group for group in groups if group.role in networks or set(group.users) <= set(networks)
    )


def fresh_policy(model: BaseAlgorithm, seed: int) -> nn.Module:
    """Build a new policy of the model's own class and arguments, initialised as SB3 does.

    Random states outside are untouched. The policy is on the model's device.
    """
    build = anatomy_of(model).fresh or _new_policy
    with isolated_rng(seed):
        policy = build(model)
    return policy.to(model.device)


def _new_policy(model: BaseAlgorithm) -> nn.Module:
    options: dict[str, Any] = dict(model.policy_kwargs)
    if isinstance(model, OnPolicyAlgorithm):
        options.setdefault("use_sde", model.use_sde)
    policy: nn.Module = model.policy_class(
        model.observation_space, model.action_space, model.lr_schedule, **options
    )
    return policy


@contextmanager
def restored(groups: Sequence[NetworkGroup]) -> Iterator[None]:
    """Put every tensor of networks and their targets back at the end."""
    networks = [n for group in groups for n in (group.online, group.target) if n is not None]
    saved = [{name: tensor.clone() for name, tensor in n.tensors.items()} for n in networks]
    try:
        yield
    finally:
        with torch.no_grad():
            for network, tensors in zip(networks, saved, strict=True):
                for name, tensor in tensors.items():
                    network.tensors[name].copy_(tensor)


def policy_tensors(policy: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer of a policy once, by the names that networks use."""
    return named_tensors(policy)


def _optimizer(
    model: BaseAlgorithm, anatomy: Anatomy, users: Sequence[str]
) -> torch.optim.Optimizer | None:
    """Return the optimizer of the first of some roles that has one."""
    path = next((anatomy.optimizers[role] for role in users if role in anatomy.optimizers), None)
    optimizer: torch.optim.Optimizer | None = None if path is None else _get(model, path)
    return optimizer


def _unite_owners_of_tied_weights(
    items: Mapping[str, nn.Module | Tensor],
    owners: dict[str, list[str]],
    names: Mapping[int, str],
) -> None:
    """Let modules whose weight several roles use belong to all these, with all that they hold."""
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
        found = _get(model, path.removesuffix(".*"))
        if found is None:
            continue
        for module in found if path.endswith(".*") else [found]:
            layers = weight_layers(module) if isinstance(module, nn.Module) else ()
            if layers:
                heads.append(names[id(layers[-1].module)])
    return tuple(heads)


def _get(model: BaseAlgorithm, path: str) -> Any:
    """Follow a dotted path from the policy; None where it breaks off."""
    value: Any = model.policy
    for part in path.split("."):
        value = getattr(value, part, None)
    return value
