"""Explore again after surgery: DQN's ε starts high and falls back to its schedule."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from fire_rl.sb3.internals import progress_remaining
from fire_rl.utils.validation import check_int, check_share, make_from_options


@dataclass(frozen=True)
class ExplorationRestart:
    """Explore again for a while: DQN's ε starts at ``initial`` and falls to where it was.

    Args:
        steps: Environment steps over which it falls, at least 1.
        initial: ε right after the event, in [0, 1].

    Raises:
        ValueError: If a number is out of range.
    """

    steps: int
    initial: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_int("steps", self.steps, 1))
        object.__setattr__(self, "initial", check_share("initial", self.initial))

    def apply(self, model: BaseAlgorithm, step: int) -> None:
        """Replace DQN's schedule of ε until ``steps`` have passed since an event at ``step``."""
        explorer: Any = model  # DQN and QR-DQN name these alike
        restore_exploration(model)
        if step <= model.num_timesteps < step + self.steps:
            restarted = _Restarted(self, model, step, explorer.exploration_schedule)
            explorer.exploration_schedule = restarted
            explorer.exploration_rate = restarted(progress_remaining(model))


def restore_exploration(model: BaseAlgorithm) -> None:
    """Put the usual schedule of ε back."""
    schedule = getattr(model, "exploration_schedule", None)
    if isinstance(schedule, _Restarted):
        model.exploration_schedule = schedule.usual  # type: ignore[attr-defined]


class _Restarted:
    """A schedule of ε that is higher for a while. Nothing of it is left in a saved model."""

    def __init__(
        self, restart: ExplorationRestart, model: BaseAlgorithm, step: int, usual: Any
    ) -> None:
        self.restart, self.model, self.step, self.usual = restart, model, step, usual

    def __call__(self, progress_remaining: float) -> float:
        usual = float(self.usual(progress_remaining))
        passed = (self.model.num_timesteps - self.step) / self.restart.steps
        if not 0 <= passed < 1:  # over, or another call of learn() that counts from 0
            return usual
        return max(usual, self.restart.initial + (usual - self.restart.initial) * passed)

    def __reduce__(self) -> Any:
        return copy.copy, (self.usual,)


def as_exploration_restart(
    value: ExplorationRestart | Mapping[str, Any] | int | None,
) -> ExplorationRestart | None:
    """Return a restart of exploration from plain values: a number of steps, or a mapping.

    Raises:
        ValueError: If an option is unknown, missing or out of range.
        TypeError: If the value is none of these.
    """
    if value is None or isinstance(value, ExplorationRestart):
        return value
    if isinstance(value, Mapping):
        made: ExplorationRestart = make_from_options(
            ExplorationRestart, "restart_exploration", value
        )
        return made
    return ExplorationRestart(check_int("restart_exploration", value, 1))


def check_exploration_restart(model: BaseAlgorithm, restart: ExplorationRestart | None) -> None:
    """Raise ValueError if an algorithm has no ε to restart."""
    if restart is not None and not hasattr(model, "exploration_schedule"):
        raise ValueError(
            "`restart_exploration` is about the ε of DQN and QR-DQN, and "
            f"{type(model).__name__} has none: leave it out."
        )
