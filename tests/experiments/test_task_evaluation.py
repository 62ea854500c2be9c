"""Evaluation on this task and on earlier ones: what is measured; training does not notice."""

import csv

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3.common.vec_env import VecNormalize

import envs
from experiments.build import build
from experiments.config import parse_config
from experiments.flags import Args
from experiments.folder import RunFolder
from experiments.plain_yaml import ConfigError
from experiments.tasks import tasks_to_evaluate
from experiments.training import learn
from fire_rl.checkpoints.store import latest
from tests.helpers.runs import scalars

PPO = {
    "algo": "ppo", "env": "CartPole-v1", "total_timesteps": 256, "n_envs": 2, "eval": None,
    "tasks": {"change": "offset", "every": 64}, "metrics": None, "log_interval": 1,
    "agent": {"n_steps": 16, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}},
    "checkpoint": {"every": 96},
}  # fmt: skip
DQN = {
    **PPO, "algo": "dqn", "tasks": {"change": "permutation", "every": 64},
    "eval": {"every": 10_000, "deterministic": False},
    "agent": {"buffer_size": 200, "learning_starts": 20, "policy_kwargs": {"net_arch": [8]},
              "exploration_final_eps": 0.3},
}  # fmt: skip
SAC = {
    **PPO, "algo": "sac", "env": "InvertedDoublePendulum-v5",
    "tasks": {"change": "dynamics", "every": 64}, "normalize": True, "frame_stack": 2,
    "eval": {"every": 10_000, "deterministic": False},
    "agent": {"buffer_size": 200, "learning_starts": 20, "policy_kwargs": {"net_arch": [8]}},
}  # fmt: skip
MINATAR = {
    **DQN, "env": "MinAtar/Breakout-v0",
    "tasks": {"change": "game", "every": 64, "recurring": 2,
              "games": ["MinAtar/Breakout-v0", "MinAtar/Freeway-v0"]},
    "agent": {**DQN["agent"], "policy": "CnnPolicy",
              "policy_kwargs": {"features_extractor_class": "MinAtarCNN", "net_arch": []}},
    "env_options": {"max_episode_steps": 60},
}  # fmt: skip
RUNS = {"ppo": PPO, "dqn": DQN, "sac": SAC, "minatar": MINATAR}


def run(values, folder, stop_at=None, resume=False, **tasks):
    values = {**values, "tasks": {**values["tasks"], **tasks}}
    config = parse_config(values)
    home = RunFolder(folder)
    home.stop_at = stop_at
    if resume:
        home.resume_from = latest(home.checkpoints)
    built = build(config, home, Args(log_dir=folder))
    learn(built, Args())
    return built


