"""SB3's private attributes: each accessor against what public calls show."""

import re

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer

from fire_rl.sb3 import internals
from tests.helpers.models import make_model


class Seen(BaseCallback):
    """What the accessors say at each step."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def _on_step(self):
        self.rows.append(
            (
                self.num_timesteps,
                internals.total_timesteps(self.model),
                internals.steps_at_start(self.model),
                internals.progress_remaining(self.model),
            )
        )
        return True


def test_totals_and_progress_of_a_second_call_of_learn():
    model = make_model("ppo")
    model.learn(32)
    seen = Seen()
    model.learn(64, callback=seen, reset_num_timesteps=False)
    assert {row[1] for row in seen.rows} == {96}
    assert {row[2] for row in seen.rows} == {32}
    internals.set_steps_at_start(model, 7)
    assert internals.steps_at_start(model) == 7
    # SB3 updates it after each rollout of 16 steps: what is left of the total.
    assert [row[3] for row in seen.rows][-1] == pytest.approx(1 - 80 / 96)


def test_what_the_next_rollout_goes_on_from_can_be_set():
    """The first observation that a rollout stores is the one that was set."""
    model = make_model("ppo")
    model.learn(16)
    shape = (model.n_envs, *model.observation_space.shape)
    mine = np.full(shape, 0.25, np.float32)
    internals.set_last_observations(model, mine)
    internals.set_last_episode_starts(model, np.zeros(model.n_envs, bool))
    model.learn(16, reset_num_timesteps=False)
    rows = model.rollout_buffer.observations.reshape(2, 8, -1)  # training has sorted it by copies
    np.testing.assert_array_equal(rows[:, 0], mine)
    assert not model.rollout_buffer.episode_starts[0].any()


def test_the_original_observations_are_those_that_a_replay_buffer_stores():
    env = VecNormalize(make_model("sac").env)
    model = SAC(
        "MlpPolicy", env, learning_starts=100, buffer_size=50, policy_kwargs={"net_arch": [4]}
    )
    model.learn(4)
    mine = np.full((2, *model.observation_space.shape), 0.5, np.float32)
    internals.set_last_original_observations(model, mine)
    model.learn(2, reset_num_timesteps=False)
    assert any(np.array_equal(row, mine) for row in model.replay_buffer.observations)
    internals.set_vec_normalize(model, None)
    assert model.get_vec_normalize_env() is None


def test_variables_beside_the_state_dicts():
    assert internals.saved_variables(make_model("sac")) == ["log_ent_coef"]
    assert internals.saved_variables(make_model("ppo")) == []


def test_the_distribution_from_the_actors_latent_is_that_of_the_policy():
    model = make_model("ppo")
    seen = torch.randn(5, *model.observation_space.shape)
    latent = model.policy.mlp_extractor.forward_actor(model.policy.extract_features(seen))
    ours = internals.action_distribution(model.policy, latent).distribution.mean.clone()
    torch.testing.assert_close(ours, model.policy.get_distribution(seen).distribution.mean)


class Reach(gym.Env):
    """A goal, and episodes of five steps."""

    def __init__(self):
        box = spaces.Box(-1, 1, (2,))
        self.observation_space = spaces.Dict(
            dict.fromkeys(("observation", "achieved_goal", "desired_goal"), box)
        )
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 0.0, False, self.steps == 5, {}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return np.zeros(len(achieved_goal))


def test_episode_starts_of_a_hindsight_buffer_move_on_with_each_episode():
    model = DQN("MultiInputPolicy", Reach(), replay_buffer_class=HerReplayBuffer, buffer_size=50)
    starts = internals.current_episode_starts(model.replay_buffer)
    assert starts.tolist() == [0]
    model.learn(12)
    assert starts.tolist() == [10]  # the array itself: two episodes of five steps are complete


def test_the_event_file_is_the_one_that_grows(tmp_path):
    output = TensorBoardOutputFormat(str(tmp_path))
    output.write({"a": 1.0}, {"a": ()}, 1)
    output.writer.flush()
    (path,) = tmp_path.iterdir()
    assert internals.event_file(output) == path.name


def test_methods_that_our_subclasses_override_or_call_are_there():
    assert callable(ReplayBuffer._maybe_cast_dtype)
    assert {"_get_samples"} <= set(vars(ReplayBuffer)) & set(vars(NStepReplayBuffer))
    assert NStepReplayBuffer.__mro__[1] is ReplayBuffer
    for hook in ("_init_callback", "_on_training_start", "_on_rollout_start", "_on_step",
                 "_on_rollout_end", "_on_training_end"):  # fmt: skip
        assert callable(getattr(BaseCallback, hook))


def test_another_version_is_named_when_an_attribute_is_missing():
    model = PPO.__new__(PPO)
    line = f"stable-baselines3 {stable_baselines3.__version__} has no `PPO._total_timesteps`"
    with pytest.raises(RuntimeError, match=re.escape(line)):
        internals.total_timesteps(model)
    with pytest.raises(RuntimeError, match=r"has no `PPO\._last_obs`"):
        internals.set_last_observations(model, None)
