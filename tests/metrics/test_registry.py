"""The registry of metrics: one entry is all that logs, thresholds, reports and tables need."""

import math
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from stable_baselines3.common.logger import configure

from fire_rl import METRICS, FireCallback, Metric, PlasticityMetricsCallback, Threshold
from fire_rl.interventions.report import InterventionReport
from fire_rl.metrics.features import Features, Units, srank
from fire_rl.metrics.registry import Shown, find_metric, measure
from fire_rl.metrics.weights import LayerWeight
from fire_rl.reports import write_report
from fire_rl.reports.experiment import make_experiment
from fire_rl.reports.runs import find_runs, read_run
from fire_rl.reports.writing import make_tables
from fire_rl.sb3.loggers import custom_scalars_layout
from fire_rl.sb3.measurement import activation_metrics, observe, parameter_metrics
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.networks import SHARED
from fire_rl.sb3.probe import ProbeSource
from fire_rl.weights.layers import weight_layers
from tests.helpers.models import make_model
from tests.helpers.report_runs import constant, write_run
from tests.helpers.runs import scalars

README = Path(__file__).parents[2] / "README.md"
ADDED = {
    "units": Metric(
        "mean_activity",
        "units",
        "lower",
        lambda units: float(torch.cat([means[0] for means in units.means.values()]).mean()),
        "mean magnitude of all units",
    ),
    "features": Metric(
        "largest_singular_value",
        "features",
        "higher",
        lambda features: float(torch.linalg.matrix_norm(features.matrix, 2)),
        "largest singular value of the features",
        title="largest σ",
        log_key="largest_sv",
        shown=("table", "curves", "tensorboard"),
        event_key="sigma",
    ),
    "weights": Metric(
        "weight_count",
        "weights",
        "higher",
        lambda weights: float(sum(weight.layer.weight.numel() for weight in weights)),
        "number of weights",
    ),
}


@pytest.fixture(params=ADDED)
def added(request, monkeypatch):
    """One entry more in the one list, and nothing else."""
    metric = ADDED[request.param]
    monkeypatch.setitem(METRICS, metric.name, metric)
    return metric


def test_an_added_metric_is_everywhere(added, tmp_path):
    key, runs = added.log_key, tmp_path / "runs"
    for seed in range(2):
        folder = write_run(runs / "fire" / f"s{seed}", constant((64, 1.0)))
        model = make_model("ppo", seed=seed)
        model.set_logger(configure(str(folder), ["tensorboard", "csv"]))
        fire = FireCallback(
            threshold={"metric": added.name, "above": 0, "every": 32, "network": "critic"},
            probe_size=32,
            log_dir=folder,
        )
        model.learn(64, callback=[fire, PlasticityMetricsCallback(16, probe_size=32)])
        model.logger.close()
        assert [report.num_timesteps for report in fire.reports] == [32]

    tags = scalars(folder).Tags()["scalars"]
    assert {f"plasticity/actor/{key}", f"plasticity/critic/{key}"} <= set(tags)
    assert (f"live/critic/{key}" in tags) == (added.reads != "weights")
    assert any(tag.startswith("plasticity_layers/critic/") and tag.endswith(f"/{key}")
               for tag in tags)  # fmt: skip
    assert f"trigger/critic/{key}" in tags

    events = [f"intervention/critic/{added.event_key}_{when}" for when in ("before", "after")]
    assert set(events) <= set(tags) if added.event_key else not set(events) & set(tags)
    assert (f"{added.event_key} " in fire.reports[0].summary()) == (added.event_key is not None)
    again = InterventionReport.from_dict(fire.reports[0].to_dict())
    assert again.scalars() == fire.reports[0].scalars()

    experiment = make_experiment([read_run(path) for path in find_runs([runs])])
    (table,) = [one for one in make_tables(experiment, "mean") if one.name == "plasticity"]
    assert [row["network"] for row in table.rows] == ["actor", "critic"]
    assert all(math.isfinite(row[added.title].value) for row in table.rows)
    if "curves" in added.shown:
        report = write_report([runs], tmp_path / "report")
        assert added.title in report.page.read_text(encoding="utf-8")
    layout = custom_scalars_layout(["critic"])["critic"]
    assert (added.title in layout) == ("tensorboard" in added.shown)


def test_what_was_shown_is_shown_in_the_same_order():
    assert dict(Shown("table")) == {
        "dormant_ratio": "dormant ratio",
        "effective_rank": "effective rank",
        "dfi_per_sv": "DfI per singular value",
        "weight_norm": "weight norm",
        "feature_norm": "feature norm",
    }
    assert [*Shown("curves")] == ["dormant_ratio", "effective_rank", "dfi_per_sv", "weight_norm"]
    assert custom_scalars_layout(["actor"]) == {
        "actor": {
            "return": ["Multiline", ["rollout/ep_rew_mean", "eval/mean_reward"]],
            "dormant ratio": ["Multiline", ["plasticity/actor/dormant_ratio$"]],
            "effective rank": ["Multiline", ["plasticity/actor/effective_rank$"]],
            "deviation from isometry per singular value": [
                "Multiline",
                ["plasticity/actor/dfi_per_sv$", "intervention/actor/dfi_after$"],
            ],
        }
    }


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_entries_are_whole(metric):
    assert METRICS[metric.name] is metric
    assert metric.description
    assert "\n" not in metric.description
    assert metric.title
    assert find_metric(metric.name) is find_metric(metric.log_key) is metric
    for group in ("plasticity", "live", "trigger"):
        for role in ("actor", "critic", SHARED):
            assert len(f"{group}/{role}/{metric.log_key}") <= 36
    line = "above" if metric.worse == "higher" else "below"
    assert Threshold(metric.name, **{line: 0.5}) == Threshold(metric.log_key, **{line: 0.5})


