"""Environments: the right wrappers for each kind, raw returns, honest evaluation."""

import builtins
import importlib.util

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import AtariWrapper, StickyActionEnv
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from envs import atari, check_env, frames_per_second, make_vec_env, normalize_options


def play_until_game_over(venv, action, limit=5_000):
    """Return the clipped rewards, the episode ends and Monitor's record of the first game."""
    venv.reset()
    rewards, ends = [], 0
    for _ in range(limit):
        _, reward, done, infos = venv.step(np.full(venv.num_envs, action))
        rewards.append(float(reward[0]))
        ends += int(done[0])
        if "episode" in infos[0]:
            return rewards, ends, infos[0]["episode"]
    raise AssertionError("the game never ended")


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "PongNoFrameskip-v4"])
def test_atari_ids_get_the_same_preprocessing(env_id):
    venv = make_vec_env(env_id, n_envs=2, seed=0)
    assert venv.reset().shape == (2, 4, 84, 84)
    assert venv.observation_space.dtype == np.uint8
    raw = venv.get_attr("unwrapped")[0]
    assert raw._frameskip == 1
    assert raw.ale.getFloat("repeat_action_probability") == 0.0
    assert venv.env_is_wrapped(AtariWrapper) == [True, True]
    # Four frames an agent step (and a few more at the start: no-ops and FIRE).
    before = raw.ale.getEpisodeFrameNumber()
    venv.step(np.zeros(2, int))
    assert raw.ale.getEpisodeFrameNumber() - before == 4
    venv.close()


def test_training_clips_rewards_and_ends_at_a_lost_life_but_logs_the_raw_game():
    venv = make_vec_env("ALE/MsPacman-v5", seed=1, env_options={"noop_max": 1})
    rewards, ends, episode = play_until_game_over(venv, action=2)
    assert set(rewards) <= {-1.0, 0.0, 1.0}
    assert ends == 3  # lives
    assert episode["r"] >= 10 * sum(rewards) > 0  # a pill is worth ten points
    venv.close()


def test_evaluation_plays_whole_games_with_raw_rewards():
    venv = make_vec_env("ALE/MsPacman-v5", seed=1, training=False)
    rewards, ends, episode = play_until_game_over(venv, action=2)
    assert ends == 1
    assert sum(rewards) == episode["r"] > max(rewards) > 1
    venv.close()


def test_evaluation_presses_fire_after_a_lost_life():
    # An agent whose training always starts with the ball in play never learns to serve.
    venv = make_vec_env("ALE/Breakout-v5", seed=0, training=False)
    _, ends, _ = play_until_game_over(venv, action=0, limit=1_000)
    assert ends == 1
    venv.close()
    venv = make_vec_env(
        "ALE/Breakout-v5", training=False, env_options={"terminal_on_life_loss": False}
    )
    assert venv.env_is_wrapped(atari.PressFireAfterLifeLoss) == [False]
    venv.close()


@pytest.mark.parametrize("training", [True, False])
def test_sticky_actions_are_the_same_in_training_and_evaluation(training):
    venv = make_vec_env("ALE/Pong-v5", training=training, env_options={"sticky_actions": 0.25})
    env = unwrap_wrapper(venv.envs[0], StickyActionEnv)
    assert env.action_repeat_probability == 0.25
    venv.close()


def test_frame_stack_and_screen_size():
    venv = make_vec_env("ALE/Pong-v5", frame_stack=2, env_options={"screen_size": 42})
    assert venv.observation_space.shape == (2, 42, 42)
    venv.close()


def test_plain_environment_with_frame_stack():
    venv = make_vec_env("CartPole-v1", n_envs=3, frame_stack=2)
    assert venv.reset().shape == (3, 8)
    venv.close()


def test_time_limit_is_an_option_of_every_environment():
    venv = make_vec_env("Pendulum-v1", env_options={"max_episode_steps": 3})
    venv.reset()
    assert [bool(venv.step(np.zeros((1, 1)))[2][0]) for _ in range(3)] == [False, False, True]
    venv.close()


