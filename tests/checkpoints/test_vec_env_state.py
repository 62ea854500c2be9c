"""Vector environments: captured or named, and no worker dies of a question."""

import multiprocessing

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces, wrappers
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecNormalize,
)

from fire_rl import RunCheckpointCallback, StateAccess, TrainingStopped
from fire_rl.checkpoints.description import describe_vec_env
from fire_rl.checkpoints.vec_env_state import capture_vec_env, restore_vec_env


class Course(gym.Env):
    """Gets harder with every step, over the episodes."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, engine=None, settings=None):
        self.level, self.engine = 0, engine
        self.settings = {"pace": 1} if settings is None else settings

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        self.level += self.settings["pace"]
        seen = self.np_random.uniform(-1, 1, 2) * np.array([1, np.cos(self.level)])
        over = self.t >= 20
        return seen.astype(np.float32), float(action * (self.level % 5)), False, over, {}


def ppo(env):
    options = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
    return PPO("MlpPolicy", env, seed=0, device="cpu", **options)


def straight_and_resumed(make, folder, callbacks=list):
    """Train without a break, and with one; return both models."""
    whole = ppo(make())
    whole.learn(192, callback=[*callbacks(), RunCheckpointCallback(32, folder / "whole")])
    cut = RunCheckpointCallback(32, folder / "cut", stop_at=96)
    with pytest.raises(TrainingStopped):
        ppo(make()).learn(192, callback=[*callbacks(), cut])
    resumed = ppo(make())
    go_on = RunCheckpointCallback(32, folder / "cut", resume=True)
    resumed.learn(192, callback=[*callbacks(), go_on])
    return whole, resumed


def are_equal(one, two):
    both = zip(one.policy.state_dict().values(), two.policy.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in both)


# ------------------------------------------------------------------- beside what cannot be read


def test_statistics_and_curriculum_outlive_an_attribute_that_cannot_be_read(tmp_path, caplog):
    def make():
        inner = lambda: wrappers.NormalizeObservation(Course(engine=iter([])))  # noqa: E731
        return VecNormalize(DummyVecEnv([inner] * 3), norm_obs=False)

    whole, resumed = straight_and_resumed(make, tmp_path)
    named = "`Course.engine` is a builtins.list_iterator (environments 0 to 2)"
    (said,) = [r.getMessage() for r in caplog.records if "is not restored" in r.getMessage()]
    assert said.startswith(f"The environments' state is not restored completely: {named}. That ")
    assert "the episodes in progress are dropped and new ones begin" in said
    assert f"The environments' state cannot be saved completely: {named}." in caplog.text
    assert "everything else is exact" not in caplog.text
    for model in (whole, resumed):
        assert model.env.get_attr("level") == [64] * 3
        assert model.env.ret_rms.count == pytest.approx(192)
    extra = 2  # reset at the start of `learn`, and to begin the new episodes
    counts = [model.env.unwrapped.envs[0].obs_rms.count for model in (whole, resumed)]
    assert 0 <= counts[1] - counts[0] <= extra


def test_what_a_callback_and_the_environments_share_stays_shared(tmp_path):
    class Faster(BaseCallback):
        def __init__(self, settings):
            super().__init__()
            self.settings = settings

        def _on_step(self):
            self.settings["pace"] += 1
            return True

    given = {}

    def make():
        given["settings"] = {"pace": 1}
        return DummyVecEnv([lambda: Course(settings=given["settings"])] * 2)

    whole, resumed = straight_and_resumed(make, tmp_path, lambda: [Faster(given["settings"])])
    assert are_equal(whole, resumed)
    assert whole.env.get_attr("level") == resumed.env.get_attr("level") != [96, 96]


# ------------------------------------------------------------------------------ worker processes


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(m, marks=pytest.mark.full) for m in ("spawn", "forkserver"))]
)
def test_plain_worker_processes_live_on_and_are_named(method, tmp_path, caplog):
    def make():
        options = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": method}}
        return VecNormalize(make_vec_env(Course, 2, seed=0, **options), norm_obs=False)

    evaluation = make()
    callbacks = lambda: [  # noqa: E731
        EvalCallback(evaluation, eval_freq=24, n_eval_episodes=1, verbose=0)
    ]
    whole, resumed = straight_and_resumed(make, tmp_path, callbacks)
    assert "SubprocVecEnv keeps its environments in other processes" in caplog.text
    assert "wrap each of them in fire_rl.StateAccess" in caplog.text
    assert resumed.num_timesteps == 192
    assert resumed.env.ret_rms.count == whole.env.ret_rms.count
    for env in (whole.env, resumed.env, evaluation):
        assert env.get_attr("t") != []  # they answer
        env.close()


def step(env, number):
    """Take steps; return what was seen."""
    return [env.step([k % 2] * env.num_envs)[:3] for k in range(number)]


@pytest.mark.parametrize("outside", [False, True])
def test_wrapped_worker_processes_are_exact(outside, caplog):
    def make():
        env = StateAccess(Course())
        return wrappers.NormalizeObservation(env) if outside else env

    env, other = (SubprocVecEnv([make] * 2, start_method="fork") for _ in range(2))
    for each, steps, seed in ((env, 33, 0), (other, 4, 9)):
        each.seed(seed)
        each.reset()
        step(each, steps)
    assert restore_vec_env(other, capture_vec_env(env))
    for mine, others in zip(step(env, 25), step(other, 25), strict=True):
        for one, two in zip(mine, others, strict=True):
            np.testing.assert_array_equal(one, two)
    assert caplog.text == ""
    for each in (env, other):
        each.close()


def test_a_worker_that_has_an_unreadable_attribute_says_so(caplog):
    make = lambda: StateAccess(Course(engine=iter([])))  # noqa: E731
    env, other = (SubprocVecEnv([make] * 2, start_method="fork") for _ in range(2))
    env.reset()
    for _ in range(5):
        env.step([0, 1])
    state = capture_vec_env(env)
    assert state["missing"] == ["`Course.engine` is a builtins.list_iterator (environments 0, 1)"]
    assert not restore_vec_env(other, state)
    assert other.get_attr("level") == [5, 5]
    for each in (env, other):
        each.close()


def test_what_cannot_be_sent_is_not_asked_for():
    """Keyword arguments of gym.make that no pickle takes: the spec cannot leave the worker."""
    gym.register("Course-v0", lambda rule: Course(), max_episode_steps=9)
    try:
        make = lambda: gym.make("Course-v0", rule=lambda x: x)  # noqa: E731
        plain = SubprocVecEnv([make], start_method="fork")
        wrapped = SubprocVecEnv([lambda: StateAccess(make())], start_method="fork")
        assert "Course-v0" in str(describe_vec_env(plain))
        assert describe_vec_env(wrapped) == describe_vec_env(DummyVecEnv([make]))
        for env in (plain, wrapped):
            env.reset()
            env.close()
    finally:
        del gym.registry["Course-v0"]


# --------------------------------------------------------------------------------- hand-written


class Batch(VecEnv):
    """All copies in one array; what it answers is another matter."""

    def __init__(self, answer):
        super().__init__(2, spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2))
        self.answer, self.rng, self.t = answer, np.random.default_rng(0), np.zeros(2)
        self.x = np.zeros((2, 2))
        self.simulator = type("Simulator", (), {})()
        self.simulator.x = self.x

    def reset(self):
        self.t[:] = 0
        return self.x.astype(np.float32)

    def step_async(self, actions):
        self.chosen = actions

    def step_wait(self):
        self.chosen = np.asarray(self.chosen)
        self.t += 1
        self.simulator.x *= 0.9
        self.simulator.x += 0.1 * self.chosen[:, None] * self.rng.normal(size=(2, 2))
        over = self.t >= 11
        infos = [{"terminal_observation": self.x[k].astype(np.float32)} for k in range(2)]
        self.t[over] = 0
        return self.x.astype(np.float32), self.x.sum(1).astype(np.float32), over, infos

    def close(self):
        pass

    def get_attr(self, name, indices=None):
        return [None] * 2 if name == "render_mode" else self.answer()

    def set_attr(self, name, value, indices=None):
        pass

    def env_method(self, name, *args, indices=None, **kwargs):
        raise AssertionError("a worker would have died")

    def env_is_wrapped(self, wrapper, indices=None):
        return self.answer()


def refuse():
    raise NotImplementedError


def none():
    return None


def too_short():
    return [None]


def words():
    return ["yes", "yes"]


@pytest.mark.parametrize("answer", [refuse, none, too_short, words])
def test_a_hand_written_one_is_captured_by_its_attributes(answer, caplog):
    env, other = VecNormalize(Batch(answer)), VecNormalize(Batch(answer))
    for each, steps in ((env, 33), (other, 4)):
        each.reset()
        step(each, steps)
    assert describe_vec_env(env)["vec_wrappers"]
    assert restore_vec_env(other, capture_vec_env(env))
    assert other.venv.simulator.x is other.venv.x
    for mine, others in zip(step(env, 25), step(other, 25), strict=True):
        for one, two in zip(mine, others, strict=True):
            np.testing.assert_array_equal(one, two)
    assert caplog.text == ""


def test_a_training_with_a_hand_written_one_goes_on_exactly(tmp_path, caplog):
    whole, resumed = straight_and_resumed(lambda: Batch(none), tmp_path)
    assert are_equal(whole, resumed)
    assert caplog.text == ""


def test_a_hand_written_one_over_processes_is_named(caplog):
    env = Batch(refuse)
    env.remotes = list(multiprocessing.Pipe())
    state = capture_vec_env(env)
    assert "`Batch.remotes[0]` is a multiprocessing.connection.Connection" in state["missing"]
    assert "Batch keeps its environments in other processes" in caplog.text
    env.rng.random(5)
    expected, sent = np.random.default_rng(0).random(), env.remotes
    assert not restore_vec_env(env, state)
    assert env.rng.random() == expected
    sent[0].send("still open")
    assert sent[1].recv() == "still open"
    for remote in sent:
        remote.close()
