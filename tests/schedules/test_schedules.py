"""Schedules: crossings instead of equality, planned steps, plain values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fire_rl import At, AtFractions, Every, Never, make_schedule
from fire_rl.schedules.planned import steps_after, steps_as_text


@given(
    period=st.integers(1, 50),
    stride=st.integers(1, 70),
    stop=st.floats(0.05, 1.0),
    horizon=st.integers(1, 400),
)
def test_every_acts_once_for_each_interval_that_holds_a_multiple(period, stride, stop, horizon):
    schedule = Every(period, stop)
    events, previous = [], 0
    while previous < horizon:
        now = previous + stride
        step = schedule.crossed(previous, now, horizon)
        inside = [s for s in schedule.planned(horizon) if previous < s <= now]
        assert step == (inside[-1] if inside else None)
        events += inside
        previous = now
    assert events == list(schedule.planned(horizon))
    assert all(step % period == 0 and step <= stop * horizon + 1e-6 for step in events)


def test_half_open_interval():
    assert Every(10).crossed(0, 9, None) is None
    assert Every(10).crossed(9, 10, None) == 10
    assert Every(10).crossed(10, 19, None) is None
    assert Every(10).crossed(10, 45, None) == 40
    assert At([5, 7]).crossed(4, 5, None) == 5
    assert At([5, 7]).crossed(5, 6, None) is None
    assert At([5, 7]).crossed(0, 100, 10) == 7
    assert AtFractions([0.5]).crossed(40, 50, 100) == 50
    assert AtFractions(0.5).crossed(50, 60, 100) is None
    assert Never().crossed(0, 100, 100) is None


def test_planned():
    assert list(Every(200, 0.8).planned(1000)) == [200, 400, 600, 800]
    assert At([5, 70]).planned(50) == (5,)
    assert AtFractions([0.25, 0.5]).planned(1000) == (250, 500)
    assert Never().planned(1000) == ()


def test_plans_of_any_length_are_ranges():
    """A billion events are neither listed nor walked through."""
    schedule = Every(1, 0.8)
    planned = schedule.planned(10**9)
    assert (type(planned), len(planned)) == (range, 8 * 10**8)
    assert steps_after(planned, 8 * 10**8 - 2) == range(8 * 10**8 - 1, 8 * 10**8 + 1)
    assert schedule.dropped(10**9) == range(8 * 10**8 + 1, 10**9)
    assert Every(1000).dropped(10**9) == range(0)
    assert schedule.crossed(10**8, 10**9, 10**9) == 8 * 10**8
    assert steps_as_text(planned) == "1, 2, 3, … 800,000,000 (800,000,000 events)"
    assert steps_as_text((5, 6000)) == "5, 6,000"


@given(
    steps=st.lists(st.integers(1, 60), min_size=1, unique=True).map(sorted),
    previous=st.integers(0, 70),
    width=st.integers(0, 30),
)
def test_explicit_steps_cross_as_their_definition_says(steps, previous, width):
    inside = [step for step in steps if previous < step <= previous + width]
    assert At(steps).crossed(previous, previous + width, None) == (inside[-1] if inside else None)
    assert At(steps).planned(previous) == tuple(step for step in steps if step <= previous)
    assert steps_after(tuple(steps), previous) == tuple(step for step in steps if step > previous)


def test_plain_values():
    assert make_schedule({"every": 1e5}) == Every(100_000, 0.8)
    assert make_schedule({"every": 10, "stop": 1}) == Every(10, 1.0)
    assert make_schedule({"every": 10, "at": None, "stop": None}) == Every(10, 0.8)
    assert make_schedule({"at": 500}) == At([500])
    assert make_schedule({"fractions": [0.5]}) == AtFractions([0.5])
    assert make_schedule(None) == Never()
    assert make_schedule(Every(3)) == Every(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Every(0), "`every` must be a whole number of at least 1, got 0"),
        (lambda: Every(-5), "got -5"),
        (lambda: Every(2.5), "got 2.5"),
        (lambda: Every(10, 1.2), "`stop` must be a number above 0 and at most 1, got 1.2"),
        (lambda: At([30, 10]), r"`at` must be ascending steps without repeats, got \[30, 10\]"),
        (lambda: At([-1]), "`at` must be a whole number of at least 1, got -1"),
        (lambda: At([]), "ascending"),
        (lambda: AtFractions([0.5, 0.5]), "`fractions` must be ascending"),
        (lambda: AtFractions([1.0]), r"in \(0, 1\)"),
        (lambda: AtFractions([1.5]), "at most 1, got 1.5"),
        (lambda: make_schedule({}), "exactly one of every, at and fractions, got none"),
        (lambda: make_schedule({"every": 3, "at": 4}), "got every, at"),
        (lambda: make_schedule({"evry": 3}), "unknown key 'evry'.* Did you mean 'every'"),
        (lambda: make_schedule({"at": 3, "stop": 0.5}), "`stop` limits `every` only"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_type_is_named():
    with pytest.raises(TypeError, match="`schedule` must be a mapping such as"):
        make_schedule(200_000)
