"""Real SB3 models for the tests: every algorithm and kind of policy, tiny."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

OFF_POLICY = {"dqn": DQN, "sac": SAC, "td3": TD3, "ddpg": DDPG}
ALGORITHMS: dict[str, Any] = {"ppo": PPO, "a2c": A2C, **OFF_POLICY}

_SPACES = {
    "mlp": spaces.Box(-1, 1, (5,), np.float32),
    "cnn": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    "dict": spaces.Dict(
        {
            "image": spaces.Box(0, 255, (1, 36, 36), np.uint8),
            "state": spaces.Box(-1, 1, (3,), np.float32),
        }
    ),
}
_POLICIES = {"mlp": "MlpPolicy", "cnn": "CnnPolicy", "dict": "MultiInputPolicy"}


class RandomEnv(gym.Env):
    """Random observations, a reward that depends on the action, episodes of 12 steps."""

    def __init__(self, observation: str, discrete: bool) -> None:
        self.observation_space = _SPACES[observation]
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (2,), np.float32)
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self._steps += 1
        reward = float(np.sum(action)) / 3
        return self.observation_space.sample(), reward, False, self._steps >= 12, {}


class TinyExtractor(BaseFeaturesExtractor):
    """A custom extractor: a convolution for images, a linear layer for vectors."""

    def __init__(self, observation_space: gym.Space, features_dim: int = 8) -> None:
        super().__init__(observation_space, features_dim)
        if len(observation_space.shape) == 3:
            self.net = nn.Sequential(
                nn.Conv2d(1, 4, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(64, features_dim)
            )
        else:
            self.net = nn.Sequential(nn.Linear(observation_space.shape[0], features_dim))
        self.activation = nn.ReLU()

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.activation(self.net(observations))


def make_model(
    algo: str,
    observation: str = "mlp",
    *,
    n_envs: int = 2,
    policy_kwargs: dict[str, Any] | None = None,
    tiny_images: bool = True,
    **options: Any,
) -> BaseAlgorithm:
    """Build a model on :class:`RandomEnv` that learns from the first steps on."""
    env = make_vec_env(
        RandomEnv, n_envs, env_kwargs={"observation": observation, "discrete": algo == "dqn"}
    )
    kwargs: dict[str, Any] = {"net_arch": [16, 12], **(policy_kwargs or {})}
    if observation == "cnn" and tiny_images:
        kwargs.setdefault("features_extractor_class", TinyExtractor)
    elif observation == "dict":
        kwargs.setdefault("features_extractor_kwargs", {"cnn_output_dim": 16})
    settings: dict[str, Any] = {"seed": 0, "device": "cpu", "policy_kwargs": kwargs}
    if algo in OFF_POLICY:
        settings |= {"buffer_size": 400, "learning_starts": 8, "batch_size": 8, "train_freq": 1}
    elif algo == "ppo":
        settings |= {"n_steps": 8, "batch_size": 8, "n_epochs": 2}
    if algo == "dqn":
        settings |= {"target_update_interval": 40}
    return ALGORITHMS[algo](_POLICIES[observation], env, **{**settings, **options})


def state_of(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    """Every tensor of the policy, copied."""
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that differ by at least a bit."""
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
