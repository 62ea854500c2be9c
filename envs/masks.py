"""Which actions are valid, for agents that ask: MaskablePPO."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


def with_action_masks(env: gym.Env) -> gym.Env:
    """Give an environment the method ``action_masks()`` unless it has one."""
    return env if env.has_wrapper_attr("action_masks") else MaskFromInfo(env)


class MaskFromInfo(gym.Wrapper):
    """Tell which actions are valid from the ``action_mask`` in the infos (Taxi's way)."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._mask: NDArray[np.bool_] | None = None

    def action_masks(self) -> NDArray[np.bool_]:
        """Return whether each action is valid now.

        Raises:
            ValueError: If the environment does not say so.
        """
        if self._mask is None:
            raise ValueError(
                f"{self.env} says nowhere which actions are valid: it needs a method "
                "`action_masks()` or an `action_mask` in its infos. Without masks, use --algo ppo"
            )
        return self._mask

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Reset, and remember the mask."""
        observation, info = self.env.reset(**options)
        self._remember(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and remember the mask."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._remember(info)
        return observation, reward, terminated, truncated, info

    def _remember(self, info: dict[str, Any]) -> None:
        mask = info.get("action_mask")
        self._mask = None if mask is None else np.asarray(mask, dtype=bool)
