"""Train deep-RL agents with Stable-Baselines3, intervene for plasticity, and watch them play.

Examples:
  python train.py --config configs/quickstart.yaml
  python train.py --config configs/atari/dqn_fire.yaml --seed 1 --set agent.gamma=0.98
  python train.py --algo sac --env HalfCheetah-v5 --intervention fire --every 100000
  python train.py --resume runs/RUN
  python train.py --branch-from runs/RUN/checkpoints/STEP --intervention fire
  python train.py --config configs/paper/small/dqn_minatar.yaml --arms none,fire,reset --seeds 3
  python train.py --play runs/RUN --video videos

Flags override the file.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

try:
    import tyro

    import envs
    from agents import load_agent, make_agent
    from agents.algorithms import hyperparameters
    from experiments.arms import (
        branch_config,
        check_same_run,
        resolve_arms,
        summarise,
    )
    from experiments.config import Checkpoint, Checks, RunConfig, dump_yaml, parse_config
    from experiments.evaluation import evaluation_callback
    from experiments.flags import Args, check_combination, overridden, read_configs
    from experiments.folder import (
        RunFolder,
        default_path,
        find_run,
        record_config,
        record_outcome,
        step_of,
    )
    from experiments.interventions import (
        at_step,
        callback_arguments,
        check_arm_name,
        entries,
        names,
    )
    from experiments.outcome import report, results, sum_up
    from experiments.plain_yaml import ConfigError, read_yaml
    from experiments.tasks import TaskCallback, TaskEvaluation
    from experiments.watch import play
except ModuleNotFoundError as error:
    sys.exit(f"train.py needs {error.name}. Install all that it uses: pip install -e '.[train]'")

from fire_rl import InterventionCallback, PlasticityMetricsCallback, RunCheckpointCallback
from fire_rl.checkpoints.store import CheckpointError, check, checkpoints, latest
from fire_rl.interventions import CONTROL
from fire_rl.sb3.loggers import continue_csv

# What a user may get wrong before training begins: a message, no traceback.
USER_ERRORS = (ValueError, ImportError, OSError, CheckpointError)
# Keeps each frame once; agents know it by name only.
FRAME_BUFFER = "fire_rl.sb3.frame_replay.FrameReplayBuffer"
# Evaluation must not replay the training's episodes.
EVAL_SEED_OFFSET = 10_000
MAX_EVAL_COPIES = 10  # of the evaluation on earlier tasks: one prediction for all of them


def check_tasks(tasks: Any, run: Mapping[str, Any]) -> None:
    """Check the sequence of tasks."""
    options = run.get("env_options", {})
    envs.check_tasks(tasks.model_dump(), run.get("n_envs", 1), run["env"], options, run["imports"])


def check_callbacks(intervention: Any, run: Mapping[str, Any]) -> None:
    """Check what the callbacks of a run's interventions get beside the interventions."""
    for arguments in callback_arguments(intervention, None):
        InterventionCallback(**arguments)


CHECKS: Checks = {
    "intervention": check_callbacks,
    "env_options": lambda value, run: envs.check_env(run["env"], value, run["imports"]),
    "normalize": lambda value, run: envs.normalize_options(value),
    "tasks": check_tasks,
}


@dataclass(frozen=True)
class Run:
    """One training run, built and ready to learn."""

    config: RunConfig
    folder: RunFolder
    model: BaseAlgorithm
    environments: list[VecEnv]
    callbacks: list[BaseCallback]


