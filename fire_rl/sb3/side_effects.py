"""Bring everything around changed weights in line: what :class:`Aftermath` names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import Tensor

from fire_rl.interventions.base import Aftermath, Update
from fire_rl.interventions.optimizer_state import forget, forget_entries
from fire_rl.sb3.networks import NetworkGroup, network_groups
from fire_rl.utils.rng import isolated_rng

logger = logging.getLogger("fire_rl")


def settle(
    model: BaseAlgorithm,
    groups: Sequence[NetworkGroup],
    plans: Mapping[str, Mapping[str, Update]],
    aftermath: Aftermath,
    seed: int,
) -> tuple[int, dict[str, Any]]:
    """Bring everything around the weights in line.

    Returns:
        The number of parameters whose optimizer state was forgotten, and what else was done, by
        the names of :class:`Aftermath`: ``entropy_temperature`` before and after, and so on.
    """
    forgotten = 0
    done: dict[str, Any] = {}
    if aftermath.optimizer_state != "keep":
        changed: list[Tensor] = []
        entries: list[tuple[Tensor, Tensor]] = []
        for group in groups:
            tensors, updates = group.online.tensors, plans[group.role]
            if aftermath.optimizer_state == "all":
                changed += tensors.values()
                continue
            for name, update in updates.items():
                if update.entries is None:
                    changed.append(tensors[name])
                else:
                    entries.append((tensors[name], update.entries))
        # SAC's and TD3's shared extractor may be held by both optimizers.
        optimizers = {id(group.optimizer): group.optimizer for group in network_groups(model)}
        for optimizer in filter(None, optimizers.values()):
            forgotten += forget(optimizer, changed) + forget_entries(optimizer, entries)
        temperature = getattr(model, "ent_coef_optimizer", None)
        with_actor = any(group.role == "actor" for group in groups)
        if aftermath.optimizer_state == "all" and temperature is not None and with_actor:
            forgotten += forget(temperature, temperature.param_groups[0]["params"])
    if aftermath.entropy_temperature == "reset":
        done |= _reset_entropy_temperature(model)
    if aftermath.vecnormalize == "reset":
        done |= _reset_vecnormalize(model)
    if aftermath.replay_buffer == "clear" and getattr(model, "replay_buffer", None) is not None:
        model.replay_buffer.reset()  # type: ignore[attr-defined]
        done["replay_buffer"] = "cleared"
    if any(name.split(".")[-1] == "log_std" for updates in plans.values() for name in updates):
        _redraw_exploration(model, seed)
    return forgotten, done


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
    observed = normalize.obs_rms if normalize.norm_obs else {}
    statistics = list(observed.values()) if isinstance(observed, dict) else [observed]
    for rms in [*statistics, normalize.ret_rms]:
        rms.mean, rms.var = np.zeros_like(rms.mean), np.ones_like(rms.var)
        rms.count = 1e-4  # as RunningMeanStd starts
    normalize.returns[...] = 0.0
    return {"vecnormalize": "reset"}


def _redraw_exploration(model: BaseAlgorithm, seed: int) -> None:
    """Draw gSDE's noise matrix anew: it was drawn from the old ``log_std`` before this hook."""
    policy: Any = model.policy
    actor = getattr(policy, "actor", policy)
    if isinstance(getattr(actor, "action_dist", None), StateDependentNoiseDistribution):
        with isolated_rng(seed):
            actor.reset_noise(model.n_envs)
