"""MinAtar: five Atari games on a 10×10 grid, for experiments that take minutes."""

from __future__ import annotations

import colorsys
import importlib
import importlib.util
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Frame = NDArray[np.uint8]

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
STICKY_ACTIONS = 0.1  # source: Young & Tian 2019, arXiv 1903.03176; the package's default
# Seaquest never ends for an agent that rests at the surface, so evaluation would not.
# source: Dopamine's max_steps_per_episode, which its MinAtar agents keep; the package has no limit
MAX_EPISODE_STEPS = 27_000
_PIXELS = 16  # of a cell in a video


def is_minatar(env_id: str) -> bool:
    """Tell whether an id is one of this module."""
    return env_id.startswith("MinAtar/")


def register() -> None:
    """Register the package's ids with gymnasium, made by :func:`make_game`.

    ``-v1`` has the actions that do something in the game, ``-v0`` all six.

    Raises:
        ImportError: If MinAtar is not installed.
    """
    if importlib.util.find_spec("minatar") is None:
        raise ImportError(
            "MinAtar environments need minatar. Install with: pip install 'fire-rl[minatar]'"
        )
    for game in GAMES:
        for version, is_minimal in ((0, False), (1, True)):
            env_id = f"MinAtar/{_title(game)}-v{version}"
            if env_id not in gym.registry:
                creator = partial(make_game, game, is_minimal)
                gym.register(env_id, creator, max_episode_steps=MAX_EPISODE_STEPS)


def make_game(
    game: str,
    is_minimal: bool,
    /,
    sticky_actions: float = STICKY_ACTIONS,
    difficulty_ramping: bool = True,
    render_mode: str | None = None,
) -> gym.Env[Frame, Any]:
    """Make a game.

    Args:
        game: One of :data:`GAMES`.
        is_minimal: Whether actions without effect in this game are left out.
        sticky_actions: Probability that the last action is repeated instead.
        difficulty_ramping: Whether Asterix, Seaquest and Space Invaders get harder with time.
        render_mode: ``"rgb_array"`` to record videos.
    """
    rules = importlib.import_module(f"minatar.environments.{game}").Env
    kind = type(_title(game), (MinAtarEnv, rules), {})
    env: gym.Env[Frame, Any] = kind(
        rules, is_minimal, sticky_actions, difficulty_ramping, render_mode
    )
    return env


class MinAtarEnv(gym.Env[Frame, Any]):
    """A game of the package with images as SB3 expects them: ``(channels, 10, 10)``, 0 or 255.

    The package's own gymnasium class shows booleans, channels last, which SB3 takes for numbers.
    Same seed and actions, same game as there. It is to be mixed with a class of rules: then the
    game's state are attributes of the environment, which exact checkpoints read.

    Args:
        rules: The class of the package that plays the game.
        is_minimal, sticky_actions, difficulty_ramping, render_mode: See :func:`make_game`.
    """

    metadata = {  # noqa: RUF012  # gymnasium's name
        "render_modes": ["rgb_array"],
        "render_fps": 20,  # source: the package shows a step for 50 ms
    }
    # Those of the rules.
    random: np.random.RandomState
    state: Any

    def __init__(
        self,
        rules: Any,
        is_minimal: bool,
        sticky_actions: float,
        difficulty_ramping: bool,
        render_mode: str | None,
    ) -> None:
        self.render_mode = render_mode
        self.sticky_actions = sticky_actions
        self._rules = rules
        self._last_action = 0  # as in the package, the one of the last episode at first
        rules.__init__(self, ramping=difficulty_ramping)
        height, width, channels = rules.state_shape(self)
        self._actions = rules.minimal_action_set(self) if is_minimal else list(range(6))
        self.action_space = spaces.Discrete(len(self._actions))
        self.observation_space = spaces.Box(0, 255, (channels, height, width), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self.random = np.random.RandomState(seed)
            self._last_action = 0  # a seed decides all of the episode
        self._rules.reset(self)
        return self._observation(), {}

    def step(self, action: int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Play one frame."""
        if self.random.rand() >= self.sticky_actions:
            self._last_action = self._actions[int(action)]
        reward, is_over = self._rules.act(self, self._last_action)
        return self._observation(), float(reward), bool(is_over), False, {}

    def render(self) -> Frame:
        """Draw the cells, one colour a channel; where channels meet, the last one shows."""
        cells = self.state()
        channels = cells.shape[2]
        hues = [colorsys.hsv_to_rgb(k / channels, 0.7, 1.0) for k in range(channels)]
        colors = np.array([(0.0, 0.0, 0.0), *hues])
        top = (cells * np.arange(1, channels + 1)).max(axis=2)
        image: Frame = (255 * colors[top]).astype(np.uint8)
        return image.repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)

    def _observation(self) -> Frame:
        return np.ascontiguousarray(self.state().transpose(2, 0, 1), dtype=np.uint8) * np.uint8(255)


def _title(game: str) -> str:
    return game.title().replace("_", "")
