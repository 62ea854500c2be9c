"""Tasks that change while the agent trains: what they show, when they change, who is told."""

import gymnasium as gym
import numpy as np
import pytest
import yaml

import envs
from envs.continual import TaskSequence
from envs.continual.observations import ChangingObservations
from experiments.build import build
from experiments.config import parse_config
from experiments.flags import Args
from experiments.folder import RunFolder
from experiments.training import learn
from tests.helpers.runs import scalars


def changing(change, every=None, seed=0, env_id="CartPole-v1", **options):
    env = ChangingObservations(gym.make(env_id), change, seed, **options)
    return TaskSequence(env, every)


def observe(env, task, seed=3):
    env.set_task(task)
    return env.reset(seed=seed)[0]


@pytest.mark.parametrize("change", ["offset", "drift", "permutation"])
def test_what_a_task_shows(change):
    raw = gym.make("CartPole-v1").reset(seed=3)[0]
    one, two, other = (changing(change, seed=seed) for seed in (1, 1, 2))
    shown = [observe(one, task) for task in range(6)]
    assert np.array_equal(shown[0], raw)  # the first task is the environment as it is
    assert all(np.array_equal(shown[task], observe(two, task)) for task in (5, 2, 0))
    assert not np.array_equal(observe(other, 1), shown[1])
    assert len({tuple(observation) for observation in shown}) == 6
    for observation in shown:
        assert observation.dtype == np.float32
        assert one.observation_space.contains(observation)
        if change == "permutation":
            assert sorted(np.abs(observation)) == pytest.approx(sorted(np.abs(raw)))
    if change == "offset":
        offsets = np.array([observe(one, task) - raw for task in range(1, 400)])
        assert offsets.mean() == pytest.approx(0, abs=0.2)
        assert offsets.std() == pytest.approx(2, rel=0.1)
    if change == "drift":
        walk = np.array([observe(one, task) - raw for task in range(1, 400)])
        assert np.diff(walk, axis=0).std() == pytest.approx(0.5, rel=0.1)
        assert walk[-100:].std() > 1


@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
def test_all_copies_change_at_the_same_step_and_no_episode_mixes_tasks(vec_env):
    env = envs.make_vec_env(
        "CartPole-v1", n_envs=3, seed=0, vec_env=vec_env,
        tasks={"change": "offset", "every": 60, "seed": 4},
    )  # fmt: skip
    env.reset()
    tasks, ends = [], []
    for _ in range(50):
        _, _, dones, infos = env.step(np.zeros(3, int))
        tasks.append([info["task"] for info in infos])
        ends.append(dones.copy())
    env.close()
    assert tasks == [[step // 20] * 3 for step in range(50)]
    assert ends[19].all()
    assert ends[39].all()


def test_a_pushed_pole_ends_its_task_as_a_truncation():
    env = changing("permutation", every=2)
    env.reset(seed=0)
    _, _, _, truncated, info = env.step(0)
    assert (truncated, info) == (False, {"task": 0})
    _, _, _, truncated, info = env.step(0)
    assert (truncated, info) == (True, {"task": 0, "task_completed": True})
    assert env.reset()[1] == {"task": 1}


def test_what_cannot_change_is_refused(main):
    images = ["--algo", "dqn", "--env", "ALE/Pong-v5", "--set", "agent.buffer_size=100"]
    small = ["--algo", "ppo", "--env", "CartPole-v1", "--n-envs", "8"]
    for flags, tasks, message in (
        (images, "{change: offset, every: 100}", "are vectors of floating-point numbers"),
        (small, "{change: offset, every: 100}", "a multiple of `n_envs` 8, got 100"),
        (small, "{change: ofset, every: 80}", "Did you mean 'offset'?"),
        (small, "{change: offset}", "`tasks.every` is missing"),
        (small, "{change: offset, evry: 80}", "Did you mean 'every'?"),
    ):
        code, _, err = main(*flags, "-n", "100", "--set", f"tasks={tasks}")
        assert code == 2
        assert message in err


def test_a_run_logs_its_task_and_is_evaluated_and_played_on_it(tmp_path, main):
    (tmp_path / "run.yaml").write_text(
        "algo: ppo\nenv: CartPole-v1\ntotal_timesteps: 256\nn_envs: 2\n"
        "tasks: {change: offset, every: 64}\nagent: {n_steps: 16, batch_size: 16}\n"
        "eval: {every: 32, episodes: 1}\nlog_interval: 1\n"
    )
    config = parse_config(yaml.safe_load((tmp_path / "run.yaml").read_text()))
    args = Args(log_dir=tmp_path / "run")
    run = build(config, RunFolder(tmp_path / "run"), args)
    shown = []
    evaluation = run.environments[1]
    reset = evaluation.reset
    evaluation.reset = lambda: shown.append(evaluation.get_attr("task")[0]) or reset()
    assert learn(run, args) == 0
    # The step that completes a task is its last: evaluated on the old one, as trained.
    assert shown == [0, 0, 1, 1, 2, 2, 3, 3]
    logged = [event.value for event in scalars(tmp_path / "run").Scalars("rollout/task")]
    assert logged == [0, 0, 1, 1, 2, 2, 3, 3]
    code, _, err = main("--play", tmp_path / "run", "--episodes", 1)
    assert code == 0, err
