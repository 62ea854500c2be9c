"""SB3's evaluation for every algorithm, and what a run folder needs besides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable import evaluation as maskable
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from experiments.config import Evaluation
from experiments.folder import RunFolder, save_model


def evaluation_callback(
    evaluation: Evaluation,
    env: VecEnv,
    folder: RunFolder,
    n_envs: int,
    deterministic: bool,
    masked: bool = False,
) -> EvalCallback:
    """Evaluate every so many steps; keep the best model and its normalisation.

    Args:
        evaluation: How often, and how many episodes.
        env: The evaluation environment.
        folder: Gets ``evaluations.npz``, ``best_model.zip`` and its normalisation.
        n_envs: Training environments: SB3 counts calls, each of which is a step in all of them.
        deterministic: Whether to take the policy's most likely action.
        masked: Whether the agent is told which actions are valid.
    """
    kind = MaskableEvalCallback if masked else EvalCallback
    return kind(
        env,
        callback_on_new_best=_SaveBest(folder.best_model),  # SB3 itself would not write by rename
        n_eval_episodes=evaluation.episodes,
        eval_freq=max(evaluation.every // n_envs, 1),
        log_path=str(folder.path),
        deterministic=deterministic,
        verbose=0,
    )


def evaluator(model: BaseAlgorithm) -> Callable[..., Any]:
    """Return the ``evaluate_policy`` for a model: one that asks for masks, or SB3's own.

    Both hand an LSTM's states on from step to step.
    """
    return maskable.evaluate_policy if isinstance(model, MaskablePPO) else evaluate_policy


class _SaveBest(BaseCallback):
    """Save the best model with the statistics of VecNormalize: later ones do not fit it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        save_model(self.model, self.path)
        return True
