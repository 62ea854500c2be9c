"""Recovery against hand-worked curves."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fire_rl.runs.recovery import recovery


def run(*levels):
    """Episodes of constant return, ``(from step, return)`` each until the next, one per 2 steps."""
    episodes = []
    for (begin, score), (end, _) in pairwise(levels):
        episodes += [(step, score) for step in range(begin + 2, end + 1, 2)]
    return episodes


# Before: 10. The event at 1000 throws it to 2, at 1250 it is back at 10, from 1600 on at 14.
DIPPED = run((0, 10.0), (1000, 2.0), (1250, 10.0), (1600, 14.0), (2000, 0.0))
FLAT = run((0, 10.0), (2000, 0.0))


def test_a_hand_worked_recovery():
    found = recovery(DIPPED, step=1000, end=2000)
    assert (found.before, found.dip, found.plateau) == (10.0, 8.0, 14.0)
    assert found.steps_to_regain == 300  # the bin (1250, 1300] is the first that is back
    assert found.area_lost == pytest.approx(8 * 250)
    assert found.episodes == 500
    assert math.isnan(found.gain)


def test_one_lucky_bin_is_no_recovery():
    """From the fifth bin on: 10, but for one bin of 101 right after the fall."""
    lucky = run((0, 100.0), (1000, 10.0), (1050, 101.0), (1100, 10.0), (2000, 0.0))
    found = recovery(lucky, 1000, 2000)
    assert math.isnan(found.steps_to_regain)
    assert found.area_lost == pytest.approx(90 * 950)
    late = recovery(run((0, 100.0), (1000, 10.0), (1900, 100.0), (2000, 0.0)), 1000, 2000)
    assert late.steps_to_regain == 950


def test_against_the_control():
    found = recovery(DIPPED, 1000, 2000, FLAT)
    assert found.plateau_gain == 4
    assert found.dip_below_control == 8
    assert found.steps_to_reach_control == found.steps_to_regain
    better = run((0, 10.0), (1000, 14.0), (2000, 0.0))
    assert recovery(DIPPED, 1000, 2000, better).steps_to_reach_control == 650
    assert recovery(better, 1000, 2000, DIPPED).steps_to_reach_control == 0
    assert found.gain == pytest.approx((-8 * 250 + 4 * 400) / 1000)
    assert recovery(DIPPED, 1000, 2000, DIPPED).gain == 0


def test_what_never_fell_and_what_never_came_back():
    assert recovery(FLAT, 1000, 2000).steps_to_regain == 0
    assert recovery(FLAT, 1000, 2000).area_lost == 0
    lost = recovery(run((0, 10.0), (1000, 2.0), (2000, 0.0)), 1000, 2000)
    assert math.isnan(lost.steps_to_regain)
    assert lost.area_lost == pytest.approx(8 * 1000)
    assert lost.plateau == 2


def test_noise_below_a_solved_level_is_no_loss():
    found = recovery(run((0, 500.0), (1000, 490.0), (2000, 0.0)), 1000, 2000)
    assert (found.steps_to_regain, found.dip) == (0, 10)
    assert found.area_lost == pytest.approx(10 * 1000)


def test_back_at_the_very_end():
    found = recovery(run((0, 10.0), (1000, 2.0), (1950, 10.0), (2000, 0.0)), 1000, 2000)
    assert found.steps_to_regain == 1000


def test_negative_returns_and_long_episodes():
    """Episodes of 200 steps leave bins empty; they are passed over."""
    episodes = [(step, -90.0 if step <= 1000 else -130.0) for step in range(200, 2001, 200)]
    found = recovery(episodes, 1000, 2000)
    assert (found.before, found.dip, found.plateau) == (-90, 40, -130)
    assert found.episodes == 5
    assert found.area_lost == pytest.approx(40 * 1000)


def test_no_episodes_are_no_numbers():
    found = recovery([], 10, 20)
    assert found.episodes == 0
    for name in ("before", "dip", "steps_to_regain", "area_lost", "plateau"):
        assert math.isnan(getattr(found, name)), name
    assert math.isnan(recovery([(1500, 5.0)], 1000, 2000).dip)
    with pytest.raises(ValueError, match="`end` must lie after the event at step 20, got 20"):
        recovery([], 20, 20)


@given(
    returns=st.lists(st.floats(-1e3, 1e3), min_size=20, max_size=60),
    shift=st.floats(-1e3, 1e3),
)
def test_shifting_every_return_shifts_the_levels_only(returns, shift):
    episodes = [(10 * k, score) for k, score in enumerate(returns, start=1)]
    moved = [(step, score + shift) for step, score in episodes]
    one, two = recovery(episodes, 100, 10 * len(returns)), recovery(moved, 100, 10 * len(returns))
    assert two.before == pytest.approx(one.before + shift, abs=1e-6)
    assert two.plateau == pytest.approx(one.plateau + shift, abs=1e-6)
    assert two.dip == pytest.approx(one.dip, abs=1e-6)
    assert one.dip >= 0
    assert one.area_lost >= 0
