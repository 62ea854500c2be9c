"""Where the algorithms of sb3-contrib keep their networks.

sb3-contrib is never imported here: its classes are known by their names, so that ``import fire_rl``
is the same with and without it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import stable_baselines3
from stable_baselines3 import SAC
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor, nn

from fire_rl.sb3.anatomy import ANATOMIES, Anatomy, PolicyOutputs, squashed_gaussian
from fire_rl.sb3.internals import action_distribution

_PACKAGE = "sb3_contrib"


def contrib_anatomy(kind: type) -> Anatomy | None:
    """Return the anatomy of exactly this class, if it is one of sb3-contrib's."""
    return _CONTRIB.get(kind.__name__) if _is_contrib(kind) else None


def known_algorithms() -> list[str]:
    """Return the names of SB3's and sb3-contrib's algorithms whose networks are known."""
    own = [
        name
        for kind in ANATOMIES
        for name, item in vars(stable_baselines3).items()
        if isinstance(item, type) and issubclass(item, kind)
    ]
    return [*own, *_CONTRIB]


def why_refused(kind: type) -> str | None:
    """Return why nothing can be done for exactly this class of sb3-contrib."""
    return _REFUSED.get(kind.__name__) if _is_contrib(kind) else None


def _is_contrib(kind: type) -> bool:
    return kind.__module__.split(".")[0] == _PACKAGE


def _qrdqn_outputs(policy: Any, observations: Any, actions: Tensor | None) -> PolicyOutputs:
    quantiles = policy.quantile_net(observations)  # (N, n_quantiles, n_actions)
    values = quantiles.mean(dim=1)
    return PolicyOutputs(action=values.argmax(dim=1), values=values)


def _tqc_outputs(policy: Any, observations: Any, actions: Tensor | None) -> PolicyOutputs:
    action, distribution = squashed_gaussian(policy.actor, observations)
    quantiles = policy.critic(observations, actions)  # (N, n_critics, n_quantiles)
    return PolicyOutputs(action, quantiles.mean(dim=2), distribution)


def _recurrent_outputs(policy: Any, observations: Any, actions: Tensor | None) -> PolicyOutputs:
    """Answer each observation as if it were the first of an episode: from LSTM states of zero."""
    features = policy.extract_features(observations)
    for_actor, for_critic = features if isinstance(features, tuple) else (features, features)
    latent = _one_step(policy.lstm_actor, for_actor)
    if policy.lstm_critic is not None:
        for_value = _one_step(policy.lstm_critic, for_critic)
    elif policy.shared_lstm:
        for_value = latent
    else:
        for_value = policy.critic(for_critic)
    distribution = action_distribution(policy, policy.mlp_extractor.forward_actor(latent))
    values = policy.value_net(policy.mlp_extractor.forward_critic(for_value))
    return PolicyOutputs(distribution.mode(), values, copy.copy(distribution))


def _one_step(lstm: nn.LSTM, features: Tensor) -> Tensor:
    output, _ = lstm(features[None])  # (1, N, features): one step of N sequences
    step: Tensor = output[0]
    return step


def _maskable_policy(model: Any) -> nn.Module:
    """MaskablePPO has no gSDE, and its policies take no ``use_sde``."""
    policy: nn.Module = model.policy_class(
        model.observation_space, model.action_space, model.lr_schedule, **model.policy_kwargs
    )
    return policy


_ACTOR_CRITIC = ANATOMIES[OnPolicyAlgorithm]
_SAC = ANATOMIES[SAC]

_CONTRIB: Mapping[str, Anatomy] = {
    "QRDQN": Anatomy(
        parts={"critic": ("quantile_net",)},
        heads=("quantile_net.quantile_net",),
        targets={"quantile_net": "quantile_net_target"},
        optimizers={"critic": "optimizer"},
        forward=_qrdqn_outputs,
    ),
    "TQC": replace(_SAC, forward=_tqc_outputs),
    # No target networks. Running statistics of BatchRenorm are kept like those of every norm
    # layer: for a while they are those of the old weights; `norm_layers="reset"` renews them.
    "CrossQ": replace(_SAC, targets={}),
    # The optimizer holds all parameters and steps those of the critic only: a conjugate gradient
    # and a line search set the actor's, which leave nothing to forget.
    "TRPO": _ACTOR_CRITIC,
    # A shared LSTM is the actor's: the critic reads it and sends no gradient back.
    "RecurrentPPO": replace(
        _ACTOR_CRITIC,
        parts={
            "actor": (*_ACTOR_CRITIC.parts["actor"], "lstm_actor"),
            "critic": (*_ACTOR_CRITIC.parts["critic"], "lstm_critic", "critic"),
        },
        optional=("log_std", "lstm_critic", "critic"),
        forward=_recurrent_outputs,
    ),
    # Answers are those without a mask: probe observations come without their masks.
    "MaskablePPO": replace(_ACTOR_CRITIC, fresh=_maskable_policy),
}

_REFUSED: Mapping[str, str] = {
    "ARS": (
        "it searches at random, without gradients, and keeps its weights in a vector of its own "
        "(`model.weights`) that overwrites the policy at every step. What was changed in the "
        "policy would be lost, and there is no gradient that could vanish."
    )
}
