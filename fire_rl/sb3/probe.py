"""Observations to measure on: a frozen probe and live ones, drawn without disturbing training.

``replay_buffer.sample()`` and ``rollout_buffer.get()`` draw from numpy's global generator, so
asking them for a batch changes the training that follows. Here the raw arrays are indexed with a
private generator. Observations are network inputs: what VecNormalize would show the policy. Where
a buffer keeps them: :mod:`fire_rl.sb3.stored`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from fire_rl.metrics.registry import METRICS
from fire_rl.sb3.networks import anatomy_of
from fire_rl.sb3.stored import (
    Arrays,
    UnreadableBuffer,
    filled_rows,
    rows_of_rollout,
    stored_actions,
    stored_observations,
)
from fire_rl.sb3.warn_once import warn_once

Observations = Tensor | dict[str, Tensor]

MIN_PROBE_SIZE = 1024
_KNOWN = ("stable_baselines3", "sb3_contrib", "fire_rl")  # whose buffers are no riddle
_T = TypeVar("_T")
_WITHOUT_BUFFER: WeakSet[BaseAlgorithm] = WeakSet()  # of which that has been said
logger = logging.getLogger("fire_rl")


@dataclass(frozen=True, eq=False)
class Probe:
    """A batch of network inputs.

    Attributes:
        observations: ``(N, *observation_shape)``, or a mapping of such.
        actions: ``(N, action_dim)`` as critics take them, in [-1, 1]; None on-policy.
    """

    observations: Observations
    actions: Tensor | None

    def __len__(self) -> int:
        first = self.observations
        return len(next(iter(first.values())) if isinstance(first, dict) else first)

    def split(self, elements: int) -> list[Probe]:
        """Return consecutive parts of at most so many numbers, but at least one observation."""
        boxes = self.observations
        tensors = list(boxes.values()) if isinstance(boxes, dict) else [boxes]
        rows = max(1, elements * len(self) // sum(tensor.numel() for tensor in tensors))
        parts = []
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            seen = (
                {k: t[part] for k, t in boxes.items()} if isinstance(boxes, dict) else boxes[part]
            )
            parts.append(Probe(seen, None if self.actions is None else self.actions[part]))
        return parts


class ProbeSource:
    """Where a callback gets its observations from.

    Call :meth:`after_rollout` in ``_on_rollout_end``. Off-policy, :meth:`live` draws from the
    replay buffer: what the networks train on now. On-policy it returns the latest ``size``
    observations of the rollouts seen, or of the one that the model still holds. :attr:`frozen`
    is the first draw of full size, kept for good.

    Args:
        size: Number of observations.
        seed: Of the private generator.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.frozen: Probe | None = None
        self._generator = np.random.default_rng(seed)
        self._window: list[Arrays] = []

    def after_rollout(self, model: BaseAlgorithm) -> None:
        """Copy what a finished rollout has seen, and freeze the probe once there is enough."""

        def enough() -> bool:
            if _buffer(model, "replay_buffer") is None:
                self._remember(model, at_end=True)
            return self.frozen is None and self._available(model) >= self.size

        if _read(model, enough):
            self.frozen = self.live(model)

    def live(self, model: BaseAlgorithm) -> Probe | None:
        """Return up to ``size`` current observations, or None if there are none yet.

        None also where the buffer cannot be read, which a warning says once.
        """
        if _buffer(model, "replay_buffer") is not None:
            return _read(model, lambda: self._from_replay(model))
        if not self._window and _buffer(model, "rollout_buffer") is not None:
            # Outside of a callback: the last rollout, if it is still there.
            _read(model, lambda: self._remember(model, at_end=False))
        if not self._window:
            return None
        arrays = {
            key: np.concatenate([part[key] for part in self._window])[-self.size :]
            for key in self._window[0]
        }
        return Probe(_tensors(arrays, model.device), None)

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        frozen = self.frozen
        return {
            "frozen": None if frozen is None else (frozen.observations, frozen.actions),
            "generator": self._generator.bit_generator.state,
            "window": self._window,
        }

    def set_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from :meth:`get_state`, with the frozen probe on a device."""
        self.frozen = None
        if state["frozen"] is not None:
            seen, actions = state["frozen"]
            observations = (
                {key: tensor.to(device) for key, tensor in seen.items()}
                if isinstance(seen, dict)
                else seen.to(device)
            )
            self.frozen = Probe(observations, None if actions is None else actions.to(device))
        self._generator.bit_generator.state = state["generator"]
        self._window = list(state["window"])

    def _available(self, model: BaseAlgorithm) -> int:
        if _buffer(model, "replay_buffer") is None:
            return sum(_length(part) for part in self._window)
        buffer = _buffer(model, "replay_buffer")
        stored = stored_observations(model, buffer)
        return filled_rows(buffer, len(stored)) * (stored.envs or 1)

    def _remember(self, model: BaseAlgorithm, at_end: bool) -> None:
        """Keep observations of a whole rollout; ``at_end`` of one there must be some."""
        buffer = _buffer(model, "rollout_buffer")
        if buffer is None:
            _log_that_there_is_no_buffer(model)
            return
        stored = stored_observations(model, buffer)
        rows = rows_of_rollout(buffer, len(stored)) * (stored.envs or 1)
        if rows == 0:
            if at_end:
                raise UnreadableBuffer("it says that it is empty when a rollout has ended (`full`)")
            return
        chosen = np.arange(rows)
        if rows > self.size:
            chosen = self._generator.choice(rows, self.size, replace=False)
        self._window.append(stored.take(chosen))
        while sum(map(_length, self._window[1:])) >= self.size:
            del self._window[0]

    def _from_replay(self, model: BaseAlgorithm) -> Probe | None:
        buffer = _buffer(model, "replay_buffer")
        stored = stored_observations(model, buffer)
        rows = np.arange(filled_rows(buffer, len(stored)))
        if getattr(buffer, "optimize_memory_usage", False) and buffer.full:
            rows = np.delete(rows, buffer.pos)  # its observation belongs to another transition
        envs = stored.envs or 1
        total = len(rows) * envs
        if total == 0:
            return None
        try:
            actions = stored_actions(buffer, stored)
        except UnreadableBuffer:
            if anatomy_of(model).needs_actions:
                raise
            actions = None
        chosen = self._generator.choice(total, min(self.size, total), replace=False)
        places = rows[chosen // envs] * envs + chosen % envs
        arrays = stored.take(places)
        normalize = model.get_vec_normalize_env()
        if normalize is not None:  # replay buffers hold raw observations
            seen: Any = normalize.normalize_obs(arrays.get("", arrays))
            arrays = dict(seen) if isinstance(seen, dict) else {"": seen}
        taken = None if actions is None else actions.take(places)[""]
        return Probe(
            _tensors(arrays, model.device),
            None if taken is None else torch.as_tensor(taken, device=model.device),
        )


def _buffer(model: BaseAlgorithm, name: str) -> Any:
    return getattr(model, name, None)


def _read(model: BaseAlgorithm, read: Callable[[], _T]) -> _T | None:
    """Return what reading a buffer gives; name what is missing, once, where it cannot be read."""
    held = (_buffer(model, name) for name in ("replay_buffer", "rollout_buffer"))
    buffer = next((buffer for buffer in held if buffer is not None), model)
    try:
        return read()
    except UnreadableBuffer as error:
        why = str(error)
    except Exception as error:
        if type(buffer).__module__.partition(".")[0] in _KNOWN:
            raise
        why = f"reading it fails ({type(error).__name__}: {error})"
    warn_once(
        model,
        f"No observations to measure on: {type(buffer).__name__} is not built like SB3's buffers, "
        f"{why}. {', '.join(_on_observations())} and what an event does to the policy are left "
        "out; what reads weights is measured, and interventions act. Give the buffer "
        "`observations` of shape (rows, n_envs, *observation) and `size()`.",
    )
    return None


def _log_that_there_is_no_buffer(model: BaseAlgorithm) -> None:
    """Logged, not warned of: an algorithm that was registered may well have none."""
    if model not in _WITHOUT_BUFFER:
        _WITHOUT_BUFFER.add(model)
        logger.warning(
            "%s has neither `replay_buffer` nor `rollout_buffer`: %s are not measured.",
            type(model).__name__,
            ", ".join(_on_observations()),
        )


def _on_observations() -> list[str]:
    return [metric.log_key for metric in METRICS.values() if metric.reads != "weights"]


def _tensors(arrays: Arrays, device: torch.device) -> Observations:
    tensors = {key: torch.as_tensor(array, device=device) for key, array in arrays.items()}
    return tensors.get("", tensors)


def _length(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))
