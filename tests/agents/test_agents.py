"""Agents: SB3's signature is the only list of hyper-parameters."""

import numpy as np
import pytest
import torch
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.her import HerReplayBuffer
from torch import nn

from agents import ALGORITHMS, load_agent, make_agent
from agents.algorithms import check_agent, hyperparameters
from agents.classes import dotted_names, find_class
from agents.make import _check_memory
from envs import make_vec_env
from fire_rl import FrameReplayBuffer


def tiny_env(env_id="CartPole-v1", **options):
    return make_vec_env(env_id, seed=0, **options)


# ---------------------------------------------------------------------------- hyper-parameters


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_argument_of_sb3_is_a_hyperparameter_except_those_of_the_run(algo):
    names = hyperparameters(algo)
    assert {"policy", "learning_rate", "gamma", "policy_kwargs"} <= set(names)
    assert not {"env", "seed", "device", "verbose", "tensorboard_log", "action_noise"} & set(names)
    assert ("noise_type" in names) == (algo in ("sac", "td3", "ddpg", "tqc", "crossq"))


def test_policies_of_contrib_algorithms_fit_the_observations():
    env = tiny_env()
    small = {"policy_kwargs": {"net_arch": [8], "lstm_hidden_size": 4}}
    model = make_agent("recurrent_ppo", env, small, seed=0)
    assert type(model.policy).__name__ == "RecurrentActorCriticPolicy"
    with pytest.raises(ValueError, match=r"crossq has no CnnPolicy for Box.*it has MlpPolicy"):
        make_agent("crossq", tiny_env("ALE/Pong-v5"))


def test_masks_come_from_the_environment_or_from_its_infos():
    with pytest.raises(ValueError, match=r"needs an environment.*`action_masks\(\)`.*--algo ppo"):
        make_agent("maskable_ppo", tiny_env())
    env = tiny_env("Taxi-v4", action_masks=True, n_envs=2)
    model = make_agent("maskable_ppo", env, {"n_steps": 16, "batch_size": 16}, seed=0)
    seen = model.learn(16).rollout_buffer.action_masks
    assert seen.shape == (32, 6)
    assert 0 < seen.mean() < 1
    assert all(env.env_method("action_masks")[0] == env.get_attr("unwrapped")[0].action_mask(
        env.get_attr("unwrapped")[0].s))  # fmt: skip
    env = tiny_env(action_masks=True)
    model = make_agent("maskable_ppo", env)
    with pytest.raises(ValueError, match=r"CartPole.* says nowhere which actions are valid"):
        model.learn(16)


@pytest.mark.parametrize(
    ("algo", "given", "expected"),
    [
        ("dqn", {"learning_rate": "1e-3"}, {"learning_rate": 1e-3}),  # PyYAML reads it as text
        ("dqn", {"buffer_size": 1e5}, {"buffer_size": 100_000}),
        ("dqn", {"buffer_size": "1e5"}, {"buffer_size": 100_000}),
        ("dqn", {"train_freq": [1, "episode"]}, {"train_freq": [1, "episode"]}),
        ("ppo", {"clip_range": "lin_0.1"}, {"clip_range": "lin_0.1"}),
        ("ppo", {"clip_range_vf": None}, {"clip_range_vf": None}),
        ("ppo", {"clip_range_vf": "lin_0.1"}, {"clip_range_vf": "lin_0.1"}),
        (
            "ppo",
            {"policy_kwargs": {"net_arch": [{"pi": [8], "vf": [4]}], "activation_fn": "nn.ReLU"}},
            {"policy_kwargs": {"net_arch": {"pi": [8], "vf": [4]}, "activation_fn": "nn.ReLU"}},
        ),
        ("sac", {"ent_coef": "auto_0.1"}, {"ent_coef": "auto_0.1"}),
        ("sac", {"ent_coef": 0.2}, {"ent_coef": 0.2}),
        ("ppo", {"target_kl": "1e-2"}, {"target_kl": 0.01}),
        (
            "ppo",
            {"policy_kwargs": {"log_std_init": "-2", "optimizer_kwargs": {"eps": "1e-5"}}},
            {"policy_kwargs": {"log_std_init": -2.0, "optimizer_kwargs": {"eps": 1e-5}}},
        ),
    ],
)  # fmt: skip
def test_values_become_what_sb3_declares(algo, given, expected):
    converted = check_agent(algo, given)
    assert converted == expected
    assert all(type(converted[k]) is type(expected[k]) for k in expected)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_takes_a_schedule_for_its_learning_rate(algo):
    given = {"learning_rate": "lin_7.3e-4"}
    assert check_agent(algo, given) == given
    with pytest.raises(ValueError, match="must be a number or a linear schedule such as lin_3e-4"):
        check_agent(algo, {"learning_rate": "linear_3"})


