"""Apply an intervention to an SB3 model: the order of operations, and nothing else.

Everything is checked and computed before the first weight changes; weights, targets and optimizer
state change in place, all of them or, after an error, none. The training's random numbers are
untouched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from fire_rl.interventions.base import Intervention
from fire_rl.interventions.operation import Operation, check_finite
from fire_rl.interventions.registry import make_intervention
from fire_rl.interventions.report import InterventionReport
from fire_rl.metrics.registry import METRICS
from fire_rl.sb3.context import make_context
from fire_rl.sb3.head_refit import HeadRefit, as_head_refit, check_head_refit, with_head_refit
from fire_rl.sb3.measurement import (
    Metrics,
    Observed,
    activation_metrics,
    observe,
    policy_change,
    probe_size,
)
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.networks import NetworkGroup, check_model
from fire_rl.sb3.probe import Probe, ProbeSource
from fire_rl.sb3.side_effects import apply_side_effects, forget_temperature, put_back_unless_done
from fire_rl.sb3.snapshot import save_snapshot
from fire_rl.sb3.unknown_parts import warn_of_unknown_parts
from fire_rl.utils.kinds import check_tensors, describe


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
    on_report: Callable[[InterventionReport], None] | None = None,
    beside: Iterable[object] = (),
) -> InterventionReport:
    """Apply an intervention to an SB3 model now.

    Between two calls of ``learn()`` this is always safe; inside, only ``_on_rollout_start`` is
    (see :class:`~fire_rl.InterventionCallback`). If anything is raised on the way, Ctrl-C and a
    second one included, the model is as it was, to the bit.

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
            probe before; see :class:`~fire_rl.HeadRefit`.
        live: Draws the observations that the networks train on now, for interventions that judge
            units; by default those of ``probe``.
        on_report: Called with the report before the change is final: if it raises, for example
            because a disk is full, the change is undone.
        beside: Objects outside of the model whose optimizers forget what has changed, too, such as
            callbacks that train a network of the policy.

    Returns:
        The report.

    Raises:
        ValueError: If the algorithm, a role or a layer name is unknown, a weight is not finite,
            before or after, or nothing would change; then nothing was changed.
        TypeError: If an argument is something else, such as the policy in place of the model.
    """
    started = time.perf_counter()
    _check_kinds(model, initial, probe)
    intervention, refit = make_intervention(intervention), as_head_refit(head_refit)
    view = ModelView(model, tuple(beside))
    groups = groups_to_change(view, intervention)
    check_head_refit(model, groups, intervention, refit)
    networks = {group.role: group.online for group in groups}
    targets = {group.role: group.target for group in groups if group.target is not None}
    alike = targets if intervention.aftermath.target == "same" else {}
    for network in (*networks.values(), *alike.values()):
        check_finite(network)
    seed = (model.seed or 0) + model.num_timesteps if seed is None else seed
    if probe is None:
        probe = ProbeSource(probe_size(view.groups), seed).live(model)
    observed = observe(view, probe) if probe is not None else None
    context = make_context(view, networks, initial, observed, probe, live, seed)
    operation = Operation.plan(intervention, networks, targets, context, seed)
    operation.check_changes()
    if refit is not None:
        operation = with_head_refit(view, operation, refit, probe, observed)
    changes = operation.describe()
    if save_before is not None and not dry_run:
        save_snapshot(model, Path(save_before), f"before_{intervention.name}")
    forgotten, around = 0, dict[str, Any]()
    with put_back_unless_done(view, always=dry_run):
        operation.write()
        after = observe(view, probe) if probe is not None else None
        if not dry_run:
            forgotten = operation.forget(view.all_optimizers) + forget_temperature(view, operation)
            around = apply_side_effects(view, operation, seed)
        report = InterventionReport(
            intervention=intervention.name,
            options=asdict(intervention) if is_dataclass(intervention) else {},
            num_timesteps=model.num_timesteps,
            dry_run=dry_run,
            networks=changes,
            before=_summary(view, observed),
            after=_summary(view, after),
            policy_change=_difference(observed, after),
            probe_observations=len(probe) if probe is not None else 0,
            optimizer_entries_forgotten=forgotten,
            around=around,
            seconds=time.perf_counter() - started,
        )
        if on_report is not None:
            on_report(report)
    return report


def _check_kinds(model: object, initial: object, probe: object) -> None:
    check_model(model)
    if initial is not None:
        check_tensors("initial", initial)
    if probe is not None and not isinstance(probe, Probe):
        raise TypeError(
            f"`probe` must be a Probe of network inputs or None, got {describe(probe)}. Leave it "
            "out: observations are drawn from the model's buffer."
        )


def groups_to_change(view: ModelView, intervention: Intervention) -> tuple[NetworkGroup, ...]:
    """Return the networks that an intervention acts on.

    Raises:
        ValueError: If the intervention does not fit the model: the algorithm, a role or a layer
            name is unknown, or a layer cannot be written.
    """
    warn_of_unknown_parts(view)
    groups = view.select(intervention.networks)
    intervention.check([group.online for group in groups])
    return groups


def _difference(observed: Observed | None, after: Observed | None) -> Metrics:
    return policy_change(observed.outputs, after.outputs) if observed and after else {}


def _summary(view: ModelView, observed: Observed | None) -> dict[str, Metrics]:
    if observed is None:
        return {}
    found = {}
    for group in view.groups:
        pooled = activation_metrics(group, observed.activations, per_layer=False).pooled
        # What a report compares before and after, besides the policy's answers.
        found[group.role] = {
            name: pooled[metric.log_key]
            for name, metric in METRICS.items()
            if metric.event_key is not None and metric.log_key in pooled
        }
    return found
