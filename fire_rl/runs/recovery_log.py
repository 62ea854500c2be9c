"""Keep a training's episodes and events, and tell how the return went on after each event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from fire_rl.runs.episodes import EpisodeLog
from fire_rl.runs.recovery import Recovery, recovery

_SHOWN = ("before", "dip", "steps_to_regain", "area_lost", "plateau")


class RecoveryLog:
    """Episodes and events of one count of steps.

    Args:
        name: Of the intervention.

    Attributes:
        episodes: All training episodes.
        steps: Of the events.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.episodes = EpisodeLog()
        self.steps: list[int] = []
        self._told = 0  # events whose recovery has been told

    def start(self, step: int) -> None:
        """Begin a call of ``learn()``; one that counts from 0 again has a past of its own."""
        if self.episodes.episodes and step < self.episodes.episodes[-1][0]:
            self.episodes, self.steps, self._told = EpisodeLog(), [], 0

    def results(self, now: int, first: int = 0) -> list[Recovery]:
        """Return the recovery from each event, up to the next one or to now."""
        found = []
        for step, end in pairwise([*self.steps[first:], now]):
            if end > step:
                near = self.episodes.between(step - (end - step), end)
                found.append(recovery(near, step, end))
        return found

    def tell(self, now: int, append: Callable[[Mapping[str, Any]], None], writer: Any) -> str:
        """Log what has not been told yet, at the end of a training; return it as a line.

        Args:
            now: The last step.
            append: Adds an entry to a file of JSON lines.
            writer: TensorBoard's, or None.
        """
        told = [result for result in self.results(now, self._told) if result.episodes]
        for result in told:
            numbers = result.to_dict()
            append({"recovery": self.name, **numbers})
            if writer is not None:
                for key in _SHOWN:
                    writer.add_scalar(f"recovery/{self.name}/{key}", numbers[key], result.step)
        # A later call of learn() goes on from the last event: its recovery is told again.
        self._told = max(self._told, len(self.steps) - 1)
        if not told:
            return ""
        words = [f"{key.replace('_', ' ')} {getattr(told[-1], key):,.4g}" for key in _SHOWN]
        more = f" (the last of {len(told)} events)" if len(told) > 1 else ""
        event = f"{self.name} at step {told[-1].step:,}{more}"
        return f"recovery from {event}: {', '.join(words)}"

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        return {"episodes": self.episodes.get_state(), "steps": self.steps, "told": self._told}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`."""
        self.episodes.set_state(state["episodes"])
        self.steps, self._told = list(state["steps"]), state["told"]
