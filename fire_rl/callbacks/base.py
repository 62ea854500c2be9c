"""What our callbacks share: a clock, a probe, and the check that rollout hooks reach them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EventCallback

from fire_rl.callbacks.event_clock import EventClock
from fire_rl.checkpoints.identity import options_of
from fire_rl.sb3.callback_tree import callback_paths
from fire_rl.sb3.continuation import goes_on
from fire_rl.sb3.measurement import probe_size
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.probe import Probe, ProbeSource
from fire_rl.utils.validation import check_int

logger = logging.getLogger("fire_rl")


class RolloutCallback(BaseCallback):
    """A callback with a schedule and observations to measure on.

    Args:
        clock: Its schedule, see :class:`~fire_rl.callbacks.event_clock.EventClock`.
        probe_size: Number of observations; None for ``max(1024, 2 D)``.
        seed: Of its own random numbers; None for the model's.
        verbose: As in SB3.
    """

    def __init__(
        self, clock: EventClock, probe_size: int | None, seed: int | None, verbose: int
    ) -> None:
        super().__init__(verbose)
        self.clock = clock
        self.probe_size = None if probe_size is None else check_int("probe_size", probe_size, 1)
        self.seed = None if seed is None else check_int("seed", seed, 0)
        self.source: ProbeSource | None = None
        self._model: Any = None
        self._training = False
        self._rollout_started = False

    def _init_callback(self) -> None:
        if not goes_on(self._model, self.model):
            self._start_clean()
        self._model = self.model

    def _start_clean(self) -> None:
        """Begin a new training: nothing of an old one remains."""
        size = self.probe_size or probe_size(ModelView(self.model).groups)
        seed = (self.model.seed or 0) if self.seed is None else self.seed
        self.source = ProbeSource(size, seed)
        self.clock.reset()

    def _on_training_start(self) -> None:
        self._training = self._rollout_started = False
        check_place(self)
        self.clock.start(self.model)
        self._training = True

    def _on_rollout_start(self) -> None:
        self._rollout_started = True
        self.clock.advance(self.model)  # gradient updates have been made since the last step

    def on_step(self) -> bool:
        """Do what is due after a step of all environments.

        Raises:
            RuntimeError: If no rollout start preceded: a callback around it or the algorithm does
                not forward them, and the message says which.
        """
        if not self._rollout_started:
            raise RuntimeError(_without_rollout_start(self, self._training))
        return super().on_step()

    def _on_step(self) -> bool:
        self.clock.advance(self.model)
        return True

    def _on_rollout_end(self) -> None:
        assert self.source is not None
        self.source.after_rollout(self.model)

    def on_training_end(self) -> None:
        """End a training; a second call (rl_zoo3 makes one on its first callback) does nothing."""
        if self._training:
            self._training = False
            super().on_training_end()

    def _on_training_end(self) -> None:
        self.clock.stop()

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        assert self.source is not None
        return {"clock": self.clock.get_state(), "source": self.source.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`, in training."""
        assert self.source is not None
        self.clock.set_state(state["clock"])
        self.source.set_state(state["source"], self.model.device)

    def get_options(self) -> dict[str, Any]:
        """Return the options that a run must be resumed with, as plain values."""
        return options_of(self)

    def _probe(self) -> Probe | None:
        """The frozen probe, or what there is before enough observations exist for it."""
        assert self.source is not None
        return self.source.frozen or self.source.live(self.model)


def say(callback: BaseCallback, message: str) -> None:
    """Print a line if the callback is verbose, as SB3's own callbacks do.

    A library adds no handlers to its user's logging, and without a handler these lines would be
    lost.
    """
    if callback.verbose >= 1:
        print(message, flush=True)  # the one place of the library that prints


def check_place(callback: BaseCallback) -> None:
    """Refuse outer callbacks that block rollout hooks or overwrite the model.

    Raises:
        RuntimeError: Naming the outer callback.
    """
    root = callback.locals.get("callback")
    for path in callback_paths(root) if root is not None else ():
        names = {base.__name__ for base in type(path[-1]).__mro__}
        if "ParallelTrainCallback" in names:
            raise RuntimeError(
                f"{type(callback).__name__} does not work beside rl_zoo3's ParallelTrainCallback: "
                "it trains a private copy and overwrites the model from it, which undoes any "
                "surgery. Remove one of the two."
            )
        if path[-1] is callback:
            for wrapper in path[:-1]:
                if isinstance(wrapper, EventCallback):
                    raise RuntimeError(misplaced(callback, type(wrapper).__name__))


def _without_rollout_start(callback: BaseCallback, reached: bool) -> str:
    """Say why no rollout start came before a step: of the algorithm, or of what is around.

    Args:
        callback: The callback.
        reached: Whether the start of the training has reached it.
    """
    root = callback.locals.get("callback")
    paths = callback_paths(root) if isinstance(root, BaseCallback) else [(callback,)]
    around = next((path[:-1] for path in paths if path[-1] is callback), None)
    if not reached or around is None or not all(isinstance(w, CallbackList) for w in around):
        return misplaced(callback, "a callback that forwards no rollout hooks")
    name = type(callback.model).__name__
    return (
        f"{name} calls no `on_rollout_start` of its callbacks, the only moment at which weights "
        f"may change: {type(callback).__name__} would do nothing. Call "
        f"`callback.on_rollout_start()` at the beginning of {name}'s `collect_rollouts`, and "
        "`callback.on_rollout_end()` at its end, as SB3's algorithms do; or call "
        "`fire_rl.apply_intervention(model, ...)` yourself between two calls of `learn()`."
    )


def misplaced(callback: BaseCallback, wrapper: str) -> str:
    """Say that a callback cannot work inside another."""
    return (
        f"{type(callback).__name__} is inside {wrapper}, which does not forward "
        "`on_rollout_start` and `on_rollout_end`: it would do nothing. Pass it to "
        "`learn(callback=[...])` itself, beside the other, and give it its own schedule, for "
        "example `every=200_000`."
    )
