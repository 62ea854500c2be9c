"""Observations to measure on: a frozen probe and live ones, drawn without disturbing training.

``replay_buffer.sample()`` and ``rollout_buffer.get()`` draw from numpy's global generator, so
asking them for a batch changes the training that follows. Here the raw arrays are indexed with a
private generator. Observations are network inputs: what VecNormalize would show the policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

Observations = Tensor | dict[str, Tensor]
_Arrays = dict[str, NDArray[Any]]  # a plain observation has the one key ""

MIN_PROBE_SIZE = 1024


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
        self._window: list[_Arrays] = []

    def after_rollout(self, model: BaseAlgorithm) -> None:
        """Copy what a finished rollout has seen, and freeze the probe once there is enough."""
        buffer = getattr(model, "rollout_buffer", None)
        if isinstance(buffer, RolloutBuffer) and buffer.full:
            self._remember(buffer)
        if self.frozen is None and self._available(model) >= self.size:
            self.frozen = self.live(model)

    def live(self, model: BaseAlgorithm) -> Probe | None:
        """Return up to ``size`` current observations, or None if there are none yet."""
        buffer = getattr(model, "replay_buffer", None)
        if buffer is not None:
            return self._from_replay(model, buffer)
        if not self._window:  # outside of a callback: the last rollout, if it is still there
            buffer = getattr(model, "rollout_buffer", None)
            if not isinstance(buffer, RolloutBuffer) or not buffer.full:
                return None
            self._remember(buffer)
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
        buffer = getattr(model, "replay_buffer", None)
        if buffer is not None:
            return int(buffer.size()) * int(buffer.n_envs)
        return sum(_length(part) for part in self._window)

    def _remember(self, buffer: RolloutBuffer) -> None:
        rows = buffer.buffer_size * buffer.n_envs
        chosen = np.arange(rows)
        if rows > self.size:
            chosen = self._generator.choice(rows, self.size, replace=False)
        # Training flattens the buffer: (steps, envs, ...) becomes (steps · envs, ...).
        index = (chosen,) if buffer.generator_ready else np.divmod(chosen, buffer.n_envs)
        arrays = {key: array[index] for key, array in _arrays(buffer.observations).items()}
        self._window.append(arrays)  # fancy indexing has copied
        while sum(map(_length, self._window[1:])) >= self.size:
            del self._window[0]

    def _from_replay(self, model: BaseAlgorithm, buffer: Any) -> Probe | None:
        rows = np.arange(buffer.size())
        if buffer.full and getattr(buffer, "optimize_memory_usage", False):
            rows = np.delete(rows, buffer.pos)  # its observation belongs to another transition
        total = len(rows) * buffer.n_envs
        if total == 0:
            return None
        chosen = self._generator.choice(total, min(self.size, total), replace=False)
        steps, envs = rows[chosen // buffer.n_envs], chosen % buffer.n_envs
        arrays = {key: array[steps, envs] for key, array in _arrays(buffer.observations).items()}
        normalize = model.get_vec_normalize_env()
        if normalize is not None:  # replay buffers hold raw observations
            arrays = _arrays(normalize.normalize_obs(arrays.get("", arrays)))
        actions = torch.as_tensor(buffer.actions[steps, envs], device=model.device)
        return Probe(_tensors(arrays, model.device), actions)


def _arrays(observations: Any) -> _Arrays:
    return dict(observations) if isinstance(observations, dict) else {"": observations}


def _tensors(arrays: _Arrays, device: torch.device) -> Observations:
    tensors = {key: torch.as_tensor(array, device=device) for key, array in arrays.items()}
    return tensors.get("", tensors)


def _length(arrays: _Arrays) -> int:
    return len(next(iter(arrays.values())))
