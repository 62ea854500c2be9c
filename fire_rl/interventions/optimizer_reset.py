"""A control: reset the optimizers only, change no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fire_rl.interventions.base import Context, Network, Update
from fire_rl.interventions.options import Options
from fire_rl.utils.validation import check_choice


@dataclass(frozen=True, kw_only=True)
class OptimizerReset(Options):
    """Forget what the optimizers remember of every parameter; weights stay.

    ("Resetting the Optimizer in Deep RL", Asadi et al. 2023.) FIRE forgets the optimizer state of
    what it changes; this control shows what that alone does.

    Args:
        target: ``"keep"``: no weight changes, so there is nothing to copy.
        optimizer_state: ``"all"``.
        networks, entropy_temperature, vecnormalize, replay_buffer: See
            :class:`~fire_rl.interventions.options.Options`.

    Raises:
        ValueError: If an option is no known choice.
    """

    target: Literal["copy", "keep", "same"] = "keep"
    optimizer_state: Literal["changed", "all", "keep"] = "all"

    name: ClassVar[str] = "optimizer_reset"
    may_change_nothing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("target", self.target, ("keep",))
        check_choice("optimizer_state", self.optimizer_state, ("all",))

    def plan(self, network: Network, context: Context) -> dict[str, Update]:
        """Plan no update of a weight."""
        return {}
