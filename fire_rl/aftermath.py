"""Bring everything around changed weights in line: what :class:`Aftermath` names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import Tensor

from fire_rl._random import isolated_rng
from fire_rl.interventions.base import Aftermath, Update
from fire_rl.networks import NetworkGroup, network_groups
from fire_rl.optimizer_state import forget


def settle(
    model: BaseAlgorithm,
    groups: Sequence[NetworkGroup],
    plans: Mapping[str, Mapping[str, Update]],
    aftermath: Aftermath,
    seed: int,
) -> int:
    """Bring everything around the weights in line; return the forgotten optimizer entries."""
    forgotten = 0
    if aftermath.optimizer_state != "keep":
        changed: list[Tensor] = []
        for group in groups:
            everything = aftermath.optimizer_state == "all"
            names = group.online.tensors if everything else plans[group.role]
            changed += [group.online.tensors[name] for name in names]
        # SAC's and TD3's shared extractor may be held by both optimizers.
        optimizers = {id(group.optimizer): group.optimizer for group in network_groups(model)}
        forgotten = sum(forget(optimizer, changed) for optimizer in optimizers.values())
    if aftermath.entropy_temperature == "reset":
        _reset_entropy_temperature(model)
    if aftermath.vecnormalize == "reset":
        _reset_vecnormalize(model)
    if aftermath.replay_buffer == "clear" and getattr(model, "replay_buffer", None) is not None:
        model.replay_buffer.reset()  # type: ignore[attr-defined]
    if any(name.split(".")[-1] == "log_std" for updates in plans.values() for name in updates):
        _redraw_exploration(model, seed)
    return forgotten


@torch.no_grad()
def _reset_entropy_temperature(model: BaseAlgorithm) -> None:
    """Put a learned temperature back to its start value, as SAC parses it from ``ent_coef``."""
    if not isinstance(model, SAC) or model.log_ent_coef is None:
        return
    assert isinstance(model.ent_coef, str)
    assert model.ent_coef_optimizer is not None
    _, _, start = model.ent_coef.partition("_")
    model.log_ent_coef.copy_(torch.tensor([float(start or 1.0)]).log())
    forget(model.ent_coef_optimizer, [model.log_ent_coef])


def _reset_vecnormalize(model: BaseAlgorithm) -> None:
    normalize = model.get_vec_normalize_env()
    if normalize is None:
        return
    observed = normalize.obs_rms if normalize.norm_obs else {}
    statistics = list(observed.values()) if isinstance(observed, dict) else [observed]
    for rms in [*statistics, normalize.ret_rms]:
        rms.mean, rms.var = np.zeros_like(rms.mean), np.ones_like(rms.var)
        rms.count = 1e-4  # as RunningMeanStd starts
    normalize.returns[...] = 0.0


def _redraw_exploration(model: BaseAlgorithm, seed: int) -> None:
    """Draw gSDE's noise matrix anew: it was drawn from the old ``log_std`` before this hook."""
    policy: Any = model.policy
    actor = getattr(policy, "actor", policy)
    if isinstance(getattr(actor, "action_dist", None), StateDependentNoiseDistribution):
        with isolated_rng(seed):
            actor.reset_noise(model.n_envs)
