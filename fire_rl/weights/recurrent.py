"""The weights of recurrent modules as layers: one matrix for each gate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn

from fire_rl.utils.torch_internals import own_parameters
from fire_rl.weights.layers import RECURRENT, WeightLayer

# The blocks of rows of `weight_ih` and `weight_hh`, as torch documents them for nn.LSTM and nn.GRU.
_GATES: Mapping[tuple[type[nn.Module], ...], tuple[str, ...]] = {
    (nn.LSTM, nn.LSTMCell): ("input", "forget", "cell", "output"),
    (nn.GRU, nn.GRUCell): ("reset", "update", "new"),
}
_WEIGHT = re.compile(r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?")


def recurrent_layers_of(
    named_modules: Iterable[tuple[str, nn.Module]],
) -> tuple[WeightLayer, ...]:
    """List the weights of LSTMs, GRUs, RNNs and their cells, of all layers and directions.

    ``weight_ih`` (from the input) and ``weight_hh`` (from the state) have a block of rows for each
    gate; an LSTM's projection ``weight_hr`` is one matrix. A weight that is shared is listed once.

    Args:
        named_modules: ``(name, module)`` pairs.

    Returns:
        Layers called ``<module>.weight_ih_l0`` and so on, as torch calls the weights.
    """
    layers: dict[int, WeightLayer] = {}
    for name, module in named_modules:
        if isinstance(module, RECURRENT):
            for attribute in _weights(module):
                layer = _layer(f"{name}." if name else "", module, attribute)
                held = own_parameters(module).get(attribute)
                layers.setdefault(id(layer) if held is None else id(held), layer)
    return tuple(layers.values())


def _weights(module: nn.Module) -> list[str]:
    """Return the names of a module's weights; those that are computed come last."""
    held = [name for name, tensor in own_parameters(module).items() if tensor is not None]
    computed = list(getattr(module, "parametrizations", ()))
    return [name for name in (*held, *computed) if _WEIGHT.fullmatch(name)]


def _layer(prefix: str, module: nn.Module, attribute: str) -> WeightLayer:
    named = next((names for kinds, names in _GATES.items() if isinstance(module, kinds)), ())
    gates = () if attribute.startswith("weight_hr") else named
    bias = attribute.replace("weight", "bias")
    return WeightLayer(
        name=f"{prefix}{attribute}",
        module=module,
        tensor_names={"weight": f"{prefix}{attribute}", "bias": f"{prefix}{bias}"},
        weight_attribute=attribute,
        bias_attribute=bias,
        blocks=max(1, len(gates)),
        block_names=gates,
    )
