"""Every episode of a training: the step at which it ended, its return and its length."""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fire_rl.runs.layout import EPISODE_COLUMNS, EPISODES
from fire_rl.utils.files import write_csv


class EpisodeLog:
    """Collect episodes from what SB3's ``Monitor`` reports.

    Attributes:
        episodes: ``(environment steps when it ended, return)``, in order.
    """

    def __init__(self) -> None:
        self.episodes: list[tuple[int, float]] = []
        self._lengths: list[int] = []

    def record(self, step: int, infos: Iterable[Mapping[str, Any]]) -> None:
        """Take the episodes that ended in one step of all environments."""
        for info in infos:
            episode = info.get("episode")
            if episode is not None:
                self.episodes.append((step, float(episode["r"])))
                self._lengths.append(int(episode["l"]))

    def between(self, after: float, until: float) -> list[tuple[int, float]]:
        """Return the episodes that ended in ``(after, until]``."""
        first = bisect_right(self.episodes, after, key=lambda episode: episode[0])
        last = bisect_right(self.episodes, until, key=lambda episode: episode[0])
        return self.episodes[first:last]

    def write(self, folder: Path) -> None:
        """Write the file of episodes, all of it, by rename."""
        episodes = zip(self.episodes, self._lengths, strict=True)
        rows = ((step, score, length) for (step, score), length in episodes)
        write_csv(folder / EPISODES, EPISODE_COLUMNS, rows)

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        steps, returns = zip(*self.episodes, strict=True) if self.episodes else ((), ())
        return {
            "steps": np.array(steps, np.int64),
            "returns": np.array(returns, np.float64),
            "lengths": np.array(self._lengths, np.int64),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`."""
        steps, returns = state["steps"].tolist(), state["returns"].tolist()
        self.episodes = list(zip(steps, returns, strict=True))
        self._lengths = state["lengths"].tolist()


def read_episodes(folder: str | Path) -> list[tuple[int, float]]:
    """Read the file of episodes of a run folder: steps and returns.

    Raises:
        FileNotFoundError: If there is none.
    """
    with (Path(folder) / EPISODES).open(newline="", encoding="utf-8") as file:
        step, score, _ = EPISODE_COLUMNS
        return [(int(row[step]), float(row[score])) for row in csv.DictReader(file)]
