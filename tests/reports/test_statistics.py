"""Statistics of runs against rliable's numbers, definitions worked by hand, and simulations."""

import doctest
import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fire_rl.reports import statistics
from fire_rl.reports.statistics import (
    bootstrap_band,
    bootstrap_interval,
    iqm,
    mean,
    normalise,
    optimality_gap,
    probability_of_improvement,
)

CASES = json.loads((Path(__file__).parents[1] / "helpers" / "data" / "rliable.json").read_text())[
    "cases"
]
STATISTICS = {"iqm": iqm, "optimality_gap": optimality_gap, "mean": mean}
scores = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12)


@pytest.mark.parametrize("case", CASES)
def test_rliables_point_estimates(case):
    x, y = np.array(CASES[case]["x"]), np.array(CASES[case]["y"])
    for name, statistic in STATISTICS.items():
        assert statistic(x) == pytest.approx(CASES[case][name], rel=1e-12), name
    expected = CASES[case]["probability_of_improvement"]
    assert probability_of_improvement(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_rliables_intervals(case):
    """Two Monte-Carlo estimates: 2.5 % and 97.5 % quantiles agree to 5 % of the width."""
    x, y = np.array(CASES[case]["x"]), np.array(CASES[case]["y"])
    pairs = [(name, bootstrap_interval(statistic, x)) for name, statistic in STATISTICS.items()]
    pairs.append((
        "probability_of_improvement", bootstrap_interval(probability_of_improvement, x, y)
    ))  # fmt: skip
    for name, found in pairs:
        expected = CASES[case][f"{name}_interval"]
        width = expected[1] - expected[0]
        assert width > 0
        assert found == pytest.approx(expected, abs=0.05 * width), name


def test_the_interquartile_mean_by_hand():
    assert iqm([5.0]) == 5
    assert iqm([1.0, 2.0, 9.0]) == 4  # nothing to leave out
    assert iqm([9.0, 1.0, 3.0, 4.0]) == 3.5
    assert iqm([100.0, 1.0, 2.0, 3.0, 4.0]) == 3
    assert iqm(list(range(8))) == 3.5
    assert iqm([[1.0, 10.0], [3.0, 12.0]]) == 6.5  # both tasks together


def test_the_optimality_gap_by_hand():
    assert optimality_gap([0.5, 2.0]) == 0.25
    assert optimality_gap([400.0, 600.0], target=475.0) == 37.5


def test_the_probability_of_improvement_by_hand():
    assert probability_of_improvement([3.0, 4.0], [1.0, 2.0]) == 1
    assert probability_of_improvement([1.0, 3.0], [2.0, 3.0]) == 0.375  # one win, one tie of four
    assert probability_of_improvement({"a": [2.0], "b": [1.0]}, {"b": [2.0], "a": [1.0]}) == 0.5


@settings(deadline=None)
@given(scores, scores)
def test_scipys_statistics(ours, theirs):
    """Equal to scipy's, which has no fast way to leave out missing runs of many resamples."""
    assert iqm(ours) == pytest.approx(stats.trim_mean(ours, 0.25), rel=1e-12, abs=1e-12)
    pairs = len(ours) * len(theirs)
    u = stats.mannwhitneyu(ours, theirs, method="asymptotic").statistic
    assert probability_of_improvement(ours, theirs) == pytest.approx(u / pairs, rel=1e-12)


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(statistics) == (0, 2)


@settings(deadline=None)
@given(scores, scores)
def test_the_two_arms_share_the_probability(ours, theirs):
    both = probability_of_improvement(ours, theirs) + probability_of_improvement(theirs, ours)
    assert both == pytest.approx(1)
    assert 0 <= probability_of_improvement(ours, theirs) <= 1


@settings(deadline=None)
@given(scores, st.floats(0.1, 10), st.floats(-100, 100))
def test_statistics_follow_the_unit(values, factor, shift):
    moved = [factor * value + shift for value in values]
    assert iqm(moved) == pytest.approx(factor * iqm(values) + shift, abs=1e-6)
    assert min(values) - 1e-9 <= iqm(values) <= max(values) + 1e-9


def test_runs_that_are_missing_are_not_zero():
    nan = math.nan
    assert iqm([1.0, nan, 3.0]) == mean([1.0, nan, 3.0]) == 2
    assert optimality_gap([nan, 0.5]) == 0.5
    assert probability_of_improvement([nan, 3.0], [1.0, 2.0, nan]) == 1
    assert math.isnan(iqm([nan, nan]))
    assert math.isnan(probability_of_improvement([nan], [1.0]))
    ragged = {"a": [1.0, 2.0, 3.0, 4.0], "b": [10.0]}
    assert mean(ragged) == 4
    padded = [[1.0, 10.0], [2.0, nan], [3.0, nan], [4.0, nan]]
    assert iqm(ragged) == iqm(padded) == 3
    low, high = bootstrap_interval(mean, [1.0, nan, 3.0, nan])
    assert (low, high) == (1, 3)  # as of the two runs alone: 25 % of the resamples are all 1


@pytest.mark.parametrize("given", [[4.0], [4.0, math.nan], [], {"a": [1.0, 2.0], "b": [3.0]}])
def test_a_single_run_has_no_interval(given):
    assert np.isnan(bootstrap_interval(iqm, given)).all()
    assert np.isnan(bootstrap_interval(probability_of_improvement, given, given)).all()


def test_the_interval_of_all_resamples_there_are():
    """27 of three runs, by enumeration; the quantiles fall well inside of steps of the mean."""
    every = [np.mean(drawn) for drawn in product([1.0, 2.0, 4.0], repeat=3)]
    expected = np.quantile(every, [0.1, 0.9], method="inverted_cdf")
    assert expected.tolist() == pytest.approx([4 / 3, 10 / 3])
    assert bootstrap_interval(mean, [1.0, 2.0, 4.0], confidence=0.8) == pytest.approx(expected)


def test_tasks_are_resampled_apart():
    """Within tasks nothing varies, between them much: no interval of any width."""
    assert bootstrap_interval(mean, [[1.0, 100.0], [1.0, 100.0]]) == (50.5, 50.5)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=(5, 3))
    assert bootstrap_interval(iqm, values) == bootstrap_interval(iqm, values)
    assert bootstrap_interval(iqm, values) != bootstrap_interval(iqm, values, seed=1)


