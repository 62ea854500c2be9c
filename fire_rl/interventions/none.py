"""The control: an intervention that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fire_rl.interventions.base import Aftermath, Context, Network, Update
from fire_rl.utils.validation import as_names


@dataclass(frozen=True)
class NoIntervention:
    """Do nothing, but go through the whole protocol: the control arm of an experiment.

    Training with it is bit-identical to training without a callback.

    Args:
        networks: Roles to report on, None for all.
    """

    networks: tuple[str, ...] | None = None
    name: ClassVar[str] = "none"
    may_change_nothing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.networks is not None:
            object.__setattr__(self, "networks", as_names("networks", self.networks))

    @property
    def aftermath(self) -> Aftermath:
        """Everything is kept."""
        return Aftermath(target="keep", optimizer_state="keep")

    def check(self, networks: Sequence[Network]) -> None:
        """Accept any network."""

    def plan(self, network: Network, context: Context) -> dict[str, Update]:
        """Plan no update."""
        return {}
