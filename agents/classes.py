"""Find classes by name: activations, optimizers, extractors, buffers."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import torch
from stable_baselines3.common import buffers, torch_layers
from torch import nn

from agents import networks
from agents.signatures import hint

# Argument -> where short names are looked up, and what the class must be. A dotted path reaches
# every other module.
HOMES: dict[str, tuple[tuple[ModuleType, ...], type]] = {
    "activation_fn": ((nn,), nn.Module),
    "features_extractor_class": ((torch_layers, networks), torch_layers.BaseFeaturesExtractor),
    "optimizer_class": ((torch.optim,), torch.optim.Optimizer),
    "replay_buffer_class": ((buffers,), buffers.ReplayBuffer),
    "rollout_buffer_class": ((buffers,), buffers.RolloutBuffer),
}


def find_class(argument: str, name: Any) -> type:
    """Return the class that a name stands for, upper or lower case.

    Args:
        argument: A key of :data:`HOMES`.
        name: Such as ``"relu"``, ``"AdamW"`` or ``"my_package.extractors.Small"``.

    Raises:
        ValueError: If there is none; the nearest name is offered.
    """
    homes, base = HOMES[argument]
    module, _, short = str(name).rpartition(".")
    if module:
        try:
            homes = (importlib.import_module(module),)
        except ImportError as error:
            raise ValueError(
                f"`{argument}` names the module {module!r}, which cannot be imported: {error}."
            ) from error
    classes = {
        key: kind
        for home in homes
        for key, kind in vars(home).items()
        if inspect.isclass(kind) and issubclass(kind, base)
    }
    matches = [kind for key, kind in classes.items() if key.lower() == short.lower()]
    if not matches:
        where = " or ".join(home.__name__ for home in homes)
        raise ValueError(
            f"`{argument}` must be the name of a {base.__name__} in {where}, or a dotted path to "
            f"another, got {name!r}.{hint(short, classes)}"
        )
    return matches[0]


def with_classes(values: dict[str, Any]) -> dict[str, Any]:
    """Replace the names of classes in a mapping of arguments by the classes."""
    return {
        key: find_class(key, value) if key in HOMES and value is not None else value
        for key, value in values.items()
    }
