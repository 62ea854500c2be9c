"""Share of the training time that the callbacks take, measured inside.

    python -m benchmarks.speed.overhead              # about 12 minutes on two cores
    python -m benchmarks.speed.overhead --paired     # with a run without callbacks beside each
    python -m benchmarks.speed.overhead --steps 4000 # a quick look, with periods scaled down alike

A DQN on an ALE game and a SAC on HalfCheetah train with FIRE every 20,000 steps and metrics every
10,000. Every hook of the two callbacks is timed from inside the run; with --paired the same seeded
run without callbacks stands beside it for the wall-clock, which is noisy. Writes
benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.common import write_result
from envs import make_vec_env
from fire_rl import FireCallback, PlasticityMetricsCallback

HOOKS = ("on_training_start", "on_rollout_start", "on_step", "on_rollout_end", "on_training_end")


class Stopwatch:
    """Adds up the time that a callback's hooks take."""

    def __init__(self, callback: BaseCallback) -> None:
        self.seconds = 0.0
        for hook in HOOKS:
            setattr(callback, hook, self._timed(getattr(callback, hook)))

    def _timed(self, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - started

        return call


def make_dqn() -> BaseAlgorithm:
    """Nature DQN on Pong: one update per four transitions."""
    return DQN(
        "CnnPolicy",
        make_vec_env("ALE/Pong-v5", n_envs=4, seed=0),
        buffer_size=10_000,
        learning_starts=1_000,
        train_freq=1,
        target_update_interval=1_000,
        seed=0,
        policy_kwargs={"optimizer_kwargs": {"fused": True}},
    )


def make_sac() -> BaseAlgorithm:
    """SB3's SAC on HalfCheetah: one update per transition."""
    return SAC("MlpPolicy", make_vec_env("HalfCheetah-v5", seed=0), learning_starts=1_000, seed=0)


def train(make: Any, steps: int, callbacks: dict[str, BaseCallback]) -> dict[str, Any]:
    """Train once; return wall-clock seconds and seconds per callback."""
    model = make()
    watches = {name: Stopwatch(callback) for name, callback in callbacks.items()}
    started = time.perf_counter()
    model.learn(steps, callback=list(callbacks.values()))
    total = time.perf_counter() - started
    model.get_env().close()
    return {
        "seconds": total,
        "inside": {name: watch.seconds for name, watch in watches.items()},
    }


def compare(make: Any, steps: int, scale: float, paired: bool) -> dict[str, Any]:
    """Run with both callbacks, and without if asked to."""
    metrics_every, fire_every = int(10_000 * scale), int(20_000 * scale)
    plain = train(make, steps, {}) if paired else None
    both = {
        "fire": FireCallback(every=fire_every),
        "metrics": PlasticityMetricsCallback(metrics_every),
    }
    full = train(make, steps, both)
    return {
        "steps": steps,
        "fire_every": fire_every,
        "metrics_every": metrics_every,
        "events": len(both["fire"].reports),
        "measurements": len(both["metrics"].history),
        "seconds": round(full["seconds"], 1),
        "seconds_inside": {name: round(value, 3) for name, value in full["inside"].items()},
        "percent_inside": round(100 * sum(full["inside"].values()) / full["seconds"], 3),
        "seconds_without_callbacks": None if plain is None else round(plain["seconds"], 1),
    }


def main() -> None:
    """Run, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--paired", action="store_true")
    parser.add_argument("--only", choices=["dqn_pong", "sac_halfcheetah"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scale = min(1.0, arguments.steps / 30_000)
    results = {}
    for name, make in (("dqn_pong", make_dqn), ("sac_halfcheetah", make_sac)):
        if arguments.only not in (None, name):
            continue
        results[name] = compare(make, arguments.steps, scale, arguments.paired)
        print(name, results[name])
        write_result("overhead", {"results": results})  # as they come


if __name__ == "__main__":
    main()
