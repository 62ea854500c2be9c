"""Forget what an optimizer remembers of named parameters: moments, step counts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def forget(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> int:
    """Put the state of some parameters back to what a new optimizer would hold.

    Moments describe gradients of weights that are gone; a step count that stays would disable
    Adam's bias correction for the new ones. Works by parameter identity for any torch optimizer;
    learning rates and parameter groups are untouched.

    Args:
        optimizer: Any torch optimizer.
        parameters: Tensors; those that the optimizer does not hold are ignored.

    Returns:
        The number of parameters whose state was forgotten.
    """
    wanted = {id(parameter) for parameter in parameters}
    forgotten = 0
    for group in optimizer.param_groups:
        held = [parameter for parameter in group["params"] if id(parameter) in wanted]
        initial = _initial_state(optimizer, held)
        for parameter in held:
            forgotten += parameter in optimizer.state
            optimizer.state.pop(parameter, None)
            if parameter in initial:
                optimizer.state[parameter] = initial[parameter]
    return forgotten


def _initial_state(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor]
) -> dict[Tensor, dict[str, object]]:
    """State that exists before the first step; most optimizers have none, Adagrad does."""
    if not isinstance(optimizer, torch.optim.Adagrad) or not parameters:
        return {}
    return dict(type(optimizer)(parameters, **optimizer.defaults).state)
