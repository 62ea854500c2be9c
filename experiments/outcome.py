"""Results and summary of a run; and how errors are printed."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback

from experiments.flags import Args
from experiments.folder import RunFolder
from experiments.plain_yaml import ConfigError
from fire_rl.checkpoints.store import CheckpointError
from fire_rl.interventions import CONTROL
from fire_rl.runs import layout
from fire_rl.sb3.internals import steps_at_start

# What a user may get wrong before training begins: a message, no traceback.
USER_ERRORS = (ValueError, ImportError, OSError, CheckpointError)


def report_error(error: Exception, args: Args) -> int:
    """Say what is wrong; return the exit code.

    Args:
        error: What was raised; one of :data:`USER_ERRORS` needs no more than its message.
        args: The flags; ``--verbose`` raises it again.
    """
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


def results(
    model: BaseAlgorithm, callbacks: Sequence[BaseCallback], seconds: float
) -> dict[str, float | None]:
    """Return what a run achieved; None where nothing was measured.

    The return is that of the last evaluation, else of the last training episodes.
    """
    trained = model.num_timesteps - steps_at_start(model)
    episodes = [episode["r"] for episode in model.ep_info_buffer or []]
    training = float(np.mean(episodes)) if episodes else None
    last = best = None
    for callback in callbacks:
        if isinstance(callback, EvalCallback) and math.isfinite(callback.best_mean_reward):
            last, best = callback.last_mean_reward, callback.best_mean_reward
    return {
        "return": training if last is None else last,
        "training_return": training,
        "best_return": best,
        "interventions": _interventions(callbacks),
        "steps_per_second": trained / seconds,
    }


def _interventions(callbacks: Sequence[Any]) -> int:
    """Count the events that changed something."""
    acting = [c for c in callbacks if hasattr(c, "reports") and c.intervention.name != CONTROL]
    return sum(len(callback.reports) for callback in acting)


def print_summary(
    folder: RunFolder,
    model: BaseAlgorithm,
    ending: str,
    seconds: float,
    outcome: Mapping[str, float | None],
) -> None:
    """Say what happened, where everything is and how to look at it."""
    beside_us = Path(sys.executable).parent / "tensorboard"
    tensorboard = "tensorboard" if shutil.which("tensorboard") else str(beside_us)
    score = outcome["return"]
    print(
        f"\n{ending.capitalize()} after {model.num_timesteps:,} steps in {seconds:.0f} s "
        f"({outcome['steps_per_second']:.0f} steps/s), interventions: {outcome['interventions']}, "
        f"return {'not measured' if score is None else f'{score:.2f}'}"
    )
    print(f"Logs:         {folder.path}")
    print(f"Model:        {folder.model}")
    print(f"TensorBoard:  {tensorboard} --logdir {folder.path}")
    if ending != "finished" and any(folder.checkpoints.glob(f"*/{layout.MANIFEST}")):
        print(f"Go on:        {sys.executable} train.py --resume {folder.path}")
    print(f"Watch it:     {sys.executable} train.py --play {folder.path}")
