"""Training on a sequence of tasks: which one it is, and what is left of the earlier ones."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from envs import set_task
from experiments.config import Tasks
from experiments.evaluation import evaluator
from fire_rl.runs import layout
from fire_rl.utils.gymnasium_internals import generator_of, set_generator
from fire_rl.utils.replacing import replace_text
from fire_rl.utils.rng import isolated_rng


class TaskCallback(BaseCallback):
    """Log which task of a sequence is being trained, and move evaluation environments to it.

    Args:
        eval_envs: The environments that change with the training.
    """

    def __init__(self, eval_envs: Sequence[VecEnv] = ()) -> None:
        super().__init__()
        self.eval_envs = eval_envs
        self.task = 0

    def _on_step(self) -> bool:
        task = int(self.locals["infos"][0]["task"])
        if task != self.task:
            self.task = task
            for env in self.eval_envs:
                set_task(env, task)
        self.logger.record("rollout/task", task)
        return True


class TaskEvaluation(BaseCallback):
    """Evaluate the policy at the end of each task, on it and on earlier ones.

    It runs at the last step of a task, before the last update and before any intervention. Training
    is not changed: environments and random numbers of the evaluation are its own. Every evaluation
    begins with the same seeds, so that two of them differ by the policy only.

    Logged at that step: ``continual/return_task_<k>`` for each task evaluated,
    ``continual/return_current`` and ``continual/return_earlier`` (the mean). ``continual.csv`` in
    the run folder has a line each: ``step, trained_task, task, return, return_std, episodes``.

    Args:
        tasks: Its ``evaluate_earlier`` is how many earlier tasks there are at most, the last one
            and the first one among them, the rest evenly spaced; ``evaluate_episodes`` is how many
            episodes of each. Tasks that recur are evaluated once, under their first number.
        env: Environments for evaluation.
        folder: Where to write.
        seed: Of the episodes, and of actions if they are drawn.
        deterministic: Whether to take the policy's most likely action.
    """

    def __init__(
        self,
        tasks: Tasks,
        env: VecEnv,
        *,
        folder: Path,
        seed: int = 0,
        deterministic: bool = True,
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.eval_env = env  # the name by which checkpoints find it
        self.folder = folder
        self.seed = seed
        self.deterministic = deterministic
        self.rows: list[list[float]] = []

    def _on_step(self) -> bool:
        info = self.locals["infos"][0]
        if info.get("task_completed"):
            self._evaluate(int(info["task"]))
        return True

    def _evaluate(self, trained: int) -> None:
        *earlier, current = tasks_to_evaluate(
            trained, self.tasks.evaluate_earlier or 0, self.tasks.recurring
        )
        means = {}
        for task in (*earlier, current):
            returns = self._play(task)
            means[task] = float(np.mean(returns))
            spread = float(np.std(returns))
            row = [self.num_timesteps, trained, task, means[task], spread, len(returns)]
            self.rows.append(row)
            self.logger.record(f"continual/return_task_{task}", means[task])
        self.logger.record("continual/return_current", means[current])
        if earlier:
            old = [means[task] for task in earlier]
            self.logger.record("continual/return_earlier", float(np.mean(old)))
        self._write()
        # As EvalCallback does: now, because off-policy training dumps when episodes end.
        self.logger.record(layout.STEP_COLUMN, self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _play(self, task: int) -> list[float]:
        """Return the returns of one task's episodes."""
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        set_task(self.eval_env, task)
        self.eval_env.seed(self.seed)
        # DQN's predict() explores with the model's own action space, whose generator training uses.
        generator = copy.deepcopy(generator_of(self.model.action_space))
        with isolated_rng(self.seed):
            self.model.action_space.seed(self.seed)
            returns, _ = evaluator(self.model)(
                self.model,
                self.eval_env,
                n_eval_episodes=self.tasks.evaluate_episodes,
                deterministic=self.deterministic,
                return_episode_rewards=True,
            )
        set_generator(self.model.action_space, generator)
        assert isinstance(returns, list)
        return returns

    def _write(self) -> None:
        """Write ``continual.csv``, whole: a resumed run knows the lines before it."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(layout.CONTINUAL_COLUMNS)
        writer.writerows(self.rows)
        replace_text(self.folder / layout.CONTINUAL, text.getvalue())


def tasks_to_evaluate(trained: int, limit: int, recurring: int | None = None) -> list[int]:
    """Return which tasks to evaluate after one of them, that one last.

    Args:
        trained: The task that is complete.
        limit: How many earlier ones at most: evenly spaced from the last to the first.
        recurring: The tasks repeat after so many; a repeated one is logged under its first number.
    """
    current = trained if recurring is None else trained % recurring
    seen = trained if recurring is None else min(trained, recurring)
    earlier = [task for task in range(seen) if task != current]
    if limit == 0:
        earlier = []
    elif len(earlier) > limit:
        spaced = np.linspace(len(earlier) - 1, 0, limit).round().astype(int)  # the last one first
        earlier = [earlier[k] for k in reversed(spaced)]
    return [*earlier, current]