def test_normalisation_stands_still_in_evaluation():
    training = make_vec_env("Pendulum-v1", normalize=True, gamma=0.9)
    assert isinstance(training, VecNormalize)
    assert (training.training, training.norm_obs, training.norm_reward) == (True, True, True)
    assert training.gamma == 0.9
    evaluation = make_vec_env("Pendulum-v1", normalize=True, training=False)
    assert evaluation.norm_obs
    assert not evaluation.training
    assert not evaluation.norm_reward
    only = make_vec_env("Pendulum-v1", normalize={"norm_obs": True, "norm_reward": False})
    assert only.norm_obs
    assert not only.norm_reward


def test_same_seed_same_episodes():
    def rollout(seed):
        venv = make_vec_env("CartPole-v1", n_envs=2, seed=seed)
        observations = [venv.reset()]
        observations += [venv.step(np.array([0, 1]))[0] for _ in range(20)]
        return np.array(observations)

    np.testing.assert_array_equal(rollout(3), rollout(3))
    assert not np.array_equal(rollout(3), rollout(4))


def test_subprocess_environments():
    venv = make_vec_env("CartPole-v1", n_envs=2, seed=0, vec_env="subproc")
    assert isinstance(venv, SubprocVecEnv)
    assert venv.reset().shape == (2, 4)
    venv.close()


def test_third_party_module_is_imported_first(tmp_path, monkeypatch):
    (tmp_path / "my_games.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('MyCartPole-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    venv = make_vec_env("MyCartPole-v0", imports=["my_games"])
    assert venv.reset().shape == (1, 4)
    del gym.registry["MyCartPole-v0"]
    with pytest.raises(ImportError, match="'my_gamess', which cannot be imported"):
        check_env("MyCartPole-v0", imports=["my_gamess"])


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("ALE/Breakot-v5", {}, "Did you mean 'ALE/Breakout-v5'"),
        ("HalfCheeta-v5", {}, "Did you mean 'HalfCheetah-v5'"),
        ("Nonsense", {}, "is not a registered environment.*imports"),
        ("ALE/Pong-v5", {"sticky_action": 0.1}, "Did you mean 'sticky_actions'"),
        ("ALE/Pong-v5", {"frameskip": 4}, "unknown key 'frameskip'.*Did you mean 'frame_skip'"),
        ("CartPole-v1", {"gravity": 3}, "unknown key 'gravity'"),
    ],
)
def test_bad_environment_says_what_is_near(env_id, options, message):
    with pytest.raises(ValueError, match=message):
        check_env(env_id, options)


@pytest.mark.parametrize("value", [{"norm_ob": True}, 3, "yes"])
def test_bad_normalisation(value):
    with pytest.raises(ValueError, match="`normalize`"):
        normalize_options(value)


@pytest.mark.parametrize(
    ("module", "package"), [("ale_py", "ale-py"), ("cv2", "opencv-python-headless")]
)
def test_missing_atari_package_names_the_extra(monkeypatch, module, package):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find_spec(name)
    )
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'fire-rl\[atari\]'"):
        check_env("ALE/Pong-v5")


def test_missing_mujoco_names_the_extra(monkeypatch):
    real_import = builtins.__import__

    def without_mujoco(name, *args, **kwargs):
        if name.partition(".")[0] == "mujoco":
            raise ImportError("No module named 'mujoco'")
        return real_import(name, *args, **kwargs)

    import sys

    for name in [n for n in sys.modules if n.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mujoco" else find_spec(name)
    )
    monkeypatch.setattr(builtins, "__import__", without_mujoco)
    with pytest.raises(ImportError, match=r"HalfCheetah-v5.*pip install 'fire-rl\[mujoco\]'"):
        make_vec_env("HalfCheetah-v5")


def test_video_speed_is_real_time():
    assert frames_per_second("ALE/Pong-v5", {}, None) == 15
    assert frames_per_second("ALE/Pong-v5", {"frame_skip": 2}, None) == 30
    assert frames_per_second("CartPole-v1", {}, make_vec_env("CartPole-v1")) == 50
