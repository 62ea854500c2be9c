"""`train.py --resume` after a kill, a signal and Ctrl-C: real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from agents import ALGORITHMS
from fire_rl.checkpoints.store import checkpoints
from tests.helpers.runs import ENVIRONMENT, ROOT, scalars, train_here, train_py

PPO = ["--algo", "ppo", "--env", "CartPole-v1", "--n-envs", "2", "--num-threads", "1"]
PPO += ["--intervention", "fire", "--every", "700", "--set", "agent.n_steps=64"]
PPO += ["agent.batch_size=32", "metrics.every=500", "metrics.probe_size=64", "eval.every=600"]
PPO += ["eval.episodes=1", "checkpoint.every=512", "log_interval=1"]
DQN = ["--algo", "dqn", "--env", "ALE/Breakout-v5", "--n-envs", "2", "--num-threads", "1"]
DQN += ["--intervention", "fire", "--every", "500", "--set", "agent.buffer_size=600"]
DQN += ["agent.learning_starts=100", "agent.batch_size=8", "agent.policy_kwargs.net_arch=[16]"]
DQN += ["agent.policy_kwargs.features_extractor_kwargs.features_dim=16", "metrics.every=400"]
DQN += ["metrics.probe_size=64", "eval=null", "checkpoint.every=300"]
RUNS = {"ppo": ([*PPO, "-n", "4096"], 4096), "dqn": ([*DQN, "-n", "1600"], 1600)}


def start(flags, folder):
    command = [sys.executable, str(ROOT / "train.py"), *flags, "--log-dir", str(folder)]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def wait_for_checkpoint(process, folder, number=1):
    deadline = time.monotonic() + 120
    while len(checkpoints(folder / "checkpoints")) < number:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def events_of(folder):
    """Every scalar but the clock's: tag to steps and values."""
    found = scalars(folder)
    return {
        tag: str([(event.step, event.value) for event in found.Scalars(tag)])  # NaN too
        for tag in found.Tags()["scalars"]
        if not tag.startswith(("time/", "final/steps_per_second"))
    }


def rows_of(folder):
    """`progress.csv` without the columns of the clock, whatever the order of the others."""
    header, *lines = (folder / "progress.csv").read_text().splitlines()
    names = header.split(",")
    return [
        sorted(
            (name, value)
            for name, value in zip(names, line.split(","), strict=False)
            if value and not name.startswith("time/") and name != "final/steps_per_second"
        )
        for line in lines
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nobody stops, trained when it is first asked for."""
    folders = {}

    def undisturbed(algo):
        if algo not in folders:
            folder = tmp_path_factory.mktemp("undisturbed") / algo
            assert train_here(*RUNS[algo][0], "--log-dir", folder) == 0
            folders[algo] = folder
        return folders[algo]

    return undisturbed


@pytest.mark.parametrize("algo", RUNS)
def test_a_killed_run_is_resumed_as_if_nothing_had_happened(algo, undisturbed, tmp_path):
    flags, total = RUNS[algo]
    whole, cut = undisturbed(algo), tmp_path / "cut"
    with start(flags, cut) as process:
        wait_for_checkpoint(process, cut)
        process.send_signal(signal.SIGKILL)
    assert not (cut / "model.zip").exists()
    done = train_py("--resume", cut)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    assert f"Finished after {total:,} steps" in done.stdout

    models = [ALGORITHMS[algo].load(folder / "model.zip") for folder in (whole, cut)]
    assert models[0].num_timesteps == models[1].num_timesteps == total
    for name, tensor in models[0].policy.state_dict().items():
        assert torch.equal(tensor, models[1].policy.state_dict()[name]), name
    assert events_of(cut) == events_of(whole)
    assert rows_of(cut) == rows_of(whole)
    lines = [(folder / "interventions.jsonl").read_text().splitlines() for folder in (whole, cut)]
    assert [line.partition('"seconds"')[0] for line in lines[0]] == [
        line.partition('"seconds"')[0] for line in lines[1]
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_resuming_is_exact(number, undisturbed, tmp_path):
    flags, _ = RUNS["ppo"]
    with start([*flags, "--set", "checkpoint.every=1e6"], tmp_path / "cut") as process:
        progress = tmp_path / "cut" / "progress.csv"
        while not (progress.exists() and progress.stat().st_size):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "Stopping after this rollout" in out
    assert "Go on:" in out
    assert len(checkpoints(tmp_path / "cut" / "checkpoints")) == 1
    assert train_py("--resume", tmp_path / "cut").returncode == 0
    folders = (undisturbed("ppo"), tmp_path / "cut")
    models = [ALGORITHMS["ppo"].load(folder / "model.zip") for folder in folders]
    for name, tensor in models[0].policy.state_dict().items():
        assert torch.equal(tensor, models[1].policy.state_dict()[name]), name


def test_what_cannot_be_resumed_is_said(main, tmp_path):
    for flags, message in (
        (["--resume", tmp_path / "nothing"], "is no run folder"),
        (["--resume", tmp_path, "--seed", "3", "--every", "5"], "leave out --every, --seed"),
        (["--play", tmp_path, "--algo", "dqn"], "leave out --algo"),
        (["--video", tmp_path], "--video is for watching: add --play RUN"),
        (["--play", tmp_path, "--episodes", "0"], "--episodes must be at least 1"),
    ):
        code, _, err = main(*flags)
        assert code == 2
        assert message in err
    flags = ["--algo", "ppo", "--env", "CartPole-v1", "-n", "64", "--set", "agent.n_steps=64"]
    assert main(*flags, "eval=null", "--log-dir", tmp_path / "short")[0] == 0
    code, _, err = main("--resume", tmp_path / "short")
    assert code == 2
    assert "has no checkpoint" in err
    assert os.listdir(tmp_path / "short")
