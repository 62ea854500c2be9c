"""Memory, speed and checkpoints of Atari replay buffers: ours and SB3's.

    python -m benchmarks.speed.replay_memory           # 100,000 and 1,000,000, some minutes
    python -m benchmarks.speed.replay_memory --quick   # 100,000 only

A random policy plays Breakout for 20,000 transitions; larger buffers are filled by repeating them
(farther apart than the compressor looks back, so that repetition does not help it). SB3's buffer is
measured with 20,000 transitions and extrapolated in proportion, which is labelled. Writes
benchmarks/results/replay_memory.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import save_to_pkl

from benchmarks.common import write_result
from envs import make_vec_env
from fire_rl.checkpoints.replay_segments import restore_replay, write_replay
from fire_rl.sb3.frame_replay import FrameReplayBuffer

N_ENVS = 4
PLAYED = 20_000


def play() -> tuple[Any, list[tuple[Any, ...]]]:
    """Return the environments and what `add` is given, step by step."""
    env = make_vec_env("ALE/Breakout-v5", n_envs=N_ENVS, seed=0)
    env.action_space.seed(0)
    observations, steps = env.reset(), []
    for _ in range(PLAYED // N_ENVS):
        actions = np.array([env.action_space.sample() for _ in range(N_ENVS)])
        following, rewards, dones, infos = env.step(actions)
        last = following.copy()
        for index in np.flatnonzero(dones):
            last[index] = infos[index]["terminal_observation"]
        steps.append((observations.copy(), last, actions, rewards, dones, infos))
        observations = following
    return env, steps


def fill(buffer: Any, steps: list[tuple[Any, ...]], transitions: int) -> float:
    """Add transitions; return microseconds for each call."""
    started = time.perf_counter()
    count = transitions // N_ENVS
    for index in range(count):
        buffer.add(*steps[index % len(steps)])
    return (time.perf_counter() - started) / count * 1e6


def sample_milliseconds(buffers: dict[str, Any]) -> dict[str, float]:
    """Median time to sample a batch of 32, the buffers in turn."""
    times: dict[str, list[float]] = {name: [] for name in buffers}
    for _ in range(500):
        for name, buffer in buffers.items():
            started = time.perf_counter()
            buffer.sample(32)
            times[name].append(time.perf_counter() - started)
    return {name: round(statistics.median(values) * 1e3, 3) for name, values in times.items()}


def checkpoint(buffer: FrameReplayBuffer, steps: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Write the buffer, then again after 10,000 more transitions, and read it back."""
    with tempfile.TemporaryDirectory() as name:
        folder, result = Path(name), {}
        transitions, earlier = buffer.num_rows * N_ENVS, None
        for label in ("first", "10,000 transitions later"):
            started = time.perf_counter()
            earlier, head, written = write_replay(buffer, transitions, folder, earlier)
            result[label] = {
                "seconds": round(time.perf_counter() - started, 2),
                "megabytes_written": round(written / 1e6, 1),
            }
            if label == "first":
                fill(buffer, steps, 10_000)
                transitions += 10_000
        started = time.perf_counter()
        restore_replay(buffer, earlier, head, folder)
        result["read"] = {"seconds": round(time.perf_counter() - started, 2)}
        return result


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    env, steps = play()
    spaces = (env.observation_space, env.action_space, "cpu", N_ENVS)
    ours, theirs = FrameReplayBuffer(PLAYED, *spaces), ReplayBuffer(PLAYED, *spaces)
    small: dict[str, Any] = {"frame_replay_buffer": ours, "sb3_replay_buffer": theirs}
    results: dict[str, Any] = {
        "add_microseconds": {name: round(fill(b, steps, PLAYED), 1) for name, b in small.items()},
        "sample_32_milliseconds": sample_milliseconds(small),
    }
    with tempfile.NamedTemporaryFile(suffix=".pkl") as file:
        started = time.perf_counter()
        save_to_pkl(file.name, theirs)
        seconds, size = time.perf_counter() - started, Path(file.name).stat().st_size
    memory = theirs.observations.nbytes + theirs.next_observations.nbytes
    results["sb3_replay_buffer"] = {
        "measured at 20,000": {
            "memory_gigabytes": round(memory / 1e9, 2),
            "save_seconds": round(seconds, 2),
            "save_gigabytes": round(size / 1e9, 2),
        },
        "extrapolated to 100,000": {
            "memory_gigabytes": round(memory * 5 / 1e9, 1),
            "save_seconds": round(seconds * 5, 1),
            "save_gigabytes": round(size * 5 / 1e9, 1),
        },
    }
    del small, theirs, ours
    for transitions in (100_000,) if arguments.quick else (100_000, 1_000_000):
        buffer = FrameReplayBuffer(transitions, *spaces)
        fill(buffer, steps, transitions)
        results[f"frame_replay_buffer, {transitions:,}"] = {
            "memory_gigabytes": round(buffer.frames.nbytes / 1e9, 2),
            "checkpoint": checkpoint(buffer, steps),
        }
        del buffer
        write_result("replay_memory", {"results": results})
    print(results)


if __name__ == "__main__":
    main()
