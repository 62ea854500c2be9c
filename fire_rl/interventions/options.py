"""Options that interventions share: where they act, and what happens around the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fire_rl.interventions.base import Aftermath, Network, check_patterns, select_layers
from fire_rl.utils.validation import as_names, check_choice
from fire_rl.weights.layers import LayerKind, WeightLayer


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which networks to act on, and what happens around their weights.

    Args:
        networks: Roles to act on, such as ``["critic"]``; None means all.
        target, optimizer_state, entropy_temperature, vecnormalize, replay_buffer: See
            :class:`~fire_rl.interventions.base.Aftermath`.

    Raises:
        ValueError: If an option is no known choice.

    Attributes:
        only_agents: Whether it needs an agent, so that it is not for plain modules.
        may_change_nothing: Whether an event that changes no weight is no error: that of a control,
            or of a method that may find nothing to do.
        refuses_head_refit: If fitting the heads would undo the intervention, the reason, for the
            error ``"... would undo it, whose <reason>"``; else None.
    """

    networks: tuple[str, ...] | None = None
    target: Literal["copy", "keep", "same"] = "copy"
    optimizer_state: Literal["changed", "all", "keep"] = "changed"
    entropy_temperature: Literal["keep", "reset"] = "keep"
    vecnormalize: Literal["keep", "reset"] = "keep"
    replay_buffer: Literal["keep", "clear"] = "keep"

    only_agents: ClassVar[bool] = False
    may_change_nothing: ClassVar[bool] = False
    refuses_head_refit: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if self.networks is not None:
            self._set(networks=as_names("networks", self.networks))
            if not self.networks:
                raise ValueError("`networks` must name a role, or be None for all, got none.")
        assert self.aftermath  # checks its own five choices

    @property
    def aftermath(self) -> Aftermath:
        """What to do around the weights."""
        return Aftermath(
            self.target,
            self.optimizer_state,
            self.entropy_temperature,
            self.vecnormalize,
            self.replay_buffer,
        )

    def check(self, networks: Sequence[Network]) -> None:
        """Accept any networks."""

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class LayerOptions(Options):
    """Options of interventions on chosen layers.

    Args:
        include: Names or shell patterns of the only layers to touch; empty means all.
        exclude: Names or shell patterns of layers to leave alone.
        source: Where new weights come from: ``"fresh"``, a new draw of the policy's own
            initialisation, or ``"initial"``, the weights the run began with.

    Raises:
        ValueError: If a pattern is no text, or the source no known choice.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    source: Literal["fresh", "initial"] = "fresh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("source", self.source, ("fresh", "initial"))
        self._set(
            include=as_names("include", self.include), exclude=as_names("exclude", self.exclude)
        )

    def check(self, networks: Sequence[Network]) -> None:
        """Raise ValueError if a name pattern matches no layer."""
        layers = [layer for network in networks for layer in self.candidates(network)]
        check_patterns("include", self.include, layers)
        check_patterns("exclude", self.exclude, layers)

    def candidates(self, network: Network) -> tuple[WeightLayer, ...]:
        """Return the layers that the patterns choose from."""
        return network.layers

    def selected(self, network: Network) -> Iterator[WeightLayer]:
        """Yield the layers that the patterns let through and that the user has not frozen."""
        for layer in select_layers(self.candidates(network), self.include, self.exclude):
            if not layer.frozen:
                yield layer


class RulesByKind(LayerOptions):
    """Options of interventions with a rule for each kind of layer, recurrent ones among them.

    A subclass is a dataclass that has these as fields, with its own rules and defaults.
    """

    hidden: str
    conv: str
    head: str
    recurrent: str

    def candidates(self, network: Network) -> tuple[WeightLayer, ...]:
        """Return the layers that the patterns choose from."""
        recurrent = () if self.recurrent == "keep" else network.recurrent_layers
        return (*network.layers, *recurrent)

    def rule(self, layer: WeightLayer) -> str:
        """Return what happens to a layer."""
        if layer.is_head:
            return self.head
        rules: dict[LayerKind, str] = {"conv": self.conv, "recurrent": self.recurrent}
        return rules.get(layer.kind, self.hidden)
