"""What a call of ``learn()`` goes on from: another model, the last rollout, earlier updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from fire_rl.sb3.model_view import ModelView


def goes_on(before: BaseAlgorithm | None, model: BaseAlgorithm) -> bool:
    """Tell whether a call of ``learn()`` that begins now goes on with a training known before.

    A call that counts from 0 is a new training. A model that was saved and loaded again is the same
    training, which its step and its weights show.

    Args:
        before: The model of the earlier calls, None if there was none.
        model: The model that begins to learn.
    """
    if before is None or model.num_timesteps == 0:
        return False
    if before is model:
        return True
    if type(before) is not type(model) or before.num_timesteps != model.num_timesteps:
        return False
    one, two = before.policy.state_dict(), model.policy.state_dict()
    return one.keys() == two.keys() and all(
        torch.equal(tensor.cpu(), two[name].cpu()) for name, tensor in one.items()
    )


def rollout_steps(model: BaseAlgorithm) -> int:
    """Return how many environment steps the last rollout took, over all environments.

    On-policy: ``n_steps`` of each environment. Off-policy: ``train_freq`` of each, or where that
    counts episodes, the lengths of the last ones as ``Monitor`` reports them, or else as the replay
    buffer shows them (without both, one step). ``learning_starts`` changes no rollout.
    """
    if isinstance(model, OnPolicyAlgorithm):
        return model.n_steps * model.n_envs
    frequency = getattr(model, "train_freq", None)
    if not isinstance(frequency, TrainFreq):
        return model.n_envs
    if frequency.unit is TrainFrequencyUnit.STEP:
        return frequency.frequency * model.n_envs
    episodes = list(model.ep_info_buffer or ())[-frequency.frequency :]
    if not episodes:
        return max(model.n_envs, _stored_episodes(model, frequency.frequency))
    return max(model.n_envs, sum(int(episode["l"]) for episode in episodes))


def _stored_episodes(model: BaseAlgorithm, number: int) -> int:
    """Return the length of the last episodes in a replay buffer of one environment, 0 if unknown.

    SB3 counts in episodes with one environment only.
    """
    buffer: Any = getattr(model, "replay_buffer", None)
    if not isinstance(buffer, ReplayBuffer):
        return 0
    # In order of time: with the oldest row first, which is the next to be overwritten.
    rows = np.roll(buffer.dones[:, 0], -buffer.pos)
    dones = rows[len(rows) - buffer.size() :]
    ends = np.flatnonzero(dones)
    return len(dones) - (int(ends[-number - 1]) + 1 if len(ends) > number else 0)


def updates_per_rollout(model: BaseAlgorithm) -> int:
    """Return how many steps an optimizer makes after a rollout, at most."""
    if isinstance(model, OffPolicyAlgorithm):
        steps = model.gradient_steps
        return steps if steps >= 0 else rollout_steps(model)
    epochs = getattr(model, "n_epochs", getattr(model, "n_critic_updates", 1))
    minibatch = getattr(model, "batch_size", None) or rollout_steps(model)
    return int(epochs) * math.ceil(rollout_steps(model) / minibatch)


def updates_made(model: BaseAlgorithm) -> Sequence[int]:
    """Return the steps that each optimizer has counted itself; 0 where it counts none (SGD).

    Adam and RMSprop count by parameter. An event that forgets a parameter's moments forgets its
    count, too: the largest count stays as long as any parameter keeps its own.
    """
    states = [optimizer.state.values() for optimizer in ModelView(model).optimizers]
    return [max((int(of.get("step", 0)) for of in state), default=0) for state in states]


def has_learned(model: BaseAlgorithm) -> bool:
    """Tell whether an optimizer of the model has made a step, in whatever training."""
    return any(optimizer.state for optimizer in ModelView(model).optimizers)
