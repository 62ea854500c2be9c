"""Where each algorithm keeps its networks: data, one :class:`Anatomy` each.

Those of sb3-contrib are in :mod:`fire_rl.sb3.contrib_anatomies`; :func:`register_anatomy` adds
others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy, ContinuousCritic
from torch import Tensor, nn

from fire_rl.sb3.internals import action_distribution
from fire_rl.sb3.own_paths import own_answers, own_distribution
from fire_rl.utils.validation import check_names


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


Forward = Callable[[Any, Any, Tensor | None], PolicyOutputs]
_ROLES = ("actor", "critic")


def new_policy(model: Any) -> nn.Module:
    """Build a policy of a model's class with its spaces, learning rate and ``policy_kwargs``."""
    options: dict[str, Any] = dict(model.policy_kwargs)
    if isinstance(model, OnPolicyAlgorithm):
        options.setdefault("use_sde", model.use_sde)
    policy: nn.Module = model.policy_class(
        model.observation_space, model.action_space, model.lr_schedule, **options
    )
    return policy


@dataclass(frozen=True)
class Anatomy:
    """Where an algorithm keeps its networks. Paths are attributes of the policy, dotted.

    Args:
        parts: Role (``"actor"``, ``"critic"``) to the modules and parameters that it owns. What
            two roles own becomes the role ``"shared"``.
        heads: Modules whose last weight layer is an output layer; ``*`` stands for every index.
        optimizers: Role to its optimizer; a role that no optimizer trains is left out.
        forward: ``(policy, observations, actions)`` to :class:`PolicyOutputs`, without any random
            draw, on a batch as the networks get it; actions are None unless ``needs_actions``.
        targets: Online module to its target network.
        needs_actions: Whether the critic takes actions.
        optional: Those of ``parts`` that not every policy has.
        shared: Modules that hold parts of every role. Whatever no entry of ``parts`` lists of them
            belongs to all roles, such as a custom trunk in ``mlp_extractor``.
        fresh: ``model`` to a new policy, initialised as the algorithm does it. By default the
            model's policy class with its spaces, its learning rate and its ``policy_kwargs``.

    Raises:
        ValueError: If a role is none of these, or a path is named without being a part.
    """

    parts: Mapping[str, Sequence[str]]
    heads: Sequence[str]
    optimizers: Mapping[str, str]
    forward: Forward
    targets: Mapping[str, str] = field(default_factory=dict)
    needs_actions: bool = False
    optional: Sequence[str] = ("log_std",)
    shared: Sequence[str] = ()
    fresh: Callable[[Any], nn.Module] = new_policy

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("`parts` must name the modules of at least one role, got none.")
        for argument, roles in (("parts", self.parts), ("optimizers", self.optimizers)):
            check_names(argument, list(roles), _ROLES if argument == "parts" else list(self.parts))
        named = (("heads", self.heads), ("shared", self.shared), *self.parts.items())
        for argument, value in named:
            if isinstance(value, str):
                raise ValueError(
                    f"`{argument}` must be a sequence of paths, got the text {value!r}: write "
                    f"({value!r},)."
                )
        paths = [path for paths in self.parts.values() for path in paths]
        check_names("targets", list(self.targets), paths)
        for head in self.heads:
            if not any(head == path or head.startswith(f"{path}.") for path in paths):
                raise ValueError(f"`heads` has {head!r}, which lies in none of `parts`: {paths}.")


_REGISTERED: dict[type, Anatomy] = {}


