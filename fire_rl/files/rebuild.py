"""Rebuild a network from the names and shapes of its tensors, without the classes it was made of.

``"q_net.0.weight": (64, 4)`` becomes an ``nn.Linear`` at ``q_net.0`` that holds this very tensor.
Code that walks the modules of a network therefore works on a file, too. The rebuilt network cannot
compute anything: it has no forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fire_rl.utils.torch_internals import own_buffers, own_modules, own_parameters

# Names under which torch's and sb3-contrib's norm layers keep statistics, which are no parameters.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "ra_mean", "ra_var", "steps")
_CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_RECURRENT: Mapping[int, type[nn.LSTM | nn.GRU | nn.RNN]] = {4: nn.LSTM, 3: nn.GRU, 1: nn.RNN}
_MAX_DEPTH = 100

# What the tensors of a module are, where their names and shapes alone would mislead.
Hint = Literal["embedding", "other"]


class Skeleton(nn.Module):
    """A module that holds tensors and other modules and has no forward pass."""


def build_skeleton(
    tensors: Mapping[str, Tensor], hint: Callable[[str], Hint | None] = lambda name: None
) -> nn.Module:
    """Build the module that a state dict describes; its parameters *are* the tensors.

    A ``weight`` of two dimensions (with a ``bias`` of its length, or none) is a linear layer, one
    of three to five a convolution without groups, ``in_proj_weight`` torch's attention and
    ``weight_ih_l0`` a recurrent layer. All other tensors are held by a :class:`Skeleton`. Tensors
    that share memory become one parameter, and modules that share all their tensors become one
    module.

    Args:
        tensors: Dotted name to tensor, in the order of the state dict.
        hint: Takes the dotted name of a module and returns ``"embedding"``, ``"other"`` (the module
            is no layer), or None: its names and shapes decide.

    Raises:
        ValueError: If a name is nested too deeply.
    """
    return _Builder(hint).module("", dict(tensors), 0)


def identity(tensor: Tensor) -> tuple[object, ...]:
    """Return a key that is equal for tensors with the same memory, dtype, shape and strides."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


class _Builder:
    def __init__(self, hint: Callable[[str], Hint | None]) -> None:
        self._hint = hint
        self._modules: dict[tuple[object, ...], nn.Module] = {}
        self._tensors: dict[tuple[object, ...], Tensor] = {}

    def module(self, path: str, tensors: dict[str, Tensor], depth: int) -> nn.Module:
        if depth > _MAX_DEPTH:
            raise ValueError(f"`{path[:80]}...` is nested more than {_MAX_DEPTH} deep.")
        hint = self._hint(path)
        key = (hint, *((name, identity(tensor)) for name, tensor in tensors.items()))
        if key in self._modules:
            return self._modules[key]
        own: dict[str, Tensor] = {}
        children: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                children.setdefault(head, {})[rest] = tensor
            else:
                own[head] = tensor
        module = _layer(own, children, hint)
        parameters, buffers = own_parameters(module), own_buffers(module)
        absent = [name for name in parameters if name not in own]
        parameters.clear()
        parameters.update(dict.fromkeys(absent))
        for name, tensor in own.items():
            held = self._tensors.setdefault(identity(tensor), _held(name, tensor))
            if isinstance(held, nn.Parameter):
                parameters[name] = held
            else:
                buffers[name] = held
        for name, child in children.items():
            inner = f"{path}.{name}" if path else name
            own_modules(module)[name] = self.module(inner, child, depth + 1)
        self._modules[key] = module
        return module


def _held(name: str, tensor: Tensor) -> Tensor:
    if name in _BUFFERS or not tensor.is_floating_point():
        return tensor
    return nn.Parameter(tensor.detach())


def _layer(
    own: Mapping[str, Tensor], children: Mapping[str, Mapping[str, Tensor]], hint: Hint | None
) -> nn.Module:
    """Return the kind of layer that has such tensors, without values; otherwise a skeleton."""
    module: nn.Module | None = None
    with torch.device("meta"):
        if hint == "embedding" and set(own) == {"weight"} and own["weight"].ndim == 2:
            module = nn.Embedding(*own["weight"].shape)
        elif hint is None and not children:
            module = _linear_or_conv(own) or _recurrent(own)
        elif hint is None and set(children) == {"out_proj"}:
            module = _attention(own)
    return module if module is not None else Skeleton()


def _linear_or_conv(own: Mapping[str, Tensor]) -> nn.Module | None:
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or not weight.is_floating_point() or not set(own) <= {"weight", "bias"}:
        return None
    if weight.numel() == 0 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    if weight.ndim == 2:
        return nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    if weight.ndim in _CONVS:
        kernel: Any = tuple(weight.shape[2:])
        conv = _CONVS[weight.ndim]
        return conv(weight.shape[1], weight.shape[0], kernel, bias=bias is not None)
    return None


def _recurrent(own: Mapping[str, Tensor]) -> nn.Module | None:
    first, recurrent = own.get("weight_ih_l0"), own.get("weight_hh_l0")
    if first is None or recurrent is None or not first.ndim == recurrent.ndim == 2:
        return None
    projection = own.get("weight_hr_l0")
    hidden = (recurrent if projection is None or projection.ndim != 2 else projection).shape[1]
    kind = _RECURRENT.get(first.shape[0] // hidden if hidden else 0)
    return None if kind is None else kind(first.shape[1], hidden)


def _attention(own: Mapping[str, Tensor]) -> nn.Module | None:
    weight = own.get("in_proj_weight")
    if weight is None or weight.ndim != 2 or weight.shape[0] != 3 * weight.shape[1]:
        return None
    return nn.MultiheadAttention(weight.shape[1], 1)  # the number of heads changes no shape
