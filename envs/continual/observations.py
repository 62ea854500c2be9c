"""Tasks that show the same environment through changing eyes."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.continual.sequence import TaskChange

Array = NDArray[Any]

OFFSET_STD = 2.0  # source: TRAC, arXiv 2405.16642; C-CHAIN, arXiv 2506.00592 (first task 0)
DRIFT_STD = 0.5  # ours: after sixteen tasks it is as far away as an offset


class ChangingObservations(TaskChange):
    """Show observations differently in each task; the dynamics stay.

    Task k shows

    - ``change="offset"``: ``x + c_k``, ``c_k ~ N(0, std²)``. A network that was trained on the
      earlier offsets gets inputs that put many of its units to sleep: the standard cheap test of
      plasticity (TRAC, arXiv 2405.16642, §4; C-CHAIN, arXiv 2506.00592).
    - ``change="drift"``: the same with a random walk, ``c_k = c_(k-1) + N(0, std²)``.
      Neighbouring tasks share structure: it measures what an intervention forgets.
    - ``change="permutation"``: ``s_k * x[p_k]``, a random permutation and random signs. Nothing of
      the first layer can be kept, all of the others could.

    Args:
        env: Its observations are vectors.
        change: ``"offset"``, ``"drift"`` or ``"permutation"``.
        seed: Of the sequence of tasks.
        std: Of an offset, or of a step of the walk; by default 2 and 0.5. Environments whose
            observations are small are shifted far: scale it to them.

    Raises:
        ValueError: If the observations are something else.
    """

    def __init__(
        self, env: gym.Env[Any, Any], change: str, seed: int = 0, std: float | None = None
    ) -> None:
        space = env.observation_space
        is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
        if not is_vector or not np.issubdtype(space.dtype, np.floating):
            raise ValueError(
                f"`tasks.change: {change}` changes observations that are vectors of floating-point "
                f"numbers; those of this environment are {space}."
            )
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, space.shape, np.float32)
        self.change, self.seed = change, seed
        default = OFFSET_STD if change == "offset" else DRIFT_STD
        self.std = default if std is None else std
        self._size = spaces.flatdim(space)
        self.reconfigure()

    def reconfigure(self) -> None:
        """Draw what the variant shows: ``signs * x[order] + offset``."""
        self._order = np.arange(self._size)
        self._signs = np.ones(self._size, np.float32)
        self._offset = np.zeros(self._size, np.float32)
        if self.variant == 0:
            return
        generator = np.random.default_rng((self.seed, self.variant))
        if self.change == "offset":
            self._offset = generator.normal(0, self.std, self._size).astype(np.float32)
        elif self.change == "drift":
            walk = np.random.default_rng(self.seed).normal(0, self.std, (self.variant, self._size))
            self._offset = walk.sum(axis=0).astype(np.float32)
        else:
            self._order = generator.permutation(self._size)
            self._signs = generator.choice([-1, 1], self._size).astype(np.float32)

    def reset(self, **kwargs: Any) -> tuple[Array, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**kwargs)
        return self._show(observation), info

    def step(self, action: Any) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._show(observation), reward, terminated, truncated, info

    def _show(self, observation: Array) -> Array:
        shown: Array = self._signs * observation.astype(np.float32)[self._order] + self._offset
        return shown
