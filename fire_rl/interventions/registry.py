"""Interventions by name: one method is one file and one line here (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fire_rl.interventions.base import Intervention
from fire_rl.interventions.entropy_temperature_reset import EntropyTemperatureReset
from fire_rl.interventions.fire import FIRE
from fire_rl.interventions.none import NoIntervention
from fire_rl.interventions.optimizer_reset import OptimizerReset
from fire_rl.interventions.random_orthogonal import RandomOrthogonal
from fire_rl.interventions.redo import ReDo
from fire_rl.interventions.reset import Reset
from fire_rl.interventions.shrink_and_perturb import ShrinkAndPerturb
from fire_rl.utils.validation import check_choice, check_options

INTERVENTIONS: Mapping[str, type[Any]] = {
    "entropy_temperature_reset": EntropyTemperatureReset,
    "fire": FIRE,
    "none": NoIntervention,
    "optimizer_reset": OptimizerReset,
    "random_orthogonal": RandomOrthogonal,
    "redo": ReDo,
    "reset": Reset,
    "shrink_and_perturb": ShrinkAndPerturb,
}
# The arm of an experiment that others are compared with; the name of doing nothing everywhere.
CONTROL = NoIntervention.name


def make_intervention(spec: Intervention | str | Mapping[str, Any] | None) -> Intervention:
    """Build an intervention from plain values.

    Args:
        spec: A name (``"fire"``); a mapping with ``name``, an optional ``preset`` (a named
            constructor such as ``"paper_dqn"``) and the intervention's options; an intervention,
            returned as it is; or None for :class:`NoIntervention`.

    Raises:
        ValueError: If a name, preset or option is unknown (the nearest is offered) or out of range.
        TypeError: If ``spec`` is none of these.
    """
    if spec is None:
        return NoIntervention()
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        if hasattr(spec, "plan") and not isinstance(spec, type):
            return spec
        raise TypeError(
            "`intervention` must be a name, a mapping such as {'name': 'fire'} or an intervention "
            f"object, got {spec!r}."
        )
    options = dict(spec)
    name = options.pop("name", None)
    preset = options.pop("preset", None)
    if name is None:
        raise ValueError(
            f"`intervention` needs a `name`, one of {', '.join(INTERVENTIONS)}, got {dict(spec)!r}."
        )
    check_choice("intervention name", name, tuple(INTERVENTIONS))
    kind = INTERVENTIONS[str(name)]
    check_options(kind.name, kind, options)
    if preset is None:
        made: Intervention = kind(**options)
        return made
    presets = [
        attribute
        for attribute, value in vars(kind).items()
        if isinstance(value, classmethod) and not attribute.startswith("_")
    ]
    check_choice(f"preset of {name}", preset, presets)
    made = getattr(kind, str(preset))(**options)
    return made


def published_schedule(spec: object) -> Mapping[str, Any] | None:
    """Return the schedule that was published for a preset, or None.

    Args:
        spec: As in :func:`make_intervention`, such as ``{"name": "fire", "preset": "paper_dqn"}``.
    """
    if not isinstance(spec, Mapping):
        return None
    kind = INTERVENTIONS.get(str(spec.get("name")))
    schedules: Mapping[str, Mapping[str, Any]] = getattr(kind, "schedules", {})
    return schedules.get(str(spec.get("preset")))
