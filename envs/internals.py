"""The one place that knows private names of single environments: ale-py's and MuJoCo's."""

from __future__ import annotations

from typing import Any

from fire_rl.utils.foreign import private, set_private


def game_switches(env: Any) -> tuple[int | None, int | None]:
    """Return mode and difficulty that an Atari environment was made with; None: the game's own.

    Args:
        env: ale-py's ``AtariEnv`` itself, unwrapped.
    """
    return private(env, "_game_mode", "ale-py"), private(env, "_game_difficulty", "ale-py")


def set_game_switches(env: Any, mode: int, difficulty: int) -> None:
    """Set what a seeded reset of an Atari environment puts the console's switches to."""
    set_private(env, "_game_mode", mode, "ale-py")
    set_private(env, "_game_difficulty", difficulty, "ale-py")


def rewards_running(env: Any) -> bool:
    """Tell whether a MuJoCo environment, unwrapped, has a reward for running forward."""
    return hasattr(env, "_forward_reward_weight")
