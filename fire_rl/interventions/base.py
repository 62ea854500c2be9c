"""The protocol of an intervention: what it sees and what it plans.

An intervention is a pure function: it reads a :class:`Network` and a :class:`Context` and returns
the new value of each tensor that it wants to change; :mod:`~fire_rl.interventions.operation` is
the one place that mutates.
What happens around the weights (targets, optimizer, entropy temperature) is a set of named
choices, :class:`Aftermath`, which surgery carries out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from fire_rl.metrics.unit_readers import Connection
from fire_rl.utils.validation import check_choice, nearest
from fire_rl.weights.layers import (
    WeightLayer,
    is_norm_layer,
    plain_name,
    weight_layers_of,
)
from fire_rl.weights.recurrent import recurrent_layers_of
from fire_rl.weights.unread import unread_modules

PLAIN = "network"  # the role of a module that is no agent's


@dataclass(frozen=True, eq=False)
class Network:
    """One trained network, as an intervention sees it.

    Attributes:
        role: ``"actor"``, ``"critic"``, ``"shared"``; ``"network"`` for a plain module.
        modules: Every submodule once, by its dotted name.
        tensors: Every parameter and buffer once, by its dotted name.
        heads: Names of the output layers.
    """

    role: str
    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, Tensor]
    heads: Collection[str] = ()

    @classmethod
    def from_module(cls, module: nn.Module, heads: Collection[str] | None = None) -> Network:
        """Describe a plain module; by default its last weight layer is the head."""
        modules = {plain_name(name): child for name, child in module.named_modules()}
        tensors = named_tensors(module)
        if heads is None:
            layers = weight_layers_of(modules.items())
            heads = {layers[-1].name} if layers else ()
        return cls(PLAIN, modules, tensors, heads)

    @cached_property
    def layers(self) -> tuple[WeightLayer, ...]:
        """The linear and convolutional layers, in order."""
        return self._registered(weight_layers_of(self.modules.items(), self.heads))

    @cached_property
    def recurrent_layers(self) -> tuple[WeightLayer, ...]:
        """The weights of LSTMs, GRUs and RNNs, which are not among :attr:`layers`."""
        return self._registered(recurrent_layers_of(self.modules.items()))

    def _registered(self, layers: Iterable[WeightLayer]) -> tuple[WeightLayer, ...]:
        """Give the parts of layers the names that they have in :attr:`tensors`."""
        names = {id(tensor): name for name, tensor in self.tensors.items()}
        found = []
        for layer in layers:
            registered = {part: names[id(t)] for part, t in layer.parts.items() if id(t) in names}
            found.append(replace(layer, tensor_names={**layer.tensor_names, **registered}))
        return tuple(found)

    def is_frozen(self, name: str) -> bool:
        """Tell whether the user has excluded a parameter from training; a buffer is not frozen."""
        tensor = self.tensors[name]
        return isinstance(tensor, nn.Parameter) and not tensor.requires_grad

    @cached_property
    def norm_tensors(self) -> tuple[str, ...]:
        """Names of scales, shifts and running statistics of normalisation layers."""
        prefixes = {name for name, module in self.modules.items() if is_norm_layer(module)}
        return tuple(name for name in self.tensors if name.rpartition(".")[0] in prefixes)


@dataclass(frozen=True)
class Context:
    """What an intervention may ask for; each is computed only when it is called.

    Attributes:
        fresh: New tensors by name, drawn by the network's own initialisation.
        initial: The tensors with which the run began, by name.
        activations: Post-activation tensors by layer name, on the probe observations: ``(N, D)``,
            or for convolutions the mean magnitude over positions, ``(N, C, 1)``.
        generator: The intervention's own random numbers.
        connections: Who reads the units of a layer, see
            :func:`~fire_rl.metrics.unit_readers.trace_connections`; layers of all networks, by
            name.
        acted_on: The online layers of all networks that the intervention acts on, by name.
    """

    fresh: Callable[[], Mapping[str, Tensor]]
    initial: Callable[[], Mapping[str, Tensor]]
    activations: Callable[[], Mapping[str, Tensor]]
    generator: torch.Generator
    connections: Callable[[], Mapping[str, tuple[Connection, ...]]] = dict
    acted_on: Mapping[str, WeightLayer] = field(default_factory=dict)

    def source(self, name: Literal["fresh", "initial"]) -> Mapping[str, Tensor]:
        """Return the tensors that a reset puts in."""
        return self.fresh() if name == "fresh" else self.initial()


@dataclass(frozen=True)
class Update:
    """What an intervention wants of one tensor.

    Attributes:
        value: The new value, of the tensor's shape.
        action: What was done, for the report: ``"project"``, ``"reset"``, ``"zero"``, ...
        scale: Singular value that counts as isometric, one number or one per matrix of the layer
            (see :meth:`~fire_rl.weights.layers.WeightLayer.matrices`); None is the published scale.
        entries: Boolean, of the tensor's shape: only these entries were meant, and only their
            optimizer moments are forgotten. None means all.
        units: Number of units that the new value recycles, for the report.
        blocks: Where the layer's weight was split into blocks of rows: what was done to each.
    """

    value: Tensor
    action: str
    scale: float | Tensor | None = None
    entries: Tensor | None = None
    units: int = 0
    blocks: tuple[str, ...] = ()


def weight_updates(layer: WeightLayer, update: Update) -> dict[str, Update]:
    """Return what an update of a layer's weight means for the parameters that make it up."""
    entries = update.entries if len(layer.weight_names) == 1 else None
    return {
        name: replace(update, value=value, entries=entries)
        for name, value in layer.stored(update.value).items()
    }


