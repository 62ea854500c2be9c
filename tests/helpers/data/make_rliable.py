"""Compute with rliable what tests/reports/test_statistics.py compares with.

    pip install rliable 'pandas<3' && cd tests/helpers/data && python make_rliable.py > rliable.json

In an environment of its own: rliable 1.2 breaks with pandas 3. Takes some minutes.
"""

import json
import platform
from importlib.metadata import version

import numpy as np
from rliable import library, metrics

SHAPES = {
    "one_task_3": (3, 1),
    "one_task_5": (5, 1),
    "one_task_10": (10, 1),
    "four_tasks": (6, 4),
    "many_tasks": (10, 26),
}


def aggregates(scores):
    return np.array([
        metrics.aggregate_iqm(scores),
        metrics.aggregate_optimality_gap(scores, 1.0),
        metrics.aggregate_mean(scores),
    ])  # fmt: skip


def improvement(x, y):
    return np.array([metrics.probability_of_improvement(x, y)])


def main():
    rng = np.random.default_rng(20260)
    cases = {}
    for name, (runs, tasks) in SHAPES.items():
        base = rng.gamma(2.0, 0.4, size=tasks)
        x = np.round(base * rng.lognormal(0.1, 0.5, size=(runs, tasks)), 4)
        other_runs = runs - 1 if name == "four_tasks" else runs
        y = np.round(base * rng.lognormal(0.0, 0.4, size=(other_runs, tasks)), 4)
        if name == "one_task_5":  # ties
            x, y = np.round(x, 1), np.round(y, 1)
        point, interval = library.get_interval_estimates(
            {"x": x}, aggregates, reps=50_000, random_state=np.random.RandomState(1)
        )
        pair, pair_interval = library.get_interval_estimates(
            {"xy": (x, y)}, improvement, reps=5_000, random_state=np.random.RandomState(2)
        )
        found = dict(zip(("iqm", "optimality_gap", "mean"), point["x"].tolist(), strict=True))
        intervals = dict(zip(found, interval["x"].T.tolist(), strict=True))
        found |= {f"{key}_interval": value for key, value in intervals.items()}
        cases[name] = {"x": x.tolist(), "y": y.tolist(), **found}
        cases[name]["probability_of_improvement"] = float(pair["xy"][0])
        cases[name]["probability_of_improvement_interval"] = pair_interval["xy"].T.tolist()[0]
    packages = {p: version(p) for p in ("rliable", "arch", "numpy", "scipy", "pandas")}
    made_with = {**packages, "python": platform.python_version()}
    print(json.dumps({"made_with": made_with, "cases": cases}))


if __name__ == "__main__":
    main()
