"""Build SB3 models from a run's plain values, and load them again."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from agents.algorithms import ALGORITHMS, action_noise, check_agent, policies, schedules
from agents.classes import find_class, with_classes
from agents.signatures import arguments, default
from fire_rl import FrameReplayBuffer
from fire_rl.files.formats import read_model_file

NATURE_CNN_SIZE = 36  # source: stable_baselines3.common.env_checker


def make_agent(
    algo: str,
    env: VecEnv,
    agent: Mapping[str, Any] | None = None,
    *,
    seed: int | None = None,
    device: str = "auto",
    fast_cnn: bool = True,
) -> BaseAlgorithm:
    """Build a model.

    Args:
        algo: A name in :data:`~agents.algorithms.ALGORITHMS`.
        env: Its environments.
        agent: Hyper-parameters as in :func:`~agents.algorithms.check_agent`. Without ``policy``,
            the one that fits the observations.
        seed: Of weights, exploration and sampling.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        fast_cnn: Whether a model with convolutions gets :func:`speed_up_convolutions`.

    Raises:
        ValueError: If a hyper-parameter is unknown or of the wrong type, the algorithm does not
            fit the environment, or the replay buffer does not fit into memory.
    """
    values = check_agent(algo, agent or {})
    if issubclass(ALGORITHMS[algo], MaskablePPO) and not is_masking_supported(env):
        raise ValueError(
            f"{algo} needs an environment that says which actions are valid, with a method "
            "`action_masks()` or an `action_mask` in its infos, and this one does neither. "
            "Without masks it is PPO: --algo ppo"
        )
    policy = values.get("policy") or _policy_for(algo, env.observation_space)
    values["policy"] = policies(algo)[policy]
    _check_memory(algo, env, values)
    _check_images(env.observation_space, values)
    values |= schedules(values)
    if values.get("policy_kwargs"):
        values["policy_kwargs"] = with_classes(values["policy_kwargs"])
    if "noise_type" in values:
        n_actions = math.prod(env.action_space.shape or (1,))
        noise = (values.pop("noise_type"), values.pop("noise_std"))
        values["action_noise"] = action_noise(*noise, n_actions)
    if isinstance(values.get("train_freq"), list):
        values["train_freq"] = tuple(values["train_freq"])
    try:
        model = ALGORITHMS[algo](
            env=env, seed=seed, device=device, verbose=0, **with_classes(values)
        )
    except AssertionError as error:  # SB3's way to refuse an action space or an image policy
        raise ValueError(f"{algo} with {policy} does not fit: {error}") from error
    if fast_cnn:
        speed_up_convolutions(model)
    return model


def load_agent(algo: str, path: str | Path, env: VecEnv | None = None) -> BaseAlgorithm:
    """Load a model of :func:`make_agent` from a zip file; plain SB3 can do it, too."""
    # The replay buffer is not in the file; one of the run's size need not fit here.
    smaller = {"buffer_size": 1} if "buffer_size" in arguments(ALGORITHMS[algo]) else {}
    return ALGORITHMS[algo].load(path, env=env, device="auto", custom_objects=smaller)


def load_weights(model: BaseAlgorithm, path: str | Path) -> None:
    """Put the networks of a zip file into a model that is built already; nothing is unpickled.

    Unlike :func:`load_agent` it is for anybody's file: tensors and plain numbers are all that is
    read. The model can predict as the saved one did; optimizers stay as they are.

    Raises:
        ValueError: If the file is damaged, or is of other networks.
    """
    file = read_model_file(path)
    try:
        model.policy.load_state_dict(file.content["policy.pth"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds other networks than the run's: {error}") from error
    model.num_timesteps = file.num_timesteps or 0
    rate = file.data.get("exploration_rate")  # DQN draws with it unless it acts greedily
    if isinstance(rate, float) and hasattr(model, "exploration_rate"):
        model.exploration_rate = rate


def speed_up_convolutions(model: BaseAlgorithm) -> None:
    """Use fused Adam and channels-last weights if the model has convolutions.

    Measured with DQN on an Atari game, two threads: 1.14 times the steps per second. An optimizer
    for which ``fused`` or ``foreach`` was chosen keeps the choice.
    """
    if not any(isinstance(module, nn.Conv2d) for module in model.policy.modules()):
        return
    model.policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    owners = [model.policy, *model.policy.children()]
    for optimizer in {id(o): o for m in owners if (o := getattr(m, "optimizer", None))}.values():
        if isinstance(optimizer, torch.optim.Adam):
            for group in optimizer.param_groups:
                if group["fused"] is None and group["foreach"] is None:
                    group["fused"] = True


def _policy_for(algo: str, space: spaces.Space[Any]) -> str:
    kind = "Cnn" if is_image_space(space) else "Mlp"
    kind = "MultiInput" if isinstance(space, spaces.Dict) else kind
    known = policies(algo)
    names = [name for name in (f"{kind}Policy", f"{kind}LstmPolicy") if name in known]
    if not names:
        raise ValueError(f"{algo} has no {kind}Policy for {space}; it has {', '.join(known)}.")
    return names[0]


def _check_images(space: spaces.Space[Any], values: Mapping[str, Any]) -> None:
    """Refuse images that are too small for the convolutions of SB3's CnnPolicy."""
    extractor = default(values["policy"], "features_extractor_class")
    chosen = (values.get("policy_kwargs") or {}).get("features_extractor_class")
    if chosen is not None or extractor not in (NatureCNN, CombinedExtractor):
        return
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            size = (part.shape or ())[1:]
            if is_image_space(part) and min(size) < NATURE_CNN_SIZE:
                raise ValueError(
                    f"MultiInputPolicy reads images with NatureCNN, which needs at least "
                    f"{NATURE_CNN_SIZE}×{NATURE_CNN_SIZE}, got {size[0]}×{size[1]} in {key!r}. "
                    "Enlarge them in the environment, or name an extractor of your own: "
                    "--set agent.policy_kwargs.features_extractor_class=module.Class"
                )
        return
    size = (space.shape or ())[1:]
    if is_image_space(space) and min(size) < NATURE_CNN_SIZE:
        raise ValueError(
            f"NatureCNN needs images of at least {NATURE_CNN_SIZE}×{NATURE_CNN_SIZE}, got "
            f"{size[0]}×{size[1]}. Name another network: "
            "--set agent.policy_kwargs.features_extractor_class=MinAtarCNN"
        )


