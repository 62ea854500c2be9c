"""Find every optimizer of a model, whatever it is called and wherever it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

# Never searched: they hold no optimizers, and their attributes may be costly or remote.
_OTHERS = (VecEnv, BaseBuffer, Logger, nn.Module, torch.Tensor, type)
_LONGEST = 256  # longer lists and mappings hold data


def find_optimizers(
    model: BaseAlgorithm, beside: Iterable[object] = ()
) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers that a model, its policy or any of their parts hold, each once.

    Searched are the attributes of the model, of its policy, of all modules in these, lists and
    mappings among them, and of the plain objects that the model holds (a trainer, a wrapped
    optimizer). Whatever has ``param_groups`` and ``state`` counts.

    Args:
        model: The model.
        beside: Other objects whose own attributes are searched, such as callbacks that train.

    Returns:
        The dotted name of each, such as ``"policy.optimizer"``, and itself.
    """
    found: dict[int, tuple[str, torch.optim.Optimizer]] = {}
    others = ((f"{type(one).__name__}.{name}", v) for one in beside for name, v in _own(one))
    for name, value in chain(_attributes(model), others):
        if _is_optimizer(value):
            found.setdefault(id(value), (name, value))
    return dict(found.values())


def held_modules(model: BaseAlgorithm) -> dict[str, nn.Module]:
    """Return the modules that a model holds: its policy first, the others by their attribute."""
    attributes = [(name, value) for name, value in _own(model) if isinstance(value, nn.Module)]
    named = {"policy": model.policy, **dict(attributes)}
    return {name: module for name, module in named.items() if isinstance(module, nn.Module)}


def _attributes(model: BaseAlgorithm) -> Iterator[tuple[str, Any]]:
    """Yield all that may be an optimizer, by its dotted name."""
    seen: set[int] = set()
    for root, module in held_modules(model).items():
        for path, part in module.named_modules():
            if id(part) not in seen:
                seen.add(id(part))
                prefix = f"{root}.{path}" if path else root
                yield from ((f"{prefix}.{name}", value) for name, value in _own(part))
    for name, value in _own(model):
        yield name, value
        if not isinstance(value, _OTHERS):
            yield from ((f"{name}.{inner}", item) for inner, item in _own(value))


def _own(owner: Any) -> Iterator[tuple[str, Any]]:
    """Yield an object's own attributes, and what lists and mappings among them hold."""
    for name, value in list(getattr(owner, "__dict__", {}).items()):
        yield name, value
        if isinstance(value, Mapping) and len(value) <= _LONGEST:
            yield from ((f"{name}[{key!r}]", item) for key, item in list(value.items()))
        elif isinstance(value, list | tuple) and len(value) <= _LONGEST:
            yield from ((f"{name}[{place}]", item) for place, item in enumerate(value))


def _is_optimizer(value: Any) -> bool:
    if isinstance(value, type):
        return False
    if isinstance(value, torch.optim.Optimizer):
        return True
    own = getattr(value, "__dict__", {})
    return isinstance(own, dict) and "param_groups" in own and isinstance(own.get("state"), Mapping)
