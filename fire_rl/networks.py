"""The SB3 adapter: which networks a model has, under which role, with which target and optimizer.

Roles are those of the log keys: ``actor``, ``critic``, and ``shared`` for an extractor that both
use. The facts per algorithm are data, one :class:`Anatomy` each; everything else is derived by
walking the policy once, so that a tensor that is registered twice belongs to one role only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, ContinuousCritic
from torch import Tensor, nn

from fire_rl._random import isolated_rng
from fire_rl._validation import nearest
from fire_rl.interventions.base import Network
from fire_rl.layers import weight_layers

SHARED = "shared"


@dataclass(frozen=True)
class PolicyOutputs:
    """What the networks answer on a batch of ``N`` observations.

    Attributes:
        action: The deterministic action, ``(N, *action_shape)``; None if no role yields one.
        values: State values ``(N, 1)``, or action values ``(N, n_actions)`` or ``(N, n_critics)``.
        distribution: The action distribution of a stochastic policy.
    """

    action: Tensor | None = None
    values: Tensor | None = None
    distribution: Distribution | None = None


@dataclass(frozen=True)
class Anatomy:
    """Where an algorithm keeps its networks. Paths are attributes of the policy.

    Attributes:
        parts: Role to the modules and parameters that it owns. What two roles own is ``shared``.
        heads: Modules whose last weight layer is an output layer; ``*`` stands for every index.
        targets: Online module to its target network.
        optimizers: Role to its optimizer.
        forward: ``(policy, observations, actions)`` to :class:`PolicyOutputs`, without any random
            draw; actions are None unless ``needs_actions``.
        needs_actions: Whether the critic takes actions.
    """

    parts: Mapping[str, Sequence[str]]
    heads: Sequence[str]
    optimizers: Mapping[str, str]
    forward: Callable[[Any, Any, Tensor | None], PolicyOutputs]
    targets: Mapping[str, str] = field(default_factory=dict)
    needs_actions: bool = False


@dataclass(frozen=True, eq=False)
class NetworkGroup:
    """One role's networks in a model.

    Attributes:
        role: ``"actor"``, ``"critic"`` or ``"shared"``.
        online: The network that is trained. Names are those in the policy.
        target: Its target network, *under the online names*, or None.
        optimizer: The optimizer that holds its parameters.
        users: Roles that use it: itself, or those that share it.
    """

    role: str
    online: Network
    target: Network | None
    optimizer: torch.optim.Optimizer
    users: tuple[str, ...]


def _dqn_outputs(policy: Any, observations: Any, actions: Tensor | None) -> PolicyOutputs:
    values = policy.q_net(observations)
    return PolicyOutputs(action=values.argmax(dim=1), values=values)


def _critic_values(critic: ContinuousCritic, observations: Any, actions: Tensor | None) -> Tensor:
    assert actions is not None
    return torch.cat(critic(observations, actions), dim=1)


def _sac_outputs(policy: Any, observations: Any, actions: Tensor | None) -> PolicyOutputs:
    mean, log_std, options = policy.actor.get_action_dist_params(observations)
    # A copy: SB3 keeps one distribution object and overwrites it.
    distribution = copy.copy(policy.actor.action_dist.proba_distribution(mean, log_std, **options))
    return PolicyOutputs(
        torch.tanh(mean), _critic_values(policy.critic, observations, actions), distribution
    )


def _td3_outputs(policy: Any, observations: Any, actions: Tensor | None) -> PolicyOutputs:
    return PolicyOutputs(
        policy.actor(observations), _critic_values(policy.critic, observations, actions)
    )


def _actor_critic_outputs(
    policy: ActorCriticPolicy, observations: Any, actions: Tensor | None
) -> PolicyOutputs:
    # As in ActorCriticPolicy.forward, but without drawing an action; a shared extractor runs once.
    features = policy.extract_features(observations)
    for_actor, for_critic = features if isinstance(features, tuple) else (features, features)
    latent = policy.mlp_extractor.forward_actor(for_actor)
    distribution = copy.copy(policy._get_action_dist_from_latent(latent))
    values = policy.value_net(policy.mlp_extractor.forward_critic(for_critic))
    return PolicyOutputs(distribution.mode(), values, distribution)


# Subclasses come under their base: DDPG is a TD3, PPO and A2C are OnPolicyAlgorithms.
ANATOMIES: Mapping[type[BaseAlgorithm], Anatomy] = {
    DQN: Anatomy(
        parts={"critic": ("q_net",)},
        heads=("q_net.q_net",),
        targets={"q_net": "q_net_target"},
        optimizers={"critic": "optimizer"},
        forward=_dqn_outputs,
    ),
    SAC: Anatomy(
        parts={"actor": ("actor",), "critic": ("critic",)},
        heads=("actor.mu", "actor.log_std", "critic.q_networks.*"),
        targets={"critic": "critic_target"},
        optimizers={"actor": "actor.optimizer", "critic": "critic.optimizer"},
        forward=_sac_outputs,
        needs_actions=True,
    ),
    TD3: Anatomy(
        parts={"actor": ("actor",), "critic": ("critic",)},
        heads=("actor.mu", "critic.q_networks.*"),
        targets={"actor": "actor_target", "critic": "critic_target"},
        optimizers={"actor": "actor.optimizer", "critic": "critic.optimizer"},
        forward=_td3_outputs,
        needs_actions=True,
    ),
    OnPolicyAlgorithm: Anatomy(
        parts={
            "actor": (
                "pi_features_extractor",
                "mlp_extractor.policy_net",
                "action_net",
                "log_std",
            ),
            "critic": ("vf_features_extractor", "mlp_extractor.value_net", "value_net"),
        },
        heads=("action_net", "value_net"),
        optimizers={"actor": "optimizer", "critic": "optimizer"},
        forward=_actor_critic_outputs,
    ),
}


def anatomy_of(model: BaseAlgorithm) -> Anatomy:
    """Return the anatomy of a model's algorithm.

    Raises:
        ValueError: If the algorithm is unknown, or its policy lacks what the anatomy names.
    """
    for algorithm, anatomy in ANATOMIES.items():
        if isinstance(model, algorithm):
            paths = [path for paths in anatomy.parts.values() for path in paths]
            missing = [path for path in paths if path != "log_std" and _get(model, path) is None]
            if not missing:
                return anatomy
            raise ValueError(
                f"The policy {type(model.policy).__name__} of {type(model).__name__} has no "
                f"`{missing[0]}`: it is not built like SB3's own policies."
            )
    known = "DQN, PPO, A2C, SAC, TD3, DDPG and their subclasses"
    raise ValueError(
        f"`model` is a {type(model).__name__}, whose networks are not known; known are {known}."
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
                optimizer=_get(model, anatomy.optimizers[users[0]]),
                users=users,
            )
        )
    return tuple(groups)


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
    options: dict[str, Any] = dict(model.policy_kwargs)
    if isinstance(model, OnPolicyAlgorithm):
        options.setdefault("use_sde", model.use_sde)
    with isolated_rng(seed):
        policy: nn.Module = model.policy_class(
            model.observation_space, model.action_space, model.lr_schedule, **options
        )
    return policy.to(model.device)


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
    return dict([*policy.named_parameters(), *policy.named_buffers()])


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
    return [
        *root.named_modules(remove_duplicate=dedupe),
        *root.named_parameters(remove_duplicate=dedupe),
        *root.named_buffers(remove_duplicate=dedupe),
    ]


def _head_names(
    model: BaseAlgorithm, anatomy: Anatomy, names: Mapping[int, str]
) -> tuple[str, ...]:
    heads = []
    for path in anatomy.heads:
        found = _get(model, path.removesuffix(".*"))
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
