"""From flags to runs: what the command line asks for is planned, checked and done."""

from __future__ import annotations

from pathlib import Path

from experiments.arms import branch_config, experiment
from experiments.config import RunConfig, dump_yaml
from experiments.flags import Args, check_combination, overridden, read_configs
from experiments.folder import RunFolder, default_path
from experiments.interventions import check_arm_name, entries, names
from experiments.outcome import USER_ERRORS, report_error
from experiments.own_files import check_free
from experiments.plain_yaml import ConfigError
from experiments.training import train
from experiments.trust import plain_values
from experiments.watch import watch
from fire_rl.checkpoints.store import check, checkpoints, latest
from fire_rl.runs.layout import seed_folder


def launch(args: Args) -> int:
    """Do what the flags ask for; return the exit code."""
    try:
        check_combination(args)
        if args.play is not None:
            watch(args.play, args)
            return 0
        if args.arms is not None:
            return experiment(args)
        if args.resume is not None and is_finished(args.resume):
            return 0
        plan = planned(args)
        if args.print_config:
            print(dump_yaml(plan[0][0]), end="")
            return 0
        for _, folder in plan:
            if args.resume is None:
                check_free(folder.path)
    except USER_ERRORS as error:
        return report_error(error, args)
    for config, folder in plan:
        ending = train(config, folder, args)
        if ending != 0:
            return ending
    return 0


def is_finished(path: Path) -> bool:
    """Tell whether a run has come to its end, and say so: then nothing in it is touched."""
    folder = RunFolder(path)
    is_whole = folder.model.is_file() and checkpoints(folder.checkpoints)
    step = folder.end() if is_whole else None
    if step is not None:
        print(
            f"{path} has come to its end, after {step:,} steps: there is nothing to go on with. "
            f"--branch-from {folder.checkpoints}/STEP begins a new run from one of its checkpoints."
        )
    return step is not None


def planned(args: Args) -> list[tuple[RunConfig, RunFolder]]:
    """Return the runs that the flags ask for: a resumed one, a branch, or one for each seed."""
    if args.resume is not None:
        return [resumed(args.resume, args.trust)]
    if args.branch_from is not None:
        return [branched(args.branch_from, args)]
    return [(config, run_folder(config, args)) for config in read_configs(args)]


def run_folder(config: RunConfig, args: Args) -> RunFolder:
    """Return the folder of a run: --log-dir, or a new one in runs/."""
    if args.log_dir is None:
        return RunFolder(default_path(config))
    return RunFolder(seed_folder(args.log_dir, config.seed) if args.seeds > 1 else args.log_dir)


def resumed(path: Path, trust: bool = False) -> tuple[RunConfig, RunFolder]:
    """Return the configuration and the folder of a run that goes on from its last checkpoint.

    Raises:
        ConfigError: If it is no run, has no whole checkpoint, or names code that is not trusted.
    """
    folder = RunFolder(path)
    folder.check_run()
    config = folder.read_config(trust)
    folder.resume_from = latest(folder.checkpoints)
    if folder.resume_from is None:
        if found := checkpoints(folder.checkpoints):
            raise ConfigError(
                [f"{path} has no whole checkpoint: {', '.join(p.name for p in found)} in "
                 f"{folder.checkpoints} are damaged. Put their files back, or train anew."]
            )  # fmt: skip
        raise ConfigError(
            [f"{path} has no checkpoint: it was stopped before the first one. Train anew: python "
             f"train.py --config {folder.config} --log-dir NEW_FOLDER"]
        )  # fmt: skip
    return config, folder


def branched(path: Path, args: Args) -> tuple[RunConfig, RunFolder]:
    """Return the configuration and the folder of a run that branches off another's checkpoint.

    Raises:
        ConfigError: If that is no run of train.py, or a flag is wrong.
        CheckpointError: If it is no whole checkpoint.
    """
    if not path.is_dir():
        raise ConfigError([f"{path} is not there: give a folder RUN/checkpoints/STEP."])
    if found := checkpoints(path):
        raise ConfigError([f"{path} holds several checkpoints: give {found[-1]}, for example."])
    origin = RunFolder(path)
    if origin.config.exists():  # a run: its newest checkpoint
        _, origin = resumed(path, args.trust)
        checkpoint = origin.resume_from
        assert checkpoint is not None
        saved = plain_values(origin.config)
    else:
        origin = RunFolder(path.parent.parent)
        origin.check_run()
        saved = origin.values(args.trust)
        checkpoint = check(path)
    values = overridden(saved, args)
    intervention = values.get("intervention")
    if args.every is not None or args.at:
        intervention = [{**e, "schedule": values["schedule"]} for e in entries(intervention)]
    arm = args.arm_name or names(intervention)
    check_arm_name(arm)
    step = checkpoint.manifest["num_timesteps"]
    config = branch_config(values, intervention, arm, checkpoint.path, step)
    folder = run_folder(config, args)
    folder.branch_from = checkpoint
    return config, folder