def test_keys_and_titles_are_unique():
    assert len({metric.log_key for metric in METRICS.values()}) == len(METRICS)
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reads": "unit"}, "`reads` must be one of .* Did you mean 'units'"),
        ({"worse": "up"}, "`worse` must be one of 'higher', 'lower', got 'up'"),
        ({"description": ""}, "`description` of a metric must be a text"),
        ({"shown": ("tables",)}, "`shown` must be one of .* Did you mean 'table'"),
        ({"reads": "weights", "event_key": "n"}, "`event_key` is for metrics of units and feat"),
    ],
)
def test_bad_entries_are_named(options, message):
    good = {"name": "n", "reads": "units", "worse": "lower", "measure": len, "description": "d"}
    assert Metric(**good).log_key == "n"
    with pytest.raises(ValueError, match=message):
        Metric(**{**good, **options})


def test_the_readme_lists_the_registry():
    """On a difference the right table is in the message."""
    lines = ["| metric | of | when plasticity is lost | what |", "|---|---|---|---|"]
    lines += [
        f"| `{metric.log_key}` | {metric.reads} | {metric.worse} | {metric.description} |"
        for metric in METRICS.values()
    ]
    (found,) = re.findall(r"<!-- metrics -->\n(.*?)\n?<!-- end -->", README.read_text(), re.S)
    expected = "\n".join(lines)
    assert found == expected, f"README.md should have:\n{expected}"


# --- what is measured ---------------------------------------------------------------------------


def test_metrics_that_do_not_apply_are_left_out():
    maps = {"a": [torch.rand(6, 3)], "b": [torch.rand(4, 2), torch.rand(2, 2)]}
    relu = Units.observed(maps, {"a": "ReLU", "b": "ReLU"})
    both = Units.observed(maps, {"a": "ReLU", "b": "Tanh"})
    assert measure("units", both).keys() - measure("units", relu).keys() == {"saturation_ratio"}
    assert both.of_kind("Tanh")["b"].equal(torch.cat(maps["b"]))
    assert measure("units", both.of_layer("a")) == measure("units", relu.of_layer("a"))


def test_singular_values_are_computed_once(monkeypatch):
    calls, svdvals = [], torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda m: calls.append(m) or svdvals(m))
    matrix = torch.rand(20, 4)
    found = measure("features", Features(matrix))
    assert len(calls) == 1
    assert found["srank"] == srank(matrix)
    few = measure("features", Features(matrix.T))  # no warning: the callback has one of its own
    assert math.isnan(few["effective_rank"])
    assert math.isnan(few["srank"])
    assert few["feature_norm"] > 0


def test_weights_against_singular_values():
    layers = weight_layers(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Conv2d(2, 4, 3)))
    weights = [LayerWeight.measured(layer) for layer in layers]
    sigmas = [torch.linalg.svdvals(layer.matrices()).flatten().double() for layer in layers]
    deviations = [
        float(((sigma / layer.scale) ** 2 - 1).square().sum())
        for sigma, layer in zip(sigmas, layers, strict=True)
    ]
    found = measure("weights", weights)
    assert found["dfi"] == pytest.approx(sum(deviations), rel=1e-5)
    assert found["dfi_per_sv"] == pytest.approx(sum(deviations) / sum(map(len, sigmas)), rel=1e-5)
    assert found["weight_norm"] == pytest.approx(float(torch.cat(sigmas).norm()), rel=1e-5)
    assert found["spectral_norm"] == pytest.approx(float(torch.cat(sigmas).max()), rel=1e-5)
    for weight, deviation in zip(weights, deviations, strict=True):
        assert measure("weights", [weight])["dfi"] == pytest.approx(deviation, rel=1e-5)
        assert measure("weights", [weight])["weight_norm"] == weight.norm


def test_a_model_has_every_metric_that_applies():
    model = make_model("ppo")
    model.learn(32)
    groups = ModelView(model).groups
    activations = observe(ModelView(model), ProbeSource(64, seed=0).live(model)).activations
    for group in groups:
        found = activation_metrics(group, activations).pooled | parameter_metrics(group).pooled
        assert found.keys() == {metric.log_key for metric in METRICS.values()}
        (layer,) = islice(activation_metrics(group, activations).layers.values(), 1)
        assert layer.keys() == {m.log_key for m in METRICS.values() if m.reads != "weights"}
