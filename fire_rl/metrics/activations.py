"""Capture what units do during one forward pass, with hooks that never stay behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fire_rl.utils.torch_internals import AVERAGE_POOLING, DROPOUT, MAX_POOLING, own_buffers
from fire_rl.weights.layers import is_norm_layer

# Every elementwise nonlinearity of torch: the classes of torch.nn.modules.activation ...
ACTIVATIONS = tuple(
    kind
    for name, kind in vars(nn.modules.activation).items()
    if isinstance(kind, type)
    and issubclass(kind, nn.Module)
    and name in nn.modules.activation.__all__
    and kind is not nn.MultiheadAttention
)
# ... and what may stand between a layer and its nonlinearity without being one.
PASS_THROUGH = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    DROPOUT,
    MAX_POOLING,
    AVERAGE_POOLING,
)


@dataclass(frozen=True, eq=False)
class Activations:
    """What one forward pass has shown.

    Attributes:
        parts: Layer name to its post-activation outputs, one for each time that it ran.
        kinds: Layer name to the class name of its activation, such as ``"Tanh"``.
        input_parts: Head name to what went into it each time, the penultimate features.
        unhooked: Layers other than heads that ran but that no activation module followed.
        not_run: Layers that the pass did not reach.
    """

    parts: Mapping[str, list[Tensor]]
    kinds: Mapping[str, str]
    input_parts: Mapping[str, list[Tensor]]
    unhooked: tuple[str, ...]
    not_run: tuple[str, ...]

    @cached_property
    def post(self) -> Mapping[str, Tensor]:
        """Layer name to its post-activation output, ``(N, D)`` or ``(N, C, *spatial)``."""
        return {name: _joined(parts) for name, parts in self.parts.items()}

    @cached_property
    def inputs(self) -> Mapping[str, Tensor]:
        """Head name to what went into it, the penultimate features ``(N, D)``."""
        return {name: _joined(parts) for name, parts in self.input_parts.items()}


class _Trace:
    """Follow tensors from layer to activation by identity, call by call."""

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        heads: Collection[str],
        keep: Callable[[Tensor, str], Tensor],
    ) -> None:
        self.keep = keep
        self.names = {id(module): name for name, module in layers.items()}
        self.heads = heads
        self.ran: set[str] = set()
        self.post: dict[str, list[Tensor]] = {}
        self.kinds: dict[str, str] = {}
        self.inputs: dict[str, list[Tensor]] = {}
        self._origin: dict[int, str] = {}
        self._alive: list[Any] = []  # so that no identity is used twice

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        self._alive += [args[0], output]
        name = self.names.get(id(module))
        if name is not None:
            self.ran.add(name)
            self._origin[id(output)] = name
            if name in self.heads:
                self.inputs.setdefault(name, []).append(args[0])
            return
        origin = self._origin.get(id(args[0]))
        if origin is None:
            return
        if isinstance(module, ACTIVATIONS):
            self.kinds[origin] = type(module).__name__
            self.post.setdefault(origin, []).append(self.keep(output, self.kinds[origin]))
        elif isinstance(module, PASS_THROUGH) or is_norm_layer(module):
            self._origin[id(output)] = origin


@torch.no_grad()
def capture_activations(
    layers: Mapping[str, nn.Module],
    roots: Iterable[nn.Module],
    forward: Callable[[], object],
    heads: Collection[str] = (),
    keep: Callable[[Tensor, str], Tensor] = lambda units, kind: units,
) -> Activations:
    """Run one forward pass in evaluation mode and keep what the layers' units do.

    A layer's activation is the output of the activation module that receives the layer's output
    itself, possibly through normalisation, dropout, pooling or flattening. An activation that is
    called as a function (``F.relu``) cannot be seen: such a layer is in ``unhooked``. A layer that
    runs several times contributes all its calls. Training flags are restored, hooks removed.

    Args:
        layers: Layer name to module: linear and convolutional layers.
        roots: Modules that contain the layers and their activations.
        forward: Makes the pass; called once, without gradients.
        heads: Names of output layers, whose inputs are kept instead.
        keep: What to keep of a layer's activation, given the name of its kind; all of it by
            default.
    """
    trace = _Trace(layers, heads, keep)
    with hooked(list(roots), trace):
        forward()
    post = {name: calls for name, calls in trace.post.items() if name not in heads}
    return Activations(
        parts=post,
        kinds=trace.kinds,
        input_parts=trace.inputs,
        unhooked=tuple(
            name for name in layers if name in trace.ran and name not in {*post, *heads}
        ),
        not_run=tuple(name for name in layers if name not in trace.ran),
    )


def _joined(calls: list[Tensor]) -> Tensor:
    return calls[0] if len(calls) == 1 else torch.cat(calls)


@contextmanager
def hooked(roots: list[nn.Module], hook: Callable[..., object]) -> Iterator[None]:
    """Put a forward hook on every module, in evaluation mode, and take all that back at the end.

    Buffers that the pass changes (running statistics of one's own, noise) are put back too.
    Compiled modules run as they are written: compiled code does not see new hooks.
    """
    modules = list({id(module): module for root in roots for module in root.modules()}.values())
    flags = [module.training for module in modules]
    buffers = [(own_buffers(module), dict(own_buffers(module))) for module in modules]
    values = {id(b): (b, b.clone()) for _, held in buffers for b in held.values() if b is not None}
    handles = []
    try:
        for module in modules:
            module.training = False
            handles.append(module.register_forward_hook(hook))
        # Nothing is compiled before torch._dynamo is imported, which takes seconds.
        dynamo = "torch._dynamo" in sys.modules
        with torch.compiler.set_stance("force_eager") if dynamo else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        for table, held in buffers:
            table.update(held)
        with torch.no_grad():
            for buffer, value in values.values():
                buffer.copy_(value)
