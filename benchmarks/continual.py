"""Does FIRE help where plasticity is lost? Train configs/continual/ with and without it.

    python -m benchmarks.continual              # 5 seeds, about 15 minutes on two cores
    python -m benchmarks.continual --seeds 1    # a quick look

A run's score is the mean over its rollouts of `rollout/ep_rew_mean`: it counts how fast each new
task is learned, and not only where it ends. Finished run folders are not trained again. Writes
benchmarks/results/continual.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks._common import ROOT, write_result

ARMS = {"none": "cartpole", "fire": "cartpole_fire"}


def train(config: str, seed: int, folder: Path) -> None:
    """Train one run on one thread, unless it is there."""
    if (folder / "model.zip").exists():
        return
    command = [sys.executable, "train.py", "--config", f"configs/continual/{config}.yaml"]
    command += ["--seed", str(seed), "--num-threads", "1", "--log-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def scalars(folder: Path, key: str) -> tuple[Any, Any]:
    """Return the steps and the values of a TensorBoard scalar."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    points = events.Scalars(key)
    return np.array([p.step for p in points]), np.array([p.value for p in points])


def summarise(folder: Path) -> dict[str, Any]:
    """Return a run's mean return by task, and its plasticity by task."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    period = config["tasks"]["every"]

    def by_task(key: str) -> list[float]:
        steps, values = scalars(folder, key)
        tasks = (steps - 1) // period
        return [round(float(np.mean(values[tasks == k])), 4) for k in np.unique(tasks)]

    returns = by_task("rollout/ep_rew_mean")
    return {
        "mean_return": round(float(np.mean(returns)), 2),
        "mean_return_by_task": returns,
        "dormant_ratio_by_task": by_task("plasticity/actor/dormant_ratio"),
        "effective_rank_by_task": by_task("plasticity/actor/effective_rank"),
    }


def main() -> None:
    """Train what is missing, two at a time, and write JSON as results come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "continual")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    arguments = parser.parse_args()
    results: dict[str, Any] = {arm: {} for arm in ARMS}

    def one(seed: int, arm: str) -> tuple[int, str]:
        train(ARMS[arm], seed, arguments.runs / f"{arm}_s{seed}")
        return seed, arm

    with ThreadPoolExecutor(arguments.jobs) as pool:
        plan = [(seed, arm) for seed in range(arguments.seeds) for arm in ARMS]
        for seed, arm in pool.map(one, *zip(*plan, strict=True)):
            results[arm][f"seed {seed}"] = summarise(arguments.runs / f"{arm}_s{seed}")
            print(f"{arm}, seed {seed}: {results[arm][f'seed {seed}']['mean_return']}", flush=True)
            write_result("continual", {"results": results})
    for arm, runs in results.items():
        scores = [run["mean_return"] for run in runs.values()]
        print(f"{arm}: {np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} over {len(scores)}")


if __name__ == "__main__":
    main()