@pytest.mark.parametrize(
    ("argument", "name", "expected"),
    [
        ("activation_fn", "nn.ReLU", nn.ReLU),
        ("activation_fn", "th.nn.Tanh", nn.Tanh),
        ("activation_fn", "torch.nn.GELU", nn.GELU),
        ("optimizer_class", "th.optim.AdamW", torch.optim.AdamW),
        ("optimizer_class", "optim.SGD", torch.optim.SGD),
        ("optimizer_class", "RMSpropTFLike", RMSpropTFLike),
        ("replay_buffer_class", "HerReplayBuffer", HerReplayBuffer),
    ],
)
def test_classes_by_the_names_that_people_write(argument, name, expected):
    assert find_class(argument, name) is expected
    assert dotted_names({"policy_kwargs": {argument: name}}) == []
    assert dotted_names({argument: f"mine.{name}"}) == [f"mine.{name}"]


@pytest.mark.parametrize(
    ("algo", "given", "message"),
    [
        ("dqn", {"learning_rat": 1}, "Did you mean 'learning_rate'"),
        ("ppo", {"buffer_size": 1}, "`agent.buffer_size` is no hyper-parameter of ppo"),
        ("dqn", {"buffer_size": "many"}, "must be a whole number, got 'many'"),
        ("dqn", {"learning_rate": "lin_x"}, "linear schedule such as lin_3e-4, got 'lin_x'"),
        ("dqn", {"batch_size": "lin_32"}, "must be a whole number"),
        ("dqn", {"policy": "CnPolicy"}, "'CnnPolicy'"),
        ("dqn", {"seed": 1}, "set by `seed` of the run"),
        ("td3", {"noise_type": "norml", "noise_std": 1}, "'normal' or 'ornstein-uhlenbeck'"),
        ("td3", {"noise_std": 0.1}, "need each other"),
        ("td3", {"action_noise": "normal"}, "agent.noise_type"),
        ("ppo", {"policy_kwargs": "dict(net_arch=[64])"}, "must be a mapping.*never evaluated"),
        ("ppo", {"policy_kwargs": {"activation_fn": "nn.ReLUU"}}, "Did you mean 'ReLU'"),
        ("sac", {"replay_buffer_class": "HerReplayBufer"}, "Did you mean 'HerReplayBuffer'"),
        ("ppo", {"policy_kwargs": {"net_arh": [64]}}, "Did you mean 'net_arch'"),
        ("ppo", {"policy_kwargs": {"activation_fn": "relux"}}, "Did you mean 'ReLU'"),
        ("ppo", {"policy_kwargs": {"optimizer_class": "no.such.Adam"}}, "cannot be imported"),
        ("sac", {"replay_buffer_class": "Replay"}, "must be the name of a ReplayBuffer"),
    ],
)
def test_bad_hyperparameter_is_named(algo, given, message):
    with pytest.raises(ValueError, match=message):
        check_agent(algo, given)


# -------------------------------------------------------------------------------------- models


def test_policy_kwargs_by_name():
    policy_kwargs = {
        "net_arch": {"pi": [8], "vf": [4]},
        "activation_fn": "relu",
        "optimizer_class": "AdamW",
        "features_extractor_class": "stable_baselines3.common.torch_layers.FlattenExtractor",
    }
    model = make_agent("ppo", tiny_env(), {"policy_kwargs": policy_kwargs}, seed=0)
    assert isinstance(model.policy.mlp_extractor.policy_net[1], nn.ReLU)
    assert isinstance(model.policy.optimizer, torch.optim.AdamW)
    assert model.policy.mlp_extractor.value_net[0].out_features == 4


def test_zoo_words_for_noise_frequency_and_schedules():
    agent = {
        "noise_type": "ornstein-uhlenbeck",
        "noise_std": 0.3,
        "train_freq": [2, "episode"],
        "learning_rate": "lin_1e-3",
        "buffer_size": 100,
        "replay_buffer_class": "NStepReplayBuffer",
        "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.9},
    }
    model = make_agent("ddpg", tiny_env("Pendulum-v1"), agent)
    assert isinstance(model.action_noise, OrnsteinUhlenbeckActionNoise)
    assert model.train_freq.frequency == 2
    assert model.train_freq.unit.value == "episode"
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    assert model.lr_schedule(1.0) == pytest.approx(1e-3)
    assert model.lr_schedule(0.5) == pytest.approx(5e-4)
    assert isinstance(model.learning_rate, LinearSchedule)


