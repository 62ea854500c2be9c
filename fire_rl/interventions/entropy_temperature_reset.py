"""A control: reset SAC's entropy temperature only, change no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fire_rl.interventions.base import Context, Network, Update
from fire_rl.interventions.options import Options
from fire_rl.utils.validation import check_choice


@dataclass(frozen=True, kw_only=True)
class EntropyTemperatureReset(Options):
    """Put SAC's learned entropy temperature back to its start value; weights stay.

    FIRE's authors reset it in every arm of their SAC experiment but the control (FIRE repository,
    ``rl/sac``); this arm shows what that alone does. A fixed temperature is not touched; a model
    without one is left as it is, with a warning in the log.

    Args:
        target: ``"keep"``: no weight changes, so there is nothing to copy.
        optimizer_state: ``"keep"``, or ``"all"`` to forget that of the networks too.
        entropy_temperature: ``"reset"``.
        networks, vecnormalize, replay_buffer: See :class:`~fire_rl.interventions.options.Options`.

    Raises:
        ValueError: If an option is no known choice.
    """

    target: Literal["copy", "keep", "same"] = "keep"
    optimizer_state: Literal["changed", "all", "keep"] = "keep"
    entropy_temperature: Literal["keep", "reset"] = "reset"

    name: ClassVar[str] = "entropy_temperature_reset"
    only_agents: ClassVar[bool] = True
    may_change_nothing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("target", self.target, ("keep",))
        check_choice("optimizer_state", self.optimizer_state, ("all", "keep"))
        check_choice("entropy_temperature", self.entropy_temperature, ("reset",))

    def plan(self, network: Network, context: Context) -> dict[str, Update]:
        """Plan no update of a weight."""
        return {}
