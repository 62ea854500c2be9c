"""Tasks that are other flavours of a game, or other games."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from envs.continual.sequence import TaskChange
from envs.internals import game_switches, set_game_switches

MINATAR_CHANNELS = 10  # source: C-CHAIN, arXiv 2506.00592; the most that a game has, Seaquest's


class ChangingMode(TaskChange):
    """Play an Atari game in another mode and difficulty in each task.

    The emulator's flavours (Machado et al. 2018, arXiv 1709.06009) look alike and play
    differently. Abbas et al. 2023 (arXiv 2303.07507) switch games and modes and see Rainbow lose
    its plasticity. Tasks: the flavour as given first, then all others in a random order, then from
    the start again.

    Args:
        env: The game, without frame skip or with.
        seed: Of the order.
        modes, difficulties: Which ones to use; by default all that the game has.

    Raises:
        ValueError: If the environment is no Atari game, or has no such mode.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        seed: int = 0,
        modes: Sequence[int] | None = None,
        difficulties: Sequence[int] | None = None,
    ) -> None:
        super().__init__(env)
        inner: Any = env.unwrapped
        known = {
            "mode": list(map(int, inner.ale.getAvailableModes())),
            "difficulty": list(map(int, inner.ale.getAvailableDifficulties())),
        }
        asked = {"mode": modes, "difficulty": difficulties}
        for name, plural in (("mode", "modes"), ("difficulty", "difficulties")):
            wrong = [value for value in asked[name] or () if value not in known[name]]
            if wrong:
                raise ValueError(
                    f"`tasks.{plural}` has {wrong}, which {inner.spec.id} has not; it has "
                    f"{known[name]}."
                )
        # The emulator's own default is the first of its list (RomSettings::getDefaultMode).
        first = tuple(
            known[name][0] if chosen is None else int(chosen)
            for name, chosen in zip(known, game_switches(inner), strict=True)
        )
        chosen = [asked[name] or known[name] for name in known]
        others = [flavour for flavour in product(*chosen) if flavour != first]
        if not others:
            raise ValueError(
                f"`tasks.change: mode` needs a game with several modes or difficulties: "
                f"{inner.spec.id} has modes {known['mode']} and difficulties {known['difficulty']}."
            )
        order = np.random.default_rng(seed).permutation(len(others))
        self.flavours = [first, *(others[k] for k in order)]

    def reconfigure(self) -> None:
        """Set the console's switches; the game takes them up at its next reset."""
        inner: Any = self.unwrapped
        mode, difficulty = self.flavours[self.variant % len(self.flavours)]
        set_game_switches(inner, mode, difficulty)
        inner.ale.setMode(mode)
        inner.ale.setDifficulty(difficulty)


class ChangingGame(TaskChange):
    """Play another game in each task, one after the other, then from the first again.

    Features of one game hardly serve the next, and values have another scale: the hard test for a
    network of convolutions (Abbas et al. 2023, arXiv 2303.07507; C-CHAIN, arXiv 2506.00592).
    MinAtar's games get empty channels up to 10, as C-CHAIN does.

    Args:
        makers: Make the games.

    Raises:
        ValueError: If their actions or observations differ.
    """

    def __init__(self, makers: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        self._games = [pad(maker()) for maker in makers]
        first = self._games[0]
        for game in self._games[1:]:
            for name in ("action_space", "observation_space"):
                mine, other = getattr(first, name), getattr(game, name)
                if mine != other:
                    advice = ": name the -v0 ids" if "MinAtar" in str(first.spec) else ""
                    raise ValueError(
                        f"`tasks.games` must have the same actions and observations{advice}; the "
                        f"{name.replace('_', ' ')} of {_id(first)} is {mine}, that of {_id(game)} "
                        f"is {other}."
                    )
        super().__init__(first)
        self._seeds = np.random.default_rng()
        self._is_new = False

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]  # as gymnasium's Wrapper does
        """The first game's: the environment stays the same one for whoever asks."""
        return self._games[0].spec

    def apply(self, variant: int) -> None:
        """Go to another game, which the next reset seeds."""
        super().apply(variant)
        self._is_new = True

    def reconfigure(self) -> None:
        """Put the variant's game in."""
        self.env = self._games[self.variant % len(self._games)]

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; a game that was just put in gets a seed, drawn from our own."""
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        elif self._is_new:
            seed = int(self._seeds.integers(2**31))
        self._is_new = False
        return self.env.reset(seed=seed, **kwargs)

    def close(self) -> None:
        """Close all games."""
        for game in self._games:
            game.close()


class EmptyChannels(gym.Wrapper[NDArray[Any], Any, NDArray[Any], Any]):
    """Add empty channels to images ``(channels, height, width)``.

    Args:
        env: With at most so many channels.
        channels: How many there shall be.
    """

    def __init__(self, env: gym.Env[NDArray[Any], Any], channels: int) -> None:
        super().__init__(env)
        own, height, width = env.observation_space.shape or (0, 0, 0)
        self.observation_space = spaces.Box(0, 255, (channels, height, width), np.uint8)
        self._empty = np.zeros((channels - own, height, width), np.uint8)

    def reset(self, **kwargs: Any) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**kwargs)
        return np.concatenate([observation, self._empty]), info

    def step(self, action: Any) -> tuple[NDArray[Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return np.concatenate([observation, self._empty]), reward, terminated, truncated, info


def pad(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Give a MinAtar game ten channels; leave others as they are."""
    is_minatar = _id(env).startswith("MinAtar/")
    return EmptyChannels(env, MINATAR_CHANNELS) if is_minatar else env


def _id(env: gym.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
