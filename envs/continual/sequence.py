"""When tasks change: the count of steps, the end of episodes, the number of the task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, SupportsFloat

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.vec_env import VecEnv


class TaskChange(gym.Wrapper[Any, Any, Any, Any]):
    """One way in which an environment changes. Variant 0 is the environment as it is.

    A variant depends on its number and on arguments only, not on the variants before it.

    Args:
        env: What changes.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.variant = 0

    def apply(self, variant: int) -> None:
        """Become another variant; a reset must follow."""
        self.variant = variant
        self.reconfigure()

    def reconfigure(self) -> None:
        """Make everything inside as :attr:`variant` says.

        A checkpoint that is restored calls this before it puts back what is inside.
        """
        raise NotImplementedError


class TaskSequence(gym.Wrapper[Any, Any, Any, Any]):
    """Go to the next task every so many steps, and name it in the infos.

    The step that completes a task truncates the episode, so that no episode mixes two tasks. Each
    ``info`` holds its ``"task"``; that of a completing step also ``"task_completed": True``.

    Args:
        env: Has a :class:`TaskChange` somewhere inside.
        every: Steps of this copy in each task; None to stay until :meth:`set_task`.
        recurring: Tasks come back: task k is variant ``k mod recurring``. None for always new ones.
    """

    def __init__(
        self, env: gym.Env[Any, Any], every: int | None, recurring: int | None = None
    ) -> None:
        super().__init__(env)
        self.every, self.recurring = every, recurring
        self._steps = 0
        self.set_task(0)

    def set_task(self, task: int) -> None:
        """Go to a task at once; a reset must follow, and shows it."""
        self.task = task
        self._steps = task * (self.every or 0)
        for level in _levels(self.env):
            if isinstance(level, TaskChange):
                level.apply(task if self.recurring is None else task % self.recurring)
            elif isinstance(level, EpisodicLifeEnv):
                level.was_real_done = True  # or it would play on with the next life

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, of the next task if the last one is complete."""
        if self.every is not None and self._steps // self.every != self.task:
            self.set_task(self._steps // self.every)
        observation, info = self.env.reset(**kwargs)
        return observation, {**info, "task": self.task}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one step of the current task."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        info = {**info, "task": self.task}
        if self.every is not None and self._steps % self.every == 0:
            truncated = True
            info["task_completed"] = True
        return observation, reward, terminated, truncated, info


def set_task(venv: VecEnv, task: int) -> None:
    """Move every copy to a task; a reset must follow."""
    venv.env_method("set_task", task)


def _levels(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    """Yield an environment and what it wraps. A level may change what is inside it meanwhile."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env
