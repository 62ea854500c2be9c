"""Aids after surgery: head refit, warm-up, restarted exploration; several interventions."""

import io
import json

import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule

from fire_rl import FIRE, FireCallback, InterventionCallback, RunCheckpointCallback
from fire_rl.sb3.exploration import ExplorationRestart
from fire_rl.sb3.head_refit import HeadRefit
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.probe import ProbeSource
from fire_rl.sb3.surgery import apply_intervention
from tests.helpers.models import ALGORITHMS, changed, make_model, state_of


def test_the_fit_is_ridge_regression():
    """Against the augmented least-squares problem, solved by torch."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 4, generator=generator).double() * torch.tensor([3, 1, 1, 0.1])
    answers = torch.randn(50, 2, generator=generator).double() + 5
    weight, bias = HeadRefit(ridge=0.3).fit(features, answers)
    centred = features - features.mean(0)
    penalty = 0.3 * (centred.T @ centred / 50).diagonal().mean() * 50
    rows = torch.cat([centred, penalty.sqrt() * torch.eye(4).double()])
    wanted = torch.cat([answers - answers.mean(0), torch.zeros(4, 2).double()])
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    assert torch.allclose(weight, expected)
    assert torch.allclose(features.mean(0) @ weight.T + bias, answers.mean(0))
    without, zero = HeadRefit(ridge=1e-9).fit(features, features @ weight.T, bias=False)
    assert torch.allclose(without, weight, atol=1e-6)
    assert not zero.any()


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_refitted_head_answers_much_as_before(algo):
    model = make_model(algo, policy_kwargs={"net_arch": [32, 32]}).learn(160)
    probe = ProbeSource(1024, 0).live(model)
    options = {"probe": probe, "dry_run": True}
    intervention = FIRE(method="exact")
    plain = apply_intervention(model, intervention, **options)
    before = state_of(model)
    dry = apply_intervention(model, intervention, head_refit=True, **options)
    assert not changed(before, state_of(model))
    real = apply_intervention(model, intervention, head_refit=True, probe=probe)
    assert real.networks == dry.networks
    assert real.policy_change == dry.policy_change
    for name, value in real.policy_change.items():
        assert value < 0.5 * plain.policy_change[name], name
    heads = {name for group in ModelView(model).groups for name in group.online.heads}
    actions = {change.name: change.action for change in real.layers}
    assert {name for name, action in actions.items() if action == "refit"} == heads
    for group in ModelView(model).groups:  # targets follow, the optimizer forgets
        for name, tensor in (group.target.tensors if group.target else {}).items():
            assert torch.equal(tensor, group.online.tensors[name])
        for name in group.online.heads:
            layer = next(layer for layer in group.online.layers if layer.name == name)
            assert layer.weight not in group.optimizer.state
            assert layer.bias not in group.optimizer.state
    model.learn(32, reset_num_timesteps=False)


def test_a_strong_ridge_leaves_the_mean_answer():
    model = make_model("dqn").learn(160)
    probe = ProbeSource(1024, 0).live(model)
    with torch.no_grad():
        mean = model.q_net(probe.observations).mean(0)
        apply_intervention(model, FIRE(), head_refit={"ridge": 1e9}, probe=probe)
        assert torch.allclose(
            model.q_net(probe.observations), mean.expand(len(probe), -1), atol=1e-4
        )


def test_temperature_softens_a_categorical_policy():
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", "CartPole-v1", n_steps=256, batch_size=64, seed=0, device="cpu")
    model.learn(1024)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(50)
    probe = ProbeSource(256, 0).live(model)

    def logits():
        with torch.no_grad():
            return model.policy.get_distribution(probe.observations).distribution.logits

    before = logits()
    apply_intervention(
        model,
        FIRE(method="exact"),
        head_refit=HeadRefit(ridge=1e-6, temperature=4.0),
        probe=probe,
    )
    after = logits()
    ratio = (before[:, 0] - before[:, 1]).std() / (after[:, 0] - after[:, 1]).std()
    assert float(ratio) == pytest.approx(4, rel=0.1)


def learn(algo, **options):
    make_model(algo).learn(16, callback=FireCallback(every=8, **options))


def apply(refit, steps=32):
    apply_intervention(make_model("dqn").learn(steps), "fire", head_refit=refit)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeadRefit(ridge=0), r"`ridge` must be a number above 0, got 0"),
        (lambda: HeadRefit(temperature=-1), r"`temperature` must be a number above 0"),
        (lambda: apply({"rige": 1}), r"no option 'rige'.*Did you mean 'ridge'"),
        (lambda: learn("dqn", warmup_updates=-1), r"`warmup_updates` must be a whole number"),
        (lambda: learn("dqn", restart_exploration=0), r"`restart_exploration` must be a whole"),
        (lambda: learn("dqn", restart_exploration={"initial": 0.5}), r"needs 'steps'"),
        (lambda: ExplorationRestart(10, 1.5), r"`initial` must be a number from 0 to 1"),
        (lambda: learn("ppo", warmup_updates=3), r"needs a replay buffer, and PPO has none"),
        (
            lambda: learn("sac", restart_exploration=3),
            r"about the ε of DQN and QR-DQN, and SAC has none",
        ),
        (lambda: apply({"temperature": 2}), r"logits of a categorical policy, and there is none"),
        (lambda: apply(True, steps=0), r"no observations"),
    ],
)
def test_bad_aids(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("algo", "intervention", "refit", "message"),
    [
        ("dqn", FIRE(target="same"), True, r"`target='same'` would leave the target's unfitted"),
        ("dqn", "redo", True, r"would undo `redo`"),
        ("ppo", FIRE(networks=["critic"]), {"temperature": 5}, r"there is none among the networks"),
    ],
)
def test_head_refit_that_would_be_wrong(algo, intervention, refit, message):
    model = make_model(algo).learn(32)
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        apply_intervention(model, intervention, head_refit=refit)
    assert not changed(before, state_of(model))
    callback = InterventionCallback(intervention, {"at": [8]}, head_refit=refit)
    with pytest.raises(ValueError, match=message):
        model.learn(16, callback=callback)


def test_head_refit_needs_a_head():
    model = make_model("ppo", "cnn").learn(16)
    with pytest.raises(ValueError, match=r"needs a network with an output layer .* in shared"):
        apply_intervention(model, FIRE(networks=["shared"]), head_refit=True)


def test_warm_up_updates_are_not_counted():
    """With `unit="gradient_updates"` each warm-up would set off the next event."""
    model = make_model("dqn", n_envs=1)
    callback = InterventionCallback(
        "fire", {"every": 20, "stop": 1.0}, unit="gradient_updates", warmup_updates=25
    )
    model.learn(100, callback=callback)
    assert len(callback.reports) == 4  # of 92 updates between rollouts


def test_a_restart_does_not_reach_into_the_next_training():
    model = make_model("dqn", n_envs=1, exploration_fraction=0.1)
    model.learn(100, callback=FireCallback(at=[60], restart_exploration=80))
    rates = Rates()
    model.learn(100, callback=rates)
    assert isinstance(model.exploration_schedule, LinearSchedule)
    assert max(rates.seen.values()) <= 1
    assert rates.seen[50] == pytest.approx(0.05)


def test_warm_up_trains_on_the_buffer_before_acting():
    models = {}
    for updates in (0, 7):
        model = make_model("sac", n_envs=1).learn(24)
        start = model._n_updates
        callback = FireCallback(at=[40], warmup_updates=updates)
        model.learn(32, callback=callback, reset_num_timesteps=False)
        models[updates] = model._n_updates - start
    assert models[7] - models[0] == 7


class Rates(BaseCallback):
    def __init__(self):
        super().__init__()
        self.seen = {}

    def _on_step(self):
        self.seen[self.num_timesteps] = self.model.exploration_rate
        return True


def test_exploration_starts_again_and_comes_back():
    def learn(**options):
        model = make_model("dqn", n_envs=1, exploration_fraction=0.1, exploration_final_eps=0.02)
        rates = Rates()
        fire = FireCallback(at=[60], **options)
        model.learn(200, callback=[fire, rates])
        return model, rates.seen

    _, usual = learn()
    model, rates = learn(restart_exploration={"steps": 40, "initial": 0.8})
    assert all(rates[step] == usual[step] for step in rates if step <= 60)
    assert rates[61] == pytest.approx(0.8, abs=0.05)
    assert rates[81] == pytest.approx(0.41, abs=0.03)
    assert all(rates[step] == usual[step] for step in rates if step > 101)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    assert isinstance(DQN.load(file).exploration_schedule, LinearSchedule)


def test_restarted_exploration_survives_a_resume(tmp_path):
    def callbacks(folder, **options):
        fire = FireCallback(at=[60], restart_exploration=80)
        rates = Rates()
        saver = RunCheckpointCallback(every=100, folder=tmp_path / folder, **options)
        return rates, [fire, rates, saver]

    whole, listed = callbacks("a")
    first = make_model("dqn", n_envs=1).learn(200, callback=listed)
    rest, listed = callbacks("b", resume=tmp_path / "a" / "100")
    second = make_model("dqn", n_envs=1).learn(200, callback=listed)
    assert rest.seen[120] == whole.seen[120] > 0.25
    assert not changed(state_of(first), state_of(second))


def test_several_interventions_each_on_its_own_schedule(tmp_path):
    """In order, in one training: ReDo often, FIRE rarely."""
    model = make_model("dqn", policy_kwargs={"activation_fn": torch.nn.ReLU})
    model.set_logger(configure(str(tmp_path), ["csv"]))
    redo = InterventionCallback({"name": "redo", "tau": 0.1}, {"every": 32, "stop": 1.0})
    fire = InterventionCallback("fire", {"at": [64]})
    model.learn(128, callback=[redo, fire])
    model.logger.close()
    lines = map(json.loads, (tmp_path / "interventions.jsonl").read_text().splitlines())
    events = [(line["num_timesteps"], line["intervention"]) for line in lines if "networks" in line]
    # at 128 the training has ended
    assert events == [(32, "redo"), (64, "redo"), (64, "fire"), (96, "redo")]
