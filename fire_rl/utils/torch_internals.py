"""The one place that knows torch's private names: classes without a public base, module tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import batchnorm, dropout, pooling
from torch.nn.utils import parametrizations

from fire_rl.utils.foreign import private

# What torch.compile puts into the names of a module's parts.
COMPILED = "_orig_mod"

BATCH_NORM: type[nn.Module] = private(batchnorm, "_NormBase", "torch")
DROPOUT: type[nn.Module] = private(dropout, "_DropoutNd", "torch")
MAX_POOLING: type[nn.Module] = private(pooling, "_MaxPoolNd", "torch")
AVERAGE_POOLING: type[nn.Module] = private(pooling, "_AvgPoolNd", "torch")
# Parametrizations: what `torch.nn.utils.parametrizations` registers on a module.
WEIGHT_NORM: type[Any] = private(parametrizations, "_WeightNorm", "torch")
SPECTRAL_NORM: type[Any] = private(parametrizations, "_SpectralNorm", "torch")
ORTHOGONAL: type[Any] = private(parametrizations, "_Orthogonal", "torch")


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return a module's own table of parameters: not those of its children, None if switched off.

    It is the table itself: what is put into it is registered.
    """
    table: dict[str, nn.Parameter | None] = private(module, "_parameters", "torch")
    return table


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own table of buffers, itself."""
    table: dict[str, Tensor | None] = private(module, "_buffers", "torch")
    return table


def own_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's own table of children, itself; any name may be put into it."""
    table: dict[str, nn.Module | None] = private(module, "_modules", "torch")
    return table


def forward_pre_hooks(module: nn.Module) -> list[Any]:
    """Return the hooks that run before a module's ``forward``."""
    return list(private(module, "_forward_pre_hooks", "torch").values())


def uncompiled(module: Any) -> Any:
    """Return the module that ``torch.compile`` has wrapped, any other object as it is."""
    return getattr(module, COMPILED, module)


def initialiser(module: nn.Module) -> Callable[[], object] | None:
    """Return the method by which a module draws its parameters anew, None if it has none."""
    # nn.MultiheadAttention has it as a private method.
    for name in ("reset_parameters", "_reset_parameters"):
        if hasattr(module, name):
            method: Callable[[], object] = getattr(module, name)
            return method
    return None


def with_parameter(module: nn.Module, kind: type[nn.Module], **replaced: nn.Parameter) -> Any:
    """Return an object of another class that shares all of a module but some parameters."""
    twin = kind.__new__(kind)
    vars(twin).update(vars(module))
    vars(twin)["_parameters"] = {**own_parameters(module), **replaced}
    return twin