@dataclass(frozen=True)
class Aftermath:
    """What happens around the weights, by name.

    Attributes:
        target: Target networks where the online network changed: ``"copy"`` the online network
            into them, ``"keep"`` them, or do the ``"same"`` to their own weights.
        optimizer_state: Forget moments and step count of every ``"changed"`` parameter, of
            ``"all"`` parameters of the networks acted on and SAC's temperature, or ``"keep"`` them.
        entropy_temperature: ``"reset"`` SAC's learned temperature to the start value in
            ``ent_coef``, with its optimizer; a fixed one is never touched.
        vecnormalize: ``"reset"`` the running statistics of VecNormalize.
        replay_buffer: ``"clear"`` the replay buffer.
    """

    target: Literal["copy", "keep", "same"] = "copy"
    optimizer_state: Literal["changed", "all", "keep"] = "changed"
    entropy_temperature: Literal["keep", "reset"] = "keep"
    vecnormalize: Literal["keep", "reset"] = "keep"
    replay_buffer: Literal["keep", "clear"] = "keep"

    def __post_init__(self) -> None:
        check_choice("target", self.target, ("copy", "keep", "same"))
        check_choice("optimizer_state", self.optimizer_state, ("changed", "all", "keep"))
        check_choice("entropy_temperature", self.entropy_temperature, ("keep", "reset"))
        check_choice("vecnormalize", self.vecnormalize, ("keep", "reset"))
        check_choice("replay_buffer", self.replay_buffer, ("keep", "clear"))


class Intervention(Protocol):
    """What every intervention is able to do."""

    name: ClassVar[str]

    @property
    def networks(self) -> tuple[str, ...] | None:
        """Roles to act on, None for all."""
        ...

    @property
    def aftermath(self) -> Aftermath:
        """What to do around the weights."""
        ...

    def check(self, networks: Sequence[Network]) -> None:
        """Raise ValueError if an option does not fit these networks; called before any plan."""
        ...

    def plan(self, network: Network, context: Context) -> dict[str, Update]:
        """Compute new values by tensor name; change nothing."""
        ...


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer of a module once, by dotted name."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {plain_name(name): tensor for name, tensor in named}


def select_layers(
    layers: Iterable[WeightLayer], include: Sequence[str], exclude: Sequence[str]
) -> Iterator[WeightLayer]:
    """Yield the layers whose name matches a pattern of ``include`` (if any), none of ``exclude``.

    Patterns are shell-style: ``"features_extractor.*"``.
    """
    for layer in layers:
        wanted = not include or any(fnmatchcase(layer.name, pattern) for pattern in include)
        if wanted and not any(fnmatchcase(layer.name, pattern) for pattern in exclude):
            yield layer


def check_chosen(name: str, chosen: Collection[WeightLayer], networks: Sequence[Network]) -> None:
    """Raise ValueError if an intervention on layers has none to act on.

    Of a plain module its options may keep all: the caller sees at once that nothing is changed.
    """
    if chosen:
        return
    roles = ", ".join(network.role for network in networks)
    layers = [layer.name for network in networks for layer in network.layers]
    if layers and PLAIN in (network.role for network in networks):
        return
    if layers:
        raise ValueError(
            f"`{name}` would change no layer of {roles}: its options keep {', '.join(layers)}. "
            "Change them, or use the intervention `none`."
        )
    unread = [found for n in networks for found in unread_modules(n.modules.items())]
    listed = ", ".join(f"`{found.name}` ({found.reason})".replace("`` ", "") for found in unread)
    held = f"; it has {listed}" if unread else ""
    gates = " with its option `recurrent`," if any(found.recurrent for found in unread) else ""
    raise ValueError(
        f"`{name}` finds no linear, convolutional or attention layer in {roles}{held}. Build the "
        f"network of such layers, select others in `networks`,{gates} or use an intervention "
        "that acts on every parameter (docs/algorithms.md)."
    )


def check_patterns(argument: str, patterns: Sequence[str], layers: Iterable[WeightLayer]) -> None:
    """Raise ValueError for a pattern that matches no layer."""
    names = [layer.name for layer in layers]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"`{argument}` pattern {pattern!r} matches no layer; the layers are "
                f"{', '.join(names)}.{nearest(pattern, names)}"
            )