def _check_memory(algo: str, env: VecEnv, values: Mapping[str, Any]) -> None:
    """Refuse a replay buffer that is larger than the machine's memory."""
    declared = arguments(ALGORITHMS[algo])
    if "buffer_size" not in declared:
        return
    space = env.observation_space
    boxes = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    observation = sum(np.zeros(box.shape or (), box.dtype).nbytes for box in boxes)
    copies = 1 if values.get("optimize_memory_usage") else 2  # observation and next observation
    named = values.get("replay_buffer_class")
    kind = named and find_class("replay_buffer_class", named)
    if kind and issubclass(kind, FrameReplayBuffer):  # one frame of the stack
        channels = (values.get("replay_buffer_kwargs") or {}).get("frame_channels", 1)
        observation, copies = observation * channels // (env.observation_space.shape or (1,))[0], 1
    elif kind:
        return  # unknown
    size = values.get("buffer_size", default(ALGORITHMS[algo], "buffer_size"))
    needed = copies * size * observation
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        fits = available // 2 // (copies * observation)
        raise ValueError(
            f"`agent.buffer_size` {size:,} needs {needed / 1e9:.0f} GB, but this machine has "
            f"{available / 1e9:.0f} GB of memory. Use at most about {fits:,}: "
            f"--set agent.buffer_size={fits}"
        )
