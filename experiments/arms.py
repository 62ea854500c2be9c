"""An experiment with arms: one training to a midpoint for each seed, then a branch for each arm.

Folders: ``<root>/s<seed>/trunk`` and ``<root>/s<seed>/<arm>``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from agents.signatures import hint
from experiments.config import Checks, RunConfig, parse_config
from experiments.folder import RunFolder, step_of
from experiments.interventions import at_step
from experiments.plain_yaml import ConfigError, read_yaml
from fire_rl.interventions import CONTROL, INTERVENTIONS
from fire_rl.reports import recovery_table
from fire_rl.runs.episodes import read_episodes
from fire_rl.runs.recovery import recovery
from fire_rl.schedules import Threshold, make_schedule

COMPARED = ("gain", "plateau_gain", "dip_below_control", "steps_to_reach_control")


def resolve_arms(config: RunConfig, names: str) -> dict[str, Any]:
    """Return what each arm does.

    Args:
        config: Its ``arms`` are known by their names, and so is every intervention.
        names: Separated by commas.

    Raises:
        ConfigError: With every name that is unknown or given twice.
    """
    known = {**{name: {"name": name} for name in INTERVENTIONS}, **config.arms}
    arms: dict[str, Any] = {}
    faults = []
    for name in (word.strip() for word in names.split(",")):
        if name not in known:
            faults.append(
                f"--arms has no {name!r}; it knows {', '.join(known)}.{hint(name, known)}"
            )
        elif name in arms:
            faults.append(f"--arms has {name!r} twice.")
        else:
            arms[name] = known[name]
    if config.intervention is not None:
        faults.append(
            "--arms takes the place of `intervention`: leave it and its schedule out of the file."
        )
    if faults:
        raise ConfigError(faults)
    return arms


def branch_config(
    values: Mapping[str, Any],
    intervention: Any,
    arm: str,
    checkpoint: Path,
    step: int,
    checks: Checks,
) -> RunConfig:
    """Return the configuration of a run that branches off another one.

    Args:
        values: The other run's values.
        intervention: What the branch does; entries without a schedule act once, at the start.
        arm: Its name.
        checkpoint: Where it begins.
        step: The checkpoint's step.
        checks: See :func:`~experiments.config.parse_config`.

    Raises:
        ConfigError: With every fault that there is.
    """
    listed = at_step(intervention, step)
    given = {key: value for key, value in values.items() if key not in ("schedule", "arms")}
    branch = {"checkpoint": str(checkpoint), "arm": arm}
    config = parse_config({**given, "intervention": listed, "branch": branch}, checks)
    for entry in listed:
        schedule = make_schedule(entry["schedule"])
        steps = schedule.planned(config.total_timesteps)
        in_steps = entry.get("unit", "timesteps") == "timesteps"
        if in_steps and not isinstance(schedule, Threshold) and not any(s >= step for s in steps):
            raise ConfigError(
                [f"Arm {arm!r}: {entry['name']!r} would never act: {entry['schedule']!r} "
                 f"has no event from the branch at step {step:,} on."]
            )  # fmt: skip
    return config


def check_same_run(folder: RunFolder, config: RunConfig) -> None:
    """Compare a run folder that is there with the run that is to be in it.

    Raises:
        ConfigError: If another run is in it; what differs is named.
    """
    if not folder.config.exists():
        return
    there = _essence(parse_config(read_yaml(folder.config.read_text(encoding="utf-8"))))
    here = _essence(config)
    different = [
        f"`{key}` was {there[key]!r}, is {here[key]!r}" for key in here if here[key] != there[key]
    ]
    if different:
        raise ConfigError(
            [f"{folder.path} holds another run: {'; '.join(different)}. Choose another folder with "
             "--log-dir, rename the arm, or delete that folder."]
        )  # fmt: skip


def _essence(config: RunConfig) -> dict[str, Any]:
    """Return what decides a run's numbers."""
    values = config.model_dump(mode="json", exclude={"arms", "device", "num_threads"})
    if config.branch is not None:  # the folder may have been moved
        values["branch"] = (Path(config.branch.checkpoint).name, config.branch.arm)
    return values


def summarise(root: Path, seeds: Sequence[int], arms: Sequence[str]) -> str:
    """Measure every arm's recovery, write ``recovery.json`` and ``recovery.md``; return the table.

    What compares an arm with the control goes to the arm's ``interventions.jsonl`` and TensorBoard
    too.

    Seeds of earlier calls are in it too, as far as all arms are finished.
    """
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    everywhere = {int(path.name[1:]) for path in root.glob("s*") if path.name[1:].isdigit()}
    rows = []
    for seed in sorted(everywhere | set(seeds)):
        folders = {arm: RunFolder(root / f"s{seed}" / arm) for arm in arms}
        if not all(folder.result.exists() for folder in folders.values()):
            continue
        control = read_episodes(folders[CONTROL].path) if CONTROL in folders else None
        for arm, folder in folders.items():
            checkpoint = folder.branch_checkpoint()
            assert checkpoint is not None
            end = json.loads(folder.result.read_text(encoding="utf-8"))["num_timesteps"]
            step = step_of(checkpoint)
            measured = recovery(read_episodes(folder.path), step, end, control)
            numbers = {**measured.to_dict(), **_policy_change(folder)}
            _record(folder, arm, step, numbers)
            found[arm].append(numbers)
            rows.append({"arm": arm, "seed": seed, **numbers})
    table = recovery_table(found, CONTROL).to_markdown()
    text = json.dumps(rows, indent=1).replace("NaN", "null")
    (root / "recovery.json").write_text(text + "\n", encoding="utf-8")
    (root / "recovery.md").write_text(table + "\n", encoding="utf-8")
    return table


def _record(folder: RunFolder, arm: str, step: int, numbers: Mapping[str, float]) -> None:
    """Add the comparison with the control to the arm's own log and to its TensorBoard, once."""
    log = folder.path / "interventions.jsonl"
    entry = {"recovery_against": CONTROL, "arm": arm, **numbers}
    compared = {key: numbers[key] for key in COMPARED if not math.isnan(numbers[key])}
    if not compared or (log.exists() and '"recovery_against"' in log.read_text(encoding="utf-8")):
        return
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry).replace("NaN", "null") + "\n")
    with SummaryWriter(str(folder.path)) as writer:
        for key, value in compared.items():
            writer.add_scalar(f"recovery/vs_none/{key}", value, step)


def _policy_change(folder: RunFolder) -> dict[str, float]:
    """Return what the first event did to the policy's answers on the probe."""
    log = folder.path / "interventions.jsonl"
    if not log.exists():  # a threshold that was never crossed
        return {}
    first = json.loads(log.read_text(encoding="utf-8").partition("\n")[0])
    change: dict[str, float] = first.get("policy_change", {})
    return change
