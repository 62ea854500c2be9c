"""Atari: SB3's preprocessing for both families of ids, and an honest evaluation."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper

# `sticky_actions` is the probability that the emulator repeats the last action instead (Machado et
# al. 2018, https://arxiv.org/abs/1709.06009); AtariWrapper calls it `action_repeat_probability`.
STICKY = "action_repeat_probability"
WRAPPER_OPTIONS = tuple(
    "sticky_actions" if name == STICKY else name
    for name in inspect.signature(AtariWrapper).parameters
    if name != "env"
)
# AtariWrapper skips frames and repeats actions itself: the v5 ids do both already, and doing it
# twice would show the agent every 16th frame.
MAKE_ARGUMENTS = {"frameskip": 1, "repeat_action_probability": 0.0}
# Of the emulator's other arguments, these would break AtariWrapper or contradict the id.
GAME_OPTIONS = ("difficulty", "full_action_space", "max_num_frames_per_episode", "mode")
DEFAULT_FRAME_STACK = 4
FRAMES_PER_SECOND = 60


def is_atari(env_id: str) -> bool:
    """Tell whether an id is one that AtariWrapper understands."""
    return bool(re.fullmatch(r"ALE/.+-v5|[^/]+NoFrameskip-v[04]", env_id))


def register() -> None:
    """Register the Atari ids with gymnasium.

    Raises:
        ImportError: If ale-py or OpenCV is not installed.
    """
    missing = [
        package
        for package, module in (("ale-py", "ale_py"), ("opencv-python-headless", "cv2"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ImportError(
            f"Atari environments need {' and '.join(missing)}. Install with: "
            "pip install 'fire-rl[atari]'"
        )
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner per environment
    gym.register_envs(ale_py)


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split options into those of ``gym.make`` and those of :func:`wrap`."""
    make = {name: value for name, value in options.items() if name not in WRAPPER_OPTIONS}
    wrapper = {name: value for name, value in options.items() if name in WRAPPER_OPTIONS}
    return {**make, **MAKE_ARGUMENTS}, wrapper


def wrap(env: gym.Env, training: bool, options: Mapping[str, Any]) -> gym.Env:
    """Preprocess one game: no-op starts, frame skip, grey 84×84 frames, clipped rewards.

    An evaluation environment plays whole games with raw rewards and the same sticky actions. Where
    a lost life ends a training episode, the training's reset presses FIRE, and the agent never
    learns to; in evaluation it is pressed for the agent, or Breakout would wait for the ball
    until the time limit.

    Args:
        env: The game without frame skip, inside a Monitor (which then sees raw returns).
        training: False for an evaluation environment.
        options: ``noop_max``, ``frame_skip``, ``screen_size``, ``terminal_on_life_loss``,
            ``clip_reward`` as in SB3's ``AtariWrapper``, and ``sticky_actions``.
    """
    kwargs = {STICKY if k == "sticky_actions" else k: v for k, v in options.items()}
    if not training:
        if kwargs.get("terminal_on_life_loss", True) and "FIRE" in _meanings(env):
            env = PressFireAfterLifeLoss(env)
        kwargs |= {"terminal_on_life_loss": False, "clip_reward": False}
    return AtariWrapper(env, **kwargs)


class PressFireAfterLifeLoss(gym.Wrapper):
    """Start the next life as the training's reset does: press FIRE, whatever the agent says.

    Args:
        env: A game without frame skip.
    """

    # As in the training's reset: one agent step of four frames without a button, then one of FIRE.
    _NOOP_FRAMES, _FIRE_FRAMES = 4, 4

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._fire = _meanings(env).index("FIRE")
        self._lives = 0
        self._frames_left = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the game; SB3's FireResetEnv, outside of us, presses FIRE then."""
        result = self.env.reset(**kwargs)
        self._lives, self._frames_left = self._current_lives(), 0
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play one frame, with our action for a few frames after a lost life."""
        if self._frames_left > 0:
            action = self._fire if self._frames_left <= self._FIRE_FRAMES else 0
            self._frames_left -= 1
        result = self.env.step(action)
        lives = self._current_lives()
        if 0 < lives < self._lives:
            self._frames_left = self._NOOP_FRAMES + self._FIRE_FRAMES
        self._lives = lives
        return result

    def _current_lives(self) -> int:
        return int(self.unwrapped.ale.lives())  # type: ignore[attr-defined]


def _meanings(env: gym.Env) -> list[str]:
    return list(env.unwrapped.get_action_meanings())  # type: ignore[attr-defined]
