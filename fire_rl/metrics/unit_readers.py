"""Which inputs of which weight layers read the units of a layer.

Found by experiment, not by names: every unit puts out a number of its own, and the numbers that
arrive at the inputs of the next layers show which units these read, through flattening, pooling,
concatenation or any other way of handing numbers on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fire_rl.metrics.activations import ACTIVATIONS, PASS_THROUGH, hooked
from fire_rl.utils.torch_internals import own_parameters
from fire_rl.weights.layers import WeightLayer, is_norm_layer

# The units' numbers are spread over [base, base + 1). Two passes, with other bases and another
# order, so that nothing else can be mistaken for a unit: an observation is the same in both.
_BASES = (1.0, 3.0)


@dataclass(frozen=True, eq=False)
class Connection:
    """One layer that reads the units of another.

    Attributes:
        source: Name of the layer whose units are read, behind its activation.
        consumer: Name of the weight layer that reads them.
        reads: ``(in,)``: for each input of the consumer (a feature, or the channel of a map) the
            index of the source's unit that it is, or -1 for none. A channel that was flattened
            has one input for each of its positions.
    """

    source: str
    consumer: str
    reads: Tensor

    def inputs(self, units: Tensor) -> Tensor:
        """Return a mask ``(in,)`` of the consumer's inputs from a mask of the source's units."""
        reads = self.reads.to(units.device)
        return (reads >= 0) & units[reads.clamp(min=0)]


def incoming_entries(layer: WeightLayer, units: Tensor) -> Tensor:
    """Return a mask of the weights into some units of a layer.

    Args:
        layer: The layer.
        units: Boolean, ``(out,)``.

    Returns:
        Boolean, of the weight's shape.
    """
    return _entries(layer, units.reshape(layer.groups, -1, 1))


def outgoing_entries(layer: WeightLayer, inputs: Tensor) -> Tensor:
    """Return a mask of a layer's weights that read some of its inputs.

    Args:
        layer: The layer that reads.
        inputs: Boolean, ``(in,)``.

    Returns:
        Boolean, of the weight's shape.
    """
    return _entries(layer, inputs.reshape(layer.groups, 1, -1))


def num_units(layer: WeightLayer) -> int:
    """Return the number of units: output features or channels."""
    return layer.matrices().shape[1] * layer.groups


def trace_connections(
    layers: Mapping[str, WeightLayer],
    roots: Iterable[nn.Module],
    forward: Callable[[], object],
) -> dict[str, tuple[Connection, ...]]:
    """Find the consumers of each layer whose activation is seen.

    Every direct path counts, also from one network into another: a shared extractor has a
    connection for each trunk. A path ends at the first weight layer. Norm layers and dropout hand
    units on as they are. A layer is left out where it is not certain which layers read it: its
    activation is called as a function (``F.relu``), it is added to another (a residual), or it goes
    into a recurrent, attention or parametric module that is no linear or convolutional layer.

    Args:
        layers: Every linear and convolutional layer by name, also those that are not to change.
        roots: Modules that contain the layers and their activations.
        forward: Makes a pass over a few observations; called twice. Weights, buffers and training
            flags stay as they are. What it returns is not used.

    Returns:
        Name of the source to its connections.
    """
    if not layers:
        return {}
    roots = list(roots)
    one, two = (_Pass(layers, base) for base in _BASES)
    unclear: set[str] = set()
    reads: dict[str, Tensor] = {}
    with torch.enable_grad():
        for tags in (one, two):
            with hooked(roots, tags):
                forward()
        for (name, values, found), (_, _, again) in zip(one.consumed, two.consumed, strict=True):
            sure = torch.where(found == again, found, -1)
            unclear |= one.sources_of(values[sure < 0])
            if name is None:
                unclear |= one.owners(sure)
            elif not torch.equal(reads.setdefault(name, sure), sure):
                # One input reads different units at different calls: it belongs to none of them.
                unclear |= one.owners(sure) | one.owners(reads[name])
    connections: dict[str, list[Connection]] = {}
    for consumer, found in reads.items():
        for source in one.owners(found) - unclear:
            start, stop = one.spans[source]
            mine = torch.where((found >= start) & (found < stop), found - start, -1)
            connections.setdefault(source, []).append(Connection(source, consumer, mine))
    return {name: tuple(connections[name]) for name in layers if name in connections}


class _Pass:
    """A hook that lets every unit put out a number of its own, and notes where it arrives.

    Args:
        layers: As in :func:`trace_connections`.
        base: The numbers are in ``[base, base + 1)``.
    """

    def __init__(self, layers: Mapping[str, WeightLayer], base: float) -> None:
        self.base = base
        # Attention reads in a way of its own, like any module that is no weight layer.
        self.layers = {
            id(layer.module): (name, layer)
            for name, layer in layers.items()
            if not isinstance(layer.module, nn.MultiheadAttention)
        }
        self.spans: dict[str, tuple[int, int]] = {}
        total = 0
        for name, layer in layers.items():
            self.spans[name] = total, total + num_units(layer)
            total = self.spans[name][1]
        # What arrives by other ways than a copy, such as a sum, is no unit in another order.
        order = torch.Generator().manual_seed(int(base))
        self.places = torch.randperm(total, generator=order)
        self.units = self.places.argsort()
        # Consumer (None if it is no weight layer), what it read as (in, positions), unit indices.
        self.consumed: list[tuple[str | None, Tensor, Tensor]] = []
        self._leaves: list[tuple[str, Tensor]] = []
        self._origin: dict[int, tuple[str, WeightLayer]] = {}
        self._alive: list[Any] = []  # so that no identity is used twice

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return what the module puts out instead, or None to leave it."""
        if not args or not isinstance(args[0], Tensor):
            return None
        seen = args[0]
        self._alive += [seen, output]
        here = self.layers.get(id(module))
        origin = self._origin.get(id(seen))
        if here is not None:
            self._consume(seen, *here)
            output = self._cut(here[0], output)  # a path ends here
            self._origin[id(output)] = here
            return output
        if isinstance(module, ACTIVATIONS):
            shown = None if origin is None else self._show(*origin, output)
            return None if shown is None or origin is None else self._cut(origin[0], shown)
        if is_norm_layer(module):
            return seen
        if isinstance(module, PASS_THROUGH):
            if origin is not None:
                self._origin[id(output)] = origin
        elif any(parameter is not None for parameter in own_parameters(module).values()):
            self._consume(seen, None, None)
        return None

    def owners(self, units: Tensor) -> set[str]:
        """Return the layers to which unit indices belong."""
        return {
            name
            for name, (start, stop) in self.spans.items()
            if bool(((units >= start) & (units < stop)).any())
        }

    def sources_of(self, values: Tensor) -> set[str]:
        """Return the layers on which values depend."""
        if not values.requires_grad or not values.numel():
            return set()
        gradients = torch.autograd.grad(
            values.sum(),
            [leaf for _, leaf in self._leaves],
            retain_graph=True,
            allow_unused=True,
        )
        return {
            name
            for (name, _), gradient in zip(self._leaves, gradients, strict=True)
            if gradient is not None and bool(gradient.any())
        }

    def _consume(self, seen: Tensor, name: str | None, layer: WeightLayer | None) -> None:
        with torch.enable_grad():  # SAC's critic runs a shared extractor without
            if layer is None or seen.ndim < 2:
                values = seen.reshape(-1, 1)
            elif layer.kind == "linear":
                values = seen[0].reshape(-1, seen.shape[-1]).T
            else:
                values = seen[0].flatten(1)
        places = (values.detach().double().cpu() - self.base) * len(self.places) - 0.5
        nearest = places.round().clamp(0, len(self.places) - 1)
        # Float32 keeps a hundred thousand places apart; average pooling may round.
        hit = ((places - nearest).abs() < 0.1).all(1) & (nearest == nearest[:, :1]).all(1)
        units = torch.where(hit, self.units[nearest[:, 0].nan_to_num(0).long()], -1)
        self.consumed.append((name, values, units))

    def _show(self, name: str, layer: WeightLayer, output: Any) -> Tensor | None:
        """Return the numbers of a layer's units in the place of its activations."""
        dims = 2 if layer.kind == "linear" else layer.weight.ndim
        start, stop = self.spans[name]
        if not isinstance(output, Tensor) or output.ndim != dims or output.shape[1] != stop - start:
            return None
        numbers = self.base + (self.places[start:stop].double() + 0.5) / len(self.places)
        shape = (-1, *[1] * (dims - 2))
        return numbers.to(output).reshape(shape).expand_as(output)

    def _cut(self, name: str, output: Tensor) -> Tensor:
        """Return the output as the beginning of a path, which an activation may overwrite."""
        leaf = output.detach().clone().requires_grad_()
        self._leaves.append((name, leaf))
        value = leaf.clone()
        self._alive.append(value)
        return value


def _entries(layer: WeightLayer, mask: Tensor) -> Tensor:
    """Spread a mask that is broadcast to ``(groups, out / groups, in / groups)`` over the taps."""
    matrices = layer.matrices()
    mask = mask.expand(layer.groups, *matrices.shape[1:])
    return layer.from_matrices(mask.repeat(len(matrices) // layer.groups, 1, 1))
