"""Fixtures of several files."""

import atexit
import multiprocessing
import os
import shutil
import sys
import tempfile

import pytest

# Before the helpers are imported, which hand the environment on: train.py's list of our own runs.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="fire_rl_state_")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

import train  # noqa: E402
from tests.compatibility.page import (  # noqa: E402, F401  # hooks
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)
from tests.helpers.runs import train_here  # noqa: E402

# Worker processes of environments are forked off one that has imported these already: each would
# take two seconds for it.
multiprocessing.set_forkserver_preload(["envs", "gymnasium.envs.mujoco.hopper_v5", "minatar"])

# No tests, and no examples: not to be imported by `--doctest-modules`.
collect_ignore = ["helpers", "compatibility/page.py", "package/same_numbers.py"]

RUN = (
    "--algo", "ppo", "--env", "CartPole-v1", "-n", 768, "--device", "cpu", "--set",
    "n_envs=2", "agent.n_steps=32", "agent.batch_size=32", "agent.n_epochs=2",
    "agent.policy_kwargs.net_arch=[8]", "agent.policy_kwargs.activation_fn=relu",
    "tasks={change: permutation, every: 256, evaluate_earlier: 1, evaluate_episodes: 1}",
    "metrics.every=128", "metrics.probe_size=32", "eval=null", "checkpoint=null",
)  # fmt: skip
SHORT = (
    "--algo", "dqn", "--env", "CartPole-v1", "-n", 700, "--device", "cpu", "--set",
    "agent.learning_starts=50", "agent.buffer_size=500", "checkpoint.every=200", "eval=null",
    "metrics=null", "agent.policy_kwargs.net_arch=[8]",
)  # fmt: skip
ARMS = {
    "none": (),
    "fire": ("intervention={name: fire}", "schedule={every: 256, stop: 0.99}"),
}


@pytest.fixture(scope="session")
def real_runs(tmp_path_factory):
    """Four short runs of train.py, ``<arm>/s<seed>``; to be read only."""
    root = tmp_path_factory.mktemp("runs")
    for arm, options in ARMS.items():
        for seed in (0, 1):
            folder = root / arm / f"s{seed}"
            assert train_here(*RUN, *options, f"seed={seed}", "--log-dir", folder) == 0
    return root


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A short run of DQN with checkpoints at 400 and 600 steps; to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert train_here(*SHORT, "--log-dir", folder) == 0
    return folder


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def main(monkeypatch, capfd):
    """Run train.main in this process: the exit code, the output and the errors."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
        try:
            code = train.main()
        except SystemExit as exit:
            code = exit.code
        out, err = capfd.readouterr()
        return code, out, err

    return run
