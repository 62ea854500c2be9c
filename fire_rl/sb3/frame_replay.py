"""A replay buffer for stacked images that keeps each frame once.

Consecutive observations share all frames but one, so SB3's buffer holds each Atari frame eight
times: 56 kB a transition. Here a transition is 7.1 kB, and what is sampled is the same to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, NStepReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

Array = NDArray[Any]


class FrameReplayBuffer(NStepReplayBuffer):
    """Replay buffer for stacks of uint8 frames, ``(n_stack * frame_channels, height, width)``.

    Pass it as ``replay_buffer_class`` where observations are stacked by SB3's ``VecFrameStack`` or
    by gymnasium's ``FrameStackObservation``. It draws the same random numbers as SB3's
    ``ReplayBuffer`` and returns the same transitions: across episode ends, time limits, resets,
    several environments and wrap-around; with ``n_steps`` above 1 those of ``NStepReplayBuffer``.

    Row ``t`` (counted from the first one on) keeps the newest frame of its observation. Older
    frames come from the rows before; the newest frame of the next observation is in row ``t + 1``.
    Two tables hold the exceptions: the last frame of a row that no row continues, and what an
    episode's first stack shows before its newest frame (unless that is black, as in
    ``VecFrameStack``).

    Args:
        buffer_size: Transitions over all environments.
        observation_space: Box of uint8, channels first, as SB3 shows it to the buffer.
        action_space: As in SB3.
        device: As in SB3.
        n_envs: Number of environments.
        optimize_memory_usage: Must be False: SB3's own way of saving memory.
        handle_timeout_termination: As in SB3.
        n_steps: Steps of n-step returns. SB3's algorithms pass their own ``n_steps`` to their own
            buffers only: here it is ``replay_buffer_kwargs={"n_steps": 3, "gamma": 0.99}``.
        gamma: Discount of n-step returns.
        frame_channels: Channels of one frame: 1 for grey, 3 for colour.

    Raises:
        ValueError: If the observations are no stacks of frames, here or when they come.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_steps: int = 1,
        gamma: float = 0.99,
        frame_channels: int = 1,
    ) -> None:
        _check_space(observation_space, frame_channels)
        if optimize_memory_usage:
            raise ValueError(
                "`optimize_memory_usage` must be False: FrameReplayBuffer keeps each frame once "
                "already, and next observations at episode ends too."
            )
        # Not ReplayBuffer's own constructor: it allocates what we are here to save.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps, self.gamma, self.frame_channels = n_steps, gamma, frame_channels
        channels, *self._image = self.obs_shape
        self.n_stack = channels // frame_channels
        rows, row = self.buffer_size, (self.buffer_size, n_envs)
        dtype = self._maybe_cast_dtype(action_space.dtype)
        self.actions = np.zeros((*row, self.action_dim), dtype)
        self.rewards, self.dones, self.timeouts = (np.zeros(row, np.float32) for _ in range(3))
        # The oldest row needs the frames before it, the newest one the frame after it.
        self.frames = np.zeros(
            (rows + self.n_stack, n_envs, frame_channels, *self._image), np.uint8
        )
        self.ages = np.zeros(row, np.uint8)  # rows of the same episode before this one, capped
        self.is_last = np.zeros(row, bool)  # whether `last_frames` has the next frame of a row
        self.last_frames: dict[tuple[int, int], Array] = {}  # (row, environment) -> frame
        self.first_stacks: dict[tuple[int, int], Array] = {}  # -> the older frames of the stack
        self.num_rows = 0
        self.newest_observations = np.zeros((n_envs, *self.obs_shape), np.uint8)

    @property
    def observations(self) -> _Stacks:  # type: ignore[override]
        """Observations by ``[rows, environments]``, as SB3's code reads them."""
        return _Stacks(self, 0)

    @property
    def next_observations(self) -> _Stacks:  # type: ignore[override]
        """Next observations by ``[rows, environments]``."""
        return _Stacks(self, 1)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.num_rows = 0
        self.last_frames.clear()
        self.first_stacks.clear()

    def add(
        self,
        obs: Array,
        next_obs: Array,
        action: Array,
        reward: Array,
        done: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of every environment; shapes as in SB3."""
        channels = self.frame_channels
        if not np.array_equal(next_obs[:, :-channels], obs[:, channels:]):
            raise ValueError(
                "FrameReplayBuffer: a next observation must be its observation moved on by one "
                f"frame of {channels} channel(s); these are no stacks of consecutive frames. Check "
                "`frame_channels`, or use stable_baselines3's ReplayBuffer."
            )
        row, pos = self.num_rows, self.pos
        for env in range(self.n_envs):
            if row > 0 and np.array_equal(obs[env], self.newest_observations[env]):
                age = self.ages[pos - 1, env] + 1
            else:
                age = 0
                self._begin_episode(row, env, obs[env, :-channels])
            self.ages[pos, env] = min(age, self.n_stack - 1)
        self._forget(row - self.buffer_size)
        self.is_last[pos] = False
        self.frames[row % len(self.frames)] = obs[:, -channels:]
        self.frames[(row + 1) % len(self.frames)] = next_obs[:, -channels:]
        self.newest_observations[:] = next_obs
        self.actions[pos] = np.reshape(action, (self.n_envs, self.action_dim))
        self.rewards[pos], self.dones[pos] = reward, done
        if self.handle_timeout_termination:
            self.timeouts[pos] = [info.get("TimeLimit.truncated", False) for info in infos]
        self.num_rows += 1
        self.pos = (pos + 1) % self.buffer_size
        self.full = self.full or self.pos == 0

    def to_torch(self, array: Array, copy: bool = True) -> torch.Tensor:
        """Return a tensor of what was sampled, which is a copy already."""
        return super().to_torch(array, copy=False)

    def stacks(self, positions: Array, envs: Array, ahead: int) -> Array:
        """Put observations together.

        Args:
            positions: Where in the buffer, ``(N,)``.
            envs: Of which environments, ``(N,)``.
            ahead: 0 for the observations, 1 for the next ones.

        Returns:
            ``(N, *observation_shape)``.
        """
        rows = self.num_rows - 1 - (self.pos - 1 - positions) % self.buffer_size
        wanted = rows[:, None] + np.arange(ahead + 1 - self.n_stack, ahead + 1)
        places = wanted % len(self.frames) * self.n_envs + envs[:, None]
        # One axis: numpy then copies whole frames, twice as fast as with two index arrays.
        found = self.frames.reshape(-1, *self.frames.shape[2:]).take(places, axis=0)
        ages = self.ages[positions, envs].astype(int)
        missing = self.n_stack - 1 - np.minimum(ages + ahead, self.n_stack - 1)
        for i in np.flatnonzero(missing):
            first = self.first_stacks.get((int(rows[i] - ages[i]), int(envs[i])))
            found[i, : missing[i]] = 0 if first is None else first[-missing[i] :]
        if ahead:
            for i in np.flatnonzero(self.is_last[positions, envs]):
                found[i, -1] = self.last_frames[int(rows[i]), int(envs[i])]
        return found.reshape(len(rows), *self.obs_shape)

    def _begin_episode(self, row: int, env: int, older: Array) -> None:
        """Keep what would be lost where a row does not continue the one before."""
        if row > 0:
            pending = self.frames[row % len(self.frames), env]
            self.last_frames[row - 1, env] = pending.copy()
            self.is_last[(row - 1) % self.buffer_size, env] = True
        if older.any():
            shape = (self.n_stack - 1, self.frame_channels, *self._image)
            self.first_stacks[row, env] = older.reshape(shape).copy()

    def _forget(self, row: int) -> None:
        """Drop what only an overwritten row needed."""
        for env in range(self.n_envs):
            self.last_frames.pop((row, env), None)
            # An episode's first rows need its first stack, up to row + n_stack - 2.
            self.first_stacks.pop((row - self.n_stack + 2, env), None)

    def _get_samples(
        self, batch_inds: Array, env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        if self.n_steps == 1:
            return super(NStepReplayBuffer, self)._get_samples(batch_inds, env)
        return super()._get_samples(batch_inds, env)


class _Stacks:
    """What SB3's sampling code takes for an array of observations."""

    def __init__(self, buffer: FrameReplayBuffer, ahead: int) -> None:
        self.buffer, self.ahead = buffer, ahead

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows that there is room for, environments, and the shape of an observation."""
        return (self.buffer.buffer_size, self.buffer.n_envs, *self.buffer.obs_shape)

    def __len__(self) -> int:
        return self.buffer.buffer_size

    def __getitem__(self, key: tuple[Any, ...]) -> Array:
        positions, envs = np.broadcast_arrays(*key[:2])
        return self.buffer.stacks(positions, envs, self.ahead)


def _check_space(space: spaces.Space[Any], frame_channels: int) -> None:
    is_image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
    if not is_image:
        raise ValueError(
            "FrameReplayBuffer keeps stacks of uint8 frames, (channels, height, width); these "
            f"observations are {space}. Use stable_baselines3's ReplayBuffer."
        )
    channels = space.shape[0] if space.shape is not None else 0
    if channels % frame_channels or channels == frame_channels:
        raise ValueError(
            f"FrameReplayBuffer needs at least two frames of `frame_channels` {frame_channels} "
            f"channel(s) in an observation, got {channels} channel(s): stack frames "
            "(VecFrameStack), or use stable_baselines3's ReplayBuffer."
        )
