"""Walk a module: its weight layers in order, and each weight as a batch of matrices.

A convolution is one matrix per kernel tap and group: ``(out, in / groups, *kernel)`` becomes
``(groups · k₁···k_d, out / groups, in / groups)``, as FIRE treats it (arXiv 2602.08040,
Algorithm 1). Transposed convolutions store ``(in, out / groups, *kernel)`` and are turned round.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fire_rl.orthogonal import isometry_scale

LayerKind = Literal["linear", "conv"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Weight matrices in another layout: named in a warning, never passed over silently.
_OTHER_WEIGHTS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
# Modules whose parameters are scales and shifts, not weights.
NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
# Those of packages that are not imported here: sb3-contrib's CrossQ.
_NAMED_NORM_LAYERS = ("BatchRenorm",)


@dataclass(frozen=True, eq=False)
class WeightLayer:
    """One linear or convolutional layer: where it is and how its weight reads as matrices.

    Attributes:
        name: Dotted name in the module that was walked.
        module: The layer itself.
        is_head: Whether it is an output layer of the network.
        tensor_names: Names of its ``"weight"`` and ``"bias"`` where they are registered under
            another one first, such as the weight of a tied embedding.
    """

    name: str
    module: nn.Module
    is_head: bool = False
    tensor_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> LayerKind:
        """``"linear"`` or ``"conv"``."""
        return "linear" if isinstance(self.module, nn.Linear) else "conv"

    @property
    def weight(self) -> Tensor:
        """The weight, as the layer stores it."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, shape ``(out,)``, or None."""
        bias = self.module.bias
        return bias if isinstance(bias, nn.Parameter) else None

    def tensor_name(self, part: str) -> str:
        """Return the dotted name of the layer's ``"weight"`` or ``"bias"``."""
        return self.tensor_names.get(part, f"{self.name}.{part}" if self.name else part)

    @property
    def groups(self) -> int:
        """Number of convolution groups, 1 for a linear layer."""
        return int(getattr(self.module, "groups", 1))

    @property
    def frozen(self) -> bool:
        """Whether the user has excluded the weight from training (``requires_grad=False``)."""
        return not self.weight.requires_grad

    @property
    def scale(self) -> float:
        """FIRE's published scale of the layer, see :func:`fire_rl.orthogonal.isometry_scale`."""
        matrices = self.matrices()
        taps = math.prod(self.weight.shape[2:])
        return isometry_scale(matrices.shape[-2:]) / taps

    @property
    def num_singular_values(self) -> int:
        """Number of singular values over all the layer's matrices."""
        count, rows, columns = self.matrices().shape
        return count * min(rows, columns)

    def matrices(self, weight: Tensor | None = None) -> Tensor:
        """Return the weight, or another tensor of its shape, as ``(batch, out, in)`` matrices."""
        weight = self.weight.detach() if weight is None else weight
        if self.kind == "linear":
            return weight[None]
        # (groups, first, second, taps) with (out, in), or (in, out) if transposed
        split = weight.reshape(self.groups, -1, weight.shape[1], math.prod(weight.shape[2:]))
        order = (3, 0, 2, 1) if isinstance(self.module, _TRANSPOSED_CONVS) else (3, 0, 1, 2)
        split = split.permute(order)
        return split.reshape(-1, *split.shape[-2:])

    def from_matrices(self, matrices: Tensor) -> Tensor:
        """Undo :meth:`matrices`: ``(batch, out, in)`` to the shape of the weight."""
        if self.kind == "linear":
            return matrices[0]
        split = matrices.reshape(-1, self.groups, *matrices.shape[-2:])
        order = (1, 3, 2, 0) if isinstance(self.module, _TRANSPOSED_CONVS) else (1, 2, 3, 0)
        return split.permute(order).reshape(self.weight.shape)


def weight_layers(
    module: nn.Module, heads: Collection[str] | None = None
) -> tuple[WeightLayer, ...]:
    """List the linear and convolutional layers of a module in order of registration.

    A layer that is registered twice, or that shares its weight with an earlier one, is listed
    once. Recurrent, attention and bilinear weights have other layouts: they are left out, and a
    warning names them.

    Args:
        module: Any module.
        heads: Names of the output layers. By default the last layer in order is the head.

    """
    found = weight_layers_of(module.named_modules())
    if heads is None:
        heads = {found[-1].name} if found else set()
    return tuple(WeightLayer(layer.name, layer.module, layer.name in heads) for layer in found)


def weight_layers_of(
    named_modules: Iterable[tuple[str, nn.Module]], heads: Collection[str] = ()
) -> tuple[WeightLayer, ...]:
    """Like :func:`weight_layers`, for any ``(name, module)`` pairs."""
    layers: dict[int, WeightLayer] = {}
    for name, module in named_modules:
        if isinstance(module, _OTHER_WEIGHTS):
            warnings.warn(
                f"`{name or type(module).__name__}` ({type(module).__name__}) is no linear or "
                "convolutional layer: its own weights are left as they are.",
                UserWarning,
                stacklevel=2,
            )
        if isinstance(module, (nn.Linear, *_CONVS, *_TRANSPOSED_CONVS)):
            identity = id(module._parameters.get("weight", module))
            layers.setdefault(identity, WeightLayer(name, module, name in heads))
    return tuple(layers.values())


def check_writable(layer: WeightLayer) -> None:
    """Raise ValueError if the weight of a layer cannot be written in place, naming the layer."""
    module = layer.module
    if is_parametrized(module, "weight") or "weight" not in module._parameters:
        raise ValueError(
            f"Layer `{layer.name}` has a parametrized weight (weight norm, spectral norm or the "
            "like), which is computed at each pass and cannot be set. Remove the parametrization "
            "(torch.nn.utils.parametrize.remove_parametrizations), or exclude it by name."
        )
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        raise ValueError(
            f"Layer `{layer.name}` is lazy and has no weight yet: run one forward pass first."
        )


def is_norm_layer(module: nn.Module) -> bool:
    """Tell whether the parameters of a module are scales and shifts of a normalisation."""
    return isinstance(module, NORM_LAYERS) or any(
        kind.__name__ in _NAMED_NORM_LAYERS for kind in type(module).__mro__
    )


@torch.no_grad()
def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None
