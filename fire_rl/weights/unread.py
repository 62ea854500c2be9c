"""Name the parameters that no weight layer reads: nothing that trains is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from fire_rl.utils.torch_internals import own_parameters
from fire_rl.weights.layers import (
    CONVOLUTIONS,
    OTHER_WEIGHTS,
    RECURRENT,
    is_norm_layer,
    plain_name,
    weight_layers_of,
)
from fire_rl.weights.noisy import noise_scales, noisy_means

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Modules with vectors that are biases, or what a parametrization makes of one.
_WITH_VECTORS = (nn.MultiheadAttention, ParametrizationList)
_LAYERS = (nn.Linear, *CONVOLUTIONS, *_WITH_VECTORS)
# Parameters with an option of their own in interventions, wherever they are.
NAMED_BY_OPTION = ("log_std",)


@dataclass(frozen=True, eq=False)
class UnreadModule:
    """A module with parameters that are no weight of a layer, and no bias of one.

    Attributes:
        name: Dotted name.
        reason: Why: ``"embedding"``, ``"noise"`` (the scales of a noisy layer), ``"empty"`` (a
            weight without entries), or the module's class.
        parameters: What the module calls them, and the parameters.
        expected: Whether this kind of parameter is known, and documented to be kept.
        recurrent: Whether it is an LSTM or the like, for which interventions have an option.
    """

    name: str
    reason: str
    parameters: Mapping[str, nn.Parameter]
    expected: bool
    recurrent: bool = False


def unread_modules(named_modules: Iterable[tuple[str, nn.Module]]) -> tuple[UnreadModule, ...]:
    """List the modules with parameters that no weight layer reads.

    Scales and shifts of norm layers, biases and ``log_std`` are no weights and not listed.
    """
    named_modules = list(named_modules)
    layers = weight_layers_of(named_modules)
    read = {id(part) for layer in layers for part in layer.parts.values()}
    found = []
    for name, module in named_modules:
        own = {
            attribute: parameter
            for attribute, parameter in own_parameters(module).items()
            if parameter is not None
            and (id(parameter) not in read or isinstance(module, _EMBEDDINGS))  # maybe tied
            and attribute not in NAMED_BY_OPTION
            and not isinstance(parameter, UninitializedParameter)
        }
        reason, own, expected = _judge(module, own)
        if own:
            recurrent = isinstance(module, RECURRENT)
            found.append(UnreadModule(name, reason, own, expected, recurrent))
    return tuple(found)


def unread_warnings(named_modules: Iterable[tuple[str, nn.Module]]) -> tuple[str, ...]:
    """Return a sentence for each kind of module whose weight matrices no layer reads.

    Kinds that are documented to be kept, such as embeddings, are in reports only.
    """
    kinds: dict[tuple[str, str], list[UnreadModule]] = {}
    for unread in unread_modules(named_modules):
        trained = any(p.requires_grad and is_matrix(p) for p in unread.parameters.values())
        if trained and not unread.expected:
            alone = unread.name if unread.recurrent else ""  # the option is for each
            kinds.setdefault((unread.reason, alone), []).append(unread)
    return tuple(_sentence(kind, modules) for (kind, _), modules in kinds.items())


def is_matrix(parameter: nn.Parameter) -> bool:
    """Tell whether at least two dimensions are larger than 1: the rest are vectors."""
    return sum(size > 1 for size in parameter.shape) > 1


def _judge(
    module: nn.Module, own: dict[str, nn.Parameter]
) -> tuple[str, dict[str, nn.Parameter], bool]:
    """Return why a module's parameters are unread, which of them count, and if that is expected."""
    kind = type(module).__name__
    matrices = {name: parameter for name, parameter in own.items() if parameter.ndim > 1}
    if is_norm_layer(module):  # of its own, it may hold more than scales and shifts
        more = {n: p for n, p in matrices.items() if is_matrix(p) and n not in ("weight", "bias")}
        return kind, more, False
    if isinstance(module, _EMBEDDINGS):
        return "embedding", matrices, True
    if isinstance(module, OTHER_WEIGHTS):
        return kind, matrices, False
    if noisy_means(module) is not None and not isinstance(module, nn.Linear):
        return "noise", own, True
    scales = noise_scales(module)
    if scales and all(name in scales for name in matrices):
        return "noise", {name: own[name] for name in scales if name in own}, True
    if isinstance(module, _LAYERS):
        # `weight_orig`: what the old spectral norm and pruning compute the weight from.
        own = {n: p for n, p in own.items() if "bias" not in n and not n.endswith("_orig")}
        if isinstance(module, _WITH_VECTORS):
            own = {n: p for n, p in own.items() if is_matrix(p)}
        empty = not any(parameter.numel() for parameter in own.values())
        return "empty" if empty else kind, own, empty
    return kind, {name: p for name, p in own.items() if p.requires_grad}, False


def _sentence(kind: str, modules: list[UnreadModule]) -> str:
    names = "`, `".join(plain_name(unread.name) or kind for unread in modules)
    if modules[0].recurrent:
        return (
            f"`{names}` ({kind}) is no linear, convolutional or attention layer: its own weights "
            "are left as they are, unless the intervention has an option `recurrent` that says "
            "otherwise."
        )
    own = "`, `".join(dict.fromkeys(name for unread in modules for name in unread.parameters))
    return (
        f"`{names}` ({kind}) holds weights that no linear, convolutional or attention layer reads "
        f"(`{own}`): what acts on layers, such as FIRE, leaves them as they are, and metrics do "
        "not measure them."
    )
