"""A checkpoint belongs to what it was built with: every difference is refused by its name."""

import logging
import uuid

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from stable_baselines3.her import HerReplayBuffer

from fire_rl import FireCallback, PlasticityMetricsCallback, RunCheckpointCallback, StateAccess
from fire_rl.checkpoints.identity import compare, identity, without_state
from fire_rl.checkpoints.store import CheckpointError, latest, save
from tests.helpers.models import RandomEnv, changed, make_model, state_of


class Moon(RandomEnv):
    """An environment with arguments; one of them counts."""

    def __init__(self, gravity=9.8, level=0):
        super().__init__(discrete=True)
        self.gravity, self.level = gravity, level

    def step(self, action):
        self.level += 1
        return super().step(action)


class Decay(BaseCallback):
    """A user's callback with an option and with an argument that it counts in."""

    def __init__(self, factor=0.5, count=0):
        super().__init__()
        self.factor, self.count = factor, count

    def _on_step(self):
        self.count += 1
        return True


class Holder(RandomEnv):
    """An environment with arguments of any kind, and a space that does not print its content."""

    def __init__(self, items=None, table=None):
        super().__init__(discrete=True)
        self.items, self.table = items, table
        self.observation_space = Unnamed(-1.0, 1.0, (3,))


class Unnamed(spaces.Box):
    def __repr__(self):
        return object.__repr__(self)


class Printing(torch.nn.Tanh):
    def extra_repr(self):
        return f"of {object()}"


class Tracked(Decay):
    """A callback with what a run is called, when it began, and where it reports to."""

    def __init__(self, run, start_time, log, total=10, factor=0.5):
        super().__init__(factor)
        self.run, self.start_time, self.log, self.total = run, start_time, log, total


def tracked(run, start_time, total=10, **options):
    return cart(), Tracked(run, start_time, logging.getLogger(run), total, **options)


def holding(number=1):
    items = np.array([object(), number], dtype=object)
    return cart({"items": items, "table": {object(): number}}, env=Holder)


def cart(env_kwargs=None, n_envs=2, env="CartPole-v1", wrap=lambda venv: venv, **options):
    venv = wrap(make_vec_env(env, n_envs, env_kwargs=env_kwargs))
    kwargs = {"net_arch": [8], **options.pop("policy_kwargs", {})}
    values = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu"}
    return PPO("MlpPolicy", venv, policy_kwargs=kwargs, **{**values, **options})


def sac(**options):
    return make_model("sac", **options)


def noise(sigma, kind=NormalActionNoise):
    return kind(np.zeros(2), sigma * np.ones(2))


def her(**options):
    from stable_baselines3 import SAC
    from stable_baselines3.common.envs import BitFlippingEnv

    venv = make_vec_env(BitFlippingEnv, 1, env_kwargs={"n_bits": 3, "continuous": True})
    return SAC(
        "MultiInputPolicy", venv, seed=0, buffer_size=50, replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs=options, policy_kwargs={"net_arch": [4]}, device="cpu",
    )  # fmt: skip


def evaluation(**options):
    return EvalCallback(make_vec_env("CartPole-v1"), verbose=0, **options)


def compared(one, two, strict=True, branch=False):
    """Compare two trainings, each a function that makes a model, or that and callbacks."""
    found = []
    for made in (one(), two()):
        model, *callbacks = made if isinstance(made, tuple) else (made,)
        found.append(identity(model, callbacks))
        model.get_env().close()
    return "; ".join(compare(*found, strict, branch))


