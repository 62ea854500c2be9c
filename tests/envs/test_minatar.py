"""MinAtar: the package's own games, as images that SB3 and exact checkpoints understand."""

import copy
import importlib.util

import numpy as np
import pytest
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage

from agents import make_agent
from agents.networks import MinAtarCNN, XavierCnnPolicy
from envs import check_env, frames_per_second, image_stack, make_vec_env
from envs.minatar import GAMES, make_game
from fire_rl.checkpoints.env_state import capture_env, restore_env
from tests.helpers.resuming import assert_same_buffer, train

IDS = [f"MinAtar/{game.title().replace('_', '')}-v1" for game in GAMES]


def packaged(game, seed):
    from minatar import Environment

    env = Environment(game)
    env.seed(seed)
    env.reset()
    return env


@pytest.mark.parametrize("game", GAMES)
def test_same_game_as_in_the_package(game):
    ours, theirs = make_game(game, True), packaged(game, 5)
    seen, _ = ours.reset(seed=5)
    actions, choose = theirs.minimal_action_set(), np.random.default_rng(0)
    for _ in range(400):
        np.testing.assert_array_equal(seen, 255 * theirs.state().transpose(2, 0, 1))
        action = choose.integers(len(actions))
        seen, reward, is_over, truncated, _ = ours.step(action)
        assert (reward, is_over) == theirs.act(actions[action])
        assert not truncated
        if is_over:
            seen, _ = ours.reset()
            theirs.reset()


@pytest.mark.parametrize("env_id", IDS)
def test_observations_are_images_channels_first(env_id):
    venv = make_vec_env(env_id, n_envs=2, seed=0)
    space = venv.observation_space
    assert is_image_space(space)
    assert is_image_space_channels_first(space)
    assert not isinstance(venv, VecTransposeImage)
    seen = venv.reset()
    assert seen.shape == (2, *space.shape)
    assert set(np.unique(seen)) == {0, 255}
    agent = {"buffer_size": 10, "policy_kwargs": {"features_extractor_class": "MinAtarCNN"}}
    model = make_agent("dqn", venv, agent)
    assert model.observation_space.shape == space.shape == (space.shape[0], 10, 10)
    tensor, _ = model.policy.obs_to_tensor(seen)
    assert tensor.shape == seen.shape
    venv.close()


@pytest.mark.filterwarnings("ignore:The minimal resolution")
def test_sb3_has_nothing_to_complain_about():
    sb3_check_env(make_game("breakout", True, render_mode="rgb_array"))


def test_versions_options_and_frame_stack():
    assert make_vec_env("MinAtar/Breakout-v0").action_space.n == 6
    assert make_vec_env("MinAtar/Breakout-v1").action_space.n == 3
    options = {"sticky_actions": 0.25, "difficulty_ramping": False, "max_episode_steps": 7}
    venv = make_vec_env("MinAtar/Asterix-v1", env_options=options, frame_stack=2)
    assert venv.observation_space.shape == (8, 10, 10)
    assert image_stack(venv) == (2, 8)
    assert venv.get_attr("sticky_actions") == [0.25]
    assert venv.get_attr("ramping") == [False]
    venv.reset()
    assert [bool(venv.step([0])[2][0]) for _ in range(7)] == [False] * 6 + [True]
    assert make_vec_env("MinAtar/Seaquest-v1").get_attr("spec")[0].max_episode_steps == 27_000


def test_sticky_actions_repeat_the_last_one():
    def moves(probability):
        env = make_game("breakout", True, probability)
        env.reset(seed=0)
        before = env.pos
        env.step(1)  # left
        return before - env.pos

    assert (moves(0.0), moves(1.0)) == (1, 0)


def rollout(seed, n_envs=2, steps=100, **options):
    venv = make_vec_env("MinAtar/SpaceInvaders-v1", n_envs=n_envs, seed=seed, **options)
    seen = [venv.reset()]
    seen += [venv.step(np.full(n_envs, k % 4))[0] for k in range(steps)]
    venv.close()
    return np.array(seen)


