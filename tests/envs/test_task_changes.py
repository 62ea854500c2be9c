"""What changes from task to task: physics, goals, actions, games; and checkpoints of all that."""

import copy
import itertools

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import FlattenExtractor

import envs
from envs.continual.dynamics import ChangingDynamics
from envs.continual.goals import ChangingActions, ChangingDirection
from fire_rl.checkpoints.vec_env_state import capture_vec_env, restore_vec_env
from fire_rl.sb3.frame_replay import FrameReplayBuffer
from tests.helpers.resuming import train

PONG = {"change": "mode", "every": 40}
GAMES = {"change": "game", "every": 40, "games": ["ALE/Breakout-v5", "ALE/Pong-v5"]}
MINATAR = ["MinAtar/SpaceInvaders-v0", "MinAtar/Asterix-v0", "MinAtar/Seaquest-v0"]
CASES = {
    "offset": ("CartPole-v1", {"change": "offset", "every": 40}),
    "drift": ("Acrobot-v1", {"change": "drift", "every": 40, "std": 0.1}),
    "cartpole": ("CartPole-v1", {"change": "dynamics", "every": 40}),
    "acrobot": ("Acrobot-v1", {"change": "dynamics", "every": 40}),
    "pendulum": ("Pendulum-v1", {"change": "dynamics", "every": 40}),
    "hopper": ("Hopper-v5", {"change": "dynamics", "every": 40}),
    "recurring": ("Hopper-v5", {"change": "dynamics", "every": 40, "recurring": 2}),
    "direction": ("HalfCheetah-v5", {"change": "direction", "every": 40}),
    "discrete": ("CartPole-v1", {"change": "actions", "every": 40}),
    "continuous": ("Hopper-v5", {"change": "actions", "every": 40}),
    "mode": ("ALE/Pong-v5", PONG),
    "game": ("ALE/Breakout-v5", GAMES),
    "minatar": (MINATAR[0], {"change": "game", "every": 40, "games": MINATAR}),
}


def make(case, **options):
    env_id, tasks = CASES[case]
    return envs.make_vec_env(env_id, tasks=tasks, n_envs=2, **options)


def play(venv, steps, seed=0):
    """Take random steps; return what was seen and paid, and the tasks."""
    choose, seen, tasks = np.random.default_rng(seed), [], []
    space = venv.action_space
    for _ in range(steps):
        if isinstance(space, gym.spaces.Discrete):
            actions = choose.integers(space.n, size=venv.num_envs)
        else:
            actions = choose.uniform(space.low, space.high, (venv.num_envs, *space.shape))
        observations, rewards, dones, infos = venv.step(actions)
        seen.append((observations.copy(), rewards.copy(), dones.copy()))
        tasks.append([info["task"] for info in infos])
    return seen, tasks


