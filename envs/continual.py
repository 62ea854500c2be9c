"""Tasks that change while the agent trains: the setting in which plasticity is lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from fire_rl._validation import check_choice

Array = NDArray[Any]

# The first task of every change is the environment as it is.
CHANGES = ("offset", "permutation")
OFFSET_STD = 2.0  # source: TRAC, arXiv 2405.16642; C-CHAIN, arXiv 2506.00592 (first task 0)


class ChangingObservations(gym.Wrapper[Array, Any, Array, Any]):
    """Show the same environment through changing eyes: a new task every so many steps.

    Task k shows ``x + c_k``, ``c_k ~ N(0, 2²)`` (``change="offset"``), or ``s_k * x[p_k]`` with a
    random permutation and random signs (``change="permutation"``). What task k looks like depends
    on ``seed`` and k only: the same in every copy of the environment. The step that completes a
    task truncates the episode, so that no episode mixes two tasks; each ``info`` holds its
    ``"task"``.

    Args:
        env: Its observations are vectors.
        change: ``"offset"`` or ``"permutation"``.
        every: Steps of this copy in each task; None to stay until :meth:`set_task`.
        seed: Of the sequence of tasks.

    Raises:
        ValueError: If the observations are something else.
    """

    def __init__(
        self, env: gym.Env[Array, Any], change: str, every: int | None, seed: int = 0
    ) -> None:
        space = env.observation_space
        is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
        if not is_vector or not np.issubdtype(space.dtype, np.floating):
            raise ValueError(
                f"`tasks` changes observations that are vectors of floating-point numbers; those "
                f"of this environment are {space}."
            )
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, space.shape, np.float32)
        self.change, self.every, self.seed = change, every, seed
        self._size = spaces.flatdim(space)
        self.set_task(0)

    def set_task(self, task: int) -> None:
        """Go to a task at once; the next reset shows it."""
        self.task = task
        self._steps = task * (self.every or 0)
        # A task shows signs * x[order] + offset; the first one shows x.
        self._order = np.arange(self._size)
        self._signs = np.ones(self._size, np.float32)
        self._offset = np.zeros(self._size, np.float32)
        if task > 0:
            generator = np.random.default_rng((self.seed, task))
            if self.change == "offset":
                self._offset = generator.normal(0, OFFSET_STD, self._size).astype(np.float32)
            else:
                self._order = generator.permutation(self._size)
                self._signs = generator.choice([-1, 1], self._size).astype(np.float32)

    def reset(self, **kwargs: Any) -> tuple[Array, dict[str, Any]]:
        """Begin an episode, of the next task if the last one is complete."""
        if self.every is not None and self._steps // self.every != self.task:
            self.set_task(self._steps // self.every)
        observation, info = self.env.reset(**kwargs)
        return self._show(observation), {**info, "task": self.task}

    def step(self, action: Any) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one step of the current task."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        if self.every is not None:
            truncated = truncated or self._steps % self.every == 0
        info = {**info, "task": self.task}
        return self._show(observation), reward, terminated, truncated, info

    def _show(self, observation: Array) -> Array:
        shown: Array = self._signs * observation.astype(np.float32)[self._order] + self._offset
        return shown


def check_tasks(tasks: Mapping[str, Any], n_envs: int) -> None:
    """Raise ValueError unless tasks are named and as long as the copies can share."""
    check_choice("tasks.change", tasks["change"], CHANGES)
    if tasks["every"] % n_envs:
        raise ValueError(
            f"`tasks.every` counts steps over all environments: it must be a multiple of `n_envs` "
            f"{n_envs}, got {tasks['every']}."
        )


def set_task(venv: VecEnv, task: int) -> None:
    """Move every copy to a task."""
    venv.env_method("set_task", task)
