"""Real SB3 models for the tests: every algorithm and kind of policy, tiny."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

OFF_POLICY = {"dqn": DQN, "sac": SAC, "td3": TD3, "ddpg": DDPG}
CONTRIB_OFF_POLICY = {"qrdqn": QRDQN, "tqc": TQC, "crossq": CrossQ}
CONTRIB_ON_POLICY = {"trpo": TRPO, "recurrent_ppo": RecurrentPPO, "maskable_ppo": MaskablePPO}
ALGORITHMS: dict[str, Any] = {"ppo": PPO, "a2c": A2C, **OFF_POLICY}
EVERY_ALGORITHM: dict[str, Any] = {**ALGORITHMS, **CONTRIB_OFF_POLICY, **CONTRIB_ON_POLICY}
ON_POLICY = ("ppo", "a2c", *CONTRIB_ON_POLICY)
Q_NETWORKS = ("dqn", "qrdqn")  # the one role is `critic`
STOCHASTIC = ("ppo", "a2c", "sac", "tqc", "crossq", *CONTRIB_ON_POLICY)
_DISCRETE = (*Q_NETWORKS, "maskable_ppo")
# RecurrentPPO's LSTM is left as it is, and so are the units that it reads, which warnings say.
IGNORE_LSTM = (
    "ignore:(`lstm_.*weights are left as they are|ReDo leaves .*neither linear nor):UserWarning"
)

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

    def __init__(
        self,
        observation: str | spaces.Space = "mlp",
        discrete: bool = False,
        action: spaces.Space | None = None,
    ) -> None:
        space = _SPACES[observation] if isinstance(observation, str) else observation
        self.observation_space = space
        box = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = action or (spaces.Discrete(3) if discrete else box)
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

    def action_masks(self):
        """For MaskablePPO: the last action is valid in every other step."""
        return [True] * (_num_choices(self.action_space) - 1) + [self._steps % 2 == 0]


def _num_choices(space: spaces.Space) -> int:
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return 2 * space.n if isinstance(space, spaces.MultiBinary) else int(space.n)


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
    observation: str | spaces.Space = "mlp",
    *,
    action: spaces.Space | None = None,
    policy: Any = None,
    env: VecEnv | None = None,
    n_envs: int = 2,
    policy_kwargs: dict[str, Any] | None = None,
    tiny_images: bool = True,
    **options: Any,
) -> BaseAlgorithm:
    """Build a model on :class:`RandomEnv`, or another, that learns from the first steps on."""
    discrete = algo in _DISCRETE
    of_env = {"observation": observation, "discrete": discrete, "action": action}
    env = env or make_vec_env(RandomEnv, n_envs, env_kwargs=of_env)
    observation = _kind(env.observation_space)
    kwargs: dict[str, Any] = {"net_arch": [16, 12], **(policy_kwargs or {})}
    if observation == "cnn" and tiny_images:
        kwargs.setdefault("features_extractor_class", TinyExtractor)
    elif observation == "dict":
        kwargs.setdefault("features_extractor_kwargs", {"cnn_output_dim": 16})
    settings: dict[str, Any] = {"seed": 0, "device": "cpu", "policy_kwargs": kwargs}
    if algo in {**OFF_POLICY, **CONTRIB_OFF_POLICY}:
        settings |= {"buffer_size": 400, "learning_starts": 8, "batch_size": 8, "train_freq": 1}
    elif algo != "a2c":
        settings |= {"n_steps": 8, "batch_size": 8}
        settings |= {"n_critic_updates": 2} if algo == "trpo" else {"n_epochs": 2}
    if algo in Q_NETWORKS:
        settings |= {"target_update_interval": 40}
    if algo in ("qrdqn", "tqc"):
        kwargs.setdefault("n_quantiles", 5)
    if policy is not None:
        return EVERY_ALGORITHM[algo](policy, env, **{**settings, **options})
    policy = _POLICIES[observation]
    if algo == "crossq":  # has the one policy, which takes any extractor, but no mappings
        policy = "MlpPolicy"
    elif algo == "recurrent_ppo":
        kwargs.setdefault("lstm_hidden_size", 8)
        policy = policy.replace("Policy", "LstmPolicy")
    return EVERY_ALGORITHM[algo](policy, env, **{**settings, **options})


def _kind(space: spaces.Space) -> str:
    if isinstance(space, spaces.Dict):
        return "dict"
    return "cnn" if len(space.shape or ()) == 3 else "mlp"


def state_of(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    """Every tensor of the policy, copied."""
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that differ by at least a bit."""
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
