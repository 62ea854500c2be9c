"""Walk a module: its weight layers in order, and each weight as a batch of matrices.

A convolution is one matrix per kernel tap and group: ``(out, in / groups, *kernel)`` becomes
``(groups · k₁···k_d, out / groups, in / groups)``, as FIRE treats it (arXiv 2602.08040,
Algorithm 1). Transposed convolutions store ``(in, out / groups, *kernel)``: their matrices are
transposed. A fused projection, such as the in-projection of ``nn.MultiheadAttention``, is one
matrix for each of its blocks of rows. Under weight norm, "the weight" is the effective one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from fire_rl.utils.torch_internals import (
    BATCH_NORM,
    COMPILED,
    ORTHOGONAL,
    SPECTRAL_NORM,
    WEIGHT_NORM,
    forward_pre_hooks,
    own_parameters,
)
from fire_rl.weights.noisy import noisy_means
from fire_rl.weights.orthogonal import isometry_scale

LayerKind = Literal["linear", "conv", "recurrent"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (*_CONVS, *_TRANSPOSED_CONVS)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
# Weight matrices in another layout, see :mod:`fire_rl.weights.unread`.
OTHER_WEIGHTS = (*RECURRENT, nn.Bilinear)
# Modules whose parameters are scales and shifts, not weights.
NORM_LAYERS = (
    BATCH_NORM,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
# Those of packages that are not imported here: sb3-contrib's CrossQ.
_NAMED_NORM_LAYERS = ("BatchRenorm",)


@dataclass(frozen=True, eq=False)
class WeightLayer:
    """One weight of a linear, convolutional or attention module, and how it reads as matrices.

    Attributes:
        name: Dotted name in the module that was walked; ``<name>.in_proj`` (or ``.q_proj``,
            ``.k_proj``, ``.v_proj``) for the in-projections of ``nn.MultiheadAttention``.
        module: The module that holds the weight.
        is_head: Whether it is an output layer of the network.
        tensor_names: Dotted names of its parts, see :attr:`parts`.
        weight_attribute: What the module calls the weight.
        bias_attribute: What the module calls the bias, None if it has none of its own.
        blocks: Into how many equal blocks of rows the weight is split, each a matrix of its own,
            such as 3 for fused query, key and value projections.
        block_names: Names of the blocks if they have any, such as the gates of an LSTM.
    """

    name: str
    module: nn.Module
    is_head: bool = False
    tensor_names: Mapping[str, str] = field(default_factory=dict)
    weight_attribute: str = "weight"
    bias_attribute: str | None = "bias"
    blocks: int = 1
    block_names: tuple[str, ...] = ()

    @property
    def kind(self) -> LayerKind:
        """``"linear"`` (attention included), ``"conv"`` or ``"recurrent"``."""
        if isinstance(self.module, RECURRENT):
            return "recurrent"
        return "conv" if isinstance(self.module, CONVOLUTIONS) else "linear"

    @property
    def weight(self) -> Tensor:
        """The weight as the layer uses it; reading it changes nothing."""
        if old_weight_norm(self.module, self.weight_attribute) is not None:
            # A hook sets the attribute at each forward pass: between two passes it is out of date.
            return self.weight_from({self.tensor_name(n): t for n, t in self.parts.items()})
        # In training mode, spectral norm would take a step of its power iteration.
        computing = [kind for kind in _parametrizations(self) if kind.training]
        for kind in computing:
            kind.training = False
        weight = getattr(self.module, self.weight_attribute)
        for kind in computing:
            kind.training = True
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, shape ``(out,)``, or None."""
        bias = getattr(self.module, self.bias_attribute or "", None)
        return bias if isinstance(bias, nn.Parameter) else None

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parameters by part: ``"weight"`` and ``"bias"``.

        A parametrization has ``"original0"``, ... in place of ``"weight"``, the old weight norm
        ``"weight_g"`` and ``"weight_v"``.
        """
        found = dict[str, Tensor]()
        if is_parametrized(self.module, self.weight_attribute):
            computed = getattr(self.module.parametrizations, self.weight_attribute)
            found |= dict(computed.named_parameters(recurse=False))
        elif self.weight_attribute in own_parameters(self.module):
            found["weight"] = self.weight
        elif old_weight_norm(self.module, self.weight_attribute) is not None:
            names = (f"{self.weight_attribute}_g", f"{self.weight_attribute}_v")
            found |= {name: getattr(self.module, name) for name in names}
        return found if self.bias is None else {**found, "bias": self.bias}

    def tensor_name(self, part: str) -> str:
        """Return the dotted name of one of the layer's parts."""
        if part in self.tensor_names:
            return self.tensor_names[part]
        path = {"weight": self.weight_attribute, "bias": self.bias_attribute or "bias"}.get(part)
        if path is None:  # a computed weight
            own = part in own_parameters(self.module)
            path = part if own else f"parametrizations.{self.weight_attribute}.{part}"
        return f"{self.name}.{path}" if self.name else path

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Dotted names of the parameters that make up the weight: one, or two under weight norm."""
        return tuple(self.tensor_name(part) for part in self.parts if part != "bias")

    def weight_from(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Compute the weight from the parameters that make it up, given by dotted name."""
        values = [tensors[name] for name in self.weight_names]
        norm = _weight_norm_of(self)
        return values[0] if norm is None else norm(*values)

    def stored(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the parameters, by dotted name, that give the layer this weight.

        Under weight norm these are a magnitude and a direction; where the magnitude is zero, the
        layer's old direction is returned.
        """
        norm = _weight_norm_of(self)
        if norm is None:
            return dict.fromkeys(self.weight_names, weight)
        magnitude, direction = norm.right_inverse(weight)
        _, old = (self.parts[name].detach().to(direction) for name in self.parts if name != "bias")
        direction = torch.where(magnitude > 0, direction, old)
        return dict(zip(self.weight_names, (magnitude, direction), strict=True))

    @property
    def groups(self) -> int:
        """Number of convolution groups, 1 for a linear layer."""
        return int(getattr(self.module, "groups", 1))

    @property
    def frozen(self) -> bool:
        """Whether the user has excluded the weight from training (``requires_grad=False``)."""
        own = [part for name, part in self.parts.items() if name != "bias"]
        own = own or list(self.module.parameters(recurse=False))  # the old norms' weight_orig, ...
        return not all(part.requires_grad for part in own)

    @property
    def scale(self) -> float:
        """FIRE's published scale of the layer, see :func:`fire_rl.isometry_scale`."""
        matrices = self.matrices()
        taps = math.prod(self.weight.shape[2:])
        return isometry_scale(matrices.shape[-2:]) / taps

    @property
    def num_singular_values(self) -> int:
        """Number of singular values over all the layer's matrices."""
        count, rows, columns = self.matrices().shape
        return count * min(rows, columns)

    def matrices(self, weight: Tensor | None = None) -> Tensor:
        """Return the weight, or another tensor of its shape, as ``(batch, out, in)`` matrices.

        The blocks of a tap or group follow one another.
        """
        weight = self.weight.detach() if weight is None else weight
        if self.kind != "conv":
            return weight.reshape(self.blocks, -1, weight.shape[1])
        # (groups, first, second, taps) with (out, in), or (in, out) if transposed
        split = weight.reshape(self.groups, -1, weight.shape[1], math.prod(weight.shape[2:]))
        order = (3, 0, 2, 1) if isinstance(self.module, _TRANSPOSED_CONVS) else (3, 0, 1, 2)
        split = split.permute(order)
        return split.reshape(-1, split.shape[2] // self.blocks, split.shape[3])

    def from_matrices(self, matrices: Tensor) -> Tensor:
        """Undo :meth:`matrices`: ``(batch, out, in)`` to the shape of the weight."""
        if self.kind != "conv":
            return matrices.reshape(self.weight.shape)
        rows, columns = matrices.shape[-2:]
        split = matrices.reshape(-1, self.groups, rows * self.blocks, columns)
        order = (1, 3, 2, 0) if isinstance(self.module, _TRANSPOSED_CONVS) else (1, 2, 3, 0)
        return split.permute(order).reshape(self.weight.shape)


def weight_layers(
    module: nn.Module, heads: Collection[str] | None = None
) -> tuple[WeightLayer, ...]:
    """List the linear, convolutional and attention layers of a module in order of registration.

    Noisy linear layers are among them, see :func:`~fire_rl.weights.noisy.noisy_means`. A layer that
    is registered twice, or that shares its weight with an earlier one, is listed once. A weight
    without entries (a layer of no inputs or no outputs) is left out, and so are weights in other
    layouts: :func:`~fire_rl.weights.unread.unread_modules` lists them.

    Args:
        module: Any module.
        heads: Names of the output layers. By default the last layer in order is the head.
    """
    found = weight_layers_of(module.named_modules())
    if heads is None:
        heads = {found[-1].name} if found else set()
    return tuple(replace(layer, is_head=layer.name in heads) for layer in found)


def weight_layers_of(
    named_modules: Iterable[tuple[str, nn.Module]], heads: Collection[str] = ()
) -> tuple[WeightLayer, ...]:
    """Like :func:`weight_layers`, for any ``(name, module)`` pairs."""
    layers: dict[int, WeightLayer] = {}
    for name, module in named_modules:
        found: tuple[WeightLayer, ...] = ()
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            found = (WeightLayer(name, module, name in heads),)
        elif isinstance(module, nn.MultiheadAttention):
            found = _in_projections(name, module)
        elif (noisy := noisy_means(module)) is not None:
            weight, bias = noisy
            found = (WeightLayer(name, module, name in heads, {}, weight, bias),)
        for layer in found:
            if not _has_entries(layer):
                continue
            held = own_parameters(module).get(layer.weight_attribute, module)
            layers.setdefault(id(held), layer)
    return tuple(layers.values())


def _has_entries(layer: WeightLayer) -> bool:
    parts = [part for name, part in layer.parts.items() if name != "bias"]
    lazy = any(isinstance(part, nn.parameter.UninitializedParameter) for part in parts)
    return lazy or not parts or all(part.numel() for part in parts)


def _in_projections(name: str, module: nn.MultiheadAttention) -> tuple[WeightLayer, ...]:
    """List the query, key and value projections: one weight of three blocks, or three weights."""
    prefix = f"{name}." if name else ""
    fused = module.in_proj_weight is not None
    return tuple(
        WeightLayer(
            name=f"{prefix}{part}",
            module=module,
            tensor_names={"weight": f"{prefix}{part}_weight", "bias": f"{prefix}in_proj_bias"},
            weight_attribute=f"{part}_weight",
            bias_attribute="in_proj_bias" if fused else None,
            blocks=3 if fused else 1,
        )
        for part in (("in_proj",) if fused else ("q_proj", "k_proj", "v_proj"))
    )


def check_writable(layer: WeightLayer) -> None:
    """Raise ValueError if the weight is no plain parameter that can be written in place.

    Weight norm is refused as well: :func:`check_assignable` accepts it.
    """
    if "weight" not in layer.parts:
        raise ValueError(
            f"Layer `{layer.name}` has a parametrized weight (weight norm, spectral norm or the "
            "like), which is computed at each pass and cannot be set. Remove the parametrization "
            "(torch.nn.utils.parametrize.remove_parametrizations), or exclude it by name."
        )
    if isinstance(layer.weight, nn.parameter.UninitializedParameter):
        raise ValueError(
            f"Layer `{layer.name}` is lazy and has no weight yet: run one forward pass first."
        )


def check_assignable(layer: WeightLayer) -> None:
    """Raise ValueError if the weight cannot be set to a new value; the message says why.

    It can be set if it is a plain parameter, or the effective weight under torch's weight norm: the
    parametrization or the old one by hooks (``torch.nn.utils.weight_norm``).
    """
    kinds = _parametrizations(layer)
    if any(isinstance(kind, SPECTRAL_NORM) for kind in kinds) or hasattr(
        layer.module, f"{layer.weight_attribute}_orig"
    ):
        remedy = "parametrize.remove_parametrizations" if kinds else "remove_spectral_norm"
        raise ValueError(
            f"Layer `{layer.name}` has spectral norm, which divides the weight by its largest "
            "singular value at each pass and so cancels any scale, FIRE's too. Remove it "
            f"(torch.nn.utils.{remedy}), or exclude the layer by name."
        )
    if any(isinstance(kind, ORTHOGONAL) for kind in kinds):
        raise ValueError(
            f"Layer `{layer.name}` is kept orthogonal by its parametrization: there is nothing to "
            "restore. Exclude it by name."
        )
    if _weight_norm_of(layer) is None:
        check_writable(layer)


def _parametrizations(layer: WeightLayer) -> list[nn.Module]:
    if not is_parametrized(layer.module, layer.weight_attribute):
        return []
    return list(getattr(layer.module.parametrizations, layer.weight_attribute))


def _weight_norm_of(layer: WeightLayer) -> Any | None:
    """Return the weight norm of a layer, if nothing else computes its weight."""
    old = old_weight_norm(layer.module, layer.weight_attribute)
    if old is not None:
        return WEIGHT_NORM(old.dim)
    kinds = _parametrizations(layer)
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], WEIGHT_NORM) else None


def old_weight_norm(module: nn.Module, attribute: str = "weight") -> WeightNorm | None:
    """Return the hook that ``torch.nn.utils.weight_norm`` has put on a weight, or None."""
    for hook in forward_pre_hooks(module):
        if isinstance(hook, WeightNorm) and hook.name == attribute:
            return hook
    return None


def plain_name(name: str) -> str:
    """Return a dotted name without the part that ``torch.compile`` adds."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


def is_norm_layer(module: nn.Module) -> bool:
    """Tell whether the parameters of a module are scales and shifts of a normalisation."""
    return isinstance(module, NORM_LAYERS) or any(
        kind.__name__ in _NAMED_NORM_LAYERS for kind in type(module).__mro__
    )
