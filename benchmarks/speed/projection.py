"""Time FIRE's projection against a plain loop and against torch's SVD.

    python -m benchmarks.speed.projection            # NatureCNN and SAC, about a minute
    python -m benchmarks.speed.projection --large    # and one 4096 x 4096 layer, some minutes

All methods run in turn, round after round, in one process; figures are medians over rounds and
ratios of medians, since absolute times on a shared machine are noise. The loop is Newton-Schulz
as published: one matrix at a time, a convolution tap by tap, in float32.
Writes benchmarks/results/projection.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn

from benchmarks.common import write_result
from fire_rl import deviation_from_isometry, newton_schulz, polar_factor
from fire_rl.weights.layers import WeightLayer, weight_layers

Projection = Callable[[WeightLayer], Tensor]


def plain_loop(layer: WeightLayer) -> Tensor:
    """Ten cubic Newton-Schulz steps, one matrix after the other."""
    projected = []
    for matrix in layer.matrices():
        x = matrix.mT if matrix.shape[1] > matrix.shape[0] else matrix
        x = x / x.norm()
        for _ in range(10):
            x = 1.5 * x - 0.5 * x @ (x.mT @ x)
        projected.append(x.mT if matrix.shape[1] > matrix.shape[0] else x)
    return torch.stack(projected)


def by_svd(layer: WeightLayer) -> Tensor:
    """The polar factor U Vᵀ by torch's SVD in float32, batched over taps."""
    left, _, right = torch.linalg.svd(layer.matrices(), full_matrices=False)
    return left @ right


METHODS: dict[str, Projection] = {
    "plain_loop": plain_loop,
    "svd": by_svd,
    "newton_schulz": lambda layer: newton_schulz(layer.matrices()),
    "exact": lambda layer: polar_factor(layer.matrices()),
}


def nature_q_network(seed: int) -> nn.Module:
    """The Q-network of SB3's DQN on Atari: NatureCNN and a head for 6 actions."""
    torch.manual_seed(seed)
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    return nn.Sequential(NatureCNN(space), nn.Linear(512, 6))


def ill_conditioned(module: nn.Module) -> nn.Module:
    """Give every matrix a spectrum that falls over three decades, as training may."""
    with torch.no_grad():
        for layer in weight_layers(module):
            left, values, right = torch.linalg.svd(layer.matrices(), full_matrices=False)
            spectrum = torch.logspace(0, -3, values.shape[-1])
            layer.weight.copy_(layer.from_matrices((left * spectrum) @ right))
    return module


def sac_agent(seed: int) -> nn.Module:
    """Actor and critics of SAC [256, 256] for 17 observations and 6 actions (HalfCheetah)."""

    class Box(gym.Env[Any, Any]):
        observation_space = spaces.Box(-1, 1, (17,), np.float32)
        action_space = spaces.Box(-1, 1, (6,), np.float32)

    policy = SAC("MlpPolicy", Box(), buffer_size=1, seed=seed, device="cpu").policy
    return nn.ModuleList([policy.actor, policy.critic])


def measure(layers: tuple[WeightLayer, ...], methods: list[str], rounds: int) -> dict[str, Any]:
    """Time every method in turn; report milliseconds, ratios to the loop, and DfI reached."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    worst: dict[str, float] = {}
    for _ in range(rounds + 1):  # the first round warms up
        for name in methods:
            started = time.perf_counter()
            projected = [METHODS[name](layer) for layer in layers]
            seconds[name].append(time.perf_counter() - started)
            worst[name] = max(
                float((deviation_from_isometry(p.double()) / min(p.shape[-2:])).max())
                for p in projected
            )
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {
        name: {
            "milliseconds": round(1000 * median[name], 2),
            "times_as_fast_as_plain_loop": round(median["plain_loop"] / median[name], 2),
            "worst_dfi_per_singular_value": float(f"{worst[name]:.2e}"),
        }
        for name in methods
    }


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--large", action="store_true", help="also a 4096 x 4096 layer, 1 round")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        networks = {
            "nature_cnn": nature_q_network(0),
            "nature_cnn_ill_conditioned": ill_conditioned(nature_q_network(0)),
            "sac_256_256": sac_agent(0),
        }
        for network, module in networks.items():
            found = measure(weight_layers(module), list(METHODS), arguments.rounds)
            results[f"{network}, {threads} thread(s)"] = found
    if arguments.large:
        torch.manual_seed(0)
        layers = weight_layers(nn.Linear(4096, 4096))
        results[f"linear_4096_4096, {torch.get_num_threads()} thread(s)"] = measure(
            layers, list(METHODS), rounds=1
        )
    for network, methods in results.items():
        print(network)
        for name, row in methods.items():
            print(f"  {name:14}", "  ".join(f"{key} {value}" for key, value in row.items()))
    print(write_result("projection", {"rounds": arguments.rounds, "results": results}))


if __name__ == "__main__":
    main()
