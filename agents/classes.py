"""Find classes by name: activations, optimizers, extractors, buffers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from stable_baselines3.common import buffers, torch_layers
from stable_baselines3.common.sb2_compat import rmsprop_tf_like
from stable_baselines3.her import her_replay_buffer
from torch import nn

from agents import networks
from agents.signatures import hint

# Argument -> where short names are looked up, and what the class must be. A dotted path reaches
# every other module.
HOMES: dict[str, tuple[tuple[ModuleType, ...], type]] = {
    "activation_fn": ((nn,), nn.Module),
    "features_extractor_class": ((torch_layers, networks), torch_layers.BaseFeaturesExtractor),
    "optimizer_class": ((torch.optim, rmsprop_tf_like), torch.optim.Optimizer),
    "replay_buffer_class": ((buffers, her_replay_buffer), buffers.ReplayBuffer),
    "rollout_buffer_class": ((buffers,), buffers.RolloutBuffer),
}
# What people import torch's modules as.
_ALIASES = {"nn": nn, "th.nn": nn, "optim": torch.optim, "th.optim": torch.optim}


def split_name(argument: str, name: Any) -> tuple[str, str]:
    """Split a class's name into the module that must be imported for it and its short name.

    The module is empty where nothing is: a short name, or torch's own module as in ``nn.ReLU``.
    """
    module, _, short = str(name).rpartition(".")
    known = {home.__name__: home for home in HOMES[argument][0]} | _ALIASES
    return ("" if known.get(module) in HOMES[argument][0] else module), short


def find_class(argument: str, name: Any) -> type:
    """Return the class that a name stands for, upper or lower case.

    Args:
        argument: A key of :data:`HOMES`.
        name: Such as ``"relu"``, ``"nn.ReLU"``, ``"AdamW"`` or ``"my_package.extractors.Small"``.

    Raises:
        ValueError: If there is none; the nearest name is offered.
    """
    homes, base = HOMES[argument]
    module, short = split_name(argument, name)
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


def dotted_names(agent: Mapping[str, Any]) -> list[str]:
    """Return the class names among hyper-parameters for which a module must be imported.

    Args:
        agent: As in :func:`~agents.algorithms.check_agent`, not checked yet.
    """
    found = []
    for key, value in agent.items():
        if isinstance(value, Mapping):
            found += dotted_names(value)
        elif key in HOMES and split_name(key, value)[0]:
            found.append(str(value))
    return found


def with_classes(values: dict[str, Any]) -> dict[str, Any]:
    """Replace the names of classes in a mapping of arguments by the classes."""
    return {
        key: find_class(key, value) if key in HOMES and value is not None else value
        for key, value in values.items()
    }
