"""Bad numbers in weights, rewards and observations: named, and never made worse."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor

from benchmarks.reliability.trial import Trial
from fire_rl import (
    FIRE,
    FireCallback,
    PlasticityMetricsCallback,
    RunCheckpointCallback,
    apply_intervention,
)
from fire_rl.checkpoints.store import checkpoints
from fire_rl.runs.layout import CHECKPOINTS, MODEL

VALUES = {"NaN": math.nan, "inf": math.inf, "1e38": 1e38, "1e-42": 1e-42, "0": 0.0}
ALGORITHMS: dict[str, Callable[[gym.Env[Any, Any]], BaseAlgorithm]] = {
    "PPO": lambda env: PPO("MlpPolicy", env, n_steps=64, n_epochs=1, device="cpu", seed=0),
    "SAC": lambda env: SAC("MlpPolicy", env, learning_starts=16, device="cpu", seed=0),
    "DQN": lambda env: DQN("MlpPolicy", env, learning_starts=16, device="cpu", seed=0),
}


class Bad(gym.Env[Any, Any]):
    """Noise whose rewards or observations turn bad after a while."""

    metadata: ClassVar[dict[str, Any]] = {}

    def __init__(self, discrete: bool, where: str, value: float) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(2) if discrete else spaces.Box(-1, 1, (1,), np.float32)
        self.where, self.value, self.count = where, value, 0

    def _observation(self) -> np.ndarray[Any, Any]:
        observation = self.np_random.normal(size=3).astype(np.float32)
        if self.where == "observations" and self.count > 100:
            observation[1] = self.value
        return observation

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=options.get("seed"))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Make a step; episodes last 20."""
        self.count += 1
        bad = self.where == "rewards" and self.count > 100
        reward = self.value if bad else float(self.np_random.normal())
        return self._observation(), reward, self.count % 20 == 0, False, {}


def trials() -> Iterator[tuple[str, Trial]]:
    """Yield every algorithm, place and value."""
    for algorithm in ALGORITHMS:
        for value in VALUES:
            yield (
                "bad numbers",
                Trial(f"{algorithm}: {value} in a weight", partial(_weight, algorithm, value)),
            )
            for where in ("rewards", "observations"):
                run = partial(_training, algorithm, where, value)
                yield "bad numbers", Trial(f"{algorithm}: {value} in {where}", run)


def _finite(model: BaseAlgorithm) -> bool:
    return all(bool(t.isfinite().all()) for t in model.policy.state_dict().values())


def _make(algorithm: str, where: str = "", value: float = 0.0) -> BaseAlgorithm:
    return ALGORITHMS[algorithm](Monitor(Bad(algorithm != "SAC", where, value)))


def _weight(algorithm: str, value: str, folder: Path) -> str | None:
    """A weight that is not finite is named; any other leaves finite, isometric weights."""
    model = _make(algorithm)
    layer = next(m for m in model.policy.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        layer.weight[0, 0] = VALUES[value]
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    finite = _finite(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            apply_intervention(model, FIRE(method="exact"))
    except (ValueError, RuntimeError) as error:
        unchanged = all(
            torch.equal(v, before[k]) or not v.isfinite().all()
            for k, v in model.policy.state_dict().items()
        )
        if finite or not unchanged:
            return f"finite: {finite}, unchanged: {unchanged}: {error}"
        text = str(error).lower()
        return None if "nan" in text or "finite" in text or "inf" in text else f"not named: {error}"
    if not finite:
        return "not refused"
    return None if _finite(model) else "finite weights became infinite"


def _training(algorithm: str, where: str, value: str, folder: Path) -> str | None:
    """Training ends or is refused with a reason; a finite checkpoint stays."""
    model = _make(algorithm, where, VALUES[value])
    saver = RunCheckpointCallback(48, folder / CHECKPOINTS, keep_last=2)
    callbacks = [
        FireCallback(at=[64, 256, 384], probe_size=16),
        PlasticityMetricsCallback(every=64, probe_size=16),
        saver,
    ]
    said: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            model.learn(512, callback=callbacks)
    except (ValueError, RuntimeError) as error:
        said.append(f"{type(error).__name__}: {error}")
    said += [str(warning.message) for warning in heard]
    if not _finite(model):
        if not any("nan" in s.lower() or "finite" in s.lower() for s in said):
            return f"weights are not finite, and nothing says so: {said}"
        if not any(_finite_checkpoint(path, algorithm) for path in checkpoints(saver.folder or "")):
            return "no finite checkpoint is left"
    return None


def _finite_checkpoint(path: Path, algorithm: str) -> bool:
    kind: Any = {"PPO": PPO, "SAC": SAC, "DQN": DQN}[algorithm]
    return _finite(kind.load(path / MODEL, device="cpu"))