def rows(folder):
    with (folder / "continual.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def assert_same_weights(one, two):
    for name, tensor in one.model.policy.state_dict().items():
        assert torch.equal(tensor, two.model.policy.state_dict()[name]), name


@pytest.mark.parametrize("name", RUNS)
def test_training_is_the_same_with_it_and_goes_on_exactly(name, tmp_path):
    without = run(RUNS[name], tmp_path / "without")
    options = {"evaluate_earlier": 3, "evaluate_episodes": 2}
    whole = run(RUNS[name], tmp_path / "whole", **options)
    assert_same_weights(without, whole)
    assert not (tmp_path / "without" / "continual.csv").exists()

    run(RUNS[name], tmp_path / "cut", stop_at=96, **options)
    again = run(RUNS[name], tmp_path / "cut", resume=True, **options)
    assert_same_weights(again, whole)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")

    found = rows(tmp_path / "whole")
    assert {row["episodes"] for row in found} == {2}
    assert [(row["step"], row["trained_task"]) for row in found] == sorted(
        (64.0 * (row["trained_task"] + 1), row["trained_task"]) for row in found
    )
    if name == "minatar":
        assert [row["task"] for row in found] == [0, 0, 1, 1, 0, 0, 1]
    else:
        assert [row["task"] for row in found] == [0, 0, 1, 0, 1, 2, 0, 1, 2, 3]
    events = scalars(tmp_path / "whole")
    logged = events.Scalars("continual/return_current")
    assert [event.step for event in logged] == [64, 128, 192, 256]
    assert len(events.Scalars("continual/return_earlier")) == 3
    last = found[-len({row["task"] for row in found}) :]
    assert events.Scalars("continual/return_earlier")[-1].value == pytest.approx(
        np.mean([row["return"] for row in last[:-1]])
    )
    assert logged[-1].value == pytest.approx(last[-1]["return"])


def test_each_task_is_played_with_the_statistics_of_the_training(tmp_path):
    values = {**SAC, "total_timesteps": 128}
    config = parse_config({**values, "tasks": {**SAC["tasks"], "evaluate_earlier": 1}})
    built = build(config, RunFolder(tmp_path / "run"), Args())
    evaluation = built.environments[-1]
    assert evaluation.num_envs == 5
    played = []
    reset = evaluation.reset

    def noted():
        same = np.array_equal(evaluation.obs_rms.mean, built.model.env.obs_rms.mean)
        played.append((evaluation.get_attr("task"), same))
        return reset()

    evaluation.reset = noted
    assert learn(built, Args()) == 0
    assert isinstance(evaluation, VecNormalize)
    assert not evaluation.training
    assert played == [([task] * 5, True) for task in (0, 0, 1)]


def test_which_earlier_tasks():
    assert tasks_to_evaluate(0, 5) == [0]
    assert tasks_to_evaluate(3, 5) == [0, 1, 2, 3]
    assert tasks_to_evaluate(3, 0) == [3]
    assert tasks_to_evaluate(9, 1) == [8, 9]
    assert tasks_to_evaluate(9, 2) == [0, 8, 9]
    assert tasks_to_evaluate(9, 3) == [0, 4, 8, 9]
    assert tasks_to_evaluate(7, 5, recurring=3) == [0, 2, 1]
    assert tasks_to_evaluate(1, 5, recurring=3) == [0, 1]
    assert tasks_to_evaluate(4, 5, recurring=1) == [0]


def test_recurring_tasks_come_back():
    def reset_in(task, recurring):
        tasks = {"change": "offset", "every": 10, "recurring": recurring}
        env = envs.make_vec_env("CartPole-v1", tasks=tasks, training=False)
        envs.set_task(env, task)
        env.seed(0)
        shown = env.reset()
        assert env.step([0])[3][0]["task"] == task
        return shown

    np.testing.assert_array_equal(reset_in(4, 3), reset_in(1, None))
    assert not np.array_equal(reset_in(4, None), reset_in(1, None))


@pytest.mark.parametrize(
    ("env", "tasks", "messages"),
    [
        ("CartPole-v1", "{change: offset, every: 15, games: [a], range: [1, 2]}",
         ["must be a multiple of `n_envs` 2, got 15", "`tasks.games` belongs to `change: game`",
          "`tasks.range` belongs to `change: dynamics`, not to offset"]),
        ("CartPole-v1", "{change: dynamics, every: 2, parameters: [gravty, mass], range: [2, 1]}",
         ["unknown name 'gravty'. Did you mean 'gravity'?", "smallest and the largest factor"]),
        ("CartPole-v1", "{change: mode, every: 2}", ["needs an Atari game"]),
        ("CartPole-v1", "{change: game, every: 2, games: [CartPole-v1]}",
         ["needs games of Atari or of MinAtar"]),
        ("ALE/Pong-v5", "{change: game, every: 2}", ["the first one being `env` ALE/Pong-v5, got"]),
        ("ALE/Pong-v5", "{change: game, every: 2, games: [ALE/Pong-v5, ALE/Breakot-v5, Hopper-v5]}",
         ["`tasks.games` has 'ALE/Breakot-v5'", "Did you mean 'ALE/Breakout-v5'",
          "'Hopper-v5', which is not of the same family"]),
        ("CartPole-v1", "{change: offset, every: 2, std: 0}", ["`tasks.std` must be greater than"]),
        ("CartPole-v1", "{change: offset, every: 2, recuring: 3}", ["Did you mean 'recurring'?"]),
        ("CartPole-v1", "{change: offset, every: 2, evaluate_earlier: -1}",
         ["`tasks.evaluate_earlier` must be greater than or equal to 0"]),
    ],
)  # fmt: skip
def test_all_faults_at_once(env, tasks, messages):
    values = {"algo": "ppo", "env": env, "n_envs": 2, "tasks": yaml.safe_load(tasks)}
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    for message in messages:
        assert any(message in fault for fault in caught.value.faults), caught.value.faults
