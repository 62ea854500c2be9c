"""What follows surgery around the weights: optimizers, temperature, statistics, buffer, noise."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from fire_rl.interventions.operation import Operation
from fire_rl.interventions.optimizer_state import forget
from fire_rl.sb3.model_view import ModelView
from fire_rl.utils.rng import isolated_rng
from fire_rl.utils.undo import all_or_nothing

logger = logging.getLogger("fire_rl")


def put_back_unless_done(view: ModelView, *, always: bool) -> AbstractContextManager[None]:
    """Guard all that an event may change: see :func:`~fire_rl.utils.undo.all_or_nothing`.

    Args:
        view: The model.
        always: Whether the block is a trial: then everything is put back at its end.
    """
    model: Any = view.model
    tensors = list(view.tensors.values())
    if getattr(model, "ent_coef_optimizer", None) is not None:
        tensors.append(model.log_ent_coef)
    objects = [model, getattr(model, "replay_buffer", None), _noise_distribution(model)]
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        objects += [normalize, *_statistics(normalize)]
    held = [each for each in objects if hasattr(each, "__dict__")]
    return all_or_nothing(tensors, view.all_optimizers, held, always=always)


def forget_temperature(view: ModelView, operation: Operation) -> int:
    """Forget the optimizer state of SAC's temperature, if that of all of the actor is forgotten."""
    optimizer = getattr(view.model, "ent_coef_optimizer", None)
    extent = operation.intervention.aftermath.optimizer_state
    if extent != "all" or optimizer is None or "actor" not in operation.networks:
        return 0
    return forget(optimizer, optimizer.param_groups[0]["params"])


def apply_side_effects(view: ModelView, operation: Operation, seed: int) -> dict[str, Any]:
    """Do what else the intervention asks for, after the weights have changed.

    See :class:`~fire_rl.interventions.base.Aftermath`.

    Returns:
        What was done, by the choice's name: ``entropy_temperature`` before and after, and so on.
    """
    model, aftermath = view.model, operation.intervention.aftermath
    done: dict[str, Any] = {}
    if aftermath.entropy_temperature == "reset":
        done |= _reset_entropy_temperature(model)
    if aftermath.vecnormalize == "reset":
        done |= _reset_vecnormalize(model)
    changed = (name for updates in operation.plans.values() for name in updates)
    if any(name.split(".")[-1] == "log_std" for name in changed):
        _redraw_exploration(model, seed)
    if aftermath.replay_buffer == "clear" and getattr(model, "replay_buffer", None) is not None:
        model.replay_buffer.reset()  # type: ignore[attr-defined]
        done["replay_buffer"] = "cleared"
    return done


def check_warm_up(model: BaseAlgorithm, updates: int) -> None:
    """Raise ValueError if gradient steps are asked for that an algorithm cannot make."""
    if updates and not isinstance(model, OffPolicyAlgorithm):
        raise ValueError(
            f"`warmup_updates` needs a replay buffer, and {type(model).__name__} has none: leave "
            "it out."
        )


def warm_up(model: BaseAlgorithm, updates: int) -> None:
    """Make gradient steps on the replay buffer, as the training does between rollouts.

    Before the model has begun to learn, nothing is done. DQN's target network follows its own
    schedule, in environment steps: it stays during these updates.
    """
    assert isinstance(model, OffPolicyAlgorithm)
    if updates and model.num_timesteps > model.learning_starts:
        model.train(gradient_steps=updates, batch_size=model.batch_size)


@torch.no_grad()
def _reset_entropy_temperature(model: BaseAlgorithm) -> dict[str, Any]:
    """Put a learned temperature back to its start value, as SAC parses it from ``ent_coef``."""
    temperature = getattr(model, "log_ent_coef", None)
    if temperature is None:
        logger.warning("%s has no learned entropy temperature to reset.", type(model).__name__)
        return {}
    learner: Any = model  # SAC, TQC and CrossQ name these alike
    _, _, start = learner.ent_coef.partition("_")
    before = temperature.exp().item()
    temperature.copy_(torch.tensor([float(start or 1.0)]).log())
    forget(learner.ent_coef_optimizer, [temperature])
    return {"entropy_temperature": [before, temperature.exp().item()]}


def _reset_vecnormalize(model: BaseAlgorithm) -> dict[str, Any]:
    normalize = model.get_vec_normalize_env()
    if normalize is None:
        return {}
    for rms in _statistics(normalize):
        rms.mean, rms.var = np.zeros_like(rms.mean), np.ones_like(rms.var)
        rms.count = 1e-4  # as RunningMeanStd starts
    normalize.returns = np.zeros_like(normalize.returns)
    return {"vecnormalize": "reset"}


def _statistics(normalize: VecNormalize) -> list[RunningMeanStd]:
    observed = getattr(normalize, "obs_rms", {})  # without `norm_obs` there are none
    return [*(observed.values() if isinstance(observed, dict) else [observed]), normalize.ret_rms]


def _redraw_exploration(model: BaseAlgorithm, seed: int) -> None:
    """Draw gSDE's noise matrix anew: it was drawn from the old ``log_std`` before this hook."""
    if _noise_distribution(model) is not None:
        with isolated_rng(seed):
            _actor(model).reset_noise(model.n_envs)


def _noise_distribution(model: BaseAlgorithm) -> StateDependentNoiseDistribution | None:
    """Return gSDE's distribution, which holds the noise matrices, None without gSDE."""
    distribution = getattr(_actor(model), "action_dist", None)
    return distribution if isinstance(distribution, StateDependentNoiseDistribution) else None


def _actor(model: BaseAlgorithm) -> Any:
    return getattr(model.policy, "actor", model.policy)
