"""One run from its start to its saved end."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, Self

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from experiments.build import Run, build
from experiments.config import RunConfig
from experiments.flags import Args
from experiments.folder import RunFolder, record_outcome
from experiments.outcome import print_summary, report_error, results
from fire_rl import CheckpointError, RunCheckpointCallback, TrainingStopped


def train(config: RunConfig, folder: RunFolder, args: Args) -> int:
    """Build one run and let it learn; return the exit code. The folder is locked meanwhile."""
    resuming = folder.resume_from is not None
    try:
        try:
            if resuming:
                folder.lock()
            run = build(config, folder, args)
        except Exception as error:  # SB3 and the environments refuse bad values in many ways
            return report_error(error, args)
        try:
            return learn(run, args)
        except Exception as error:
            if resuming and isinstance(error, CheckpointError):  # its message says all
                return report_error(error, args)
            if run.model.num_timesteps > 0 or resuming:
                raise
            folder.remove()  # nothing was learned, nothing is lost
            return report_error(error, args)
    finally:
        folder.release()


class LogInterval(int):
    """A ``log_interval`` that counts an on-policy run's rollouts from its step 0.

    SB3 counts them in a local variable of ``learn()`` and asks ``iteration % log_interval``: a
    resumed run would log at other steps than one that was never stopped. A subclass of ``int`` is
    asked first.
    """

    def __new__(cls, interval: int, model: BaseAlgorithm) -> Self:
        """Remember the model beside the number."""
        made = super().__new__(cls, interval)
        made.model = model
        return made

    model: BaseAlgorithm

    def __rmod__(self, count: int) -> int:
        """Return what is left of the rollouts of the whole run; episodes are counted as given."""
        model = self.model
        if isinstance(model, OnPolicyAlgorithm):
            count = model.num_timesteps // (model.n_steps * model.n_envs)
        return count % int(self)


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
        options["log_interval"] = LogInterval(config.log_interval, model)
    print(f"Training {config.algo} on {config.env} in {run.folder.path}")
    start, ending = time.perf_counter(), "finished"
    failure: Exception | None = None
    with stopping(run) as received:
        try:
            model.learn(config.total_timesteps, **options)
        except TrainingStopped:
            ending = "interrupted" if received else "stopped to branch"
        except KeyboardInterrupt:
            ending = "interrupted"
        except Exception as error:  # what was learned is saved; the traceback follows
            ending, failure = "failed", error
    if failure is not None and model.num_timesteps == 0:
        model.logger.close()
        raise failure
    seconds = time.perf_counter() - start
    patient = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would cut the zip
    try:
        _save_end(run, ending, seconds)
    except Exception as later:
        if failure is None:
            raise
        print(f"What was learned could not be saved, either: {later}", file=sys.stderr)
    finally:
        signal.signal(signal.SIGINT, patient)
    if failure is not None:
        raise failure
    if ending in ("finished", "stopped to branch"):
        return 0
    return 128 + (received[0] if received else signal.SIGINT)


def _save_end(run: Run, ending: str, seconds: float) -> None:
    """Save the model and what it came to, close everything, and sum up."""
    model = run.model
    try:
        run.folder.save(model)
        outcome = results(model, run.callbacks, seconds)
        if ending == "finished":
            record_outcome(model, run.config, outcome)
            run.folder.finish(model, outcome)
    finally:
        model.logger.close()
        for env in run.environments:
            with contextlib.suppress(OSError, EOFError):  # Ctrl-C ends the worker processes, too
                env.close()
    print_summary(run.folder, model, ending, seconds, outcome)


@contextlib.contextmanager
def stopping(run: Run) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM save a checkpoint first, at the next rollout start, where it is exact.

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
