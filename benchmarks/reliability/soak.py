"""Kill trainings again and again, resume them, and compare all that they did and logged.

    python -m benchmarks.reliability.soak              # 112 kills; half an hour on two cores
    python -m benchmarks.reliability.soak --only arms  # one kind; the others' results stay

Each kind of training runs once undisturbed, and once under SIGKILL at random moments, resumed each
time as its user would: by ``RunCheckpointCallback(resume=True)``, by ``train.py --resume``, or by
the same command again. Afterwards every record of the two run folders is compared: weights,
episodes, ``progress.csv``, TensorBoard, ``interventions.jsonl``, evaluations, results. In the kinds
that are Python code every step's actions, observations and rewards are hashed, too; a step that is
repeated after a kill must have the hash that it had before. The last part fills a small tmpfs until
a checkpoint fails, enlarges it and goes on (it needs the right to mount one).
Writes benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from benchmarks.common import RESULTS, ROOT, machine, write_result
from benchmarks.reliability.records import compare
from envs import make_vec_env
from fire_rl import (
    FireCallback,
    FrameReplayBuffer,
    PlasticityMetricsCallback,
    RunCheckpointCallback,
)
from fire_rl.checkpoints.store import CheckpointError, latest
from fire_rl.runs.layout import CHECKPOINTS, RESULT

CONFIGS = ROOT / "benchmarks" / "reliability" / "configs"
HASHES, WEIGHTS, WRITTEN = "hashes.txt", "weights.txt", "written.txt"


def _ppo_cartpole() -> BaseAlgorithm:
    return PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=4, seed=0), n_steps=128, seed=0)


def _ppo_ant() -> BaseAlgorithm:
    env = make_vec_env("Ant-v5", n_envs=2, seed=0, normalize=True)
    return PPO("MlpPolicy", env, n_steps=256, seed=0)


def _sac_cheetah() -> BaseAlgorithm:
    env = make_vec_env("HalfCheetah-v5", seed=0, normalize=True)
    return SAC("MlpPolicy", env, learning_starts=200, buffer_size=3_000, seed=0)


def _dqn_breakout() -> BaseAlgorithm:
    env = make_vec_env("ALE/Breakout-v5", n_envs=4, seed=0, env_options={"sticky_actions": 0.25})
    return DQN(
        "CnnPolicy",
        env,
        learning_starts=200,
        buffer_size=3_000,
        train_freq=1,
        seed=0,
        replay_buffer_class=FrameReplayBuffer,
    )


# Python code of a user. Name: how to build the model, steps in all, steps between checkpoints.
CODE: dict[str, tuple[Callable[[], BaseAlgorithm], int, int]] = {
    "ppo_cartpole": (_ppo_cartpole, 80_000, 2_048),
    "ppo_ant_vecnormalize": (_ppo_ant, 30_000, 1_024),
    "sac_halfcheetah_vecnormalize": (_sac_cheetah, 4_000, 150),
    "dqn_breakout_sticky": (_dqn_breakout, 4_000, 150),
}
# Commands: the arguments of train.py.
COMMANDS: dict[str, list[str]] = {
    "train_subproc": ["--config", str(CONFIGS / "subproc.yaml")],
    "arms": ["--config", str(CONFIGS / "arms.yaml"), "--arms", "none,fire"],
    "experiment_two_seeds": [
        *("--config", str(CONFIGS / "experiment.yaml")),
        *("--arms", "none,fire,reset", "--seeds", "2"),
    ],
}


class Hashes(BaseCallback):
    """Appends a line per step to a file; the file survives kills, the callback needs no state."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = path.open("a")
        self.file.write("\n")  # a kill may have cut the last line short

    def _on_step(self) -> bool:
        digest = hashlib.sha256()
        for name in ("actions", "new_obs", "rewards", "dones"):
            digest.update(np.ascontiguousarray(self.locals[name]).tobytes())
        self.file.write(f"{self.num_timesteps} {digest.hexdigest()[:24]}\n")
        self.file.flush()
        return True