def test_same_seed_same_game_in_training_and_evaluation():
    one = rollout(3)
    np.testing.assert_array_equal(one, rollout(3))
    np.testing.assert_array_equal(one, rollout(3, training=False))
    assert not np.array_equal(one[:, 0], one[:, 1])


def test_worker_processes_play_the_same():
    options = {"n_envs": 1, "steps": 20}
    np.testing.assert_array_equal(rollout(3, vec_env="subproc", **options), rollout(3, **options))


@pytest.mark.parametrize("env_id", IDS)
def test_state_can_be_put_back(env_id):
    (env,), (other,) = (make_vec_env(env_id, seed=seed).envs for seed in (0, 1))
    choose = np.random.default_rng(0)

    def play(games, steps):
        for _ in range(steps):
            action = choose.integers(env.action_space.n)
            results = [game.step(action) for game in games]
            np.testing.assert_array_equal(results[0][0], results[-1][0])
            assert results[0][1:4] == results[-1][1:4]
            if results[0][2]:
                for game in games:
                    game.reset()

    env.reset(seed=0)
    other.reset(seed=1)
    play([env], 150)
    restore_env(other, copy.deepcopy(capture_env(env)))  # a checkpoint's file is a copy, too
    play([env, other], 150)


def test_resumed_training_is_the_same_to_the_bit(tmp_path):
    def make():
        env = make_vec_env("MinAtar/Asterix-v1", n_envs=2, seed=0)
        kwargs = {"features_extractor_class": MinAtarCNN, "net_arch": []}
        return DQN(
            XavierCnnPolicy, env, seed=0, policy_kwargs=kwargs, buffer_size=200,
            learning_starts=50, train_freq=2, target_update_interval=50,
        )  # fmt: skip

    whole, steps, _ = train(make, tmp_path / "whole", 512, 128)
    _, first, _ = train(make, tmp_path / "cut", 512, 128, stop=300)
    resumed, second, _ = train(make, tmp_path / "cut", 512, 128, resume=True)
    assert min(second) > 256
    assert {**first, **second} == steps
    for name, tensor in whole.policy.state_dict().items():
        assert tensor.equal(resumed.policy.state_dict()[name]), name
    assert_same_buffer(whole.replay_buffer, resumed.replay_buffer)


def test_video_frames():
    venv = make_vec_env("MinAtar/Seaquest-v1", seed=0, render_mode="rgb_array")
    venv.reset()
    image = venv.render()
    assert image.shape == (160, 160, 3)
    assert image.dtype == np.uint8
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 2
    assert frames_per_second("MinAtar/Seaquest-v1", {}, venv) == 20


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("MinAtar/Breakot-v1", {}, "Did you mean 'MinAtar/Breakout-v1'"),
        ("MinAtar/Breakout-v1", {"sticky_action": 0.1}, "Did you mean 'sticky_actions'"),
        ("MinAtar/Breakout-v1", {"sticky_actions": 2}, "is a probability, from 0 to 1, got 2"),
    ],
)
def test_bad_environment_says_what_is_near(env_id, options, message):
    with pytest.raises(ValueError, match=message):
        check_env(env_id, options)


def test_missing_package_names_the_extra(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "minatar" else find_spec(name)
    )
    with pytest.raises(ImportError, match=r"minatar.*pip install 'fire-rl\[minatar\]'"):
        check_env("MinAtar/Breakout-v1")
    with pytest.raises(ValueError, match="Did you mean 'CartPole-v1'"):  # others still work
        check_env("CartPol-v1")


def test_images_too_small_for_nature_cnn_are_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"at least 36×36, got 10×10.*=MinAtarCNN"):
        make_agent("dqn", make_vec_env("MinAtar/Breakout-v1"), {"buffer_size": 10})
