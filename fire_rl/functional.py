"""FIRE on any torch module, in one call and without an agent."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fire_rl._random import isolated_rng
from fire_rl._validation import as_names, check_names
from fire_rl.interventions import FIRE, check_options
from fire_rl.interventions.base import Context, Network, check_finite, write
from fire_rl.interventions.report import LayerChange, describe_changes
from fire_rl.optimizer_state import forget


def fire_(
    module: nn.Module,
    *,
    heads: Collection[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
    **options: Any,
) -> list[LayerChange]:
    """Apply FIRE to any torch module, in place.

    Covers linear layers and convolutions (1-d to 3-d, grouped, transposed), also in half
    precision. Buffers, embeddings and recurrent or attention weights are not touched; a warning
    names the latter. An embedding that shares its weight with a linear layer changes with it:
    name that layer in ``exclude`` to keep both.

    Args:
        module: The module to change.
        heads: Names of the output layers; by default the last weight layer.
        optimizer: If given, it forgets moments and step count as ``optimizer_state`` says.
        seed: For ``"reset"`` rules, which draw new weights by each module's ``reset_parameters``.
        **options: Options of :class:`FIRE`, except those that concern agents.

    Returns:
        One :class:`~fire_rl.interventions.base.LayerChange` per weight layer, in order.

    Raises:
        ValueError: If an option is unknown or concerns agents only, a name matches no layer, or a
            weight is not finite; then nothing is changed.

    Example:
        >>> changes = fire_(nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)))
        >>> [change.name for change in changes]
        ['0', '2']
    """
    fire = _plain_fire(options)
    network = Network.from_module(module, None if heads is None else as_names("heads", heads))
    check_names("heads", network.heads, [layer.name for layer in network.layers])
    fire.check([network])
    check_finite(network)
    context = Context(
        fresh=lambda: _fresh_tensors(module, seed),
        initial=_nothing_recorded,
        activations=dict,
        generator=torch.Generator().manual_seed(seed),
    )
    updates = fire.plan(network, context)
    changes = describe_changes(network, updates)
    write(network, updates)
    if optimizer is not None and fire.optimizer_state != "keep":
        changed = network.tensors if fire.optimizer_state == "all" else updates
        forget(optimizer, [network.tensors[name] for name in changed])
    return list(changes.layers)


def _plain_fire(options: Mapping[str, Any]) -> FIRE:
    check_options(FIRE, options)
    default = FIRE()
    fire = dataclasses.replace(default, **options)
    for name in ("networks", "target", "entropy_temperature", "vecnormalize", "replay_buffer"):
        if getattr(fire, name) != getattr(default, name):
            raise ValueError(
                f"`{name}` concerns agents; a plain module has none. Leave it out, or use "
                "`apply_intervention(model, FIRE(...))` on an SB3 model."
            )
    return fire


def _nothing_recorded() -> Mapping[str, Tensor]:
    raise ValueError(
        "`source` must be 'fresh' for a plain module, got 'initial': nobody recorded the weights "
        "that it began with."
    )


def _fresh_tensors(module: nn.Module, seed: int) -> Mapping[str, Tensor]:
    fresh = copy.deepcopy(module)
    with isolated_rng(seed):
        for child in fresh.modules():
            reset = getattr(child, "reset_parameters", None)
            if callable(reset):
                reset()
    return dict([*fresh.named_parameters(), *fresh.named_buffers()])
