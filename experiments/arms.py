"""An experiment with arms: one training to a midpoint for each seed, then a branch for each arm.

Folders: ``<root>/s<seed>/trunk`` and ``<root>/s<seed>/<arm>``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents import make_agent
from agents.algorithms import hyperparameters
from agents.signatures import hint
from experiments.build import make_env, with_frame_buffer
from experiments.comparison import is_done, summarise
from experiments.config import Checkpoint, RunConfig, parse_config
from experiments.flags import Args, read_configs
from experiments.folder import RunFolder
from experiments.interventions import at_step, callback_arguments
from experiments.own_files import check_free
from experiments.plain_yaml import ConfigError
from experiments.training import train
from experiments.trust import named_modules, plain_values
from fire_rl import InterventionCallback
from fire_rl.checkpoints.store import CheckpointError, check, checkpoints, latest
from fire_rl.interventions import INTERVENTIONS
from fire_rl.runs import layout
from fire_rl.schedules import Threshold, make_schedule


def experiment(args: Args) -> int:
    """Train to the midpoint once for each seed, branch into every arm, and compare them.

    What is finished is not done again. Returns the exit code.
    """
    configs = read_configs(args)
    arms = resolve_arms(configs[0], str(args.arms))
    root = args.log_dir or Path("runs") / f"arms_{Path(str(args.config)).stem}"
    for config in configs:
        for name in (layout.TRUNK, *arms):
            check_ours(RunFolder(layout.arm_folder(root, config.seed, name)))
    check_fit(configs[0], arms)
    for config in configs:
        if (ending := train_seed(config, root, arms, args)) != 0:
            return ending
    print(f"\nRecovery from the branch to the end, in {root}:\n")
    print(summarise(root, [config.seed for config in configs], list(arms)))
    return 0


def train_seed(config: RunConfig, root: Path, arms: Mapping[str, Any], args: Args) -> int:
    """Train the trunk and the arms of one seed, what is missing of them; return the exit code."""
    middle = math.ceil(config.branch_at * config.total_timesteps)
    start = config.model_copy(update={"checkpoint": config.checkpoint or Checkpoint()})
    folders = {arm: RunFolder(layout.arm_folder(root, config.seed, arm)) for arm in arms}
    trunk = RunFolder(layout.arm_folder(root, config.seed, layout.TRUNK))
    trunk.stop_at = middle
    check_same_run(trunk, start)
    done = {arm: is_done(folder) for arm, folder in folders.items()}
    if all(done.values()):  # the trunk may have been deleted since
        checkpoint = next(iter(folders.values())).branch_checkpoint()
    else:
        checkpoint = branch_point(trunk, middle)
        if checkpoint is None and (ending := go_on(start, trunk, args)) != 0:
            return ending
        checkpoint = checkpoint or branch_point(trunk, middle)
    assert checkpoint is not None, "check_fit() has made sure"
    step = layout.checkpoint_step(checkpoint)
    for arm, intervention in arms.items():
        values = config.model_dump(mode="json")
        branch = branch_config(values, intervention, arm, checkpoint, step)
        check_same_run(folders[arm], branch)
        if not done[arm] and (ending := go_on(branch, folders[arm], args)) != 0:
            return ending
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
    """Return the first whole checkpoint of a run at or after a step, if it is there."""
    for path in checkpoints(trunk.checkpoints):
        if layout.checkpoint_step(path) >= middle:
            try:
                return check(path).path
            except CheckpointError as error:
                print(f"{error} It is passed over.")
    return None


def check_ours(folder: RunFolder) -> None:
    """Raise ConfigError if there is something in a folder that train.py has not begun as a run."""
    if folder.config.exists():
        return
    try:
        check_free(folder.path)
    except FileExistsError:
        raise ConfigError(
            [f"{folder.path} is not empty and has no config.yaml: train.py has not written it, so "
             "nothing in it is touched. Choose another folder with --log-dir, or move it away."]
        ) from None  # fmt: skip


def go_on(config: RunConfig, folder: RunFolder, args: Args) -> int:
    """Train a run of an experiment, from its last checkpoint if it has one.

    Nothing is removed before the folder is locked: another process may be training there.

    Raises:
        CheckpointError: If another process trains there.
        ConfigError: If what is there can neither go on nor begin anew.
    """
    try:
        if folder.config.exists():
            folder.lock()
            check_same_run(folder, config)  # it may have begun just now
            folder.resume_from = latest(folder.checkpoints)
            if folder.resume_from is None:
                if damaged := checkpoints(folder.checkpoints):
                    raise ConfigError(
                        [f"{folder.checkpoints} has checkpoints and none is whole: "
                         f"{', '.join(path.name for path in damaged)}. Put their files back, or "
                         f"move {folder.path} away to train it anew."]
                    )  # fmt: skip
                folder.begin_anew()
        return train(config, folder, args)
    finally:
        folder.release()


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
    here, saved = _essence(config), plain_values(folder.config)
    if set(named_modules(saved)) <= set(named_modules(config.model_dump(mode="json"))):
        there = _essence(folder.parsed(saved))
    else:  # never checked: that would import what it names
        there = {**dict.fromkeys(here), **saved}
    different = [
        f"`{key}` was {there[key]!r}, is {here.get(key)!r}"
        for key in there
        if here.get(key) != there[key]
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
        values["branch"] = (layout.checkpoint_step(config.branch.checkpoint), config.branch.arm)
    return values
