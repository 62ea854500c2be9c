"""Kill trainings again and again, resume them, and compare every step with an undisturbed run.

    python -m benchmarks.learning.soak             # 32 kills, about 10 minutes on two cores
    python -m benchmarks.learning.soak --kills 2   # a quick look

Each training runs once undisturbed, and once under SIGKILL at random moments, resumed each time by
RunCheckpointCallback(resume=True). Every step's actions, observations and rewards are hashed; a
step that is repeated after a kill must have the hash that it had before. The last part fills a
small tmpfs until a checkpoint fails, enlarges it and goes on (it needs the right to mount one).
Writes benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.common import ROOT, write_result
from envs import make_vec_env
from fire_rl import FireCallback, FrameReplayBuffer, RunCheckpointCallback
from fire_rl.checkpoints.store import CheckpointError, latest
from fire_rl.runs.layout import CHECKPOINTS


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


# Name: how to build it, steps in all, steps between checkpoints.
CASES: dict[str, tuple[Callable[[], BaseAlgorithm], int, int]] = {
    "ppo_cartpole": (_ppo_cartpole, 80_000, 2_048),
    "ppo_ant_vecnormalize": (_ppo_ant, 30_000, 1_024),
    "sac_halfcheetah_vecnormalize": (_sac_cheetah, 4_000, 150),
    "dqn_breakout_sticky": (_dqn_breakout, 4_000, 150),
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

    def _save(self) -> None:
        super()._save()
        assert self.folder is not None
        with (self.folder.parent / "written.txt").open("a") as file:
            file.write(f"{self.saved[-1].written}\n")


def work(case: str, folder: Path, checkpoints: Path, keep_last: int | None) -> None:
    """Train, from the last checkpoint if there is one; the part that is killed."""
    torch.set_num_threads(1)
    make, total, every = CASES[case]
    model = make()
    saver = Saver(every, checkpoints, resume=True, keep_last=keep_last)
    fire = FireCallback(every=total // 4, probe_size=64)
    model.learn(total, callback=[Hashes(folder / "hashes.txt"), fire, saver])
    last = hashlib.sha256()
    for tensor in model.policy.state_dict().values():
        last.update(tensor.numpy().tobytes())
    (folder / "weights.txt").write_text(last.hexdigest())


def start(case: str, folder: Path, checkpoints: Path, keep: str = "2") -> subprocess.Popen[str]:
    """Start :func:`work` in a process of its own."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.learning.soak", "--worker", case, str(folder)]
    return subprocess.Popen(
        [*command, str(checkpoints), keep],
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def hashes(folder: Path) -> list[tuple[int, str]]:
    """Read what a training did; a kill may have cut the last line of each attempt short."""
    lines = (folder / "hashes.txt").read_text().split("\n")
    pairs = [line.split() for line in lines]
    return [(int(p[0]), p[1]) for p in pairs if len(p) == 2 and len(p[1]) == 24]


def compare(whole: Path, cut: Path) -> dict[str, Any]:
    """Compare a disturbed training with the undisturbed one, step by step."""
    expected, done = dict(hashes(whole)), hashes(cut)
    return {
        "steps": len(expected),
        "steps_repeated": len(done) - len({step for step, _ in done}),
        "steps_different": sum(expected.get(step) != value for step, value in done),
        "steps_missing": len(expected.keys() - dict(done).keys()),
        "weights_equal": (whole / "weights.txt").read_text() == (cut / "weights.txt").read_text(),
    }


def progress(folder: Path) -> int:
    """Return the last step that a training has written down."""
    path = folder / "hashes.txt"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        lines = file.read().decode(errors="ignore").split("\n")
    steps = [int(words[0]) for line in lines[1:-1] if len(words := line.split()) == 2]
    return steps[-1] if steps else 0


def soak(case: str, kills: int, folder: Path) -> dict[str, Any]:
    """Train a case undisturbed, then under kills at random moments."""
    whole, cut = folder / f"{case}-whole", folder / f"{case}-cut"
    if start(case, whole, whole / CHECKPOINTS).wait() != 0:
        raise RuntimeError(f"{case} failed undisturbed")
    generator = random.Random(case)
    last = int(0.9 * CASES[case][1])
    for point in sorted(generator.sample(range(last), kills)):
        process = start(case, cut, cut / CHECKPOINTS)
        while progress(cut) < point and process.poll() is None:
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, 0.2))
        if process.poll() is not None:
            raise RuntimeError(f"{case} ended early: {process.communicate()[1][-2000:]}")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(case, cut, cut / CHECKPOINTS)
    if process.wait() != 0:
        raise RuntimeError(f"{case} could not go on: {process.communicate()[1][-2000:]}")
    written = [int(line) for line in (cut / "written.txt").read_text().split()]
    saved = {CHECKPOINTS: len(written), "megabytes_written": round(sum(written) / 1e6, 1)}
    return {"kills": kills, **compare(whole, cut), **saved}


def fill_disk(folder: Path) -> dict[str, Any]:
    """Let checkpoints fill a small file system; enlarge it, and go on."""
    case, disk = "ppo_cartpole", folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        return {"skipped": "no right to mount a tmpfs"}
    try:
        cut = folder / "full-cut"
        _, errors = start(case, cut, disk / CHECKPOINTS, "all").communicate()
        good = latest(disk / CHECKPOINTS)
        remount = ["mount", "-o", "remount,size=400m", str(disk)]
        subprocess.run(remount, check=True)
        process = start(case, cut, disk / CHECKPOINTS, "all")
        process.communicate()
        return {
            "error": next(
                (line for line in errors.splitlines() if f"{CheckpointError.__name__}: " in line),
                None,
            ),
            "last_good_checkpoint": None if good is None else good.path.name,
            "finished_after_enlarging": process.returncode == 0,
            **compare(folder / f"{case}-whole", cut),
        }
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def main() -> None:
    """Run, print, write JSON as results come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=8, help="of each training")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        case, folder, checkpoints, keep = arguments.worker
        work(case, Path(folder), Path(checkpoints), None if keep == "all" else int(keep))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(name)
        jobs = {case: pool.submit(soak, case, arguments.kills, folder) for case in CASES}
        for case, job in jobs.items():
            results[case] = job.result()
            print(case, results[case], flush=True)
            write_result("soak", {"results": results})
        results["full_disk"] = fill_disk(folder)
        print("full_disk", results["full_disk"])
        kills = sum(result.get("kills", 0) for result in results.values())
        write_result("soak", {"kills": kills, "results": results})


if __name__ == "__main__":
    main()