def main() -> int:
    """Run the command line; return the exit code."""
    args = tyro.cli(Args, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        check_combination(args)
        if args.play is not None:
            watch(args.play, args)
            return 0
        if args.arms is not None:
            return experiment(args)
        plan = planned(args)
        if args.print_config:
            print(dump_yaml(plan[0][0]), end="")
            return 0
        for _, folder in plan:
            if args.resume is None:
                folder.check_free()
    except USER_ERRORS as error:
        return report(error, args, USER_ERRORS)
    for config, folder in plan:
        ending = train(config, folder, args)
        if ending != 0:
            return ending
    return 0


def planned(args: Args) -> list[tuple[RunConfig, RunFolder]]:
    """Return the runs that the flags ask for: a resumed one, a branch, or one for each seed."""
    if args.resume is not None:
        return [resumed(args.resume)]
    if args.branch_from is not None:
        return [branched(args.branch_from, args)]
    return [(config, run_folder(config, args)) for config in read_configs(args, CHECKS)]


def train(config: RunConfig, folder: RunFolder, args: Args) -> int:
    """Build one run and let it learn; return the exit code."""
    resuming = folder.resume_from is not None
    try:
        run = build(config, folder, args)
    except Exception as error:  # SB3 and the environments refuse bad values in many ways
        return report(error, args, USER_ERRORS)
    try:
        return learn(run, args)
    except Exception as error:
        if run.model.num_timesteps > 0 or resuming:
            raise
        shutil.rmtree(folder.path)  # nothing was learned, nothing is lost
        return report(error, args, USER_ERRORS)


def run_folder(config: RunConfig, args: Args) -> RunFolder:
    """Return the folder of a run: --log-dir, or a new one in runs/."""
    if args.log_dir is None:
        return RunFolder(default_path(config))
    return RunFolder(args.log_dir / f"s{config.seed}" if args.seeds > 1 else args.log_dir)


def resumed(path: Path) -> tuple[RunConfig, RunFolder]:
    """Return the configuration and the folder of a run that goes on from its last checkpoint.

    Raises:
        ConfigError: If it is no run, or has no checkpoint.
    """
    folder = RunFolder(path)
    folder.check_run()
    newest = latest(folder.checkpoints)
    if newest is None:
        raise ConfigError(
            [f"{path} has no checkpoint: it was stopped before the first one. Train anew: python "
             f"train.py --config {folder.config} --log-dir NEW_FOLDER"]
        )  # fmt: skip
    folder.resume_from = newest
    return parse_config(read_yaml(folder.config.read_text(encoding="utf-8")), CHECKS), folder


def branched(checkpoint: Path, args: Args) -> tuple[RunConfig, RunFolder]:
    """Return the configuration and the folder of a run that branches off another's checkpoint.

    Raises:
        ConfigError: If that is no run of train.py, or a flag is wrong.
        CheckpointError: If it is no whole checkpoint.
    """
    if not checkpoint.is_dir():
        raise ConfigError([f"{checkpoint} is not there: give a folder RUN/checkpoints/STEP."])
    if found := checkpoints(checkpoint):
        raise ConfigError(
            [f"{checkpoint} holds several checkpoints: give {found[-1]}, for example."]
        )
    origin = RunFolder(checkpoint.parent.parent)
    if RunFolder(checkpoint).config.exists():  # a run: its newest checkpoint
        origin = RunFolder(checkpoint)
        checkpoint = resumed(checkpoint)[1].resume_from or checkpoint
    origin.check_run()
    step = check(checkpoint)["num_timesteps"]
    values = overridden(read_yaml(origin.config.read_text(encoding="utf-8")), args)
    intervention = values.get("intervention")
    if args.every is not None or args.at:
        intervention = [{**e, "schedule": values["schedule"]} for e in entries(intervention)]
    arm = args.arm_name or names(intervention)
    check_arm_name(arm)
    config = branch_config(values, intervention, arm, checkpoint, step, CHECKS)
    return config, run_folder(config, args)


def experiment(args: Args) -> int:
    """Train to the midpoint once for each seed, branch into every arm, and compare them.

    What is finished is not done again. Returns the exit code.
    """
    configs = read_configs(args, CHECKS)
    arms = resolve_arms(configs[0], str(args.arms))
    check_fit(configs[0], arms)
    root = args.log_dir or Path("runs") / f"arms_{Path(str(args.config)).stem}"
    for config in configs:
        home = root / f"s{config.seed}"
        middle = math.ceil(config.branch_at * config.total_timesteps)
        keep = config.checkpoint or Checkpoint()
        trunk = RunFolder(home / "trunk")
        trunk.stop_at = middle
        start = config.model_copy(update={"checkpoint": keep})
        check_same_run(trunk, start)
        if branch_point(trunk, middle) is None and (ending := go_on(start, trunk, args)) != 0:
            return ending
        checkpoint = branch_point(trunk, middle)
        assert checkpoint is not None, "check_fit() has looked"
        step = step_of(checkpoint)
        for arm, intervention in arms.items():
            folder = RunFolder(home / arm)
            values = config.model_dump(mode="json")
            branch = branch_config(values, intervention, arm, checkpoint, step, CHECKS)
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
            branch_config(dumped, intervention, arm, Path(str(stop)), stop, CHECKS)
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
    return next((path for path in found if step_of(path) >= middle), None)


def go_on(config: RunConfig, folder: RunFolder, args: Args) -> int:
    """Train a run of an experiment, from its last checkpoint if it has one."""
    folder.resume_from = latest(folder.checkpoints)
    if folder.resume_from is None and folder.path.exists():
        print(f"{folder.path} was stopped before its first checkpoint: it begins anew.")
        shutil.rmtree(folder.path)
    return train(config, folder, args)


def build(config: RunConfig, folder: RunFolder, args: Args) -> Run:
    """Build environments, agent and callbacks; then the run folder, when nothing is wrong."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    env = make_env(config, config.n_envs, training=True)
    model = make_agent(
        config.algo,
        env,
        with_frame_buffer(config, env),
        seed=config.seed,
        device=config.device,
        fast_cnn=config.fast_cnn,
    )
    environments, callbacks = [env], plasticity_callbacks(config, folder, model, args.verbose)
    if config.eval is not None:
        environments.append(make_env(config, config.eval.n_envs, training=False))
    if config.tasks is not None:
        listeners = [partial(envs.set_task, env) for env in environments[1:]]
        callbacks.append(TaskCallback(listeners))
        if config.tasks.evaluate_earlier is not None:
            on_tasks = task_evaluation(config, folder)
            callbacks.append(on_tasks)
            environments.append(on_tasks.eval_env)
    if config.eval is not None:
        callbacks.append(
            evaluation_callback(
                config.eval,
                environments[1],
                folder,
                config.n_envs,
                is_deterministic(config),
                masked=config.algo == "maskable_ppo",
            )
        )
    checkpoint = config.checkpoint
    if checkpoint is None and config.branch is not None:  # a branch needs it to begin
        checkpoint = Checkpoint(every=config.total_timesteps)
    if checkpoint is not None:  # last: what the others did before it is in it
        callbacks.append(
            RunCheckpointCallback(
                **checkpoint.model_dump(),
                folder=folder.checkpoints,
                resume=folder.resume_from or False,
                branch_from=config.branch.checkpoint if config.branch else None,
                stop_at=folder.stop_at,
                verbose=1,
            )
        )
    if folder.resume_from is None:
        folder.create()
        folder.describe(config)
        model.set_logger(folder.logger(tables=not args.progress))
        record_config(model, config)
    else:
        size = check(folder.resume_from)["logs"].get(folder.progress.name, 0)
        earlier = folder.progress.read_bytes()[:size].decode()
        model.set_logger(folder.logger(tables=not args.progress))
        continue_csv(model.logger, earlier)
    return Run(config, folder, model, environments, callbacks)


def task_evaluation(config: RunConfig, folder: RunFolder) -> TaskEvaluation:
    """Build the evaluation on this and on earlier tasks, which has environments of its own."""
    assert config.tasks is not None
    copies = min(config.tasks.evaluate_episodes, MAX_EVAL_COPIES)
    seed = config.seed + 2 * EVAL_SEED_OFFSET
    return TaskEvaluation(
        config.tasks,
        make_env(config, copies, training=False, seed=seed, vec_env="dummy"),
        envs.set_task,
        folder=folder.path,
        seed=seed,
        deterministic=is_deterministic(config),
    )


def with_frame_buffer(config: RunConfig, env: VecEnv) -> dict[str, Any]:
    """Return the agent's values, with a replay buffer that keeps each frame of a stack once."""
    agent = dict(config.agent)
    stacked, channels = envs.image_stack(env)
    has_choice = agent.get("replay_buffer_class") or agent.get("optimize_memory_usage")
    if stacked < 2 or has_choice or "buffer_size" not in hyperparameters(config.algo):
        return agent
    options: dict[str, Any] = {"frame_channels": channels // stacked}
    if agent.get("n_steps", 1) > 1:  # SB3 hands these to its own buffers only
        options |= {"n_steps": agent.pop("n_steps"), "gamma": agent.get("gamma", 0.99)}
    options |= agent.get("replay_buffer_kwargs") or {}
    return {**agent, "replay_buffer_class": FRAME_BUFFER, "replay_buffer_kwargs": options}


def make_env(config: RunConfig, n_envs: int, *, training: bool, **overrides: Any) -> VecEnv:
    """Make the environments that a configuration asks for."""
    options: dict[str, Any] = {
        "seed": config.seed + (0 if training else EVAL_SEED_OFFSET),
        "env_options": config.env_options,
        "normalize": config.normalize,
        "gamma": config.agent.get("gamma"),
        "frame_stack": config.frame_stack,
        "tasks": config.tasks and config.tasks.model_dump(),
        "vec_env": config.vec_env,
        "imports": config.imports,
        "action_masks": config.algo == "maskable_ppo",
        **overrides,
    }
    return envs.make_vec_env(config.env, n_envs=n_envs, training=training, **options)


def is_deterministic(config: RunConfig) -> bool:
    """Tell how to evaluate: as asked for, or stochastic on Atari only."""
    asked = config.eval.deterministic if config.eval is not None else None
    return not envs.is_atari(config.env) if asked is None else asked


def plasticity_callbacks(
    config: RunConfig, folder: RunFolder, model: BaseAlgorithm, verbose: bool
) -> list[BaseCallback]:
    """Build fire_rl's callbacks, and check that the intervention fits the model."""
    callbacks: list[BaseCallback] = []
    if config.metrics is not None:
        metrics = PlasticityMetricsCallback(**config.metrics.model_dump(), verbose=int(verbose))
        callbacks.append(metrics)
    # Without any, the control: it keeps the episodes, and what a branch needs of the beginning.
    given = callback_arguments(config.intervention, config.schedule) or [{"intervention": CONTROL}]
    for arguments in given:
        callback = InterventionCallback(**arguments, log_dir=folder.path, verbose=1)
        callback.check(model)
        callbacks.append(callback)
    return callbacks


def learn(run: Run, args: Args) -> int:
    """Train, save and sum up, after Ctrl-C and errors too.

    Returns:
        0, or the exit code of an interrupted process.

    Raises:
        Exception: What went wrong in training.
    """
    model, config = run.model, run.config
    options: dict[str, Any] = {"callback": run.callbacks, "progress_bar": args.progress}
    if config.log_interval is not None:
        options["log_interval"] = config.log_interval
    print(f"Training {config.algo} on {config.env} in {run.folder.path}")
    start, ending = time.perf_counter(), "finished"
    failure: Exception | None = None
    with stopping(run) as received:
        try:
            model.learn(config.total_timesteps, **options)
        except KeyboardInterrupt:
            ending = "interrupted"
        except Exception as error:  # what was learned is saved; the traceback follows
            ending, failure = "failed", error
    if failure is not None and model.num_timesteps == 0:
        model.logger.close()
        raise failure
    seconds = time.perf_counter() - start
    if ending == "interrupted" and not received and run.folder.stop_at is not None:
        ending = "stopped to branch"
    patient = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would cut the zip
    run.folder.save(model)
    outcome = results(model, run.callbacks, seconds)
    if ending == "finished":
        record_outcome(model, config, outcome)
        run.folder.finish(model, outcome)
    model.logger.close()
    for env in run.environments:
        with contextlib.suppress(OSError, EOFError):  # Ctrl-C ends the worker processes, too
            env.close()
    sum_up(run.folder, model, ending, seconds, outcome)
    signal.signal(signal.SIGINT, patient)
    if failure is not None:
        raise failure
    if ending in ("finished", "stopped to branch"):
        return 0
    return 128 + (received[0] if received else signal.SIGINT)


@contextlib.contextmanager
def stopping(run: Run) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM save a checkpoint first, at the next moment at which it is exact.

    A second signal stops at once. Yields the signals that came.
    """
    received: list[int] = []
    savers = [c for c in run.callbacks if isinstance(c, RunCheckpointCallback)]

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1 or not savers:
            raise KeyboardInterrupt
        savers[0].stop_requested = True
        print("\nStopping after this rollout, to save a checkpoint. Again: stop at once.")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(path: Path, args: Args) -> None:
    """Play episodes of a trained agent, print their returns, write videos."""
    folder, model_path = find_run(path)
    config = parse_config(read_yaml(folder.config.read_text(encoding="utf-8")), CHECKS)
    env = make_env(
        config,
        1,
        training=False,
        normalize=False,
        render_mode=None if args.video is None else "rgb_array",
        **({} if args.seed is None else {"seed": args.seed}),
    )
    if config.normalize:
        statistics = folder.normalization_of(model_path)
        if statistics is None:
            raise ConfigError([f"{model_path} needs its vecnormalize.pkl, which is not there."])
        env = VecNormalize.load(str(statistics), env)
        env.training = env.norm_reward = False
    model = load_agent(config.algo, model_path)
    if config.tasks is not None:  # the one that it was trained on last
        envs.set_task(env, (model.num_timesteps - 1) // config.tasks.every)
    fps = envs.frames_per_second(config.env, config.env_options, env)
    print(f"{model_path}: {config.algo} on {config.env}, {model.num_timesteps:,} steps of training")
    returns, lengths = play(model, env, args.episodes, is_deterministic(config), args.video, fps)
    env.close()
    print(f"\n{'episode':>7} {'return':>12} {'length':>8}")
    for number, (score, length) in enumerate(zip(returns, lengths, strict=True), start=1):
        print(f"{number:>7} {score:>12.2f} {length:>8}")
    print(f"{'mean':>7} {np.mean(returns):>12.2f} {np.mean(lengths):>8.0f}")
    print(f"{'std':>7} {np.std(returns):>12.2f} {np.std(lengths):>8.0f}")
    if args.video is not None:
        print(f"Videos: {args.video}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Interrupted before training began: nothing to save.", file=sys.stderr)
        sys.exit(130)
