"""Thresholds: when a series of measurements leads to an event."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fire_rl import Threshold, make_schedule
from fire_rl.schedules.threshold import ThresholdState

START = ThresholdState()
NAN = math.nan

PATIENT = {"metric": "dfi", "above": 5, "every": 10}


def events(threshold, values, horizon=None, every=10):
    """Steps at which a series of measurements, one every ten steps, leads to an event."""
    state, found = START, []
    for number, value in enumerate(values, 1):
        act, state = threshold.decide(state, number * every, value, horizon)
        found += [number * every] * act
    return found


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({}, [5, 6, 4, 7], [20, 40]),  # the line itself is not beyond it
        ({"above": None, "below": 5}, [5, 6, 4, 7], [30]),
        ({"patience": 2}, [6, 4, 6, 6, 6, 6, 6], [40, 60]),  # the count begins anew
        ({"patience": 3}, [6, 6, NAN, 6, 6, 6], [60]),
        ({}, [NAN, NAN], []),
        ({"cooldown": 20}, [6] * 7, [10, 30, 50, 70]),
        ({"cooldown": 25}, [6] * 7, [10, 40, 70]),
        ({"cooldown": 20, "patience": 2}, [6] * 8, [20, 50, 80]),  # it does not count either
        ({"stop": 0.5}, [6] * 10, [10, 20, 30, 40, 50]),
        ({}, [6] * 10, [10, 20, 30, 40, 50, 60, 70, 80]),
        ({"stop": 1.0}, [6] * 10, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        ({"stop": 0.5, "patience": 2}, [4] * 4 + [6] * 6, []),
    ],
)
def test_decide(options, values, expected):
    assert events(Threshold(**{**PATIENT, **options}), values, horizon=100) == expected


def test_decide_changes_nothing_and_an_unknown_horizon_has_no_closing_part():
    threshold, state = Threshold(**PATIENT), ThresholdState(3, 50)
    assert threshold.decide(state, 990, 6, None) == (True, ThresholdState(0, 990))
    assert threshold.decide(state, 990, 6, 1000) == (False, ThresholdState(0, 50))
    assert state == ThresholdState(3, 50)


def test_a_run_that_counts_from_0_again_has_no_cooldown_of_the_earlier_one():
    threshold = Threshold(**PATIENT, cooldown=1000)
    assert threshold.decide(ThresholdState(0, 500), 20, 6, None)[0]


@given(
    values=st.lists(st.sampled_from([4.0, 6.0, NAN]), max_size=60),
    patience=st.integers(1, 4),
    cooldown=st.integers(0, 50),
    stop=st.floats(0.05, 1.0),
)
def test_every_event_has_its_reasons(values, patience, cooldown, stop):
    threshold = Threshold("dfi", above=5, patience=patience, cooldown=cooldown, stop=stop)
    horizon = 10 * len(values)
    found = events(threshold, values, horizon)
    for step in found:
        assert step <= stop * horizon + 1e-6
        assert all(value == 6 for value in values[step // 10 - patience : step // 10])
    gaps = [later - step for step, later in pairwise(found)]
    assert all(gap >= max(cooldown, 10 * patience) for gap in gaps)


def test_when_to_look():
    threshold = Threshold("dfi", above=5, every=10, stop=0.5)
    assert list(threshold.planned(100)) == []
    assert threshold.crossed(9, 10, 100) == 10
    assert threshold.crossed(10, 19, 100) is None
    assert threshold.crossed(10, 45, None) == 40
    assert threshold.crossed(40, 70, 100) == 50
    assert threshold.crossed(50, 70, 100) is None


def test_the_worst_network_decides():
    values = {"actor": 3.0, "critic": NAN, "shared": 7.0}
    assert Threshold("dfi", above=1).worst(values) == ("shared", 7.0)
    assert Threshold("dfi", below=1).worst(values) == ("actor", 3.0)
    assert Threshold("dfi", below=1).worst({"critic": NAN}) is None


def test_plain_values_and_both_names_of_a_metric():
    spec = {"metric": "dormant_ratio", "above": 0.3, "every": 1e4, "patience": 2,
            "cooldown": 50_000, "network": "critic", "stop": 0.8}  # fmt: skip
    made = make_schedule(spec)
    assert made == Threshold("dormant_ratio", 0.3, None, 10_000, 2, 50_000, "critic", 0.8)
    assert made.describe() == (
        "when critic dormant_ratio > 0.3 2 times in a row, measured every 10,000 steps"
    )
    logged = make_schedule({"metric": "zero_activation", "above": 0.1, "below": None})
    assert logged == Threshold("zero_activation_ratio", above=0.1)
    assert logged.log_name == "zero_activation"
    assert make_schedule({"metric": None, "every": 3}) == make_schedule({"every": 3})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Threshold("dorment", above=0.1), "`metric` must be one .* Did you mean 'dorm"),
        (lambda: Threshold(3, above=0.1), "`metric` must be one of 'dormant_ratio', .*got 3"),
        (lambda: Threshold("dfi"), "exactly one of `above` and `below`, got none of them"),
        (lambda: Threshold("dfi", 1, 2), "exactly one of `above` and `below`, got both"),
        (lambda: Threshold("dfi", "1x"), "`above` must be a number .* for dfi, got '1x'"),
        (lambda: Threshold("dfi", NAN), "got nan"),
        (lambda: Threshold("dfi", True), "got True"),
        (lambda: Threshold("srank", below=0), "`below` must be a number above 0 for srank, got 0"),
        (lambda: Threshold("dormant_ratio", 30), "at least 0 and below 1 for dormant_.*got 30"),
        (lambda: Threshold("dormant_ratio", below=2), "above 0 and at most 1 for .*got 2"),
        (lambda: Threshold("dfi", 1, every=0), "`every` must be a whole .* at least 1, got 0"),
        (lambda: Threshold("dfi", 1, patience=0), "`patience` must be .* at least 1, got 0"),
        (lambda: Threshold("dfi", 1, cooldown=-1), "`cooldown` must be .* at least 0, got -1"),
        (lambda: Threshold("dfi", 1, network="critc"), "`network` must.*Did you mean 'critic'"),
        (lambda: Threshold("dfi", 1, stop=1.5), "`stop` must be .* at most 1, got 1.5"),
        (lambda: make_schedule({"metric": "dfi", "abve": 1}), "unknown key 'abve'.*mean 'above'"),
        (lambda: make_schedule({"metric": "dfi", "at": 5}), "`at` does not go with `metric`"),
        (lambda: make_schedule({"above": 0.3, "every": 5}), "`above` needs a `metric` to watch"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
