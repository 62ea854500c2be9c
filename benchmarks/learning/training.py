"""Train each Atari and MuJoCo agent for 100,000 steps with FIRE, and compare it with chance.

    python -m benchmarks.learning.training                    # about 2 hours, one after the other
    python -m benchmarks.learning.training --only mujoco-ppo  # one of them

Each run is `train.py` with a config of the project, shortened: 100,000 steps, FIRE after 40,000
and 80,000, measurements every 10,000, evaluations after 50,000 and 100,000. A finished run folder
is not trained again, so that a stop loses one run at most. A uniformly random policy plays the
same evaluation environment beside it. 100,000 steps with two interventions are no learning result:
this shows that everything runs, how fast, and what FIRE does to the networks at that moment.
Writes benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.common import ROOT, write_result
from experiments.build import make_env
from experiments.folder import RunFolder
from fire_rl.runs import layout
from fire_rl.runs.readers import read_events

COMMON = [
    "--total-timesteps", "100000", "--every", "40000",
    "--set", "metrics.every=10000", "eval.every=50000",
]  # fmt: skip
RUNS = {
    "atari-dqn": ["atari/dqn_fire", "agent.learning_starts=5000", "agent.buffer_size=60000"],
    "atari-ppo": ["atari/ppo_fire"],
    "mujoco-sac": ["mujoco/sac_fire"],
    "mujoco-td3": ["mujoco/td3_fire"],
    "mujoco-ppo": ["mujoco/ppo_fire"],
}
RANDOM_EPISODES = 20


class RandomPolicy:
    """Uniformly random actions, for SB3's evaluate_policy."""

    def __init__(self, env: VecEnv, seed: int = 0) -> None:
        self.env = env
        env.action_space.seed(seed)

    def predict(self, observations: Any, state: Any = None, **_: Any) -> tuple[Any, Any]:
        """Draw one action per environment."""
        actions = [self.env.action_space.sample() for _ in range(self.env.num_envs)]
        return np.array(actions), state


def train(name: str, folder: Path, threads: int) -> None:
    """Train one run, unless it is there."""
    if (folder / layout.MODEL).exists():
        return
    config, *settings = RUNS[name]
    options = [*COMMON, *settings, "--num-threads", str(threads), "--log-dir", str(folder)]
    command = [sys.executable, "train.py", "--config", f"configs/{config}.yaml", *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def random_returns(folder: Path) -> list[float]:
    """Play the run's evaluation environment at random."""
    config = RunFolder(folder).read_config()
    env = make_env(config, 4, training=False, normalize=False)
    policy: Any = RandomPolicy(env)
    returns, _ = evaluate_policy(policy, env, RANDOM_EPISODES, return_episode_rewards=True)
    env.close()
    return [float(value) for value in returns]


def summarise(folder: Path) -> dict[str, Any]:
    """Collect what a finished run has written."""
    with (folder / layout.PROGRESS).open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    evaluations = np.load(folder / layout.EVALUATIONS)
    events = read_events(folder)
    environment = json.loads((folder / layout.ENVIRONMENT).read_text())
    chance = random_returns(folder)
    return {
        "steps": int(last[layout.STEP_COLUMN]),
        "steps_per_second": round(float(last["final/steps_per_second"]), 1),
        "torch_threads": environment["num_threads"],
        "commit": environment["git"],
        "random_return": {"mean": np.mean(chance), "std": np.std(chance), "episodes": len(chance)},
        "returns": {
            str(step): {"mean": np.mean(scores), "std": np.std(scores), "episodes": len(scores)}
            for step, scores in zip(evaluations["timesteps"], evaluations["results"], strict=True)
        },
        "events": [event_of(event) for event in events],
    }


def event_of(event: dict[str, Any]) -> dict[str, Any]:
    """Shorten one line of interventions.jsonl to a table of before and after."""
    networks: dict[str, Any] = {}
    for role, changes in event["networks"].items():
        layers = changes["layers"]
        values = sum(layer["num_singular_values"] for layer in layers)
        networks[role] = {
            "dfi_per_sv": [
                sum(layer[f"dfi_{when}"] for layer in layers) / values
                for when in ("before", "after")
            ],
            **{
                metric: [event[when][role].get(metric) for when in ("before", "after")]
                for metric in ("dormant_ratio", "effective_rank")
            },
        }
    return {
        "step": event["num_timesteps"],
        "seconds": event["seconds"],
        "before_after": networks,
    }


def main() -> None:
    """Train, summarise, write JSON as results come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=list(RUNS), help="train this one")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "training", help="run folders")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    results = {}
    for name in RUNS:
        folder = arguments.runs / name
        if arguments.only in (None, name):
            train(name, folder, arguments.threads)
        if (folder / layout.MODEL).exists():
            results[name] = summarise(folder)
            print(name, json.dumps(results[name], indent=1))
            write_result("training", {"results": results})


if __name__ == "__main__":
    main()
