"""Thresholds: the pure decision, and real models that are looked at while they train."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from torch import nn

from experiments.config import parse_config
from experiments.plain_yaml import ConfigError, read_yaml
from fire_rl import (
    FireCallback,
    InterventionCallback,
    PlasticityMetricsCallback,
    RunCheckpointCallback,
    Threshold,
    make_schedule,
)
from fire_rl.sb3.measurement import parameter_metrics
from fire_rl.sb3.networks import network_groups
from fire_rl.schedules.threshold import PROBE_METRICS, WEIGHT_METRICS, ThresholdState
from tests.helpers.models import ALGORITHMS, changed, make_model, state_of
from tests.helpers.runs import scalars

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


# --- the decision -------------------------------------------------------------------------------


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
        "when critic dormant_ratio > 0.3 2 times in a row, looked at every 10,000 steps"
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


# --- the configuration --------------------------------------------------------------------------


def configuration(schedule):
    values = {"algo": "dqn", "env": "CartPole-v1", "intervention": "fire"}
    return parse_config({**values, "schedule": read_yaml(schedule)})


def test_yaml():
    text = "{metric: dormant_ratio, above: 0.3, every: 1e4, patience: 2, network: critic, stop: 1}"
    callback = InterventionCallback("fire", configuration(text).schedule)
    expected = Threshold("dormant_ratio", 0.3, None, 10_000, 2, 0, "critic", 1.0)
    assert callback.clock.schedule == expected
    assert make_schedule(configuration("{every: 5, at: null}").schedule) == make_schedule(
        {"every": 5}
    )


def test_all_faults_of_a_schedule_at_once():
    text = "{metric: dorment, above: 1, abov: 3, every: 0, patience: 0, cooldown: -1, at: 3,"
    with pytest.raises(ConfigError) as error:
        configuration(text + " network: actr, stop: 2}")
    for expected in ("'dormant_ratio'", "'above'", "`every`", "`patience`", "`cooldown`",
                     "`at` does not go", "'actor'", "`stop`"):  # fmt: skip
        assert any(expected in fault for fault in error.value.faults), expected
    assert len(error.value.faults) == 8
    for text, expected in (
        ("{metric: dormant_ratio, above: 30, every: 0}", "below 1 for dormant_ratio, got 30"),
        ("{metric: srank, every: 0}", "exactly one of `above` and `below`"),
        ("{metric: srank, above: 2, below: 1, every: 0}", "got both"),
    ):
        with pytest.raises(ConfigError) as error:
            configuration(text)
        assert any(expected in fault for fault in error.value.faults)
        assert len(error.value.faults) == 2


# --- real models --------------------------------------------------------------------------------


RELU = {"activation_fn": nn.ReLU}


def relu_model(algo, **options):
    return make_model(algo, policy_kwargs=dict(RELU), **options)


def kill(model, role, share=0.75):
    """Make units of a network's hidden layers dormant: a large negative bias."""
    group = next(group for group in network_groups(model) if group.role == role)
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


def test_nothing_is_looked_at_before_the_model_learns():
    fire = FireCallback(threshold={"metric": "dfi", "above": 0, "every": 10})
    make_model("sac", learning_starts=35).learn(60, callback=fire)
    assert steps(fire) == [40]


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("metric", ["dormant_ratio", "effective_rank", "dfi"])
def test_looking_changes_nothing(algo, metric):
    line = {"below": 1e-3} if metric != "dormant_ratio" else {"above": 0.99}
    threshold = {"metric": metric, **line, "every": 8, "stop": 1}
    fire = FireCallback(threshold=threshold, probe_size=24)
    probes, look = [], fire.trigger.look
    fire.trigger.look = lambda *args: probes.append(args[1]) or look(*args)
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
    assert steps(fire) == [32, 32]


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
    for metric in (*PROBE_METRICS, *WEIGHT_METRICS):
        line = {"above": 0.99} if metric in PROBE_METRICS[:4] else {"above": 1e9}
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
    plan = "fire: when critic dormant_ratio > 0.3, looked at every 10,000 steps"
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
        checkpoint = RunCheckpointCallback(every, tmp_path / name / "checkpoints", resume=resume)
        model.learn(256, callback=[Stop(stop), *kills, fire, checkpoint])
        model.logger.close()
        return model, fire

    whole, fire = run("whole", 10**6)
    assert len(fire.reports) >= 2
    for cut in (60, 110, 160, 200):
        run(f"cut{cut}", cut)
        resumed, again = run(f"cut{cut}", 10**6, resume=True)
        assert steps(again) == steps(fire)
        assert again.trigger.state == fire.trigger.state
        assert not changed(state_of(whole), state_of(resumed))
        one, two = (logged_events(tmp_path / name) for name in ("whole", f"cut{cut}"))
        assert [{**entry, "seconds": 0} for entry in one] == [
            {**entry, "seconds": 0} for entry in two
        ]


def test_dfi_falls_when_it_acts():
    """After FIRE the metric is measured on the new weights: below the line, no event."""
    model = make_model("dqn")
    before = parameter_metrics(network_groups(model)[0]).pooled["dfi_per_sv"]
    fire = FireCallback(
        threshold={"metric": "dfi_per_sv", "above": before / 2, "every": 16}, method="exact"
    )
    model.learn(64, callback=fire)
    assert steps(fire) == [16]
