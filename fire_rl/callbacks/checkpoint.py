"""The SB3 callback that saves checkpoints, resumes from them, and stops a training at one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from fire_rl.callbacks.base import check_place, say
from fire_rl.callbacks.event_clock import EventClock
from fire_rl.checkpoints.folder import locked
from fire_rl.checkpoints.manifest import Checkpoint, CheckpointError
from fire_rl.checkpoints.ownership import (
    check_total,
    check_unfinished,
    hand_over,
    is_in_memory,
    mark_finished,
    training_of,
)
from fire_rl.checkpoints.replay_segments import check_buffer
from fire_rl.checkpoints.store import (
    Saved,
    check,
    checkpoints,
    is_intact,
    latest,
    restore,
    save,
)
from fire_rl.runs.layout import CHECKPOINTS
from fire_rl.sb3.callback_tree import walk_callbacks
from fire_rl.sb3.continuation import goes_on
from fire_rl.sb3.internals import total_timesteps
from fire_rl.sb3.loggers import guard_outputs, log_folder, note_event_files
from fire_rl.schedules import Every
from fire_rl.utils.validation import check_int

logger = logging.getLogger("fire_rl")


class TrainingStopped(Exception, KeyboardInterrupt):
    """A training has ended before its total, because :class:`RunCheckpointCallback` was asked to.

    It leaves ``model.learn()``. The model is as it was saved, to the bit. It is a
    ``KeyboardInterrupt``, too, so that code which ends in good order on Ctrl-C (rl_zoo3 saves its
    model then) does so here.

    Attributes:
        checkpoint: The checkpoint, saved just before.

    Example:
        >>> import tempfile
        >>> from stable_baselines3 import PPO
        >>> saver = RunCheckpointCallback(50_000, tempfile.mkdtemp(), stop_at=100)
        >>> try:
        ...     model = PPO("MlpPolicy", "CartPole-v1", n_steps=64).learn(1_000, callback=saver)
        ... except TrainingStopped as stopped:
        ...     print(stopped.checkpoint.path.name)
        128
    """

    def __init__(self, checkpoint: Saved) -> None:
        super().__init__(checkpoint)
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        step = self.checkpoint.manifest["num_timesteps"]
        return f"The training was stopped at step {step:,}, saved in {self.checkpoint.path}."


class RunCheckpointCallback(BaseCallback):
    """Save all that a training needs to go on exactly, and go on from it.

    Unlike SB3's ``CheckpointCallback`` it keeps random states, environments in mid-episode, the
    replay buffer, schedules and callbacks: a training that is killed and resumed ends with the
    same weights as one that was not (on a CPU; the arithmetic of a GPU is not repeatable).

    Args:
        every: Period in environment steps over all environments.
        folder: Folder of checkpoints, one sub-folder each; by default ``checkpoints`` beside the
            model's TensorBoard or CSV logs.
        keep_last: How many checkpoints of this training to keep, as they were written; None for
            all. The newest one with finite weights stays beyond that, and those of other trainings.
        resume: True to go on from the newest whole checkpoint in ``folder``, and to start anew
            if there is none. A training that has come to its total, and one that this process has
            written with another model and not stopped with :class:`TrainingStopped`, is an error:
            give each training its own folder. Or a
            checkpoint, whosever it is: its path, or what
            :func:`~fire_rl.checkpoints.store.latest` returned, which is not verified again.
        branch_from: A checkpoint, as in ``resume``, of another training with the same model, to go
            on from as a new one: weights, optimizers, replay buffer, environments, schedules and
            random numbers continue, an :class:`~fire_rl.InterventionCallback` begins there, logs
            are its own. ``resume`` goes first, if it finds a checkpoint of the branch itself.
        stop_at: Step from which on to save at the next rollout start and stop there, see
            ``stop_requested``.
        strict: Whether other options than the checkpoint's (of the algorithm, the seed among them,
            of the policy, the environments, the callbacks) are an error that names them all. The
            total and a ``horizon`` may grow. Spaces, ``n_envs``, networks and buffers must fit.
        replay_copies: How many copies of the replay buffer's files to keep. With 1 all checkpoints
            share them, and a damaged one costs all that hold it; with 2 every second one does.
        verbose: 1 for a line per checkpoint.

    Raises:
        ValueError: If an argument is out of range, there is no folder, or the class of the replay
            buffer is unknown.
        CheckpointError: In training, if a checkpoint cannot be written or read or belongs to
            another training, or another process trains into the folder.
        TrainingStopped: In training, after a stop that was asked for.

    Attributes:
        saved: What was written of this model so far; a second model starts clean.
        stop_requested: Set it, for example in a signal handler, to save at the next rollout start
            and to stop there with :class:`TrainingStopped`.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu")
        >>> callback = RunCheckpointCallback(64, "checkpoints", resume=True)
        >>> model = model.learn(256, callback=callback)
        >>> [saved.path.name for saved in callback.saved]
        ['64', '128', '192']
    """

    def __init__(
        self,
        every: int = 100_000,
        folder: str | Path | None = None,
        *,
        keep_last: int | None = 2,
        resume: bool | str | Path | Checkpoint = False,
        branch_from: str | Path | Checkpoint | None = None,
        stop_at: int | None = None,
        strict: bool = True,
        replay_copies: int = 1,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.folder = None if folder is None else Path(folder)
        self.clock = EventClock(Every(every), None, "timesteps")
        self.keep_last = None if keep_last is None else check_int("keep_last", keep_last, 1)
        self.resume = resume
        self.branch_from = branch_from
        self.stop_at = None if stop_at is None else check_int("stop_at", stop_at, 1)
        self.strict = strict
        self.replay_copies = check_int("replay_copies", replay_copies, 1)
        if self.keep_last is not None and self.keep_last < self.replay_copies:
            raise ValueError(
                f"`replay_copies` must not exceed `keep_last` ({self.keep_last}), for each copy "
                f"needs a checkpoint that holds it; got {self.replay_copies}."
            )
        self.saved: list[Saved] = []
        self.stop_requested = False
        self._given_folder = self.folder
        self._model: BaseAlgorithm | None = None
        self._begun = False  # this model has been resumed, has branched off, or begins anew
        self._own: deque[Checkpoint] = deque(maxlen=self.replay_copies)  # newest last
        self._lock = ExitStack()

    def _init_callback(self) -> None:
        if not goes_on(self._model, self.model):
            self.clock.reset()
            if self._model not in (None, self.model):
                self.folder = self._given_folder
                self.saved, self.stop_requested = [], False
        if self._model is not self.model:
            self._model, self._begun = self.model, False
            self._own.clear()  # its replay buffer is another one

    def _on_training_start(self) -> None:
        check_place(self)
        check_buffer(getattr(self.model, "replay_buffer", None))
        if self.folder is None:
            logs = log_folder(self.logger)
            if logs is None:
                raise ValueError("`folder` must be given: the model has no folder of logs.")
            self.folder = logs / CHECKPOINTS
        self._lock.close()  # of a call that an error has ended
        self._lock.enter_context(locked(self.folder))
        training_of(self.model, [self.locals["callback"]], start=True)
        guard_outputs(self.logger)
        note_event_files(self.logger, self.folder)
        self.clock.start(self.model)

    def _on_rollout_start(self) -> None:
        if not self._begun:
            self._begin()
        if self.stop_at is not None and self.model.num_timesteps >= self.stop_at:
            self.stop_requested = True
        self.clock.advance(self.model)
        if self.clock.take() is not None or self.stop_requested:
            saved = self._save()
            if self.stop_requested:
                hand_over(self.model)
                self._lock.close()
                raise TrainingStopped(saved)

    def _on_step(self) -> bool:
        self.clock.advance(self.model)
        return True

    def _on_training_end(self) -> None:
        self.clock.stop()
        if self._own and self.model.num_timesteps >= total_timesteps(self.model):
            assert self.folder is not None
            mark_finished(self.model, self.folder, self._own[-1])
        self._lock.close()

    def get_options(self) -> dict[str, Any]:
        """Return no options: when and where to save is no part of a training."""
        return {}

    @property
    def restores(self) -> bool:
        """Whether the next rollout start goes on from a checkpoint."""
        if self.branch_from is not None or self.resume not in (False, True):
            return True
        return bool(self.resume) and self.folder is not None and bool(checkpoints(self.folder))

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        return {"clock": self.clock.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`."""
        self.clock.set_state(state["clock"])

    def _begin(self) -> None:
        """Go on from a checkpoint, branch off one, or begin anew."""
        assert self.folder is not None
        self._begun = True
        callbacks = [self.locals["callback"]]
        try:
            own = latest(self.folder) if self.resume is True else _verified(self.resume)
            if self.resume is True and own is not None:
                if is_in_memory(self.model, own):
                    self._own.append(own)
                    return
                check_unfinished(self.model, own)
            if own is not None:
                self._resume(own, callbacks)
            elif (trunk := _verified(self.branch_from)) is not None:
                begun = restore(self.model, trunk, callbacks, self.strict, branch=True)
                say(self, f"branched off {trunk.path} at step {self.model.num_timesteps:,}")
                for callback in begun:  # they act before the first step, as in the saved training
                    callback.on_rollout_start()
        except CheckpointError:
            self._begun = False
            self._lock.close()
            raise

    def _resume(self, own: Checkpoint, callbacks: list[BaseCallback]) -> None:
        check_total(self.model, own)
        restore(self.model, own, callbacks, self.strict)
        self._own.append(own)
        say(self, f"resumed from {own.path} at step {self.model.num_timesteps:,}")
        if not own.manifest["finite"]:
            logger.warning(
                "%s, from which the training goes on, holds weights that are NaN or infinite: an "
                "earlier checkpoint may be better, resume=PATH takes it.", own.path,
            )  # fmt: skip

    def _save(self) -> Saved:
        assert self.folder is not None
        callbacks = [self.locals["callback"]]
        base = self._own[0] if len(self._own) == self.replay_copies else None
        if base is not None and base.path.exists() and not is_intact(base):
            logger.warning(
                "Replay segments of %s are missing or cut short: all of the replay buffer is "
                "written anew.", base.path,
            )  # fmt: skip
            base = None
        try:
            saved = save(self.model, self.folder, callbacks, self.keep_last, base)
        except CheckpointError:
            self._lock.close()
            raise
        self._own.append(saved)
        self.saved.append(saved)
        say(
            self,
            f"checkpoint {saved.path}: {saved.written / 1e6:.1f} MB written, "
            f"{saved.total / 1e6:.1f} MB in all, {saved.seconds:.2f} s",
        )
        return saved


def restores_next(callback: BaseCallback | None) -> bool:
    """Tell whether a checkpoint will be restored at this rollout start, by a callback or inside."""
    savers = walk_callbacks([] if callback is None else [callback])
    return any(isinstance(saver, RunCheckpointCallback) and saver.restores for saver in savers)


def _verified(given: bool | str | Path | Checkpoint | None) -> Checkpoint | None:
    """Return a checkpoint, verified now if it was given by its path; None if none was given."""
    if isinstance(given, Checkpoint):
        return given
    return check(str(given)) if given else None
