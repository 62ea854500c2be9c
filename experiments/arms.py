"""An experiment with arms: one training to a midpoint for each seed, then a branch for each arm.

Folders: ``<root>/s<seed>/trunk`` and ``<root>/s<seed>/<arm>``.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.utils.tensorboard import SummaryWriter

from agents import make_agent
from agents.algorithms import hyperparameters
from agents.signatures import hint
from experiments.build import make_env, with_frame_buffer
from experiments.config import Checkpoint, RunConfig, parse_config
from experiments.flags import Args, read_configs
from experiments.folder import RunFolder
from experiments.interventions import at_step, callback_arguments
from experiments.plain_yaml import ConfigError
from experiments.training import train
from fire_rl import InterventionCallback
from fire_rl.checkpoints.store import checkpoints, latest
from fire_rl.interventions import CONTROL, INTERVENTIONS
from fire_rl.runs import layout
from fire_rl.runs.episodes import read_episodes
from fire_rl.runs.readers import read_events
from fire_rl.runs.recovery import recovery
from fire_rl.schedules import Threshold, make_schedule
from fire_rl.utils.jsonable import append_json, without_nan

COMPARED = ("gain", "plateau_gain", "dip_below_control", "steps_to_reach_control")


def experiment(args: Args) -> int:
    """Train to the midpoint once for each seed, branch into every arm, and compare them.

    What is finished is not done again. Returns the exit code.
    """
    configs = read_configs(args)
    arms = resolve_arms(configs[0], str(args.arms))
    check_fit(configs[0], arms)
    root = args.log_dir or Path("runs") / f"arms_{Path(str(args.config)).stem}"
    for config in configs:
        middle = math.ceil(config.branch_at * config.total_timesteps)
        keep = config.checkpoint or Checkpoint()
        trunk = RunFolder(layout.arm_folder(root, config.seed, layout.TRUNK))
        trunk.stop_at = middle
        start = config.model_copy(update={"checkpoint": keep})
        check_same_run(trunk, start)
        if branch_point(trunk, middle) is None and (ending := go_on(start, trunk, args)) != 0:
            return ending
        checkpoint = branch_point(trunk, middle)
        assert checkpoint is not None, "check_fit() has made sure"
        step = layout.checkpoint_step(checkpoint)
        for arm, intervention in arms.items():
            folder = RunFolder(layout.arm_folder(root, config.seed, arm))
            values = config.model_dump(mode="json")
            branch = branch_config(values, intervention, arm, checkpoint, step)
            check_same_run(folder, branch)
            if not folder.result.exists() and (ending := go_on(branch, folder, args)) != 0:
                return ending
    print(f"\nRecovery from the branch to the end, in {root}:\n")
    print(summarise(root, [config.seed for config in configs], list(arms)))
    return 0


def check_fit(config: RunConfig, arms: Mapping[str, Any]) -> None:
    """Check every arm of an experiment, and that the trunk can stop, before anything is trained.

    Raises:
        ConfigError: With every fault that there is.
    """
    env = make_env(config, config.n_envs, training=True)
    values = with_frame_buffer(config, env)
    if "buffer_size" in hyperparameters(config.algo):
        values["buffer_size"] = 1_000  # nothing will be stored
    model = make_agent(config.algo, env, values, seed=config.seed, device=config.device)
    middle = math.ceil(config.branch_at * config.total_timesteps)
    rollout = getattr(model, "n_steps", 1) if isinstance(model, OnPolicyAlgorithm) else 1
    stop = math.ceil(middle / (rollout * config.n_envs)) * rollout * config.n_envs
    faults = []
    if stop >= config.total_timesteps:
        faults.append(
            f"The midpoint, step {middle:,}, is reached at {stop:,} only, in rollouts of "
            f"{rollout * config.n_envs:,} steps: make `total_timesteps` {config.total_timesteps:,} "
            "larger or the rollouts shorter."
        )
    for arm, intervention in arms.items():
        try:
            dumped = config.model_dump(mode="json")
            branch_config(dumped, intervention, arm, Path(str(stop)), stop)
            for arguments in callback_arguments(at_step(intervention, stop), None):
                InterventionCallback(**arguments).check(model)
        except ConfigError as error:
            faults += error.faults
        except ValueError as error:
            faults.append(f"Arm {arm!r}: {error}")
    env.close()
    if faults:
        raise ConfigError(faults)


def branch_point(trunk: RunFolder, middle: int) -> Path | None:
    """Return the first checkpoint of a run at or after a step, if it is there."""
    found = checkpoints(trunk.checkpoints)
    return next((path for path in found if layout.checkpoint_step(path) >= middle), None)


def go_on(config: RunConfig, folder: RunFolder, args: Args) -> int:
    """Train a run of an experiment, from its last checkpoint if it has one."""
    folder.resume_from = latest(folder.checkpoints)
    if folder.resume_from is None and folder.path.exists():
        print(f"{folder.path} was stopped before its first checkpoint: it begins anew.")
        shutil.rmtree(folder.path)
    return train(config, folder, args)


def resolve_arms(config: RunConfig, names: str) -> dict[str, Any]:
    """Return what each arm does.

    Args:
        config: A name may be one of its ``arms`` or any registered intervention.
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
) -> RunConfig:
    """Return the configuration of a run that branches off another one.

    Args:
        values: The other run's values.
        intervention: What the branch does; entries without a schedule act once, at the start.
        arm: Its name.
        checkpoint: Where it begins.
        step: The checkpoint's step.

    Raises:
        ConfigError: With every fault that there is.
    """
    listed = at_step(intervention, step)
    given = {key: value for key, value in values.items() if key not in ("schedule", "arms")}
    branch = {"checkpoint": str(checkpoint), "arm": arm}
    config = parse_config({**given, "intervention": listed, "branch": branch})
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
    there = _essence(folder.read_config())
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

    The comparison of an arm with the control is also written to the arm's ``interventions.jsonl``
    and TensorBoard. Seeds of earlier calls are included if all their arms are finished.
    """
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    rows = []
    for seed in sorted({*layout.seeds_of(root), *seeds}):
        folders = {arm: RunFolder(layout.arm_folder(root, seed, arm)) for arm in arms}
        if not all(folder.result.exists() for folder in folders.values()):
            continue
        control = read_episodes(folders[CONTROL].path) if CONTROL in folders else None
        for arm, folder in folders.items():
            checkpoint = folder.branch_checkpoint()
            assert checkpoint is not None
            end = json.loads(folder.result.read_text(encoding="utf-8"))["num_timesteps"]
            step = layout.checkpoint_step(checkpoint)
            measured = recovery(read_episodes(folder.path), step, end, control)
            numbers = {**measured.to_dict(), **_policy_change(folder)}
            _record(folder, arm, step, numbers)
            found[arm].append(numbers)
            rows.append({"arm": arm, "seed": seed, **numbers})
    from fire_rl.reports import recovery_table  # here: a training needs no reports

    table = recovery_table(found, CONTROL).to_markdown()
    text = json.dumps(without_nan(rows), indent=1)
    (root / layout.RECOVERY).write_text(text + "\n", encoding="utf-8")
    (root / layout.RECOVERY_TABLE).write_text(table + "\n", encoding="utf-8")
    return table


def _record(folder: RunFolder, arm: str, step: int, numbers: Mapping[str, float]) -> None:
    """Add the comparison with the control to the arm's own log and to its TensorBoard, once."""
    log = folder.interventions
    entry = {"recovery_against": CONTROL, "arm": arm, **numbers}
    compared = {key: numbers[key] for key in COMPARED if not math.isnan(numbers[key])}
    if not compared or (log.exists() and '"recovery_against"' in log.read_text(encoding="utf-8")):
        return
    append_json(log, entry)
    with SummaryWriter(str(folder.path)) as writer:
        for key, value in compared.items():
            writer.add_scalar(f"recovery/vs_none/{key}", value, step)


def _policy_change(folder: RunFolder) -> dict[str, float]:
    """Return what the first event did to the policy's answers on the probe."""
    events = read_events(folder.path)  # none: a threshold that was never crossed
    change: dict[str, float] = events[0].get("policy_change", {}) if events else {}
    return change
