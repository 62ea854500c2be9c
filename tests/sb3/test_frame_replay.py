"""FrameReplayBuffer: the transitions of SB3's own buffers, one by one, each frame once."""

import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

import envs
from fire_rl.sb3.frame_replay import FrameReplayBuffer

SHAPE = (3, 4)


class Player:
    """Plays frames of random bytes, stacked as a wrapper would, into several buffers at once."""

    def __init__(self, n_envs, n_stack, channels, padding, end, generator):
        self.n_envs, self.n_stack, self.padding, self.end = n_envs, n_stack, padding, end
        self.generator, self.frame = generator, (channels, *SHAPE)
        self.stacks = np.stack([self.first() for _ in range(n_envs)])

    def new_frame(self):
        return self.generator.integers(0, 256, self.frame, np.uint8)

    def first(self):
        frame = self.new_frame()
        older = {
            "black": [np.zeros_like(frame)] * (self.n_stack - 1),
            "repeat": [frame] * (self.n_stack - 1),
            "midway": [self.new_frame() for _ in range(self.n_stack - 1)],
        }[self.padding]
        return np.concatenate([*older, frame])

    def step(self, buffers):
        pairs = [np.concatenate([s[self.frame[0] :], self.new_frame()]) for s in self.stacks]
        following = np.stack(pairs)
        dones = self.generator.random(self.n_envs) < self.end
        timeouts = dones & (self.generator.random(self.n_envs) < 0.5)
        actions = self.generator.integers(0, 5, self.n_envs)
        rewards = self.generator.normal(size=self.n_envs).astype(np.float32)
        infos = [{"TimeLimit.truncated": bool(timeout)} for timeout in timeouts]
        for buffer in buffers:
            buffer.add(self.stacks.copy(), following.copy(), actions, rewards, dones, infos)
        self.stacks = following
        for env in np.flatnonzero(dones):
            self.stacks[env] = self.first()

    def restart(self):  # learn() called once more: every environment is reset, no episode ended
        self.stacks = np.stack([self.first() for _ in range(self.n_envs)])


def make_buffers(player, rows, n_steps=1, timeouts=True):
    channels = player.stacks.shape[1]
    arguments = (
        rows * player.n_envs,
        spaces.Box(0, 255, (channels, *SHAPE), np.uint8),
        spaces.Discrete(5),
        "cpu",
        player.n_envs,
    )
    options = {"handle_timeout_termination": timeouts}
    steps = {"n_steps": n_steps, "gamma": 0.9}
    ours = FrameReplayBuffer(*arguments, **options, **steps, frame_channels=player.frame[0])
    if n_steps == 1:
        return ours, ReplayBuffer(*arguments, **options)
    return ours, NStepReplayBuffer(*arguments, **options, **steps)


def assert_same(ours, theirs):
    assert (ours.size(), ours.pos, ours.full) == (theirs.size(), theirs.pos, theirs.full)
    rows, columns = (grid.ravel() for grid in np.mgrid[: theirs.size(), : theirs.n_envs])
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        found = getattr(ours, name)[rows, columns]
        assert np.array_equal(found, getattr(theirs, name)[rows, columns]), name
    samples = []
    for buffer in (ours, theirs):
        np.random.seed(3)  # noqa: NPY002  (SB3's buffers draw from the global generator)
        samples.append(buffer.sample(40))
    for name, one, two in zip(samples[0]._fields, *samples, strict=True):
        same = one is two is None or (torch.equal(one, two) and one.dtype == two.dtype)
        assert same, name


@settings(max_examples=60, deadline=None)
@given(
    n_envs=st.integers(1, 3),
    n_stack=st.integers(2, 5),
    channels=st.sampled_from([1, 3]),
    padding=st.sampled_from(["black", "repeat", "midway"]),
    end=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    rows=st.integers(1, 12),
    n_steps=st.sampled_from([1, 3]),
    timeouts=st.booleans(),
    length=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_transitions_are_those_of_sb3(
    n_envs, n_stack, channels, padding, end, rows, n_steps, timeouts, length, seed
):
    generator = np.random.default_rng(seed)
    player = Player(n_envs, n_stack, channels, padding, end, generator)
    ours, theirs = make_buffers(player, rows, n_steps, timeouts)
    for _ in range(length):
        player.step([ours, theirs])
        if generator.random() < 0.05:
            player.restart()
        assert_same(ours, theirs)
    # Nothing that no row needs any more is kept.
    assert len(ours.last_frames) <= rows * n_envs
    assert len(ours.first_stacks) <= (rows + n_stack - 1) * n_envs
    assert_same(pickle.loads(pickle.dumps(ours)), theirs)
    ours.reset()
    theirs.reset()
    player.step([ours, theirs])
    assert_same(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"n_steps": 3}])
def test_dqn_learns_the_same_weights_on_a_real_game(options):
    def learn(ours):
        env = envs.make_vec_env("ALE/Breakout-v5", n_envs=2, seed=0)
        buffer = {"replay_buffer_class": FrameReplayBuffer, "replay_buffer_kwargs": options}
        model = DQN(
            "CnnPolicy", env, buffer_size=150, learning_starts=100, train_freq=4, seed=0,
            policy_kwargs={"net_arch": [16]}, device="cpu", **(buffer if ours else options),
        )  # fmt: skip
        model.learn(420)
        env.close()
        assert isinstance(model.replay_buffer, FrameReplayBuffer) == ours
        return model

    one, two = learn(True), learn(False)
    assert_same(one.replay_buffer, two.replay_buffer)
    for name, tensor in one.policy.state_dict().items():
        assert torch.equal(tensor, two.policy.state_dict()[name]), name
    # A quarter of the observations, and no next observations.
    assert one.replay_buffer.frames.nbytes < two.replay_buffer.observations.nbytes / 3.7


def test_what_it_cannot_keep_is_refused_by_name():
    action = spaces.Discrete(2)
    for space, options, message in (
        (spaces.Box(-1, 1, (4,), np.float32), {}, "stacks of uint8 frames"),
        (spaces.Box(0, 1, (4, 8, 8), np.float32), {}, "stacks of uint8 frames"),
        (spaces.Dict({"a": spaces.Box(0, 255, (4, 8, 8), np.uint8)}), {}, "stacks of uint8"),
        (spaces.Box(0, 255, (1, 8, 8), np.uint8), {}, "stack frames"),
        (spaces.Box(0, 255, (4, 8, 8), np.uint8), {"frame_channels": 3}, "stack frames"),
        (spaces.Box(0, 255, (4, 8, 8), np.uint8), {"optimize_memory_usage": True}, "must be False"),
    ):
        with pytest.raises(ValueError, match=message):
            FrameReplayBuffer(10, space, action, **options)
    colour = FrameReplayBuffer(10, spaces.Box(0, 255, (3, 8, 8), np.uint8), action)
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"no stacks of consecutive frames.*`frame_channels`"):
        colour.add(*frames, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    assert colour.size() == 0
