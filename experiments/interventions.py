"""The interventions of a run in plain values: one or several, each with its schedule and aids."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fire_rl.interventions import CONTROL, make_intervention, published_schedule
from fire_rl.runs import layout
from fire_rl.schedules import At, AtFractions, Every, make_schedule

# Keys of an entry that are arguments of fire_rl.InterventionCallback; the others are options of
# the intervention.
CALLBACK_KEYS = ("schedule", "head_refit", "warmup_updates", "restart_exploration", "unit")

Entry = dict[str, Any]


def entries(intervention: Any) -> list[Entry]:
    """Return a list of entries with a name each, from a name, a mapping, a list or None."""
    if intervention is None:
        return []
    listed = intervention if isinstance(intervention, list) else [intervention]
    return [{"name": entry} if isinstance(entry, str) else entry for entry in listed]


def names(intervention: Any) -> str:
    """Return the names of a run's interventions as one word, ``"none"`` without any."""
    return "+".join(str(entry["name"]) for entry in entries(intervention)) or CONTROL


def callback_arguments(
    intervention: Any, schedule: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return the arguments of one InterventionCallback per entry, in order.

    Args:
        intervention: As in a configuration.
        schedule: For entries that have none of their own.
    """
    made = []
    for entry in entries(intervention):
        options = {key: entry[key] for key in CALLBACK_KEYS if key in entry}
        spec = {key: value for key, value in entry.items() if key not in CALLBACK_KEYS}
        if schedule is not None:
            options.setdefault("schedule", schedule)
        made.append({"intervention": spec, **options})
    return made


def check_intervention(value: Any) -> Any:
    """Check interventions; :func:`check_schedule` checks that each has a schedule.

    Raises:
        ValueError: With one line for every fault.
    """
    if value is None:
        return None
    if isinstance(value, list) and not value:
        raise ValueError("`intervention` must name at least one intervention, got an empty list.")
    faults: list[str] = []
    for entry in entries(value):
        if not isinstance(entry, Mapping):
            raise ValueError(
                "`intervention` must be a name, a mapping such as {name: fire} or a list of such, "
                f"got {entry!r}."
            )
        spec = {key: option for key, option in entry.items() if key not in CALLBACK_KEYS}
        named = {key: spec[key] for key in ("name", "preset") if key in spec}
        parts = [{**named, key: spec[key]} for key in spec if key not in named]
        faults += each(make_intervention, [named, *parts] if named.get("name") else [spec])
        faults += check_parts(entry.get("schedule"))
    if faults:
        raise ValueError("\n".join(dict.fromkeys(faults)))
    found = entries(value)
    return found if isinstance(value, list) else found[0]


def check_arms(arms: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arms of an experiment: a name and an intervention each.

    Raises:
        ValueError: With one line for every fault, naming the arm.
    """
    checked, faults = {}, []
    for arm, value in arms.items():
        try:
            check_arm_name(str(arm))
            if value is None:
                raise ValueError("there is nothing in it; the control is {name: none}.")
            checked[arm] = check_intervention(value)
            if arm == CONTROL and names(value) != CONTROL:
                raise ValueError("the control arm cannot be another intervention: rename it.")
        except ValueError as error:
            faults += [f"Arm {arm!r}: {line}" for line in str(error).split("\n")]
    if faults:
        raise ValueError("\n".join(faults))
    return checked


def check_arm_name(name: str) -> None:
    """Raise ValueError for a name that cannot be a folder beside the others."""
    if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*", name) or name == layout.TRUNK:
        raise ValueError(
            "An arm's name is a folder's: letters, digits and _ . + -, and not "
            f"{layout.TRUNK!r}, got {name!r}."
        )


def at_step(intervention: Any, step: int) -> list[Entry]:
    """Return the entries; those without a schedule act once, at ``step``."""
    once: Entry = {"schedule": {"at": [step]}}
    return [
        entry if "schedule" in entry else {k: v for k, v in entry.items() if k != "unit"} | once
        for entry in entries(intervention)
    ]


def check_schedule(schedule: Any, intervention: Any) -> None:
    """Check that every intervention acts at some time, and that every schedule is used.

    Raises:
        ValueError: If not.
    """
    listed = entries(intervention)
    if schedule is not None and not listed:
        raise ValueError(
            "`intervention` is missing, but there is a schedule for it: add `intervention: fire` "
            "(or --intervention fire); `none` is the control arm."
        )
    without = [entry for entry in listed if "schedule" not in entry]
    if schedule is not None and not without:
        raise ValueError(
            "`schedule` is not used: every intervention has one of its own. Leave it out."
        )
    for entry in without:
        if schedule is None and entry["name"] != CONTROL and published_schedule(entry) is None:
            raise ValueError(
                f"`schedule` is missing: say when {entry['name']!r} acts, for example `schedule: "
                "{every: 200000}` or --every 200000."
            )


def check_events(schedule: Any, intervention: Any, total_timesteps: int) -> None:
    """Check that what a run is labelled with happens in it.

    Schedules whose events are not known in advance are left out: thresholds, and those that count
    gradient updates.

    Raises:
        ValueError: With one line for every intervention that would never act.
    """
    faults = []
    for entry in entries(intervention):
        spec = entry.get("schedule") or schedule or published_schedule(entry)
        if entry["name"] == CONTROL or entry.get("unit") == "gradient_updates":
            continue
        planned = make_schedule(spec)
        if not isinstance(planned, At | AtFractions | Every):
            continue
        if next(iter(planned.planned(total_timesteps)), total_timesteps) >= total_timesteps:
            given = ", ".join(f"{key}: {value}" for key, value in (spec or {}).items())
            stop = getattr(planned, "stop", 1)
            limit = f", of which `stop` leaves {stop:g}" if stop < 1 else ""
            faults.append(
                f"`schedule` {{{given}}} of {entry['name']!r} holds no event within "
                f"`total_timesteps` {total_timesteps:,}{limit}: the run would be one without "
                "intervention. Plan it earlier, train longer, or say `intervention: none`."
            )
    if faults:
        raise ValueError("\n".join(dict.fromkeys(faults)))


def check_parts(schedule: Any) -> list[str]:
    """Return the faults of a schedule, of all its keys and not of the first only."""
    if schedule is None:
        return []
    parts = _parts(schedule) if isinstance(schedule, Mapping) else []
    return (
        each(make_schedule, [*parts, schedule])
        if not parts
        else (each(make_schedule, parts) or each(make_schedule, [schedule]))
    )


def each(make: Callable[[Any], Any], specs: Sequence[Any]) -> list[str]:
    """Try options one by one; return the faults, each once."""
    faults: list[str] = []
    for spec in specs:
        try:
            make(spec)
        except (ValueError, TypeError, ImportError) as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def _parts(schedule: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a test schedule for each given key, so that every wrong key is reported."""
    given = {key: value for key, value in schedule.items() if value is not None}
    if "metric" in given:
        line = {k: v for k, v in given.items() if k in ("metric", "above", "below")}
        others = [key for key in given if key not in line]
        return [line, *({"metric": "dfi", "above": 0, key: given[key]} for key in others)]
    return [{"every": 1, key: given[key]} if key == "stop" else {key: given[key]} for key in given]
