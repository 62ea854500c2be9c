"""Policies that override how they answer: run the method that they train by.

SB3's actor-critic policies answer in four methods with code of their own each. A subclass that
overrides one, to give the critic an extractor of its own for example, sends observations another
way than SB3 does; what is measured must come along that way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import Tensor

from fire_rl.sb3.warn_once import warn_once
from fire_rl.utils.torch_internals import uncompiled

_LIBRARIES = ("stable_baselines3", "sb3_contrib")
# In the order of choice: by the first PPO and A2C train, by the last two TRPO.
_ANSWERS = ("evaluate_actions", "forward", "get_distribution", "predict_values")

OwnAnswers = tuple[Distribution | None, Tensor]
_T = TypeVar("_T")


def overridden(owner: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Return which methods an object or a class has from elsewhere than SB3 or sb3-contrib."""
    owner = uncompiled(owner)
    return tuple(name for name in names if _origin(owner, name) not in _LIBRARIES)


def own_answers(policy: Any, observations: Any) -> OwnAnswers | None:
    """Return distribution and values of an actor-critic policy by the methods that it overrides.

    Args:
        policy: An actor-critic policy.
        observations: A batch of network inputs.

    Returns:
        The action distribution (None if the policy has not made one by SB3's own means) and the
        values ``(N, 1)``; None if the policy overrides none of these methods, or if they cannot be
        run here, which a warning says once.
    """
    if not (names := overridden(policy, _ANSWERS)):
        return None
    return _tried(policy, names, lambda: _answers(policy, observations, names[0]))


def own_distribution(actor: Any, observations: Any) -> Distribution | None:
    """Return the distribution of SAC's actor, or of one like it, by the methods that it overrides.

    None if it overrides none, or if they cannot be run here, which a warning says once; or if it
    overrides ``get_action_dist_params``, by which SB3's other methods go.
    """
    names = overridden(actor, ("action_log_prob",))
    if not names or overridden(actor, ("get_action_dist_params",)):
        return None

    def run() -> Distribution:
        actor.action_log_prob(observations)
        distribution: Distribution = copy.copy(actor.action_dist)
        return distribution

    return _tried(actor, names, run)


def unmeasured_methods(policy: Any) -> list[str]:
    """Say which methods of a recurrent policy are overridden: they are not run for measuring."""
    names = overridden(type(policy), _ANSWERS)
    recurrent = "RecurrentActorCriticPolicy" in (base.__name__ for base in type(policy).__mro__)
    return [_not_measured(policy, names, "it is recurrent")] if names and recurrent else []


def _tried(owner: Any, names: tuple[str, ...], run: Callable[[], _T]) -> _T | None:
    try:
        return run()
    except Exception as error:  # of the user's own code, in a call that it may not be made for
        warn_once(owner, _not_measured(owner, names, f"{type(error).__name__}: {error}"))
        return None


def _not_measured(owner: Any, names: tuple[str, ...], why: str) -> str:
    return (
        f"{type(owner).__name__} overrides `{'`, `'.join(names)}`, which cannot be run to measure "
        f"it ({why}): its activations are those of the way that SB3's own class takes, and may be "
        "of other features than it trains. Say how it answers with "
        "fire_rl.register_anatomy(YourPolicy, fire_rl.Anatomy(..., forward=...))."
    )


def _answers(policy: Any, observations: Any, name: str) -> OwnAnswers:
    if name not in ("evaluate_actions", "forward"):
        return copy.copy(policy.get_distribution(observations)), policy.predict_values(observations)
    before = _made(policy.action_dist)
    if name == "forward":
        values = policy.forward(observations, deterministic=True)[1]
    else:
        values = policy.evaluate_actions(observations, _any_actions(policy, observations))[0]
    if not isinstance(values, Tensor):
        raise TypeError(f"`{name}` returns {type(values).__name__} in place of the values")
    made = _made(policy.action_dist)
    return (copy.copy(policy.action_dist) if made is not before else None), values


def _made(distribution: Any) -> Any:
    """Return the torch distribution, or list of them, that one of SB3's distributions holds now."""
    held = getattr(distribution, "distribution", None)
    return getattr(distribution, "distributions", None) if held is None else held


def _origin(owner: Any, name: str) -> str:
    """Return the package in which an object's method is written."""
    kind = owner if isinstance(owner, type) else type(owner)
    method = vars(owner).get(name) or getattr(kind, name, None)
    if method is None:
        return _LIBRARIES[0]
    return str(getattr(method, "__module__", "")).partition(".")[0]


def _any_actions(policy: Any, observations: Any) -> Tensor:
    """Return valid actions of the right shape; which ones does not matter to units and values."""
    first = next(iter(observations.values())) if isinstance(observations, dict) else observations
    space = policy.action_space
    kind = torch.long if isinstance(space, spaces.Discrete) else torch.float32
    return torch.zeros((len(first), *space.shape), dtype=kind, device=first.device)
