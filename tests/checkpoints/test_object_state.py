"""Objects as plain data and back: every kind of attribute is exact, or named."""

import threading

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fire_rl.checkpoints.env_state import capture_env, restore_env
from fire_rl.checkpoints.safe_tree import read_tree, write_tree
from tests.helpers import random_envs
from tests.helpers.random_envs import PARTS, Puzzle, play


def through_files(state, folder):
    """What a checkpoint does: it is written and read as data only."""
    write_tree(folder, state)
    return read_tree(folder)


def restored(env, other, folder):
    """Put the state of one environment into another; return what is not restored."""
    return [p.text for p in restore_env(other, through_files(capture_env(env), folder))]


def assert_goes_on_alike(make, folder, steps=11, seed=0):
    env, other = make(), make()
    env.reset(seed=seed)
    play(env, steps, seed)
    other.reset(seed=seed + 1)
    play(other, 3, seed + 1)
    assert restored(env, other, folder) == []
    np.testing.assert_array_equal(play(env, 45, 7), play(other, 45, 7))
    assert random_envs.START == [0, 0]


@pytest.mark.parametrize("home", ["self", "dict"])
@pytest.mark.parametrize("part", PARTS)
def test_every_kind_of_attribute_is_exact(part, home, tmp_path):
    assert_goes_on_alike(lambda: Puzzle([part], [home]), tmp_path)


WRAPPERS = [
    lambda env: env,
    wrappers.NormalizeObservation,
    wrappers.NormalizeReward,
    lambda env: wrappers.FlattenObservation(wrappers.FrameStackObservation(env, 2)),
    lambda env: wrappers.DelayObservation(env, 2),
    wrappers.RecordEpisodeStatistics,
    lambda env: wrappers.TransformObservation(env, lambda x: x * 2, env.observation_space),
]


@st.composite
def puzzles(draw):
    parts = draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=5, unique=True))
    homes = draw(st.lists(st.sampled_from(["self", "box", "list", "dict"]), min_size=len(parts),
                          max_size=len(parts)))  # fmt: skip
    # One attribute of a name: of all that sit in the environment itself, only the first.
    homes = ["box" if h == "self" and "self" in homes[:k] else h for k, h in enumerate(homes)]
    length, continuous = draw(st.integers(3, 30)), draw(st.booleans())
    wrapper = draw(st.sampled_from(WRAPPERS))
    return lambda: wrapper(Puzzle(parts, homes, length, continuous))


class TestRandomEnvironments:
    """Straight on against resumed, for environments that nobody wrote by hand."""

    def check(self, folder, make, steps, seed):
        assert_goes_on_alike(make, folder, steps, seed)

    common = settings(
        deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )

    @given(puzzles(), st.integers(0, 60), st.integers(0, 1000))
    @settings(common, max_examples=20)
    def test_go_on_exactly(self, tmp_path, make, steps, seed):
        self.check(tmp_path, make, steps, seed)

    @pytest.mark.full
    @given(puzzles(), st.integers(0, 60), st.integers(0, 1000))
    @settings(common, max_examples=600)
    def test_go_on_exactly_many(self, tmp_path, make, steps, seed):
        self.check(tmp_path, make, steps, seed)