SAME = {
    "the same": (cart, cart),
    "a number as a schedule": (cart, lambda: cart(clip_range=lambda _: 0.2)),
    "an equal schedule": (
        lambda: cart(learning_rate=LinearSchedule(1e-3, 0.0, 1.0)),
        lambda: cart(learning_rate=lambda remaining: 1e-3 * remaining),
    ),
    "free arguments": (cart, lambda: cart(verbose=0, tensorboard_log="elsewhere")),
    "a tuple for a list": (cart, lambda: cart(policy_kwargs={"net_arch": (8,)})),
    "the unit spelled out": (lambda: sac(train_freq=4), lambda: sac(train_freq=(4, "step"))),
    "a mode to draw in": (cart, lambda: cart({"render_mode": "rgb_array"})),
    "a strategy by name": (
        lambda: her(goal_selection_strategy="future"), lambda: her(n_sampled_goal=4)
    ),
    "other folders": (
        lambda: (cart(), evaluation(log_path="a", best_model_save_path="a")),
        lambda: (cart(), evaluation(log_path="b", best_model_save_path="/b")),
    ),
    "a horizon that has grown": (
        lambda: (cart(), FireCallback(every=9, horizon=90)),
        lambda: (cart(), FireCallback(every=9, horizon=91)),
    ),
    "objects, by no address": (holding, holding),
    "modules, by no address": (
        lambda: cart(policy_kwargs={"activation_fn": Printing}),
        lambda: cart(policy_kwargs={"activation_fn": Printing}),
    ),
    "another time and name of a run": (
        lambda: tracked("ppo_2026-11-28_01-36-05", 1795829478.7),
        lambda: tracked("ppo_2026-11-29_11-36-05", 1795829999.1),
    ),
    "another number of a run, and a total that has grown": (
        lambda: tracked(f"ppo-{uuid.uuid4()}-1795829478", 1.0),
        lambda: tracked(f"ppo-{uuid.uuid4()}-1795829999", 2.0, total=20),
    ),
    "when and where to save": (
        lambda: (cart(), RunCheckpointCallback(5, "a", keep_last=2)),
        lambda: (cart(), RunCheckpointCallback(7, "b", keep_last=None, strict=False)),
    ),
}  # fmt: skip

OTHER = {
    "seed": (cart, lambda: cart(seed=1), ["seed is 1, was 0"]),
    "no seed": (cart, lambda: cart(seed=None), ["seed is None, was 0"]),
    "clip_range": (
        lambda: cart(clip_range=lambda remaining: 0.2 * remaining),
        lambda: cart(clip_range=lambda remaining: 0.1 * remaining),
        ["clip_range is [0.1, 0.05, 0.0], was [0.2, 0.1, 0.0]"],
    ),
    "learning_rate": (
        lambda: cart(learning_rate=LinearSchedule(1e-3, 0.0, 1.0)),
        lambda: cart(learning_rate=1e-3),
        ["learning_rate is 0.001, was [0.001, 0.0005, 0.0]"],
    ),
    "many at once": (
        cart,
        lambda: cart(gamma=0.5, batch_size=4, vf_coef=1.0),
        ["gamma is 0.5, was 0.99", "batch_size is 4, was 8", "vf_coef is 1.0, was 0.5"],
    ),
    "activation": (
        cart,
        lambda: cart(policy_kwargs={"activation_fn": torch.nn.ReLU}),
        ["policy_kwargs.activation_fn is 'ReLU', was not given", "'ReLU()', was 'Tanh()'"],
    ),
    "optimizer": (
        cart,
        lambda: cart(policy_kwargs={"optimizer_class": torch.optim.SGD}),
        ["optimizer_class is 'SGD', was 'Adam'"],
    ),
    "train_freq": (
        sac, lambda: sac(train_freq=4), ["train_freq is [4, 'step'], was [1, 'step']"]
    ),
    "target_entropy": (
        sac, lambda: sac(target_entropy=-1.0), ["target_entropy is -1.0, was -2.0"]
    ),
    "noise": (
        lambda: sac(action_noise=noise(0.1)),
        lambda: sac(action_noise=noise(0.2)),
        ["action_noise.sigma is [0.2, 0.2], was [0.1, 0.1]"],
    ),
    "exploration": (
        lambda: make_model("dqn"),
        lambda: make_model("dqn", exploration_final_eps=0.2),
        ["exploration_final_eps is 0.2, was 0.05"],
    ),
    "hindsight": (
        lambda: her(n_sampled_goal=4),
        lambda: her(n_sampled_goal=2),
        ["replay_buffer.n_sampled_goal is 2, was 4"],
    ),
    "an environment's argument": (
        lambda: cart({"gravity": 9.8}, env=Moon),
        lambda: cart({"gravity": 1.6}, env=Moon),
        ["environment.Moon.gravity is 1.6, was 9.8"],
    ),
    "a registered environment's argument": (
        cart,
        lambda: cart({"sutton_barto_reward": True}),
        ["environment.arguments.sutton_barto_reward is True, was not given"],
    ),
    "a time limit": (
        lambda: cart({"max_episode_steps": 20}),
        lambda: cart({"max_episode_steps": 30}),
        ["TimeLimit.max_episode_steps is 30, was 20"],
    ),
    "normalisation": (
        lambda: cart(wrap=VecNormalize),
        lambda: cart(wrap=lambda venv: VecNormalize(venv, clip_obs=5.0)),
        ["environment.VecNormalize.clip_obs is 5.0, was 10.0"],
    ),
    "no normalisation": (
        lambda: cart(wrap=VecNormalize),
        cart,
        ["environment.vec_wrappers is [], was ['VecNormalize']"],
    ),
    "FIRE": (
        lambda: (cart(), FireCallback(every=16)),
        lambda: (cart(), FireCallback(every=32, strength=0.5, probe_size=9)),
        ["intervention.strength is 0.5, was 1.0", "schedule.steps is 32, was 16",
         "FireCallback.probe_size is 9, was None"],
    ),
    "a horizon that has shrunk": (
        lambda: (cart(), FireCallback(every=9, horizon=90)),
        lambda: (cart(), FireCallback(every=9, horizon=80)),
        ["horizon is 80, was 90"],
    ),
    "metrics": (
        lambda: (cart(), PlasticityMetricsCallback(16)),
        lambda: (cart(), PlasticityMetricsCallback(8, seed=3)),
        ["schedule.steps is 8, was 16", "PlasticityMetricsCallback.seed is 3, was None"],
    ),
    "evaluation": (
        lambda: (cart(), evaluation(eval_freq=10)),
        lambda: (cart(), evaluation(eval_freq=20, n_eval_episodes=2)),
        ["EvalCallback.eval_freq is 20, was 10", "EvalCallback.n_eval_episodes is 2, was 5"],
    ),
    "objects in an environment's arguments": (
        holding,
        lambda: holding(2),
        ["Holder.items[1] is 2, was 1", "Holder.table.<object object> is 2, was 1"],
    ),
    "a callback's words": (
        lambda: tracked("ppo_1795829478", 1.0, factor=3),
        lambda: tracked("sac_1795829999", 1.0, total=5, factor=4),
        ["run is 'sac_…', was 'ppo_…'", "factor is 4, was 3", "total is 5, was 10"],
    ),
    "a user's callback": (
        lambda: (cart(), Decay()), lambda: (cart(), Decay(0.9)), ["Decay.factor is 0.9, was 0.5"]
    ),
}  # fmt: skip