def register_anatomy(algorithm: type[BaseAlgorithm] | type[BasePolicy], anatomy: Anatomy) -> None:
    """Register where an algorithm keeps its networks, so that interventions and metrics work on it.

    A subclass uses its nearest known base class. A registered anatomy overrides a built-in one and
    replaces one that was registered before.

    Args:
        algorithm: A subclass of SB3's ``BaseAlgorithm``; or the class of a policy with a structure
            of its own, whose anatomy takes precedence over the algorithm's.
        anatomy: Its networks. To start from an existing one, take ``fire_rl.anatomy_of(model)`` and
            change it with ``dataclasses.replace``.

    Raises:
        TypeError: If one of the two is something else.

    Example:
        >>> from stable_baselines3 import DQN
        >>> class MyDQN(DQN): ...
        >>> def forward(policy, observations, actions):
        ...     values = policy.q_net(observations)
        ...     return PolicyOutputs(values.argmax(dim=1), values)
        >>> register_anatomy(MyDQN, Anatomy(
        ...     parts={"critic": ("q_net",)}, heads=("q_net.q_net",), forward=forward,
        ...     optimizers={"critic": "optimizer"}, targets={"q_net": "q_net_target"}))
    """
    if not (isinstance(algorithm, type) and issubclass(algorithm, (BaseAlgorithm, BasePolicy))):
        raise TypeError(
            "`algorithm` must be a subclass of stable_baselines3's BaseAlgorithm or BasePolicy "
            f"(the class, no model), got {algorithm!r}."
        )
    if not isinstance(anatomy, Anatomy):
        raise TypeError(f"`anatomy` must be an Anatomy, got {anatomy!r}.")
    _REGISTERED[algorithm] = anatomy


def known_anatomy(kind: type) -> Anatomy | None:
    """Return what is registered or built in for exactly this class of an algorithm or policy."""
    return _REGISTERED.get(kind) or ANATOMIES.get(kind)


def _dqn_outputs(policy: Any, observations: Any, actions: Tensor | None) -> PolicyOutputs:
    values = policy.q_net(observations)
    return PolicyOutputs(action=values.argmax(dim=1), values=values)


def _critic_values(critic: ContinuousCritic, observations: Any, actions: Tensor | None) -> Tensor:
    assert actions is not None
    values = critic(observations, actions)  # of one's own, it may be a tensor
    return values if isinstance(values, Tensor) else torch.cat(tuple(values), dim=1)


def squashed_gaussian(actor: Any, observations: Any) -> tuple[Tensor, Distribution]:
    """Return the deterministic action and the distribution of SAC's actor or of one like it."""
    own = own_distribution(actor, observations)
    if own is not None:
        return own.mode(), own
    mean, log_std, options = actor.get_action_dist_params(observations)
    # A copy: SB3 keeps one distribution object and overwrites it.
    distribution = copy.copy(actor.action_dist.proba_distribution(mean, log_std, **options))
    return torch.tanh(mean), distribution


def _sac_outputs(policy: Any, observations: Any, actions: Tensor | None) -> PolicyOutputs:
    action, distribution = squashed_gaussian(policy.actor, observations)
    return PolicyOutputs(action, _critic_values(policy.critic, observations, actions), distribution)


def _td3_outputs(policy: Any, observations: Any, actions: Tensor | None) -> PolicyOutputs:
    return PolicyOutputs(
        policy.actor(observations), _critic_values(policy.critic, observations, actions)
    )


def _actor_critic_outputs(
    policy: ActorCriticPolicy, observations: Any, actions: Tensor | None
) -> PolicyOutputs:
    own = own_answers(policy, observations)
    if own is not None:
        distribution, values = own
        action = None if distribution is None else distribution.mode()
        return PolicyOutputs(action, values, distribution)
    # As in ActorCriticPolicy.forward, but without drawing an action; a shared extractor runs once.
    features = policy.extract_features(observations)
    for_actor, for_critic = features if isinstance(features, tuple) else (features, features)
    latent = policy.mlp_extractor.forward_actor(for_actor)
    distribution = copy.copy(action_distribution(policy, latent))
    values = policy.value_net(policy.mlp_extractor.forward_critic(for_critic))
    return PolicyOutputs(distribution.mode(), values, distribution)


# Subclasses go by their base: DDPG is a TD3, PPO and A2C are OnPolicyAlgorithms.
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
        shared=("mlp_extractor",),
        optimizers={"actor": "optimizer", "critic": "optimizer"},
        forward=_actor_critic_outputs,
    ),
}