def assert_same(one, two):
    for left, right in zip(one, two, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_in_a_later_task_goes_on_exactly(case):
    env, other = make(case, seed=0), make(case, seed=7)
    env.reset()
    other.reset()
    _, tasks = play(env, 30)
    assert tasks == [[step // 20] * 2 for step in range(30)]  # 40 steps over two copies
    state = copy.deepcopy(capture_vec_env(env))
    assert state["missing"] is None
    assert restore_vec_env(other, state)
    (seen, tasks), (again, tasks_again) = play(env, 60, seed=1), play(other, 60, seed=1)
    assert_same(seen, again)
    assert tasks == tasks_again
    assert tasks[-1] == [4, 4]
    env.close()
    other.close()


@pytest.mark.parametrize("case", ["minatar"])
def test_worker_processes_see_the_same_and_are_restored_exactly(case):
    runs = {}
    for kind in ("dummy", "subproc"):
        env = make(case, seed=3, vec_env=kind)
        first = env.reset()
        runs[kind] = [(first,), *play(env, 30)[0]]
        if kind == "subproc":
            state = copy.deepcopy(capture_vec_env(env))
            expected = play(env, 20, seed=1)
            play(env, 30)
            assert restore_vec_env(env, state)
            again = play(env, 20, seed=1)
            assert_same(expected[0], again[0])
            assert expected[1] == again[1]
        env.close()
    assert_same(runs["dummy"], runs["subproc"])


def test_physics_of_cartpole_stay_consistent():
    env = ChangingDynamics(gym.make("CartPole-v1"), seed=5)
    inner, original = env.unwrapped, gym.make("CartPole-v1").unwrapped
    known = ("gravity", "length", "masspole", "masscart", "force_mag", "total_mass")
    known += ("polemass_length",)
    for variant in (3, 1, 3, 0):
        env.apply(variant)
        factors = env.factors(variant)
        assert inner.length == pytest.approx(0.5 * factors["pole_length"])
        assert inner.total_mass == inner.masspole + inner.masscart
        assert inner.polemass_length == inner.masspole * inner.length
        assert all(type(getattr(inner, name)) is float for name in known)
    assert all(getattr(inner, name) == getattr(original, name) for name in known)
    drawn = np.array([list(env.factors(k).values()) for k in range(1, 2000)])
    assert drawn.min() > 0.5
    assert drawn.max() < 2.0
    assert np.log(drawn).mean() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("name", ["gravity", "friction", "mass", "strength", "damping"])
def test_physics_of_mujoco(name):
    env = ChangingDynamics(gym.make("Hopper-v5"), parameters=[name], range=[2.0, 2.0])
    model, original = env.unwrapped.model, gym.make("Hopper-v5").unwrapped.model
    env.apply(1)
    assert env.factors(1) == {name: pytest.approx(2)}
    factor = {key: 2.0 if key == name else 1.0 for key in ("gravity", "friction", "mass")}
    np.testing.assert_allclose(model.opt.gravity, original.opt.gravity * factor["gravity"])
    np.testing.assert_allclose(model.body_mass, original.body_mass * factor["mass"])
    np.testing.assert_allclose(model.body_subtreemass, original.body_subtreemass * factor["mass"])
    np.testing.assert_allclose(
        model.geom_friction, original.geom_friction * [factor["friction"], 1, 1]
    )
    assert model.__getstate__() != original.__getstate__()
    env.apply(0)
    assert model.__getstate__() == original.__getstate__()


def test_a_weaker_motor_moves_less():
    def moved(variant):
        env = ChangingDynamics(gym.make("InvertedPendulum-v5"), parameters=["strength"],
                               range=[0.5, 0.5])  # fmt: skip
        env.apply(variant)
        env.reset(seed=0)
        env.unwrapped.set_state(np.zeros(2), np.zeros(2))
        return env.step(np.ones(1, np.float32))[0][2]

    assert moved(1) == pytest.approx(moved(0) / 2, rel=1e-2)


def test_running_backward_pays_in_odd_tasks_and_monitor_knows():
    plain = gym.make("HalfCheetah-v5")
    env = ChangingDirection(gym.make("HalfCheetah-v5"))
    for variant in range(3):
        env.apply(variant)
        env.reset(seed=0)
        plain.reset(seed=0)
        action = np.full(6, 0.5, np.float32)
        _, reward, _, _, info = env.step(action)
        _, usual, _, _, known = plain.step(action)
        sign = 1 - 2 * (variant % 2)
        assert reward == pytest.approx(sign * known["reward_forward"] + known["reward_ctrl"])
        assert info["reward_forward"] == sign * known["reward_forward"]
        assert (reward == usual) == (sign == 1)
    tasks = {"change": "direction", "every": 1000}
    venv = envs.make_vec_env("HalfCheetah-v5", training=False, tasks=tasks, seed=0,
                             env_options={"max_episode_steps": 5})  # fmt: skip
    envs.set_task(venv, 1)
    venv.reset()
    results = [venv.step(np.ones((1, 6))) for _ in range(5)]
    total = sum(float(reward[0]) for _, reward, _, _ in results)
    assert results[-1][3][0]["episode"]["r"] == pytest.approx(total, abs=1e-4)


def test_actions_mean_something_else_in_each_task():
    discrete = ChangingActions(gym.make("Acrobot-v1"), seed=2)
    continuous = ChangingActions(gym.make("Hopper-v5"), seed=2)
    action = np.array([0.2, -0.4, 1.0], np.float32)
    meant = {"discrete": [], "continuous": []}
    for variant in range(6):
        discrete.apply(variant)
        continuous.apply(variant)
        meant["discrete"].append([discrete._meant(a) for a in range(3)])
        meant["continuous"].append(continuous._meant(action).tolist())
        assert continuous.action_space.contains(continuous._meant(action))
    assert meant["discrete"][0] == [0, 1, 2]
    assert meant["continuous"][0] == action.tolist()
    for found in meant.values():
        assert all(one != two for one, two in itertools.pairwise(found))
    assert all(sorted(found) == [0, 1, 2] for found in meant["discrete"])
    np.testing.assert_allclose(np.abs(meant["continuous"]), np.abs([action] * 6))


def test_flavours_of_a_game_begin_with_its_own():
    env = make("mode", training=False)
    (flavours,) = {tuple(f) for f in env.get_attr("flavours")}
    assert flavours[0] == (0, 0)
    assert sorted(flavours) == [(mode, level) for mode in (0, 1) for level in range(4)]
    frames = {}
    for task in (0, 1, 8, 0):
        envs.set_task(env, task)
        env.seed(0)
        env.reset()
        frames.setdefault(task, []).append(np.array([step[0] for step in play(env, 60)[0]]))
    np.testing.assert_array_equal(*frames[0])
    np.testing.assert_array_equal(frames[8][0], frames[0][0])  # all eight are through
    assert not np.array_equal(frames[1][0], frames[0][0])
    plain = envs.make_vec_env("ALE/Pong-v5", n_envs=2, training=False, seed=0)
    plain.reset()
    choose = np.random.default_rng(0)
    usual = [plain.step(choose.integers(6, size=2))[0].copy() for _ in range(60)]
    np.testing.assert_array_equal(frames[0][0], usual)


def test_a_new_game_begins_with_its_own_frames_although_lives_are_left():
    env = make("game", seed=0)
    env.reset()
    assert env.action_space.n == 18
    (seen, _), ids = play(env, 21), []
    assert seen[19][2].all()  # truncated: the last frames are those of the reset
    assert all("Pong" in inner.unwrapped.spec.id for inner in env.unwrapped.envs)
    ids = {spec.id for spec in env.get_attr("spec")}
    assert ids == {"ALE/Breakout-v5"}  # what checkpoints compare
    after = seen[19][0]  # (copies, channels, height, width): four frames, three of them empty
    assert after.shape == (2, 4, 84, 84)
    assert not after[:, :3].any()
    assert after[:, 3].any()
    assert not seen[20][0][:, :2].any()
    env.close()


def test_minatar_games_share_channels_and_actions():
    env = make("minatar", seed=0)
    assert env.observation_space.shape == (10, 10, 10)
    assert env.action_space.n == 6
    first = env.reset()
    assert not first[:, 6:].any()  # Space Invaders has six channels
    seen, _ = play(env, 45)
    assert seen[-1][0].shape == (2, 10, 10, 10)
    assert {inner.unwrapped.spec.id for inner in env.unwrapped.envs} == {MINATAR[2]}


def test_replayed_stacks_never_mix_two_games():
    env = make("game", seed=0)
    model = DQN("CnnPolicy", env, buffer_size=200, learning_starts=1000, seed=0,
                replay_buffer_class=FrameReplayBuffer,
                replay_buffer_kwargs={"frame_channels": 1},
                policy_kwargs={"net_arch": [8]})  # fmt: skip
    seen = []
    step = env.step_wait
    env.step_wait = lambda: seen.append(step()) or seen[-1]
    model.learn(120)
    buffer = model.replay_buffer
    switch = 19  # the 20th step of both copies
    assert buffer.dones[switch].all()
    batch = buffer._get_samples(np.array([switch + 1] * 50))
    for stack in batch.observations.cpu().numpy():
        assert any(np.array_equal(stack, shown) for shown in seen[switch][0])
        assert not stack[:3].any()
    env.close()


def test_training_through_games_is_resumed_to_the_bit(tmp_path):
    def build():
        tasks = {"change": "game", "every": 100, "games": MINATAR, "recurring": 2}
        env = envs.make_vec_env(MINATAR[0], n_envs=2, seed=0, tasks=tasks)
        kwargs = {"net_arch": [8], "features_extractor_class": FlattenExtractor}
        return DQN("CnnPolicy", env, seed=0, policy_kwargs=kwargs, buffer_size=200,
                   learning_starts=50, train_freq=2)  # fmt: skip

    whole, _, _ = train(build, tmp_path / "whole", 400, 64)
    train(build, tmp_path / "cut", 400, 64, stop=250)
    resumed, _, _ = train(build, tmp_path / "cut", 400, 64, resume=True)
    for name, tensor in whole.policy.state_dict().items():
        assert tensor.equal(resumed.policy.state_dict()[name]), name


@pytest.mark.parametrize(
    ("env_id", "tasks", "message"),
    [
        ("CartPole-v1", {"change": "dynamics", "parameters": ["mass"]},
         "must be one of 'gravity'.* got 'mass'"),
        ("MountainCar-v0", {"change": "direction"}, "locomotion task with 'reward_forward'"),
        ("Reacher-v5", {"change": "direction"}, "locomotion task with 'reward_forward'"),
        ("Blackjack-v1", {"change": "dynamics"}, "needs MuJoCo or one of CartPoleEnv"),
        ("Blackjack-v1", {"change": "offset"}, "vectors of floating-point numbers"),
        ("ALE/Pong-v5", {"change": "mode", "modes": [7]}, r"\[7\], which ALE/Pong-v5 has not"),
        ("ALE/Asterix-v5", {"change": "mode"}, "several modes or difficulties"),
        ("MinAtar/Breakout-v1",
         {"change": "game", "games": ["MinAtar/Breakout-v1", "MinAtar/Asterix-v1"]},
         "the same actions and observations: name the -v0 ids"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
def test_a_change_that_does_not_fit_says_so(env_id, tasks, message, vec_env):
    with pytest.raises(ValueError, match=message):
        envs.make_vec_env(env_id, tasks={**tasks, "every": 10}, vec_env=vec_env)
