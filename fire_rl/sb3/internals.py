"""The one place that reads and writes private attributes of Stable-Baselines3's objects.

One accessor each, and one test each that the attribute is there and means what its accessor says.
Private methods that our subclasses override are in these, such as
:class:`~fire_rl.FrameReplayBuffer`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer
from torch import Tensor

from fire_rl.utils.foreign import private, set_private

_SB3 = "stable-baselines3"
# The name of :func:`steps_at_start`, for those who list a model's attributes.
STEPS_AT_START = "_num_timesteps_at_start"
TOTAL_STEPS = "_total_timesteps"  # and of :func:`total_timesteps`


def total_timesteps(model: BaseAlgorithm) -> int:
    """Return the step at which this call of ``learn()`` ends, over all environments."""
    return int(private(model, TOTAL_STEPS, _SB3))


def steps_at_start(model: BaseAlgorithm) -> int:
    """Return the step at which this call of ``learn()`` has begun."""
    return int(private(model, STEPS_AT_START, _SB3))


def set_steps_at_start(model: BaseAlgorithm, step: int) -> None:
    """Set :func:`steps_at_start`, from which SB3 computes frames per second."""
    set_private(model, STEPS_AT_START, step, _SB3)


def progress_remaining(model: BaseAlgorithm) -> float:
    """Return the share of the training that is left, from 1 to 0."""
    return float(private(model, "_current_progress_remaining", _SB3))


def set_last_observations(model: BaseAlgorithm, observations: Any) -> None:
    """Set the observations from which the next rollout goes on."""
    set_private(model, "_last_obs", observations, _SB3)


def set_last_original_observations(model: BaseAlgorithm, observations: Any) -> None:
    """Set the same as they were before VecNormalize, which replay buffers store."""
    set_private(model, "_last_original_obs", observations, _SB3)


def set_last_episode_starts(model: BaseAlgorithm, starts: Any) -> None:
    """Set which environments begin an episode with their last observation, ``(n_envs,)``."""
    set_private(model, "_last_episode_starts", starts, _SB3)


def saved_variables(model: BaseAlgorithm) -> list[str]:
    """Return the names of tensors that SB3 saves beside state dicts, such as ``log_ent_coef``."""
    _, names = private(model, "_get_torch_save_params", _SB3)()
    return list(names)


def set_vec_normalize(model: BaseAlgorithm, normalize: VecNormalize | None) -> None:
    """Set what ``get_vec_normalize_env()`` returns, also of a model without SB3's ``__init__``."""
    model._vec_normalize_env = normalize


def action_distribution(policy: ActorCriticPolicy, latent: Tensor) -> Distribution:
    """Return an actor-critic policy's distribution from the actor's latent ``(N, D)``.

    SB3 keeps one distribution object and overwrites it: copy what is to stay.
    """
    distribution: Distribution = private(policy, "_get_action_dist_from_latent", _SB3)(latent)
    return distribution


def current_episode_starts(buffer: HerReplayBuffer) -> Any:
    """Return where in the buffer each running episode begins: the array itself, ``(n_envs,)``."""
    return private(buffer, "_current_ep_start", _SB3)


def event_file(output: TensorBoardOutputFormat) -> str:
    """Return the name of the file that a TensorBoard output writes to."""
    writer: Any = output.writer
    return Path(private(writer.file_writer.event_writer, "_file_name", "tensorboard")).name