@pytest.mark.parametrize(
    ("kind", "algo", "env_id"),
    [
        (DQN, "dqn", "CartPole-v1"),
        (PPO, "ppo", "CartPole-v1"),
        (SAC, "sac", "Pendulum-v1"),
        (TD3, "td3", "Pendulum-v1"),
        (DDPG, "ddpg", "Pendulum-v1"),
    ],
)
def test_zip_loads_with_plain_sb3(tmp_path, kind, algo, env_id):
    agent = {"learning_rate": "lin_1e-3", "policy_kwargs": {"activation_fn": "tanh"}}
    if algo != "ppo":
        agent["buffer_size"] = 100
    model = make_agent(algo, tiny_env(env_id), agent, seed=0)
    model.save(tmp_path / "model.zip")
    observation = np.zeros((1, *model.observation_space.shape), np.float32)
    expected, _ = model.predict(observation, deterministic=True)
    for loaded in (kind.load(tmp_path / "model.zip"), load_agent(algo, tmp_path / "model.zip")):
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
        assert loaded.lr_schedule(0.5) == pytest.approx(5e-4)


@pytest.mark.parametrize("algo", ["dqn", "ppo", "a2c"])
def test_convolutions_get_channels_last_and_fused_adam(algo, tmp_path):
    agent = {"buffer_size": 100, "learning_starts": 4} if algo == "dqn" else {"n_steps": 8}
    agent |= {"batch_size": 4} if algo != "a2c" else {}
    model = make_agent(algo, tiny_env("ALE/Pong-v5"), agent, seed=0)
    convolutions = [m for m in model.policy.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    group = model.policy.optimizer.param_groups[0]
    if algo == "a2c":  # RMSprop, as SB3 chooses
        assert "fused" not in group
    else:
        assert group["fused"] is True
        # SB3 gives PPO's Adam this eps only as long as nobody passes `optimizer_kwargs`.
        assert group["eps"] == (1e-5 if algo == "ppo" else 1e-8)
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    model.learn(16)
    assert any(not torch.equal(before[k], v) for k, v in model.policy.state_dict().items())
    model.save(tmp_path / "model.zip")
    ALGORITHMS[algo].load(tmp_path / "model.zip")


def test_fast_convolutions_can_be_switched_off():
    env = tiny_env("ALE/Pong-v5")
    plain = make_agent("ppo", env, {"n_steps": 8, "batch_size": 4}, fast_cnn=False)
    assert plain.policy.optimizer.param_groups[0]["fused"] is None
    agent = {"n_steps": 8, "batch_size": 4, "policy_kwargs": {"optimizer_kwargs": {"fused": False}}}
    assert make_agent("ppo", env, agent).policy.optimizer.param_groups[0]["fused"] is False


@pytest.mark.parametrize(
    ("algo", "env_id", "agent", "message"),
    [
        ("dqn", "Pendulum-v1", {"buffer_size": 10}, "dqn with MlpPolicy does not fit"),
        ("ppo", "CartPole-v1", {"policy": "CnnPolicy"}, "ppo with CnnPolicy does not fit"),
        ("dqn", "ALE/Pong-v5", {"buffer_size": 10**9}, "needs 56448 GB.*--set agent.buffer_size="),
    ],
)
def test_agent_that_does_not_fit_is_refused(algo, env_id, agent, message):
    with pytest.raises(ValueError, match=message):
        make_agent(algo, tiny_env(env_id), agent)


class CompactBuffer(FrameReplayBuffer):
    """Of somebody's own, by another name."""


class NoFrameReplayBuffer(ReplayBuffer):
    """Named like ours, and another class."""


@pytest.mark.parametrize(
    "name",
    [
        "fire_rl.FrameReplayBuffer",
        "fire_rl.sb3.frame_replay.framereplaybuffer",
        f"{__name__}.CompactBuffer",
    ],
)
def test_the_memory_of_a_frame_buffer_is_that_of_one_frame_a_step(name):
    """It is known by its class, whatever its name: one frame of four, and no next observation."""
    with pytest.raises(ValueError, match="needs 7056 GB"):  # a plain one: 56448
        make_agent("dqn", tiny_env("ALE/Pong-v5"),
                   {"buffer_size": 10**9, "replay_buffer_class": name})  # fmt: skip


def test_a_foreign_buffer_with_such_a_name_is_not_judged():
    kind = f"{__name__}.NoFrameReplayBuffer"
    agent = {"buffer_size": 10**13, "replay_buffer_class": kind}
    values = {**check_agent("dqn", agent), "policy": None}
    assert _check_memory("dqn", tiny_env("CartPole-v1"), values) is None
