"""Build what a run needs: environments, agent, callbacks and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

import envs
from agents import make_agent
from agents.algorithms import hyperparameters
from experiments.config import Checkpoint, RunConfig
from experiments.evaluation import evaluation_callback
from experiments.flags import Args
from experiments.folder import RunFolder, record_config
from experiments.interventions import callback_arguments
from experiments.tasks import TaskCallback, TaskEvaluation
from fire_rl import (
    FrameReplayBuffer,
    InterventionCallback,
    PlasticityMetricsCallback,
    RunCheckpointCallback,
)
from fire_rl.interventions import CONTROL

# Evaluation must not replay the training's episodes.
EVAL_SEED_OFFSET = 10_000
MAX_EVAL_COPIES = 10  # of the evaluation on earlier tasks: one prediction for all of them


@dataclass(frozen=True)
class Run:
    """One training run, built and ready to learn."""

    config: RunConfig
    folder: RunFolder
    model: BaseAlgorithm
    environments: list[VecEnv]
    callbacks: list[BaseCallback]


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
    callbacks = plasticity_callbacks(config, folder, model, args.verbose)
    evaluating, eval_envs = evaluation_callbacks(config, folder)
    callbacks += [*evaluating, *checkpoint_callbacks(config, folder)]
    _open_folder(config, folder, model, tables=not args.progress)
    return Run(config, folder, model, [env, *eval_envs], callbacks)


def make_env(config: RunConfig, n_envs: int, *, training: bool, **overrides: Any) -> VecEnv:
    """Make the environments that a configuration asks for."""
    options: dict[str, Any] = {
        "seed": config.seed + (0 if training else EVAL_SEED_OFFSET),
        "env_options": config.env_options,
        "env_wrapper": config.env_wrapper,
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
    buffer = f"{FrameReplayBuffer.__module__}.{FrameReplayBuffer.__name__}"  # as a file names it
    return {**agent, "replay_buffer_class": buffer, "replay_buffer_kwargs": options}


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
    # With none, the control: it records episodes and the initial weights, which branches need.
    given = callback_arguments(config.intervention, config.schedule) or [{"intervention": CONTROL}]
    for arguments in given:
        callback = InterventionCallback(**arguments, log_dir=folder.path, verbose=1)
        callback.check(model)
        callbacks.append(callback)
    return callbacks


def evaluation_callbacks(
    config: RunConfig, folder: RunFolder
) -> tuple[list[BaseCallback], list[VecEnv]]:
    """Build the callbacks of tasks and evaluations, and the environments for these."""
    callbacks: list[BaseCallback] = []
    eval_envs: list[VecEnv] = []
    if config.eval is not None:
        eval_envs.append(make_env(config, config.eval.n_envs, training=False))
    if config.tasks is not None:
        callbacks.append(TaskCallback(tuple(eval_envs)))
        if config.tasks.evaluate_earlier is not None:
            on_tasks = task_evaluation(config, folder)
            callbacks.append(on_tasks)
            eval_envs.append(on_tasks.eval_env)
    if config.eval is not None:
        callbacks.append(
            evaluation_callback(
                config.eval,
                eval_envs[0],
                folder,
                config.n_envs,
                is_deterministic(config),
                masked=config.algo == "maskable_ppo",
            )
        )
    return callbacks, eval_envs


def task_evaluation(config: RunConfig, folder: RunFolder) -> TaskEvaluation:
    """Build the evaluation on this and on earlier tasks, which has environments of its own."""
    assert config.tasks is not None
    copies = min(config.tasks.evaluate_episodes, MAX_EVAL_COPIES)
    seed = config.seed + 2 * EVAL_SEED_OFFSET
    return TaskEvaluation(
        config.tasks,
        make_env(config, copies, training=False, seed=seed, vec_env="dummy"),
        folder=folder.path,
        seed=seed,
        deterministic=is_deterministic(config),
    )


def checkpoint_callbacks(config: RunConfig, folder: RunFolder) -> Sequence[BaseCallback]:
    """Build the callback that saves checkpoints: the last one, after all whose state it saves."""
    checkpoint = config.checkpoint
    if checkpoint is None and config.branch is not None:  # a branch needs it to begin
        checkpoint = Checkpoint(every=config.total_timesteps)
    if checkpoint is None:
        return []
    trunk = config.branch.checkpoint if config.branch else None
    return [
        RunCheckpointCallback(
            **checkpoint.model_dump(),
            folder=folder.checkpoints,
            resume=folder.resume_from or False,
            branch_from=folder.branch_from or trunk,
            stop_at=folder.stop_at,
            verbose=1,
        )
    ]


def _open_folder(config: RunConfig, folder: RunFolder, model: BaseAlgorithm, tables: bool) -> None:
    """Give the model its logger, in a new folder or in that of a resumed run."""
    if folder.resume_from is None:
        folder.create()
        folder.describe(config)
    model.set_logger(folder.logger(tables))
    if folder.resume_from is None:
        record_config(model, config)
