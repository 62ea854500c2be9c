"""Thresholds: real models that are measured while they train."""

import json

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from torch import nn

from fire_rl import (
    METRICS,
    FireCallback,
    InterventionCallback,
    PlasticityMetricsCallback,
    RunCheckpointCallback,
    Threshold,
)
from fire_rl.checkpoints.store import latest
from fire_rl.sb3.measurement import parameter_metrics
from fire_rl.sb3.model_view import ModelView
from tests.helpers.models import ALGORITHMS, changed, make_model, state_of
from tests.helpers.runs import scalars

PATIENT = {"metric": "dfi", "above": 5, "every": 10}


# --- real models --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FireCallback(5, threshold=PATIENT), "`threshold` says when .*got `every` beside"),
        (lambda: FireCallback(threshold=PATIENT, stop=0.5), "got `stop` beside it"),
        (lambda: FireCallback(threshold={"every": 5}), "`threshold` must be a mapping such as"),
        (lambda: FireCallback(threshold=0.3), "`threshold` must be a mapping such as .*got 0.3"),
        (lambda: FireCallback(), "exactly one of every, at and fractions, got none of them"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


RELU = {"activation_fn": nn.ReLU}


def relu_model(algo, **options):
    return make_model(algo, policy_kwargs=dict(RELU), **options)


def kill(model, role, share=0.75):
    """Make units of a network's hidden layers dormant: a large negative bias."""
    group = next(group for group in ModelView(model).groups if group.role == role)
    for layer in group.online.layers:
        if not layer.is_head:
            bias = layer.module.bias
            with torch.no_grad():
                bias[: int(share * len(bias))] = -1e4


class KillAt(BaseCallback):
    """Kill units at the first rollout start at or after a step."""

    def __init__(self, step, role):
        super().__init__()
        self.step, self.role = step, role

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        if self.step is not None and self.num_timesteps >= self.step:
            self.step = None
            kill(self.model, self.role)


def logged_events(folder):
    """What interventions.jsonl says of the events that a threshold has set off."""
    lines = (folder / "interventions.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "trigger" in entry]


def steps(callback):
    return [report.num_timesteps for report in callback.reports]


@pytest.mark.parametrize("metric", ["dormant_ratio", "dormant_ratio_0.1", "zero_activation_ratio"])
@pytest.mark.parametrize(("algo", "role"), [("dqn", "critic"), ("ppo", "actor"), ("sac", "critic")])
def test_dormant_units_set_it_off(algo, role, metric, tmp_path):
    threshold = {"metric": metric, "above": 0.6, "every": 16, "network": role, "cooldown": 96}
    fire = FireCallback(threshold=threshold, probe_size=32, hidden="reset", log_dir=tmp_path)
    relu_model(algo).learn(160, callback=[KillAt(64, role), fire])
    assert len(fire.reports) == 1
    assert 64 <= steps(fire)[0] <= 96
    (cause,) = [entry["trigger"] for entry in logged_events(tmp_path)]
    assert 0.6 < cause.pop("value") <= 1
    assert cause == {"metric": metric, "network": role, "threshold": 0.6}


def test_any_network_unless_one_is_named():
    for network, expected in ((None, [80]), ("actor", []), ("critic", [80])):
        threshold = Threshold(
            "zero_activation_ratio", above=0.6, every=16, cooldown=96, network=network
        )
        fire = FireCallback(threshold=threshold, probe_size=32)
        relu_model("ppo").learn(128, callback=[KillAt(80, "critic"), fire])
        assert steps(fire) == expected


def test_patience_waits():
    threshold = Threshold("zero_activation_ratio", above=0.6, every=16, patience=3, cooldown=96)
    fire = FireCallback(threshold=threshold, probe_size=32)
    relu_model("ppo").learn(160, callback=[KillAt(64, "actor"), fire])
    assert steps(fire) == [96]


@pytest.mark.parametrize("algo", ["dqn", "ppo", "sac"])
def test_a_rank_that_falls_sets_it_off(algo):
    """Three of twelve penultimate units are left: their effective rank is 3 at most."""
    threshold = Threshold("effective_rank", below=3.01, every=16, network="critic", cooldown=96)
    fire = FireCallback(threshold=threshold, probe_size=32)
    relu_model(algo).learn(160, callback=[KillAt(64, "critic"), fire])
    assert len(fire.reports) == 1
    assert 64 <= steps(fire)[0] <= 96


def test_weights_need_no_observations():
    threshold = {"metric": "dfi", "above": 0, "every": 16, "network": "actor"}
    fire = FireCallback(threshold=threshold, probe_size=10**6)
    make_model("ppo").learn(64, callback=fire)
    assert steps(fire) == [16, 32, 48]
    fire = FireCallback(threshold={**threshold, "metric": "feature_norm"}, probe_size=10**6)
    make_model("ppo").learn(64, callback=fire)
    assert steps(fire) == []  # there is no frozen probe yet


def test_nothing_is_measured_before_the_model_learns():
    fire = FireCallback(threshold={"metric": "dfi", "above": 0, "every": 10})
    make_model("sac", learning_starts=35).learn(60, callback=fire)
    assert steps(fire) == [40]


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("metric", ["dormant_ratio", "effective_rank", "dfi"])
def test_measuring_changes_nothing(algo, metric):
    line = {"below": 1e-3} if metric != "dormant_ratio" else {"above": 0.99}
    threshold = {"metric": metric, **line, "every": 8, "stop": 1}
    fire = FireCallback(threshold=threshold, probe_size=24)
    probes, measure = [], fire.monitor.measure
    fire.monitor.measure = lambda *args: probes.append(args[1]) or measure(*args)
    model = relu_model(algo)
    model.learn(96, callback=fire)
    assert sum(probe is not None for probe in probes) >= 3
    assert fire.reports == []
    assert not changed(state_of(model), state_of(relu_model(algo).learn(96)))


def test_never_in_the_closing_part():
    for stop, last in ((None, 96), (0.5, 64), (1.0, 112)):
        threshold = {"metric": "dfi", "above": 0, "every": 16, "stop": stop}
        fire = FireCallback(threshold=threshold)
        make_model("ppo").learn(128, callback=fire)
        assert steps(fire) == list(range(16, last + 1, 16))
    # Crossed before the stop, but the next rollout begins after it.
    fire = FireCallback(threshold={"metric": "dfi", "above": 0, "every": 10, "stop": 0.32})
    make_model("ppo").learn(128, callback=fire)
    assert steps(fire) == [16, 32]


def test_chunked_learning_gives_the_events_of_one_call():
    threshold = {"metric": "dfi", "above": 0, "every": 16, "patience": 2, "cooldown": 20}
    runs = []
    for calls in (1, 4):
        fire = FireCallback(threshold=threshold, horizon=128)
        model = make_model("ppo")
        for _ in range(calls):
            model.learn(128 // calls, callback=fire, reset_num_timesteps=False)
        runs.append((steps(fire), state_of(model)))
    assert runs[0][0] == runs[1][0] == [32, 80]
    assert not changed(runs[0][1], runs[1][1])


def test_gradient_updates_as_unit():
    """PPO makes 4 updates after each rollout of 16; `cooldown` counts them too."""
    fire = InterventionCallback(
        "fire",
        Threshold("dfi", above=0, every=8, cooldown=12, stop=0.9),
        unit="gradient_updates",
    )
    make_model("ppo").learn(160, callback=fire)
    assert steps(fire) == [32, 96]


def test_a_new_model_forgets_the_old_one():
    threshold = {"metric": "dfi", "above": 0, "every": 16, "patience": 2, "cooldown": 1000}
    fire = FireCallback(threshold=threshold)
    for _ in range(2):
        make_model("ppo").learn(96, callback=fire)
        assert steps(fire) == [32]


def test_a_role_that_the_model_lacks_is_refused_before_training():
    for algo, network, message in (
        ("dqn", "actor", "`network` must be one of 'critic', got 'actor'"),
        ("ppo", "shared", "`network` must be one of 'actor', 'critic', got 'shared'"),
    ):
        model = make_model(algo)
        with pytest.raises(ValueError, match=message):
            model.learn(
                64, callback=FireCallback(threshold=Threshold("dfi", above=1, network=network))
            )
        assert model.num_timesteps == 0


@pytest.mark.parametrize(
    ("metric", "options"),
    [("effective_rank", {"probe_size": 4}), ("saturation_ratio", {"probe_size": 24})],
)
def test_what_cannot_be_measured_is_said_once(metric, options):
    fire = FireCallback(
        threshold={"metric": metric, "above": 0.5, "every": 16, "network": "critic"}, **options
    )
    with pytest.warns(UserWarning, match=f"`{metric}` cannot be measured on the critic") as caught:
        relu_model("dqn").learn(100, callback=fire)
    assert len([w for w in caught if "cannot be measured" in str(w.message)]) == 1
    assert steps(fire) == []


def test_saturated_units_set_it_off():
    threshold = Threshold("saturation_ratio", above=0.6, every=16, cooldown=96)
    fire = FireCallback(threshold=threshold, probe_size=32)
    make_model("ppo").learn(128, callback=[KillAt(64, "actor"), fire])  # SB3's PPO has tanh units
    assert steps(fire) == [64]


# --- what it writes -----------------------------------------------------------------------------


def test_every_metric_is_logged_at_the_step_and_fits_the_table(tmp_path):
    for metric in METRICS:
        line = {"above": 0.99} if METRICS[metric].ratio else {"above": 1e9}
        threshold = Threshold(metric, **line, every=32)
        model = make_model("ppo", "cnn")
        folder = tmp_path / metric
        model.set_logger(configure(str(folder), ["stdout", "tensorboard"]))
        measured = PlasticityMetricsCallback(every=32, probe_size=32, per_layer=False)
        model.learn(96, callback=[FireCallback(threshold=threshold, probe_size=32), measured])
        model.logger.close()
        found = scalars(folder)
        keys = [tag for tag in found.Tags()["scalars"] if tag.startswith("trigger/")]
        roles = ["actor", "critic"] + ["shared"] * (metric != "saturation_ratio")
        assert keys == [f"trigger/{role}/{threshold.log_name}" for role in roles]
        assert max(map(len, keys)) <= 36
        for key in keys:
            same = key.replace("trigger", "plasticity")
            assert [(e.step, e.value) for e in found.Scalars(key)] == [
                (e.step, e.value) for e in found.Scalars(same) if e.step <= 64
            ]


def test_the_plan_is_said_for_people(capsys):
    threshold = {"metric": "dormant_ratio", "above": 0.3, "network": "critic"}
    fire, model = FireCallback(threshold=threshold, horizon=32, verbose=1), make_model("dqn")
    for _ in range(2):
        model.learn(16, callback=fire, reset_num_timesteps=False)
    plan = "fire: when critic dormant_ratio > 0.3, measured every 10,000 steps"
    assert capsys.readouterr().out.splitlines() == [plan]


# --- resume -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["dqn", "ppo", "sac"])
def test_resumed_training_has_the_same_events(algo, tmp_path):
    """Cut in the middle of a count of three and of a cooldown."""

    class Stop(BaseCallback):
        def get_state(self):
            return {}

        def set_state(self, state):
            pass

        def __init__(self, step):
            super().__init__()
            self.step = step

        def _on_step(self):
            return self.num_timesteps < self.step

    def run(name, stop, resume=False, every=48):
        model = relu_model(algo)
        model.set_logger(configure(str(tmp_path / name), ["tensorboard"]))
        fire = FireCallback(
            threshold={"metric": "zero_activation", "above": 0.3, "every": 16, "patience": 3,
                       "cooldown": 40, "stop": 1},
            probe_size=32,
        )  # fmt: skip
        kills = [KillAt(40, "critic"), KillAt(150, "critic")]
        newest = latest(tmp_path / name / "checkpoints") if resume else False
        checkpoint = RunCheckpointCallback(every, tmp_path / name / "checkpoints", resume=newest)
        model.learn(256, callback=[Stop(stop), *kills, fire, checkpoint])
        model.logger.close()
        return model, fire

    whole, fire = run("whole", 10**6)
    assert len(fire.reports) >= 2
    for cut in (60, 110, 160, 200):
        run(f"cut{cut}", cut)
        resumed, again = run(f"cut{cut}", 10**6, resume=True)
        assert steps(again) == steps(fire)
        assert again.monitor.state == fire.monitor.state
        assert not changed(state_of(whole), state_of(resumed))
        one, two = (logged_events(tmp_path / name) for name in ("whole", f"cut{cut}"))
        assert [{**entry, "seconds": 0} for entry in one] == [
            {**entry, "seconds": 0} for entry in two
        ]


def test_dfi_falls_when_it_acts():
    """After FIRE the metric is measured on the new weights: below the line, no event."""
    model = make_model("dqn")
    before = parameter_metrics(ModelView(model).groups[0]).pooled["dfi_per_sv"]
    fire = FireCallback(
        threshold={"metric": "dfi_per_sv", "above": before / 2, "every": 16}, method="exact"
    )
    model.learn(64, callback=fire)
    assert steps(fire) == [16]