class Saver(RunCheckpointCallback):
    """Appends to a file how many bytes each checkpoint has written."""

    def __init__(self, written: Path, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.written = written

    def _save(self) -> Any:
        saved = super()._save()
        with self.written.open("a") as file:
            file.write(f"{saved.written}\n")
        return saved


def work(case: str, folder: Path, checkpoints: Path, keep_last: int | None) -> None:
    """Train, from the last checkpoint if there is one; the part that is killed."""
    torch.set_num_threads(1)
    make, total, every = CODE[case]
    beside = Path(f"{folder}-notes")  # what is compared in its own way
    model = make()
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    callbacks = [
        Hashes(beside / HASHES),
        FireCallback(every=total // 4, probe_size=64),
        PlasticityMetricsCallback(every=total // 10, probe_size=64),
        Saver(beside / WRITTEN, every, checkpoints, resume=True, keep_last=keep_last),
    ]
    model.learn(total, callback=callbacks)
    model.logger.close()
    last = hashlib.sha256()
    for tensor in model.policy.state_dict().values():
        last.update(tensor.numpy().tobytes())
    (folder / WEIGHTS).write_text(last.hexdigest())


def _process(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a process that leads a group of its own, so that what it leaves behind is found."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def start_code(
    case: str, folder: Path, checkpoints: Path, keep: str = "2"
) -> subprocess.Popen[str]:
    """Start :func:`work` in a process of its own."""
    Path(f"{folder}-notes").mkdir(exist_ok=True)
    command = ["-m", "benchmarks.reliability.soak", "--worker", case, str(folder)]
    return _process([*command, str(checkpoints), keep])


def start(case: str, folder: Path) -> subprocess.Popen[str]:
    """Start a training or go on with it, as its user would."""
    if case in CODE:
        return start_code(case, folder, folder / CHECKPOINTS)
    command = ["train.py", *COMMANDS[case], "--log-dir", str(folder)]
    if "--arms" not in command and folder.exists():
        if latest(folder / CHECKPOINTS) is None:
            shutil.rmtree(folder)  # stopped before the first checkpoint
        else:
            command = ["train.py", "--resume", str(folder)]
    return _process(command)


@dataclass
class Kills:
    """What happened to the processes of one training."""

    kills: int = 0
    orphans: int = 0  # processes that outlived a killed parent by ten seconds


def kill(process: subprocess.Popen[str], counted: Kills) -> None:
    """Kill a process but not its children, which have to notice."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
    counted.kills += 1
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    counted.orphans += 1
    os.killpg(process.pid, signal.SIGKILL)


def hashes(folder: Path) -> list[tuple[int, str]]:
    """Read what a training did; a kill may have cut the last line of each attempt short."""
    lines = (Path(f"{folder}-notes") / HASHES).read_text().split("\n")
    pairs = [line.split() for line in lines]
    return [(int(p[0]), p[1]) for p in pairs if len(p) == 2 and len(p[1]) == 24]


def compare_steps(whole: Path, cut: Path) -> dict[str, Any]:
    """Compare a disturbed training with the undisturbed one, step by step."""
    expected, done = dict(hashes(whole)), hashes(cut)
    return {
        "steps": len(expected),
        "steps_repeated": len(done) - len({step for step, _ in done}),
        "steps_different": sum(expected.get(step) != value for step, value in done),
        "steps_missing": len(expected.keys() - dict(done).keys()),
        "weights_equal": (whole / WEIGHTS).read_text() == (cut / WEIGHTS).read_text(),
    }


def soak(case: str, kills: int, folder: Path) -> dict[str, Any]:
    """Train a case undisturbed, then under kills at random moments."""
    whole, cut = folder / f"{case}-whole", folder / f"{case}-cut"
    begun = time.monotonic()
    _, errors = start(case, whole).communicate()
    if not _finished(case, whole):
        raise RuntimeError(f"{case} failed undisturbed: {errors[-2000:]}")
    seconds = time.monotonic() - begun
    generator, counted = random.Random(case), Kills()
    while counted.kills < kills:
        # A start takes some seconds; some kills fall into it, the others spread over the training.
        process = start(case, cut)
        deadline = time.monotonic() + generator.uniform(0.3, 1.0) * (seconds / kills + 4.0)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            _, errors = process.communicate()
            if process.returncode != 0:
                raise RuntimeError(f"{case} could not go on: {errors[-2000:]}")
            break
        kill(process, counted)
    process = start(case, cut)
    _, errors = process.communicate()
    if process.returncode != 0 and not _finished(case, cut):
        raise RuntimeError(f"{case} could not go on: {errors[-2000:]}")
    result = {**asdict(counted), "logs": asdict(compare(whole, cut))}
    if case in CODE:
        written = (Path(f"{cut}-notes") / WRITTEN).read_text().split()
        result |= compare_steps(whole, cut)
        result[CHECKPOINTS] = len(written)
        result["megabytes_written"] = round(sum(map(int, written)) / 1e6, 1)
    return result


def _finished(case: str, folder: Path) -> bool:
    if case in CODE:
        return (folder / WEIGHTS).exists()
    return any(folder.rglob(RESULT))


def fill_disk(folder: Path) -> dict[str, Any]:
    """Let checkpoints fill a small file system; enlarge it, and go on."""
    case, disk = "ppo_cartpole", folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        return {"skipped": "no right to mount a tmpfs"}
    try:
        cut = folder / "full-cut"
        _, errors = start_code(case, cut, disk / CHECKPOINTS, "all").communicate()
        good = latest(disk / CHECKPOINTS)
        remount = ["mount", "-o", "remount,size=400m", str(disk)]
        subprocess.run(remount, check=True)
        process = start_code(case, cut, disk / CHECKPOINTS, "all")
        process.communicate()
        whole = folder / f"{case}-whole"
        lines = (line for line in errors.splitlines() if f"{CheckpointError.__name__}: " in line)
        return {
            "error": next(lines, "none").replace(str(folder), "FOLDER"),
            "last_good_checkpoint": None if good is None else good.path.name,
            "finished_after_enlarging": process.returncode == 0,
            "logs": asdict(compare(whole, cut)),
            **compare_steps(whole, cut),
        }
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def main() -> None:
    """Run, print, write JSON as results come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=16, help="of each training")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[*CODE, *COMMANDS], help="kinds of trainings")
    parser.add_argument("--folder", type=Path, help="where to keep the runs; by default nowhere")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        case, folder, checkpoints, keep = arguments.worker
        work(case, Path(folder), Path(checkpoints), None if keep == "all" else int(keep))
        return
    path = RESULTS / "soak.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = {case: pool.submit(soak, case, arguments.kills, folder) for case in arguments.only}
        for case, job in jobs.items():
            results[case] = job.result() | {"commit": machine()["commit"]}
            print(case, results[case], flush=True)
            _write(results)
        if "ppo_cartpole" in jobs:
            results["full_disk"] = fill_disk(folder)
            print("full_disk", results["full_disk"])
        _write(results)


def _write(results: dict[str, Any]) -> None:
    kills = sum(result.get("kills", 0) for result in results.values())
    write_result("soak", {"kills": kills, "results": results})


if __name__ == "__main__":
    main()
