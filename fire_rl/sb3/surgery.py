"""Apply an intervention to an SB3 model: the order of operations, and nothing else.

Everything is checked and computed before the first weight changes; weights, targets and optimizer
state change in place. The training's random numbers are untouched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from fire_rl.interventions import make_intervention
from fire_rl.interventions.base import Context, Intervention, Update, check_finite, write
from fire_rl.interventions.report import InterventionReport, describe_changes
from fire_rl.metrics.registry import METRICS
from fire_rl.metrics.unit_readers import Connection
from fire_rl.sb3.aids import HeadRefit, Plans, as_head_refit, check_head_refit, with_head_refit
from fire_rl.sb3.measurement import (
    Metrics,
    Observed,
    activation_metrics,
    observe,
    observe_connections,
    policy_change,
    probe_size,
)
from fire_rl.sb3.networks import (
    NetworkGroup,
    fresh_policy,
    network_groups,
    policy_tensors,
    restored,
    select_groups,
    warn_of_unknown_parts,
)
from fire_rl.sb3.probe import Probe, ProbeSource
from fire_rl.sb3.side_effects import settle
from fire_rl.utils.rng import isolated_rng
from fire_rl.weights.layers import first_non_finite


def apply_intervention(
    model: BaseAlgorithm,
    intervention: Intervention | str | Mapping[str, Any],
    *,
    dry_run: bool = False,
    save_before: str | Path | None = None,
    initial: Mapping[str, Tensor] | None = None,
    probe: Probe | None = None,
    seed: int | None = None,
    head_refit: HeadRefit | Mapping[str, Any] | bool | None = None,
    live: Callable[[], Probe | None] | None = None,
) -> InterventionReport:
    """Apply an intervention to an SB3 model now.

    Between two calls of ``learn()`` this is always safe; inside, only ``_on_rollout_start`` is
    (see :class:`~fire_rl.InterventionCallback`).

    Args:
        model: Of any algorithm of SB3 or sb3-contrib that trains by gradients, of a subclass, or
            of one that :func:`~fire_rl.register_anatomy` was told of.
        intervention: For example ``FIRE(strength=0.5)``, ``"fire"`` or a mapping.
        dry_run: Report what would happen and leave the model as it was, to the bit.
        save_before: Folder for a copy of the model as it was, ``before_<name>_<steps>_steps.zip``
            (with a number behind it if that exists), and of VecNormalize's statistics.
        initial: The tensors with which the run began, by the policy's parameter names, for
            options ``source="initial"``; a callback remembers them.
        probe: Observations to measure on; by default up to ``max(1024, 2 D)`` are drawn from the
            model's buffer, and nothing is measured while it is empty.
        seed: Of the intervention's own random numbers; by default the model's seed plus its steps.
        head_refit: Whether to fit the output layers, in closed form, to what they answered on the
            probe before; see :class:`~fire_rl.sb3.aids.HeadRefit`.
        live: Draws the observations that the networks train on now, for interventions that judge
            units; by default those of ``probe``.

    Returns:
        The report.

    Raises:
        ValueError: If the algorithm, a role or a layer name is unknown, or a weight is not finite,
            before or after; then nothing was changed.
    """
    started = time.perf_counter()
    intervention, refit = make_intervention(intervention), as_head_refit(head_refit)
    every_group, groups = network_groups(model), groups_to_change(model, intervention)
    check_head_refit(model, groups, intervention, refit)
    seed = (model.seed or 0) + model.num_timesteps if seed is None else seed
    for group in groups:
        check_finite(group.online)
        if group.target is not None and intervention.aftermath.target == "same":
            check_finite(group.target)
    if probe is None:
        probe = ProbeSource(probe_size(every_group), seed).live(model)
    observed = observe(model, every_group, probe) if probe is not None else None
    context = _context(model, groups, initial, observed, probe, live, seed)
    with isolated_rng(seed):
        plans = {group.role: intervention.plan(group.online, context) for group in groups}
        target_plans = _plan_targets(groups, intervention, context)
    if refit is not None:
        plans = with_head_refit(model, groups, plans, refit, probe, observed)
    _check_plans(plans)
    changes = {group.role: describe_changes(group.online, plans[group.role]) for group in groups}
    if save_before is not None and not dry_run:
        _save_copy(model, Path(save_before), f"before_{intervention.name}")
    forgotten, around = 0, dict[str, Any]()
    with restored(groups) if dry_run else nullcontext():
        _operate(groups, plans, target_plans, intervention)
        after = observe(model, every_group, probe) if probe is not None else None
        if not dry_run:
            forgotten, around = settle(model, groups, plans, intervention.aftermath, seed)
    return InterventionReport(
        intervention=intervention.name,
        options=asdict(intervention) if is_dataclass(intervention) else {},
        num_timesteps=model.num_timesteps,
        dry_run=dry_run,
        networks=changes,
        before=_summary(every_group, observed),
        after=_summary(every_group, after),
        policy_change=policy_change(observed.outputs, after.outputs) if observed and after else {},
        probe_observations=len(probe) if probe is not None else 0,
        optimizer_entries_forgotten=forgotten,
        around=around,
        seconds=time.perf_counter() - started,
    )


def groups_to_change(model: BaseAlgorithm, intervention: Intervention) -> tuple[NetworkGroup, ...]:
    """Return the networks that an intervention acts on.

    Raises:
        ValueError: If the intervention does not fit the model: the algorithm, a role or a layer
            name is unknown, or a layer cannot be written.
    """
    every_group = network_groups(model)
    warn_of_unknown_parts(model, every_group)
    groups = select_groups(every_group, intervention.networks)
    intervention.check([group.online for group in groups])
    return groups


def _context(
    model: BaseAlgorithm,
    groups: Sequence[NetworkGroup],
    initial: Mapping[str, Tensor] | None,
    observed: Observed | None,
    probe: Probe | None,
    live: Callable[[], Probe | None] | None,
    seed: int,
) -> Context:
    @cache
    def fresh() -> Mapping[str, Tensor]:
        return policy_tensors(fresh_policy(model, seed))

    def remembered() -> Mapping[str, Tensor]:
        if not initial:
            raise ValueError(
                "`source='initial'` needs the weights that the run began with, and nobody "
                "recorded them: use a callback from the start of training, or pass `initial=`."
            )
        return initial

    @cache
    def activations() -> Mapping[str, Tensor]:
        current = live() if live is not None else None
        if current is not None:
            return observe(model, network_groups(model), current).activations.post
        if observed is None:
            raise ValueError("There are no observations yet to measure activations on.")
        return observed.activations.post

    @cache
    def connections() -> Mapping[str, tuple[Connection, ...]]:
        if probe is None:
            raise ValueError("There are no observations yet to see who reads whom.")
        return observe_connections(model, network_groups(model), probe)

    return Context(
        fresh=fresh,
        initial=remembered,
        activations=activations,
        generator=torch.Generator().manual_seed(seed),
        connections=connections,
        acted_on={layer.name: layer for group in groups for layer in group.online.layers},
    )


def _save_copy(model: BaseAlgorithm, folder: Path, name: str) -> None:
    """Save the model, and VecNormalize's statistics beside it, under a name that is free."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, number = f"{name}_{model.num_timesteps}_steps", 1
    while (folder / f"{stem}.zip").exists():
        number += 1
        stem = f"{name}_{model.num_timesteps}_steps_{number}"
    model.save(folder / f"{stem}.zip")
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.save(str(folder / f"{stem}_vecnormalize.pkl"))


