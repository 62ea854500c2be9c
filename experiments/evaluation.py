"""SB3's evaluation with what a run folder needs besides."""

from __future__ import annotations

from pathlib import Path

from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from experiments.config import Evaluation
from experiments.folder import RunFolder


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
        folder: Gets ``evaluations.npz``, ``best_model.zip`` and ``best_vecnormalize.pkl``.
        n_envs: Training environments: SB3 counts calls, each of which is a step in all of them.
        deterministic: Whether to take the policy's most likely action.
        masked: Whether the agent is told which actions are valid.
    """
    kind = MaskableEvalCallback if masked else EvalCallback
    return kind(
        env,
        callback_on_new_best=_SaveNormalization(folder.path / "best_vecnormalize.pkl"),
        n_eval_episodes=evaluation.episodes,
        eval_freq=max(evaluation.every // n_envs, 1),
        log_path=str(folder.path),
        best_model_save_path=str(folder.path),
        deterministic=deterministic,
        verbose=0,
    )


class _SaveNormalization(BaseCallback):
    """Save the statistics of VecNormalize beside the best model: later ones do not fit it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None:
            normalize.save(str(self.path))
        return True
