"""What surgery offers an intervention: new weights, old weights, activations, connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from fire_rl.interventions.base import Context, Network, named_tensors
from fire_rl.metrics.unit_readers import Connection
from fire_rl.sb3.measurement import Observed, observe, observe_connections
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.probe import Probe


def make_context(
    view: ModelView,
    networks: Mapping[str, Network],
    initial: Mapping[str, Tensor] | None,
    observed: Observed | None,
    probe: Probe | None,
    live: Callable[[], Probe | None] | None,
    seed: int,
) -> Context:
    """Offer what an intervention may ask for; each is computed when it is first asked for.

    Args:
        view: The model.
        networks: Role to the networks that the intervention acts on.
        initial: The tensors with which the run began, None if they were not recorded.
        observed: What the networks do on the probe; None without one.
        probe: Observations to measure on; None if there are none yet.
        live: Draws the observations that the networks train on now; None for the probe's.
        seed: Of what is drawn.
    """

    @cache
    def fresh() -> Mapping[str, Tensor]:
        return named_tensors(view.fresh_policy(seed))

    def remembered() -> Mapping[str, Tensor]:
        if not initial:
            raise ValueError(
                "`source='initial'` needs the weights that the run began with, and they were not "
                "recorded: use a callback from the start of training, or pass `initial=`."
            )
        return initial

    @cache
    def activations() -> Mapping[str, Tensor]:
        current = live() if live is not None else None
        if current is not None:
            return observe(view, current).activations.post
        if observed is None:
            raise ValueError("There are no observations yet to measure activations on.")
        return observed.activations.post

    @cache
    def connections() -> Mapping[str, tuple[Connection, ...]]:
        if probe is None:
            raise ValueError("There are no observations yet to see which layers read which units.")
        return observe_connections(view, probe)

    return Context(
        fresh=fresh,
        initial=remembered,
        activations=activations,
        generator=torch.Generator().manual_seed(seed),
        connections=connections,
        acted_on={layer.name: layer for network in networks.values() for layer in network.layers},
    )
