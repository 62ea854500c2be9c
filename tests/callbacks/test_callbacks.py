"""The callbacks in real training: when they act, what they write, and what they leave alone."""

import copy
import json

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fire_rl import (
    FIRE,
    At,
    AtFractions,
    Every,
    FireCallback,
    InterventionCallback,
    NoIntervention,
    PlasticityMetricsCallback,
    RandomOrthogonal,
    Threshold,
)
from fire_rl.sb3.probe import Probe, ProbeSource
from tests.helpers.models import ALGORITHMS, changed, make_model, state_of


def steps(callback):
    return [report.num_timesteps for report in callback.reports]


def trained(algo, callback=None, total=64, observation="mlp", **options):
    return state_of(make_model(algo, observation, **options).learn(total, callback=callback))


class Recorder(BaseCallback):
    """The policy's tensors at every hook, to see when weights change."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _note(self, hook):
        self.seen.append((hook, self.num_timesteps, state_of(self.model)))

    def _on_rollout_start(self):
        self._note("rollout_start")

    def _on_rollout_end(self):
        self._note("rollout_end")

    def _on_step(self):
        self._note("step")
        return True


# Events at the very end, on purpose.
at_the_end = pytest.mark.filterwarnings("ignore:.*has not happened")
# Measured early on purpose, with fewer observations than features.
few_observations = pytest.mark.filterwarnings("ignore:A rank needs at least as many")


# --- when ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_events_happen_at_the_rollout_after_the_crossing(algo):
    model = make_model(algo, n_envs=2)
    callback = FireCallback(every=30, stop=1.0)
    model.learn(100, callback=callback)
    rollout = {"ppo": 16, "a2c": 10}.get(algo, 2)
    expected = [-(-step // rollout) * rollout for step in (30, 60, 90)]
    assert steps(callback) == expected


def test_stop_at_and_fractions():
    for options, expected in (
        ({"every": 20}, [20, 40, 60, 80]),  # 0.8 of 100
        ({"every": 20, "stop": 0.5}, [20, 40]),
        ({"at": [10, 96]}, [10, 96]),
        ({"fractions": [0.25, 0.5]}, [26, 50]),
        ({"every": 12, "horizon": 50, "stop": 0.5}, [12, 24]),
    ):
        callback = FireCallback(**options)
        make_model("dqn", n_envs=2).learn(100, callback=callback)
        assert steps(callback) == expected


def test_a_crossing_that_is_skipped_over_acts_once():
    callback = FireCallback(every=3, stop=1.0)
    make_model("ppo").learn(48, callback=callback)
    assert steps(callback) == [16, 32]  # the third is crossed by the last rollout


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
@pytest.mark.parametrize("schedule", [{"every": 24}, {"at": [32, 90]}, {"fractions": [0.3, 0.6]}])
def test_chunked_learning_gives_the_events_of_one_call(algo, schedule):
    whole = FireCallback(**schedule)
    weights = trained(algo, whole, total=128)
    chunked = FireCallback(**schedule, horizon=128)
    model = make_model(algo)
    for _ in range(4):
        model.learn(32, callback=chunked, reset_num_timesteps=False)
    assert steps(chunked) == steps(whole) != []
    if algo == "ppo":  # a DQN's exploration schedule depends on the call's total
        assert not changed(weights, state_of(model))


def test_an_event_of_the_last_rollout_survives_into_the_next_call():
    callback = FireCallback(at=[30])
    model = make_model("ppo")
    with pytest.warns(UserWarning, match=r"step 30 has not .*learn\(reset_num_timesteps=False\)"):
        model.learn(32, callback=callback)
    assert steps(callback) == []
    model.learn(32, callback=callback, reset_num_timesteps=False)
    assert steps(callback) == [32]


@at_the_end
def test_a_fresh_callback_begins_a_rollout_before_the_models_own_step():
    model = make_model("ppo").learn(64)
    callback = FireCallback(every=40, stop=1.0)
    model.learn(64, callback=callback, reset_num_timesteps=False)
    assert steps(callback) == [80]  # 40 lies before the last rollout, 120 in the new last one


def test_a_callback_is_used_again_for_a_new_run_and_a_new_model():
    callback = FireCallback(at=[16])
    model = make_model("ppo").learn(32, callback=callback)
    model.learn(32, callback=callback)  # counts from 0 again
    assert steps(callback) == [16, 16]
    make_model("dqn").learn(32, callback=callback)
    assert steps(callback) == [16]


@at_the_end
@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_a_second_model_begins_with_a_fresh_clock(algo):
    callback = FireCallback(at=[64])
    make_model(algo).learn(64, callback)  # armed, and never acted
    make_model(algo).learn(64, callback)
    assert callback.reports == []
    counting = FireCallback(every=6, stop=1.0, unit="gradient_updates")
    make_model(algo).learn(96, counting)
    first = steps(counting)
    make_model(algo).learn(96, counting)
    assert steps(counting) == first != []


@pytest.mark.parametrize("algo", ["ppo", "dqn", "td3"])
def test_gradient_updates_as_unit(algo):
    """PPO: 2 minibatches x 2 epochs per rollout of 16; off-policy: one per 2 steps after 8."""
    callback = InterventionCallback("fire", Every(8), unit="gradient_updates")
    make_model(algo).learn(96, callback=callback)
    if algo == "ppo":
        assert steps(callback) == [32, 64]
    else:
        assert steps(callback)[:2] == [24, 40]
    with pytest.raises(ValueError, match="`fractions` of gradient updates need `horizon=`"):
        FireCallback(fractions=[0.5], unit="gradient_updates")


def test_before_learning_starts_there_is_a_warning():
    model = make_model("sac", learning_starts=50)
    with pytest.warns(UserWarning, match=r"planned at step 20, before .*`learning_starts` 50"):
        model.learn(30, callback=FireCallback(at=[20]))


def test_steps_beyond_the_end_are_said(caplog):
    with pytest.warns(UserWarning, match="planned at step 16 has not happened"):
        make_model("ppo").learn(16, callback=FireCallback(at=[16, 99]))
    assert "fire at step 16 lies at or beyond the end of this training (16 steps)" in caplog.text


# --- what ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_weights_change_at_rollout_start_only(algo):
    before, after, fire = Recorder(), Recorder(), FireCallback(at=[32])
    make_model(algo).learn(64, callback=[before, fire, after])
    for (hook, step, one), (_, _, two) in zip(before.seen, after.seen, strict=True):
        assert bool(changed(one, two)) == (hook == "rollout_start" and step in steps(fire))
    assert len(fire.reports) == 1


@pytest.mark.compat(
    section="What is particular to an algorithm",
    algorithm="ppo",
    setting=lambda p: "stored probabilities" + ", gSDE" * p["sde"],
    checked="PPO's ratio is 1 on the first minibatch after an event.",
)
@pytest.mark.parametrize("sde", [False, True])
def test_ppo_ratio_is_one_on_the_first_minibatch_after_surgery(sde):
    """The stored log-probabilities are those of the weights that are trained."""

    class FirstRatio(BaseCallback):
        ratios = None

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer, policy = self.model.rollout_buffer, self.model.policy
            observations = torch.as_tensor(buffer.observations).flatten(0, 1)
            actions = torch.as_tensor(buffer.actions).flatten(0, 1)
            _, log_prob, _ = policy.evaluate_actions(observations, actions)
            old = torch.as_tensor(buffer.log_probs).flatten()
            self.ratios = (log_prob - old).exp().detach()

    ratio, fire = FirstRatio(), FireCallback(every=16, horizon=64, stop=1.0, log_std="reset")
    model = make_model("ppo", use_sde=sde)
    for _ in range(4):
        model.learn(16, callback=[fire, ratio], reset_num_timesteps=False)
        torch.testing.assert_close(ratio.ratios, torch.ones(16), atol=1e-6, rtol=0)
    assert len(fire.reports) == 3


@pytest.mark.compat(
    section="Training loops",
    setting="the control changes nothing",
    checked="Weights are equal to the bit with the control intervention and without a callback.",
)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_no_intervention_is_bit_identical_to_no_callback(algo):
    callback = InterventionCallback(NoIntervention(), Every(16))
    assert not changed(trained(algo, callback), trained(algo))
    assert len(callback.reports) >= 2


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_same_seed_same_weights(algo):
    runs = [trained(algo, FireCallback(every=16, hidden="reset", seed=seed)) for seed in (1, 1, 2)]
    assert not changed(runs[0], runs[1])
    assert changed(runs[0], runs[2])


def test_initial_weights_are_those_of_the_first_training_start():
    model = make_model("dqn")
    initial = state_of(model)
    callback = FireCallback(at=[48], horizon=64, preset="paper_dqn")
    seen = {}

    class After(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            if callback.reports and not seen:
                seen.update(state_of(self.model))

    model.learn(32, callback=callback)
    model.learn(32, callback=[callback, After()], reset_num_timesteps=False)
    assert not changed(initial, seen)  # an MLP has linear layers only


def test_save_before_keeps_the_model_of_just_before(tmp_path):
    recorder, fire = Recorder(), FireCallback(at=[32], save_before=tmp_path)
    make_model("ppo").learn(64, callback=[recorder, fire])
    before = next(s for hook, step, s in recorder.seen if hook == "rollout_start" and step == 32)
    saved = PPO.load(tmp_path / "before_fire_32_steps.zip", device="cpu")
    assert not changed(before, state_of(saved))


# --- measuring ----------------------------------------------------------------------------------


def test_save_before_overwrites_nothing(tmp_path):
    model = make_model("ppo")
    callbacks = [
        FireCallback(at=[32], networks=[role], save_before=tmp_path) for role in ("actor", "critic")
    ]
    model.learn(48, callbacks)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["before_fire_32_steps.zip", "before_fire_32_steps_2.zip"]


@pytest.mark.compat(
    section="Training loops",
    policy="{observation}",
    setting="metrics change nothing",
    checked="Weights are equal to the bit with metrics and without.",
)
@few_observations
@pytest.mark.parametrize(
    ("algo", "observation"),
    [(algo, "mlp") for algo in ALGORITHMS]
    + [("dqn", "cnn"), ("ppo", "cnn"), ("sac", "dict"), ("a2c", "dict"), ("td3", "cnn")],
)
def test_training_is_bit_equal_with_and_without_metrics(algo, observation):
    callback = PlasticityMetricsCallback(every=10, probe_size=24)
    with_metrics = trained(algo, callback, observation=observation)
    assert not changed(with_metrics, trained(algo, observation=observation))
    assert len(callback.history) >= 4


@few_observations
@pytest.mark.parametrize("kind", [SAC, PPO])
def test_training_is_bit_equal_with_vecnormalize(kind):
    runs = []
    for callback in (None, [PlasticityMetricsCallback(every=10, probe_size=24),
                            InterventionCallback("none", {"every": 16})]):  # fmt: skip
        env = VecNormalize(make_model("sac").get_env())
        options = {"n_steps": 8, "batch_size": 8} if kind is PPO else {"learning_starts": 8}
        model = kind("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [8]}, **options)
        model.learn(64, callback=callback)
        runs.append({**state_of(model), "mean": torch.as_tensor(env.obs_rms.mean)})
    assert not changed(*runs)


def test_probe_sees_what_the_policy_sees_under_vecnormalize():
    env = VecNormalize(make_model("sac").get_env())
    model = SAC("MlpPolicy", env, seed=0, learning_starts=8, buffer_size=100, device="cpu")
    model.learn(60)
    probe = ProbeSource(60, seed=0).live(model)
    raw = torch.as_tensor(model.replay_buffer.observations[:30]).reshape(60, 5)
    expected = torch.as_tensor(env.normalize_obs(raw.numpy()))
    one = {tuple(row) for row in probe.observations.numpy().round(5).tolist()}
    assert one == {tuple(row) for row in expected.numpy().round(5).tolist()}


def test_metrics_by_key():
    callback = PlasticityMetricsCallback(every=16, probe_size=32)
    make_model("ppo", "cnn").learn(80, callback=callback)
    step, values = callback.history[-1]
    assert step == 80
    units = {"dormant_ratio", "dormant_ratio_0.1", "zero_activation"}
    features = {"effective_rank", "srank", "feature_norm"}
    weights = {"dfi", "dfi_per_sv", "weight_norm", "spectral_norm"}
    for role in ("actor", "critic", "shared"):
        expected = units | features | weights
        expected |= {"saturation_ratio"} if role != "shared" else set()  # PPO's own layers are tanh
        found = {key.split("/")[2] for key in values if key.startswith(f"plasticity/{role}/")}
        assert found == expected
        live = {key.split("/")[2] for key in values if key.startswith(f"live/{role}/")}
        assert live == expected - weights
    assert all(len(key) <= 36 for key in values)
    assert all(np.isfinite(value) for value in values.values())


@few_observations
def test_frozen_probe_stays_and_waits_until_there_is_enough():
    callback = PlasticityMetricsCallback(every=16, probe_size=40)
    model = make_model("ppo")
    model.learn(80, callback=callback)
    frozen = [
        any(key.startswith("plasticity/actor/dorm") for key in v) for _, v in callback.history
    ]
    assert frozen == [False, False, True, True, True]
    probe = callback.source.frozen
    model.learn(64, callback=callback, reset_num_timesteps=False)
    assert callback.source.frozen is probe
    assert len(probe) == 40


def test_too_few_observations_for_a_rank_is_nan_with_one_warning():
    callback = PlasticityMetricsCallback(every=16, probe_size=8)
    with pytest.warns(UserWarning, match="A rank needs at least as many") as caught:
        make_model("ppo").learn(64, callback=callback)
    assert len(caught) == 1
    assert np.isnan(callback.history[-1][1]["plasticity/actor/effective_rank"])
    assert 0 <= callback.history[-1][1]["plasticity/actor/dormant_ratio"] <= 1


def test_an_unhooked_layer_is_named_and_never_zero():
    class Functional(BaseFeaturesExtractor):
        def __init__(self, space):
            super().__init__(space, 8)
            self.first = torch.nn.Linear(space.shape[0], 8)

        def forward(self, observations):
            return torch.nn.functional.relu(self.first(observations))

    callback = PlasticityMetricsCallback(every=16, probe_size=32)
    model = make_model("dqn", policy_kwargs={"features_extractor_class": Functional})
    with pytest.warns(UserWarning, match=r"No activation module follows .*\.first") as caught:
        model.learn(80, callback=callback)
    assert len(caught) == 1


def test_reports_hold_the_same_probe_whatever_the_order():
    numbers = []
    for order in (1, -1):
        fire, metrics = FireCallback(at=[48]), PlasticityMetricsCallback(every=16, probe_size=32)
        make_model("sac").learn(80, callback=[fire, metrics][::order])
        numbers.append(
            (fire.reports[0].before, fire.reports[0].after, fire.reports[0].policy_change)
        )
    assert numbers[0] == numbers[1]


# --- where it is written ------------------------------------------------------------------------


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("algo", ["dqn", "ppo"])
def test_event_files_hold_everything_at_the_exact_step(algo, tmp_path):
    model = make_model(algo)
    model.set_logger(configure(str(tmp_path), ["tensorboard", "csv", "stdout"]))
    metrics = PlasticityMetricsCallback(every=32, probe_size=32)
    fire = FireCallback(at=[48])
    model.learn(96, callback=[fire, metrics])
    model.logger.close()
    found = scalars(tmp_path)
    measured = [step for step, _ in metrics.history]
    assert [s for s, _ in found["plasticity/critic/dfi"]] == measured == [32, 64, 96]
    for (_, logged), (_, values) in zip(
        found["plasticity/critic/dfi"], metrics.history, strict=True
    ):
        assert logged == pytest.approx(values["plasticity/critic/dfi"], rel=1e-5)
    layer = "q_net.q_net.0" if algo == "dqn" else "mlp_extractor.value_net.0"
    assert [s for s, _ in found[f"plasticity_layers/critic/{layer}/dfi"]] == measured
    assert [s for s, _ in found["intervention/critic/dfi_after"]] == [48]
    lines = (tmp_path / "interventions.jsonl").read_text().splitlines()
    entry, recovered = map(json.loads, lines)
    assert (recovered["recovery"], recovered["step"], recovered["end"]) == ("fire", 48, 96)
    assert [s for s, _ in found["recovery/fire/dip"]] == [48]
    assert found["recovery/fire/plateau"][0][1] == pytest.approx(recovered["plateau"])
    assert (entry["planned_step"], entry["num_timesteps"]) == (48, 48)
    assert entry["networks"]["critic"]["layers"][0]["action"] == "project"
    assert (tmp_path / "progress.csv").stat().st_size > 0
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"plasticity/critic/effective_rank" in layout


def test_the_jsonl_goes_to_log_dir_or_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model("ppo").learn(32, callback=FireCallback(at=[16]))
    assert list(tmp_path.rglob("*.jsonl")) == []
    make_model("ppo").learn(32, callback=FireCallback(at=[16], log_dir=tmp_path / "here"))
    assert (tmp_path / "here" / "interventions.jsonl").exists()


def test_verbose_says_the_plan_once_and_a_line_per_event(capsys):
    make_model("ppo").learn(64, callback=FireCallback(every=16, verbose=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fire: planned at 16, 32, 48 timesteps"
    events = [line for line in lines if not line.startswith("recovery")]
    assert len(events) == 4
    assert events[1].startswith("fire at step 16; actor: 3 of 3 layers, DfI/sv ")
    assert lines[-1].startswith("recovery from fire at step 32 (the last of 2 events): before ")


def test_a_run_that_counts_from_0_again_has_a_recovery_of_its_own():
    fire = FireCallback(at=[48])
    model = make_model("ppo")
    for _ in range(2):
        model.learn(160, callback=fire)
    assert steps(fire) == [48, 48]
    (last,) = fire.recoveries()
    assert (last.step, last.end) == (48, 160)
    assert len(fire.episodes.episodes) == 12  # of the second run: 2 environments, 12 steps each
    make_model("ppo").learn(96, callback=fire)
    assert max(step for step, _ in fire.episodes.episodes) <= 96


def test_redo_judges_units_on_what_the_network_trains_on_now():
    """And not on the frozen probe: there, what an untrained policy has seen, the unit fires."""
    model = make_model("ppo", policy_kwargs={"activation_fn": torch.nn.ReLU})
    first = model.policy.mlp_extractor.policy_net[0]
    callback = InterventionCallback({"name": "redo", "tau": 0.0}, {"at": [64]}, probe_size=16)

    class Freeze(BaseCallback):
        def _on_rollout_start(self):
            with torch.no_grad():  # fires beyond 1, where no observation of the environment is
                first.weight[0] = torch.eye(5)[0]
                first.bias[0] = -1.0
            callback.source.frozen = Probe(torch.full((16, 5), 2.0), None)

        def _on_step(self):
            return True

    model.learn(96, callback=[Freeze(), callback])
    (report,) = callback.reports
    units = {change.name: change.units for change in report.layers}
    assert units["mlp_extractor.policy_net.0"] >= 1


def test_chunks_of_a_known_horizon_say_the_plan_once(capsys):
    model, callback = make_model("ppo"), FireCallback(at=[48], horizon=64, verbose=1)
    for _ in range(4):
        model.learn(16, callback=callback, reset_num_timesteps=False)
    lines = [line.partition(";")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["fire: planned at 48 timesteps", "fire at step 48"]


# --- where it may stand -------------------------------------------------------------------------


@pytest.mark.compat(
    section="Refused, with the reason",
    algorithm="ppo",
    setting="{kind.__name__} inside EveryNTimesteps",
    checked="An error says that it would do nothing there, however deep it is nested.",
)
@pytest.mark.parametrize("kind", [FireCallback, PlasticityMetricsCallback])
def test_wrapped_callbacks_are_refused_however_deep(kind):
    for wrap in (
        lambda inner: EveryNTimesteps(16, inner),
        lambda inner: CallbackList([EveryNTimesteps(16, CallbackList([CallbackList([inner])]))]),
        lambda inner: EveryNTimesteps(16, EveryNTimesteps(16, inner)),
    ):
        with pytest.raises(RuntimeError, match=r"is inside EveryNTimesteps, .* `every=200_000`"):
            make_model("ppo").learn(64, callback=wrap(kind(every=16)))


def test_a_wrapper_of_ones_own_is_found_out_in_the_first_step():
    class Wrapper(BaseCallback):
        def _init_callback(self):
            self.inner = FireCallback(every=16)
            self.inner.init_callback(self.model)

        def _on_training_start(self):
            self.inner.on_training_start(self.locals, self.globals)

        def _on_step(self):
            return self.inner.on_step()

    with pytest.raises(RuntimeError, match="a callback that forwards no rollout hooks"):
        make_model("ppo").learn(64, callback=Wrapper())


@pytest.mark.parametrize("kind", [FireCallback, PlasticityMetricsCallback])
def test_a_callback_of_new_best_models_is_refused(kind):
    evaluation = EvalCallback(make_model("ppo").get_env(), kind(every=16), eval_freq=16, verbose=0)
    with pytest.raises(RuntimeError, match="a callback that forwards no rollout hooks"):
        make_model("ppo").learn(64, callback=evaluation)


def evaluation(algo, folder, new_best=None, after=None):
    """Every 32 steps, as rl_zoo3 does it."""
    env = make_model(algo, n_envs=1).get_env()
    single = env.envs[0].unwrapped
    single.observation_space = copy.deepcopy(single.observation_space)  # with its random numbers
    return EvalCallback(
        env,
        new_best,
        after,
        eval_freq=16,
        log_path=str(folder),
        best_model_save_path=str(folder),
        verbose=0,
    )


ARRANGEMENTS = {
    "a list": lambda fire, metrics, evaluating, saving: [fire, metrics, evaluating, saving],
    "ours last": lambda fire, metrics, *others: CallbackList([*others, metrics, fire]),
    "nested": lambda fire, metrics, evaluating, saving: CallbackList(
        [CallbackList([evaluating, CallbackList([fire])]), CallbackList([saving, metrics])]
    ),
}


BESIDE = [
    pytest.param(algo, name, marks=() if (algo, name) == ("ppo", "nested") else pytest.mark.full)
    for algo in ("ppo", "sac")
    for name in ARRANGEMENTS
]


@pytest.mark.compat(
    section="Training loops",
    setting="CallbackList with EvalCallback, CheckpointCallback, StopTraining…: {arrangement}",
    checked="Events, metrics, evaluations and zips at their steps, weights as without the others.",
)
@few_observations
@pytest.mark.parametrize(("algo", "arrangement"), BESIDE)
@pytest.mark.parametrize(
    ("new_best", "after"),
    [
        (None, None),
        (lambda folder: StopTrainingOnRewardThreshold(1e9), None),
        (None, lambda folder: StopTrainingOnNoModelImprovement(9)),
        (lambda folder: CheckpointCallback(1, folder / "best"), lambda folder: CallbackList([])),
    ],
)
def test_beside_others_all_is_as_without_them(algo, arrangement, new_best, after, tmp_path):
    fire, metrics = FireCallback(at=[48], log_dir=tmp_path), PlasticityMetricsCallback(every=32)
    inner = [make and make(tmp_path) for make in (new_best, after)]
    saving = CheckpointCallback(24, str(tmp_path))
    evaluating = evaluation(algo, tmp_path, *inner)
    beside = ARRANGEMENTS[arrangement](fire, metrics, evaluating, saving)
    model = make_model(algo).learn(96, callback=beside)
    assert steps(fire) == [48]
    assert [step for step, _ in metrics.history] == [32, 64, 96]
    assert not changed(trained(algo, FireCallback(at=[48]), 96), state_of(model))
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [32, 64, 96]
    for name in ("rl_model_48_steps", "rl_model_96_steps", "best_model"):
        type(model).load(tmp_path / name)
    if isinstance(inner[0], CheckpointCallback):
        assert list((tmp_path / "best").glob("*.zip"))


@at_the_end
def test_an_event_at_the_step_at_which_another_callback_stops_is_not_lost(tmp_path):
    fire = FireCallback(at=[32])
    model = make_model("ppo")
    stop = StopTrainingOnRewardThreshold(-1e9)
    model.learn(96, callback=[evaluation("ppo", tmp_path, stop), fire])
    assert (model.num_timesteps, steps(fire)) == (32, [])
    model.learn(64, callback=fire, reset_num_timesteps=False)
    assert steps(fire) == [32]


def test_a_training_ends_once_whoever_says_so_again(tmp_path):
    fire, metrics = FireCallback(at=[32], log_dir=tmp_path), PlasticityMetricsCallback(every=32)
    make_model("ppo").learn(96, callback=[fire, metrics])
    entries = (tmp_path / "interventions.jsonl").read_text()
    for callback in (fire, metrics):  # rl_zoo3 does so
        callback.on_training_end()
    assert (tmp_path / "interventions.jsonl").read_text() == entries
    FireCallback(at=[32]).on_training_end()  # and if learn() has failed before any start


def test_plain_values_as_yaml_gives_them():
    callback = InterventionCallback({"name": "fire", "strength": 0.5, "networks": ["critic"]},
                                    {"every": 200_000})  # fmt: skip
    assert callback.intervention == FIRE(strength=0.5, networks=("critic",))
    assert callback.clock.schedule == Every(200_000, 0.8)
    assert FireCallback(at=[3], preset="paper_sac").intervention == FIRE.paper_sac()
    assert InterventionCallback("none", At(3)).intervention == NoIntervention()


def test_numbers_that_yaml_reads_as_texts():
    given = yaml.safe_load("{every: 2e5, stop: 5e-1, strength: 5e-1, scale: 1e0, num_steps: 1e1}")
    assert given["every"] == "2e5"  # YAML 1.1 wants a dot
    callback = FireCallback(**given)
    assert callback.clock.schedule == Every(200_000, 0.5)
    assert callback.intervention == FIRE(strength=0.5, scale=1.0)
    assert FireCallback(at=["1e3", 2e3]).clock.schedule == At([1000, 2000])
    assert FireCallback(at="1e3").clock.schedule == At(1000)
    assert FireCallback(fractions="5e-1").clock.schedule == AtFractions(0.5)
    watched = {"metric": "dfi", "above": "1e-1", "every": "1e4"}
    assert FireCallback(threshold=watched).clock.schedule == Threshold("dfi", 0.1)
    assert RandomOrthogonal(scale="5e-1") == RandomOrthogonal(scale=0.5)
    assert PlasticityMetricsCallback(every="1e4", probe_size="1e3").probe_size == 1000


def test_numbers_of_numpy_are_numbers():
    assert Every(np.int64(1000)).steps == 1000
    callback = FireCallback(at=np.linspace(100, 1000, 4).astype(int))
    assert callback.clock.schedule.steps == (100, 400, 700, 1000)
    fractions = AtFractions(np.array([0.25, 0.5], dtype=np.float32))
    assert fractions.planned(100) == (25, 50)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FireCallback(), "exactly one of every, at and fractions, got none"),
        (lambda: FireCallback(every=0), "`every` must be a whole number of at least 1, got 0"),
        (lambda: FireCallback(every="1e-3"), "`every` must be a whole number of .* got '1e-3'"),
        (lambda: FireCallback(every="often"), "`every` must be a whole number of .* got 'often'"),
        (lambda: FireCallback(every=5, strength="nan"), "`strength` must be a number above 0"),
        (lambda: FireCallback(every="inf"), "`every` must be a whole number"),
        (lambda: FireCallback(at=[5, 3]), "ascending"),
        (lambda: FireCallback(every=5, strenght=0.5), "Did you mean 'strength'"),
        (lambda: FireCallback(every=5, preset="paper_dnq"), "Did you mean 'paper_dqn'"),
        (lambda: FireCallback(every=5, horizon=0), "`horizon` must be a whole number"),
        (lambda: FireCallback(every=5, unit="steps"), "`unit` must be one of 'timesteps'"),
        (lambda: FireCallback(at=[1], seed="a"), "`seed` must be a whole number"),
        (lambda: FireCallback(at="soon"), "got 'soon'"),
        (lambda: InterventionCallback({"strength": 0.5}), "needs a `name`"),
        (lambda: InterventionCallback("fier", {"every": 5}), "Did you mean 'fire'"),
        (lambda: PlasticityMetricsCallback(every=0), "`every` must be a whole number"),
        (lambda: PlasticityMetricsCallback(probe_size=0), "`probe_size` must be a whole number"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_class_is_no_schedule():
    with pytest.raises(TypeError, match="`schedule` must be a mapping"):
        InterventionCallback("fire", Every)


@pytest.mark.parametrize("options", [{"networks": ["critik"]}, {"include": ["actor.latent_pie"]}])
def test_a_misfit_shows_before_training(options):
    model = make_model("sac")
    with pytest.raises(ValueError, match=r"Did you mean"):
        model.learn(16, callback=FireCallback(at=[16], **options))
    assert model.num_timesteps == 0