NEVER = {
    "n_envs": (cart, lambda: cart(n_envs=3), "`n_envs` is 3, was 2"),
    "networks": (
        cart,
        lambda: cart(policy_kwargs={"net_arch": [9]}),
        "the networks have other shapes: mlp_extractor.policy_net.0.weight is [9, 4], was [8, 4]",
    ),
    "spaces": (
        cart,
        lambda: cart(env="Acrobot-v1"),
        "the checkpoint is one of another environment: its observation space is Box(",
    ),
    "noise": (
        sac,
        lambda: sac(action_noise=noise(0.1)),
        "`action_noise` is NormalActionNoise, was None",
    ),
    "kind of noise": (
        lambda: sac(action_noise=noise(0.1)),
        lambda: sac(action_noise=noise(0.1, OrnsteinUhlenbeckActionNoise)),
        "`action_noise` is OrnsteinUhlenbeckActionNoise, was NormalActionNoise",
    ),
    "callbacks": (
        lambda: (cart(), evaluation()),
        lambda: (cart(), Decay()),
        "the callbacks are others than the checkpoint's: Decay stand where EvalCallback stood",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_built_alike_is_the_same(name):
    assert compared(*SAME[name]) == ""


@pytest.mark.parametrize("name", OTHER)
def test_an_option_that_differs_is_named_with_both_values(name):
    one, two, expected = OTHER[name]
    message = compared(one, two)
    assert all(part in message for part in expected), message
    assert "strict=False" in message
    assert compared(one, two, strict=False) == ""


@pytest.mark.parametrize("name", NEVER)
def test_what_can_never_fit_is_refused_always(name):
    one, two, expected = NEVER[name]
    assert expected in compared(one, two)
    assert expected in compared(one, two, strict=False)


def test_a_branch_has_a_seed_and_callbacks_of_its_own():
    other = lambda: (cart(seed=7), Decay())  # noqa: E731
    assert compared(cart, other, branch=True) == ""
    assert "gamma is 0.5" in compared(cart, lambda: cart(gamma=0.5), branch=True)


def test_an_argument_in_which_is_counted_is_state():
    model, callback = cart(env=Moon), Decay()
    start = identity(model, [callback])
    model.learn(16, callback=callback)
    saved = without_state(start, identity(model, [callback]))
    fresh = identity(cart({"level": 3}, env=Moon), [Decay(count=8)])
    assert compare(saved, fresh, strict=True, branch=False) == []
    assert compare(saved, identity(cart({"gravity": 1.0}, env=Moon), [Decay()]), True, False)


@pytest.mark.parametrize("wrapper", [StateAccess, None])
def test_worker_processes_are_asked_what_ends_none_of_them(wrapper):
    def workers(limit):
        return make_vec_env(
            "CartPole-v1", 1, env_kwargs={"max_episode_steps": limit}, wrapper_class=wrapper,
            vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"},
        )  # fmt: skip

    found = []
    for limit in (20, 30):
        model = PPO("MlpPolicy", workers(limit), device="cpu")
        found.append(identity(model, []))
        assert model.get_env().reset().shape == (1, 4)
        model.get_env().close()
    (message,) = compare(*found, True, False) or ("",)
    assert ("max_episode_steps is 30, was 20" in message) == (wrapper is StateAccess)


def test_a_training_is_refused_and_goes_on_with_strict_off(tmp_path):
    cart().learn(24, callback=RunCheckpointCallback(16, tmp_path))
    for options, names in (({"seed": 1, "clip_range": 0.1}, "seed is 1, was 0; clip_range is 0.1"),
                           ({"n_envs": 3}, "`n_envs` is 3, was 2")):  # fmt: skip
        saver = RunCheckpointCallback(16, tmp_path, resume=latest(tmp_path))
        with pytest.raises(CheckpointError, match=names):
            cart(**options).learn(64, callback=saver)
    model = cart(seed=1, clip_range=0.1)
    saver = RunCheckpointCallback(16, tmp_path, resume=latest(tmp_path), strict=False)
    assert model.learn(64, callback=saver).num_timesteps == 64
    assert model.clip_range(1.0) == 0.1


def test_a_larger_total_rules_the_schedules(tmp_path):
    """The progress that remains is that of the new total, off-policy too."""
    make_model("dqn").learn(40, callback=RunCheckpointCallback(32, tmp_path))
    model = make_model("dqn", exploration_fraction=0.1)
    model.learn(100, callback=RunCheckpointCallback(200, tmp_path, resume=latest(tmp_path)))
    assert model._total_timesteps == 100
    assert model._current_progress_remaining >= 0


def test_a_buffer_that_was_filled_otherwise_is_written_whole_each_time(tmp_path):
    """Its rows cannot be told by their numbers: segments of an earlier checkpoint are others."""
    model = make_model("dqn", buffer_size=40)
    model.learn(60)  # the buffer is full, and its next row is not the one of the next step
    model.learn(8)
    base = save(model, tmp_path)
    model.learn(20, reset_num_timesteps=False)
    again = save(model, tmp_path, base=base)
    names = [{item["file"] for item in s.manifest["replay"]["segments"]} for s in (base, again)]
    assert not names[0] & names[1]


def test_a_callback_used_for_a_second_model_starts_clean(tmp_path):
    saver = RunCheckpointCallback(32, tmp_path / "one")
    make_model("dqn").learn(70, callback=saver)
    whole = make_model("dqn", seed=5)
    whole.learn(100, callback=saver)
    assert [saved.path.name for saved in saver.saved] == ["32.1", "64.1", "96"]
    again = make_model("dqn", seed=5)
    again.learn(100, callback=RunCheckpointCallback(200, tmp_path, resume=saver.saved[1].path))
    assert not changed(state_of(whole), state_of(again))
