"""Forget what an optimizer remembers of named parameters: moments, step counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# What a new optimizer holds before its first step, where that is not zero.
_START_VALUES: Mapping[str, Mapping[str, float]] = {
    "NAdam": {"mu_product": 1.0},  # torch 2.13, `NAdam._init_group`
    "RMSpropTFLike": {"square_avg": 1.0},  # SB3's `sb2_compat.rmsprop_tf_like`
}


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


@torch.no_grad()
def forget_entries(
    optimizer: torch.optim.Optimizer, entries: Iterable[tuple[Tensor, Tensor]]
) -> int:
    """Forget what an optimizer remembers of some entries of its parameters.

    In place, on the state that the optimizer goes on with: moments of the masked entries become
    what a new optimizer would hold (zero for Adam, SGD and torch's RMSprop), moments of the others
    stay. The step count is forgotten too, without which Adam's zeroed moments would let a recycled
    unit die again (reported by timoklein/redo).

    The count is one per tensor, so its reset also touches the other entries: Adam takes their
    moments for those of a first step and moves them by ``sqrt(1-b2^t) / (1-b1^t)`` of the normal
    step, with b1 = 0.9 and b2 = 0.999: 0.32 at t = 1, at least 0.15, 0.31 at t = 100 and 0.80 at
    t = 1000.

    Args:
        optimizer: Any torch optimizer.
        entries: Parameters, each with a boolean mask of its shape; parameters that the optimizer
            does not hold, or has not stepped yet, are ignored.

    Returns:
        The number of parameters of whose state something was forgotten.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    forgotten = 0
    for parameter, mask in entries:
        state = optimizer.state.get(parameter) if id(parameter) in held else None
        if not state or not bool(mask.any()):
            continue
        initial = _initial_state(optimizer, [parameter]).get(parameter, {})
        for key, value in state.items():
            start = initial.get(key, _start_value(optimizer, key))
            if isinstance(value, Tensor) and value.shape == parameter.shape and key != "step":
                fill = torch.as_tensor(start, dtype=value.dtype, device=value.device)
                value.copy_(torch.where(mask.to(value.device), fill, value))
            elif key in ("step", "mu_product"):
                # Capturable and fused optimizers keep a tensor, on their device.
                if isinstance(value, Tensor):
                    value.copy_(torch.as_tensor(start))
                else:
                    state[key] = type(value)(start)
        forgotten += 1
    return forgotten


def _start_value(optimizer: torch.optim.Optimizer, key: str) -> float:
    kinds = (kind.__name__ for kind in type(optimizer).__mro__)
    return next((_START_VALUES[k][key] for k in kinds if key in _START_VALUES.get(k, {})), 0.0)


def _initial_state(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor]
) -> dict[Tensor, dict[str, object]]:
    """State that exists before the first step; most optimizers have none, Adagrad does."""
    if not isinstance(optimizer, torch.optim.Adagrad) or not parameters:
        return {}
    return dict(type(optimizer)(parameters, **optimizer.defaults).state)
