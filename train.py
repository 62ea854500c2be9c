"""Train deep-RL agents with Stable-Baselines3, intervene for plasticity, and watch them play.

Examples:
  python train.py --config configs/quickstart.yaml
  python train.py --config configs/atari/dqn_fire.yaml --seed 1 --set agent.gamma=0.98
  python train.py --algo sac --env HalfCheetah-v5 --intervention fire --every 100000
  python train.py --resume runs/RUN
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
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

try:
    import tyro

    import envs
    from agents import ConfigError, RunConfig, load_agent, make_agent, parse_config
    from agents.algorithms import hyperparameters
    from agents.callbacks import TaskCallback, evaluation_callback
    from agents.config import Checks, dump_yaml
    from agents.flags import Args, check_combination, read_configs
    from agents.plain_yaml import read_yaml
    from agents.play import play
    from agents.run_folder import (
        RunFolder,
        default_path,
        find_run,
        record_config,
        record_outcome,
    )
except ModuleNotFoundError as error:
    sys.exit(f"train.py needs {error.name}. Install all that it uses: pip install -e '.[train]'")

from fire_rl import InterventionCallback, PlasticityMetricsCallback, RunCheckpointCallback
from fire_rl.checkpoint import CheckpointError, check, latest
from fire_rl.logs import continue_csv
from fire_rl.surgery import groups_to_change

# What a user may get wrong before training begins: a message, no traceback.
USER_ERRORS = (ValueError, ImportError, OSError, CheckpointError)
# Keeps each frame once; agents know it by name only.
FRAME_BUFFER = "fire_rl.replay.FrameReplayBuffer"
# Evaluation must not replay the training's episodes.
EVAL_SEED_OFFSET = 10_000


def check_tasks(tasks: Any, run: Mapping[str, Any]) -> None:
    """Check the sequence of tasks."""
    envs.check_tasks(tasks.model_dump(), run.get("n_envs", 1))


CHECKS: Checks = {
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
        if args.resume is not None:
            plan = [resumed(args.resume)]
        else:
            plan = [(config, run_folder(config, args)) for config in read_configs(args, CHECKS)]
        if args.print_config:
            print(dump_yaml(plan[0][0]), end="")
            return 0
        for _, folder in plan:
            if args.resume is None:
                folder.check_free()
    except USER_ERRORS as error:
        return report(error, args)
    for config, folder in plan:
        try:
            run = build(config, folder, args)
        except Exception as error:  # SB3 and the environments refuse bad values in many ways
            return report(error, args)
        try:
            ending = learn(run, args)
        except Exception as error:
            if run.model.num_timesteps > 0 or args.resume is not None:
                raise
            shutil.rmtree(folder.path)  # nothing was learned, nothing is lost
            return report(error, args)
        if ending != 0:
            return ending
    return 0


def report(error: Exception, args: Args) -> int:
    """Say what is wrong; return the exit code."""
    if args.verbose:
        raise error
    kind = "" if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: "
    faults = error.faults if isinstance(error, ConfigError) else [f"{kind}{error}"]
    where = f" in {args.config}" if args.config and isinstance(error, ConfigError) else ""
    count = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
    lines = [f"train.py found {count}{where}:", *(f"  - {fault}" for fault in faults)]
    if kind:
        lines.append("--verbose shows where it comes from.")
    print("\n".join(lines), file=sys.stderr)
    return 2


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
        callbacks.append(TaskCallback([partial(envs.set_task, env) for env in environments[1:]]))
    if config.eval is not None:
        callbacks.append(
            evaluation_callback(
                config.eval, environments[1], folder, config.n_envs, is_deterministic(config)
            )
        )
    if config.checkpoint is not None:  # last: what the others did before it is in it
        callbacks.append(
            RunCheckpointCallback(
                **config.checkpoint.model_dump(),
                folder=folder.checkpoints,
                resume=folder.resume_from or False,
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
    if config.intervention is not None:
        callback = InterventionCallback(
            config.intervention, config.schedule, log_dir=folder.path, verbose=1
        )
        groups_to_change(model, callback.intervention)  # raises if the two do not fit
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
    patient = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would cut the zip
    run.folder.save(model)
    outcome = results(run, seconds)
    if ending == "finished":
        record_outcome(model, config, outcome)
    model.logger.close()
    for env in run.environments:
        with contextlib.suppress(OSError, EOFError):  # Ctrl-C ends the worker processes, too
            env.close()
    sum_up(run, ending, seconds, outcome)
    signal.signal(signal.SIGINT, patient)
    if failure is not None:
        raise failure
    return 0 if ending == "finished" else 128 + (received[0] if received else signal.SIGINT)


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


def results(run: Run, seconds: float) -> dict[str, float | None]:
    """Return what a run achieved; None where nothing was measured.

    The return is that of the last evaluation, else of the last training episodes.
    """
    trained = run.model.num_timesteps - run.model._num_timesteps_at_start
    episodes = [episode["r"] for episode in run.model.ep_info_buffer or []]
    training = float(np.mean(episodes)) if episodes else None
    last = best = None
    for callback in run.callbacks:
        if isinstance(callback, EvalCallback) and math.isfinite(callback.best_mean_reward):
            last, best = callback.last_mean_reward, callback.best_mean_reward
    return {
        "return": training if last is None else last,
        "training_return": training,
        "best_return": best,
        "interventions": interventions(run),
        "steps_per_second": trained / seconds,
    }


def interventions(run: Run) -> int:
    """Count the events that happened."""
    done = [len(c.reports) for c in run.callbacks if isinstance(c, InterventionCallback)]
    return sum(done)


def sum_up(run: Run, ending: str, seconds: float, outcome: Mapping[str, float | None]) -> None:
    """Say what happened, where everything is and how to look at it."""
    beside_us = Path(sys.executable).parent / "tensorboard"
    tensorboard = "tensorboard" if shutil.which("tensorboard") else str(beside_us)
    score = outcome["return"]
    print(
        f"\n{ending.capitalize()} after {run.model.num_timesteps:,} steps in {seconds:.0f} s "
        f"({outcome['steps_per_second']:.0f} steps/s), interventions: {interventions(run)}, "
        f"return {'not measured' if score is None else f'{score:.2f}'}"
    )
    print(f"Logs:         {run.folder.path}")
    print(f"Model:        {run.folder.model}")
    print(f"TensorBoard:  {tensorboard} --logdir {run.folder.path}")
    if ending != "finished" and latest(run.folder.checkpoints) is not None:
        print(f"Go on:        {sys.executable} train.py --resume {run.folder.path}")
    print(f"Watch it:     {sys.executable} train.py --play {run.folder.path}")


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
