"""Tasks with another goal in the same world: another direction, other effects of actions."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.continual.sequence import TaskChange
from envs.internals import rewards_running

FORWARD = "reward_forward"  # gymnasium's name in `info`


class ChangingDirection(TaskChange):
    """Reward running forward in even tasks, backward in odd ones.

    ``r = r_0 - 2 · r_forward`` in odd tasks: what a step costs and what staying upright earns stay.
    The two goals of meta-RL's HalfCheetahDir (Finn et al. 2017, arXiv 1703.03400, §5.3) in turns.
    Observations and dynamics stay, the best action is another one: it measures whether a value
    function and a policy can be unlearned.

    Args:
        env: A MuJoCo locomotion task whose ``info`` has ``reward_forward`` (gymnasium's ``-v5``).

    Raises:
        ValueError: If it has none.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        if not rewards_running(env.unwrapped) or FORWARD not in _info(env):
            raise ValueError(
                f"`tasks.change: direction` needs a locomotion task with {FORWARD!r} in its info, "
                "such as HalfCheetah-v5, Hopper-v5, Walker2d-v5, Ant-v5 or Swimmer-v5; this one, "
                f"{type(env.unwrapped).__name__}, has none."
            )
        self.reconfigure()

    def reconfigure(self) -> None:
        """Choose the direction: 1 forward, -1 backward."""
        self.direction = 1 if self.variant % 2 == 0 else -1

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one step; pay for the direction."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.direction < 0:
            reward = float(reward) - 2 * float(info[FORWARD])
            info = {**info, FORWARD: -info[FORWARD]}
        return observation, reward, terminated, truncated, info


class ChangingActions(TaskChange):
    """Give actions other effects in each task.

    Task k takes the discrete action ``p_k[a]``, with a random permutation, or mirrors a random part
    of the continuous actions in their ranges, ``low + high - a``. Never as in the task before. What
    is seen and what pays stays, so features and values of states could be kept: only the head of
    the policy must change. It works in every environment.

    Args:
        env: With discrete actions, or continuous ones in a bounded box.
        seed: Of the sequence of tasks.

    Raises:
        ValueError: If the actions are something else.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int = 0) -> None:
        super().__init__(env)
        space = env.action_space
        self._is_discrete = isinstance(space, spaces.Discrete) and space.n > 1 and space.start == 0
        if not self._is_discrete and not (isinstance(space, spaces.Box) and space.is_bounded()):
            raise ValueError(
                "`tasks.change: actions` needs two or more discrete actions, or continuous ones "
                f"within bounds; those of this environment are {space}."
            )
        self.seed = seed
        self._size = int(space.n) if isinstance(space, spaces.Discrete) else spaces.flatdim(space)
        self.reconfigure()

    def reconfigure(self) -> None:
        """Draw the tasks up to the variant: each differs from the one before."""
        generator = np.random.default_rng(self.seed)
        start = np.arange(self._size) if self._is_discrete else np.zeros(self._size, np.int64)
        self._drawn = start
        for _ in range(self.variant):
            before = self._drawn
            while np.array_equal(before, self._drawn):
                self._drawn = (
                    generator.permutation(self._size)
                    if self._is_discrete
                    else generator.integers(2, size=self._size)
                )

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take the step that the action means now."""
        return self.env.step(self._meant(action))

    def _meant(self, action: Any) -> Any:
        if self._is_discrete:
            return int(self._drawn[int(action)])
        space = self.action_space
        assert isinstance(space, spaces.Box)
        mirrored = self._drawn.reshape(space.shape).astype(bool)
        return np.where(mirrored, space.low + space.high - action, action).astype(space.dtype)


def _info(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Return the info of a step; the environment is to be reset afterwards."""
    env.reset()
    info: dict[str, Any] = env.step(np.zeros(env.action_space.shape or (), np.float32))[4]
    return info
