"""Wrappers that a configuration names, and environments whose constructors know less than most."""

import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeAwareObservation
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import is_wrapped, unwrap_wrapper
from stable_baselines3.common.evaluation import evaluate_policy

from envs import check_env, make_vec_env, read_wrappers
from envs.continual import TaskSequence
from envs.wrappers import check_wrappers

HISTORY = "rl_zoo3.wrappers.HistoryWrapper"
SKIP = "rl_zoo3.wrappers.FrameSkip"
TIME = "gymnasium.wrappers.TimeAwareObservation"


class Plain(gym.Env):
    """No constructor at all."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(3).astype(np.float32), {}

    def step(self, action):
        return self.np_random.random(3).astype(np.float32), 0.0, False, False, {}


class Sized(Plain):
    def __init__(self, size=3):
        self.size = size


class Passing(Sized):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Drawn(Plain):
    def __init__(self, render_mode="human"):
        assert render_mode is None  # no window opens in a training


class Broken(Plain):
    def __init__(self):
        raise TypeError("broken inside")


ENTRY_POINTS = {
    "Plain": Plain,
    "Sized": Sized,
    "Passing": Passing,
    "Drawn": Drawn,
    "Function": lambda: Plain(),
    "Partial": functools.partial(Sized, size=4),
    "Path": "tests.envs.test_wrappers:Sized",
    "Broken": Broken,
}


@pytest.fixture(autouse=True, scope="module")
def _registered():
    for name, entry_point in ENTRY_POINTS.items():
        gym.register(f"Ours/{name}-v0", entry_point)
    yield
    for name in ENTRY_POINTS:
        del gym.registry[f"Ours/{name}-v0"]


@pytest.mark.filterwarnings("ignore:The constructor of Ours/:UserWarning")
@pytest.mark.parametrize("name", [name for name in ENTRY_POINTS if name != "Broken"])
def test_a_constructor_needs_no_render_mode(name):
    venv = make_vec_env(f"Ours/{name}-v0", n_envs=2, seed=0)
    assert venv.reset().shape == (2, 3)
    venv.close()


def test_an_environment_without_render_mode_in_worker_processes():
    imports = ["tests.envs.registering"]
    options = {"env_options": {"size": 5}, "imports": imports}
    with pytest.warns(UserWarning, match="`--play --video` cannot record it") as said:
        venv = make_vec_env("Worker-v0", n_envs=2, vec_env="subproc", **options)
    assert len(said) == 1
    assert venv.get_attr("size") == [5, 5]
    venv.close()


@pytest.mark.filterwarnings("ignore:The constructor of Ours/:UserWarning")
@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
def test_what_is_wrong_is_said_before_workers_start(vec_env):
    with pytest.raises(ValueError, match=r"Ours/Broken-v0 cannot be made: TypeError: broken"):
        make_vec_env("Ours/Broken-v0", vec_env=vec_env)
    with pytest.raises(ValueError, match=r"`env_wrapper` \S+HistoryWrapper does not fit .*Assert"):
        make_vec_env("Ours/Plain-v0", vec_env=vec_env, env_wrapper=[{HISTORY: {}}])


def test_options_and_drawing_that_do_not_fit():
    with pytest.raises(ValueError, match="`env_options` does not fit Ours/Passing-v0"):
        make_vec_env("Ours/Passing-v0", env_options={"sise": 3})
    with pytest.raises(ValueError, match="`env_options` has an unknown key 'sise'"):
        check_env("Ours/Sized-v0", {"sise": 3})
    message = r"Ours/Sized-v0 cannot be drawn: .* no `render_mode`"
    with pytest.warns(UserWarning, match="render_mode"), pytest.raises(ValueError, match=message):
        make_vec_env("Ours/Sized-v0", render_mode="rgb_array")


def test_an_environment_that_has_moved_says_so_and_names_the_newest():
    with pytest.raises(
        ImportError, match=r"moved to the gymnasium-robotics .* Here it is Hopper-v5"
    ):
        check_env("Hopper-v2")


def test_wrappers_are_applied_in_order():
    wrappers = read_wrappers([{SKIP: {"skip": 4}}, TIME, {HISTORY: {"horizon": 3}}])
    venv = make_vec_env("Pendulum-v1", env_wrapper=wrappers)
    assert venv.observation_space.shape == (3 * (3 + 1) + 3 * 1,)
    venv.reset()
    for _ in range(50):
        _, _, done, infos = venv.step(np.zeros((1, 1)))
    assert done[0]
    assert infos[0]["episode"]["l"] == 200  # the Monitor counts the environment's own steps
    venv.close()


def test_wrappers_stand_between_ataris_and_the_tasks():
    venv = make_vec_env("ALE/Pong-v5", env_wrapper=[{SKIP: {"skip": 2}}],
                        tasks={"change": "actions", "every": 100})  # fmt: skip
    (env,) = venv.envs
    assert is_wrapped(unwrap_wrapper(env, TaskSequence), type(unwrap_by_name(env, "FrameSkip")))
    assert is_wrapped(unwrap_by_name(env, "FrameSkip"), type(unwrap_by_name(env, "WarpFrame")))
    venv.close()
    venv = make_vec_env("CartPole-v1", env_wrapper=read_wrappers(TIME))
    assert venv.env_is_wrapped(TimeAwareObservation) == [True]
    venv.close()


def unwrap_by_name(env, name):
    while type(env).__name__ != name:
        env = env.env
    return env


def test_all_faults_of_wrappers_at_once():
    with pytest.raises(ValueError, match="`env_wrapper`") as caught:
        check_wrappers(read_wrappers(["no.Such", {SKIP: {"skp": 1}}, "rl_zoo3.wrappers.FrameSki"]))
    expected = (
        "the module 'no', which",
        "FrameSkip: got an unexpected",
        "Did you mean 'FrameSkip'",
    )
    assert all(text in str(caught.value) for text in expected), caught.value
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("value", [3, [{"a.B": {}, "c.D": {}}], [["a.B"]], {"a.B": [1]}, {3: {}}])
def test_wrappers_of_another_shape(value):
    with pytest.raises(ValueError, match="`env_wrapper`"):
        read_wrappers(value)
    assert read_wrappers(None) == read_wrappers([]) == []


def test_an_episode_that_a_wrapper_ends_is_reported():
    """SB3's evaluate_policy waits for Monitor's report; TimeLimit stands outside of it."""
    limit = {"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 5}}
    model = PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", seed=0), n_steps=32, batch_size=32, device="cpu"
    )
    venv = make_vec_env("CartPole-v1", seed=0, env_wrapper=[limit], training=False)
    returns, lengths = evaluate_policy(model, venv, 3, return_episode_rewards=True)
    assert (returns, lengths) == ([5.0] * 3, [5] * 3)
    venv.close()