def _plan_targets(
    groups: Sequence[NetworkGroup], intervention: Intervention, context: Context
) -> Plans:
    if intervention.aftermath.target != "same":
        return {}
    return {
        group.role: intervention.plan(group.target, context)
        for group in groups
        if group.target is not None
    }


def _check_plans(plans: Plans) -> None:
    for role, updates in plans.items():
        name = first_non_finite((name, update.value) for name, update in updates.items())
        if name is not None:
            raise ValueError(
                f"The intervention would make `{name}` ({role}) non-finite; nothing was changed."
            )


def _operate(
    groups: Sequence[NetworkGroup],
    plans: Plans,
    target_plans: Plans,
    intervention: Intervention,
) -> None:
    """Change weights: the online networks, then their targets."""
    for group in groups:
        write(group.online, plans[group.role])
        if group.target is None or not plans[group.role]:
            continue
        if intervention.aftermath.target == "copy":
            online = group.online.tensors
            write(group.target, {n: Update(online[n], "copy") for n in group.target.tensors})
        elif intervention.aftermath.target == "same":
            write(group.target, target_plans[group.role])


def _summary(groups: Sequence[NetworkGroup], observed: Observed | None) -> dict[str, Metrics]:
    if observed is None:
        return {}
    found = {}
    for group in groups:
        pooled = activation_metrics(group, observed.activations, per_layer=False).pooled
        # What a report compares before and after, besides the policy's answers.
        found[group.role] = {
            name: pooled[metric.log_key]
            for name, metric in METRICS.items()
            if metric.event_key is not None and metric.log_key in pooled
        }
    return found