def test_a_band_is_an_interval_at_every_point():
    rng = np.random.default_rng(1)
    curves = rng.normal(size=(4, 6, 2))  # points, runs, tasks
    curves[2, 1:, 0] = math.nan  # one run is left of a task
    curves[3, 0, 1] = math.nan
    low, high = bootstrap_band(iqm, curves, reps=4000)
    assert low.shape == high.shape == (4,)
    for point in (0, 1, 3):
        one = bootstrap_interval(iqm, curves[point])
        assert (low[point], high[point]) == pytest.approx(one, abs=0.1)
    assert np.isnan([low[2], high[2]]).all()
    assert iqm(curves).shape == (4,)
    with pytest.raises(ValueError, match="use `bootstrap_band`"):
        bootstrap_interval(iqm, curves)


def test_chunks_of_resamples(monkeypatch):
    values = np.random.default_rng(2).normal(size=(8, 2))
    whole = bootstrap_interval(mean, values)
    monkeypatch.setattr("fire_rl.reports.statistics._CHUNK", 1000)
    assert bootstrap_interval(mean, values) == pytest.approx(whole, abs=0.05)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    hits = 0
    for k in range(200):
        low, high = bootstrap_interval(mean, rng.normal(size=20), reps=500, seed=k)
        hits += low <= 0 <= high
    assert 0.87 <= hits / 200 <= 0.98


def test_tasks_by_name_may_have_leading_axes():
    """Curves of two tasks with three and two runs, as one array with a run that is missing."""
    array = np.random.default_rng(4).normal(size=(5, 3, 2))
    array[:, 2, 1] = np.nan
    by_name = {"a": array[..., 0], "b": array[:, :2, 1]}
    assert iqm(by_name).tolist() == iqm(array).tolist()
    bands = (bootstrap_band(iqm, scores, reps=50) for scores in (by_name, array))
    np.testing.assert_array_equal(*bands)
    assert math.isnan(iqm({}))


def test_normalised_scores():
    assert normalise([0.0, 50.0, 100.0], 0, 50).ravel().tolist() == [0, 1, 2]
    assert normalise([-500.0, -100.0], -500, -100).ravel().tolist() == [0, 1]
    assert normalise(25.0, 0, 50) == 0.5
    with pytest.raises(ValueError, match="`target` must lie above the floor 0, got -100"):
        normalise([-200.0], 0, -100)


def test_tasks_must_agree():
    with pytest.raises(ValueError, match="must have the same tasks, got a and b"):
        probability_of_improvement({"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(ValueError, match="got 1 and 2 of them"):
        probability_of_improvement([1.0], [[1.0, 2.0]])
