"""The contract that every intervention keeps, on every algorithm; and what each one does."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

from fire_rl import (
    FIRE,
    INTERVENTIONS,
    EntropyTemperatureReset,
    OptimizerReset,
    RandomOrthogonal,
    Reset,
    ShrinkAndPerturb,
    apply_intervention,
    make_intervention,
)
from fire_rl.interventions import Context, Network, published_schedule
from fire_rl.interventions.base import named_tensors
from fire_rl.sb3.model_view import ModelView
from tests.helpers.models import (
    ALGORITHMS,
    EVERY_ALGORITHM,
    IGNORE_LSTM,
    changed,
    make_model,
    state_of,
)

pytestmark = pytest.mark.filterwarnings(IGNORE_LSTM)

# Pairwise: every intervention meets every algorithm, and both kinds of policy; those of sb3-contrib
# a third of them, so that the quick tests stay quick.
ROWS = [
    pytest.param(
        name,
        algo,
        observation,
        marks=[]
        if (i + a) % 2 == (observation == "cnn") and (algo in ALGORITHMS or (i + a) % 3 == 0)
        else pytest.mark.full,
    )
    for (i, name), (a, algo), observation in itertools.product(
        enumerate(INTERVENTIONS), enumerate(EVERY_ALGORITHM), ("mlp", "cnn")
    )
]


def draws(model):
    """The states of all generators that training draws from."""
    numpy = np.random.get_state()  # noqa: NPY002  (SB3 draws from it)
    return (
        random.getstate(),
        numpy[1].tolist(),
        numpy[2],
        torch.get_rng_state().tolist(),
        copy.deepcopy(model.action_space.np_random.bit_generator.state),
    )


def kill_units(model):
    """Silence the first two units of every hidden layer: there is something to recycle."""
    with torch.no_grad():
        for group in ModelView(model).groups:
            for layer in group.online.layers:
                if not layer.is_head and layer.bias is not None:
                    layer.weight[:2] = 0
                    layer.bias[:2] = -1


@pytest.mark.parametrize(("name", "algo", "observation"), ROWS)
def test_contract(name, algo, observation):
    options = {"policy_kwargs": {"activation_fn": nn.ReLU}}
    if algo in ("sac", "td3"):
        options["policy_kwargs"]["share_features_extractor"] = observation == "cnn"
    model = make_model(algo, observation, **options).learn(48)
    kill_units(model)
    before, parameters = state_of(model), list(model.policy.parameters())
    memory = {
        id(p): sorted(group.optimizer.state.get(p, {}))
        for group in ModelView(model).groups
        for p in group.online.tensors.values()
    }
    drawn = draws(model)
    initial = {n: t.clone() for n, t in named_tensors(ModelView(model).fresh_policy(7)).items()}
    report = apply_intervention(model, name, initial=initial)
    after = state_of(model)

    # the training draws what it would have drawn
    assert draws(model) == drawn
    # the same Parameter objects, with the same shapes, types and devices, finite
    assert all(a is b for a, b in zip(parameters, model.policy.parameters(), strict=True))
    for key, tensor in after.items():
        assert tensor.shape == before[key].shape, key
        assert (tensor.dtype, tensor.device) == (before[key].dtype, before[key].device), key
        assert bool(torch.isfinite(tensor).all()), key
    # the report names what changed, and nothing that did not
    groups = ModelView(model).groups
    by_address = {t.data_ptr(): n for g in groups for n, t in g.online.tensors.items()}
    live = model.policy.state_dict(keep_vars=True)
    moved = {by_address.get(live[key].data_ptr()) for key in changed(before, after)} - {None}
    assert moved == reported(report, groups)
    if name not in ("none", "optimizer_reset", "entropy_temperature_reset"):
        assert moved
    # targets are in line
    if make_intervention(name).aftermath.target == "copy":
        for group in groups:
            for key, tensor in (group.target.tensors if group.target else {}).items():
                assert torch.equal(tensor, group.online.tensors[key]), key
    # what the optimizer has forgotten is what the report counts, SAC's temperature included
    temperature = getattr(model, "ent_coef_optimizer", None)
    forgotten = int(temperature is not None and name == "optimizer_reset")
    for group in groups:
        for parameter in group.online.tensors.values():
            held = sorted(group.optimizer.state.get(parameter, {}))
            forgotten += memory[id(parameter)] != held
    if name != "redo":  # which forgets a part of the moments
        assert report.optimizer_entries_forgotten == forgotten
    assert (forgotten > 0) == (name not in ("none", "entropy_temperature_reset", "redo"))

    # it trains on, and really
    model.learn(48, reset_num_timesteps=False)
    trained = changed(after, state_of(model))
    assert len(trained) >= len(groups)
    assert all(bool(torch.isfinite(t).all()) for t in state_of(model).values())


def reported(report, groups):
    """Names of the tensors that a report says have changed."""
    names = {name for changes in report.networks.values() for name in changes.others}
    layers = {layer.name: layer for group in groups for layer in group.online.layers}
    for change in report.layers:
        if change.action != "keep":
            names.add(layers[change.name].tensor_name("weight"))
    return names


def reset_layers(report):
    return [change.name for change in report.layers if change.action != "keep"]


def test_a_full_reset_is_sb3s_own_initialisation():
    """PPO's gains: √2 in the trunks, 0.01 and 1 in the heads; biases 0, log_std 0 again."""
    model = make_model("ppo").learn(64)
    gain = {"action_net": 0.01, "value_net": 1.0}
    continuous = model.policy.log_std
    with torch.no_grad():
        continuous.fill_(-1.0)
    apply_intervention(model, "reset")
    for group in ModelView(model).groups:
        for layer in group.online.layers:
            rows = (
                layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
            )
            expected = gain.get(layer.name, 2**0.5) ** 2 * torch.eye(len(rows))
            assert torch.allclose(rows @ rows.T, expected, atol=1e-5), layer.name
            assert not layer.bias.any()
    assert not continuous.any()


def test_reset_draws_anew_or_goes_back():
    start = make_model("dqn")
    initial = {name: tensor.clone() for name, tensor in named_tensors(start.policy).items()}
    model = start.learn(64)
    apply_intervention(model, Reset(source="initial"), initial=initial)
    assert all(torch.equal(initial[n], t) for n, t in named_tensors(model.policy).items())
    apply_intervention(model, Reset())
    moved = changed(initial, named_tensors(model.policy))
    assert {name for name in initial if "weight" in name} <= moved
    with pytest.raises(ValueError, match="they were not recorded"):
        apply_intervention(model, Reset(source="initial"))


@pytest.mark.parametrize(
    ("algo", "layers", "expected"),
    [
        ("dqn", "heads", ["q_net.q_net.4"]),
        ("dqn", "last:2", ["q_net.q_net.2", "q_net.q_net.4"]),
        ("ppo", "last:1", ["action_net", "value_net"]),
        ("ppo", "last:2", ["mlp_extractor.policy_net.2", "action_net", "mlp_extractor.value_net.2", "value_net"]),  # noqa: E501
        ("sac", "heads", ["actor.mu", "actor.log_std", "critic.qf0.4", "critic.qf1.4"]),
        ("sac", "last:2", ["actor.latent_pi.2", "actor.mu", "actor.log_std", "critic.qf0.2", "critic.qf0.4", "critic.qf1.2", "critic.qf1.4"]),  # noqa: E501
        ("td3", "last:1", ["actor.mu.4", "critic.qf0.4", "critic.qf1.4"]),
    ],
)  # fmt: skip
def test_reset_of_last_layers(algo, layers, expected):
    model = make_model(algo).learn(32)
    report = apply_intervention(model, Reset(layers=layers))
    assert reset_layers(report) == expected
    biases = {name for changes in report.networks.values() for name in changes.others}
    assert biases == {f"{name}.bias" for name in expected}


def test_reset_of_more_layers_than_there_are():
    model = make_model("ppo")
    with pytest.raises(ValueError, match=r"`layers` is 'last:4', but the actor has only 3 layers"):
        apply_intervention(model, Reset(layers="last:4"))


def test_shrink_and_perturb_against_its_formula():
    model = make_model("sac").learn(48)
    before = state_of(model)
    initial = {n: t.clone() for n, t in named_tensors(ModelView(model).fresh_policy(3)).items()}
    intervention = ShrinkAndPerturb(keep=0.7, hidden=0.4, head=0.0, source="initial")
    apply_intervention(model, intervention, initial=initial)
    for name, tensor in named_tensors(model.policy).items():
        if "target" in name:
            continue
        head = name.startswith(("actor.mu", "actor.log_std")) or name.split(".")[-2] == "4"
        keep = 0.0 if head else 0.4
        expected = keep * before[name] + (1 - keep) * initial[name]
        assert torch.allclose(tensor, expected, atol=1e-7), name


def test_shrink_and_perturb_touches_norm_layers_and_log_std_unless_told_otherwise():
    model = make_model("ppo").learn(32)
    with torch.no_grad():
        model.policy.log_std.fill_(-1.0)
    apply_intervention(model, ShrinkAndPerturb(keep=0.5, others="keep"))
    assert (model.policy.log_std == -1).all()
    apply_intervention(model, ShrinkAndPerturb(keep=0.5))
    assert (model.policy.log_std == -0.5).all()
    before = state_of(model)
    report = apply_intervention(model, ShrinkAndPerturb(keep=1))
    assert not changed(before, state_of(model))
    assert not reset_layers(report)


def test_sr_dqn_is_the_baseline_of_fires_authors():
    """Linear layers to the start, 0.2 of the convolutions, in both networks; Adam is kept."""
    start = make_model("dqn", "cnn")
    initial = {name: tensor.clone() for name, tensor in named_tensors(start.policy).items()}
    model = start.learn(64)
    before = state_of(model)
    report = apply_intervention(model, ShrinkAndPerturb.sr_dqn(), initial=initial)
    for name, tensor in named_tensors(model.policy).items():
        conv = ".net.0." in name
        keep = 0.2 if conv else 0.0
        source = initial[name.replace("q_net_target", "q_net")]
        assert torch.allclose(tensor, keep * before[name] + (1 - keep) * source, atol=1e-7), name
    assert report.optimizer_entries_forgotten == 0


@pytest.mark.parametrize(("algo", "observation"), [("dqn", "cnn"), ("sac", "mlp"), ("ppo", "cnn")])
def test_random_orthogonal_is_isometric_and_keeps_nothing(algo, observation):
    model = make_model(algo, observation).learn(48)
    exact = apply_intervention(model, FIRE(method="exact"), dry_run=True)
    report = apply_intervention(model, RandomOrthogonal())
    for ours, fire in zip(report.layers, exact.layers, strict=True):
        assert ours.norm_after == pytest.approx(fire.norm_after, rel=1e-5)
        assert ours.dfi_after / ours.num_singular_values < 1e-8
        assert ours.sfe > fire.sfe  # FIRE is the nearest one
    assert reset_layers(apply_intervention(model, RandomOrthogonal(head="keep", conv="keep")))
    again = make_model(algo, observation).learn(48)
    apply_intervention(again, RandomOrthogonal())
    other = make_model(algo, observation).learn(48)
    apply_intervention(other, RandomOrthogonal(), seed=99)
    assert changed(state_of(again), state_of(other))


def test_the_controls_touch_no_weight():
    model = make_model("sac").learn(48)
    before, temperature = state_of(model), model.log_ent_coef.item()
    assert temperature != 0
    report = apply_intervention(model, OptimizerReset())
    parameters = [*model.actor.parameters(), *model.critic.parameters(), model.log_ent_coef]
    assert report.optimizer_entries_forgotten == len(parameters)
    assert not model.actor.optimizer.state
    assert not model.critic.optimizer.state
    assert not model.ent_coef_optimizer.state
    assert model.log_ent_coef.item() == temperature
    assert not changed(before, state_of(model))
    model.learn(16, reset_num_timesteps=False)
    before, temperature = state_of(model), model.log_ent_coef.item()
    report = apply_intervention(model, EntropyTemperatureReset())
    assert report.around == {
        "entropy_temperature": [pytest.approx(np.exp(temperature)), pytest.approx(1.0)]
    }
    assert model.log_ent_coef.item() == 0
    assert not model.ent_coef_optimizer.state
    assert not changed(before, state_of(model))


def test_a_temperature_that_does_not_exist_is_named_in_the_log(caplog):
    apply_intervention(make_model("dqn"), "entropy_temperature_reset")
    assert "DQN has no learned entropy temperature" in caplog.text


@pytest.mark.parametrize(
    ("spec", "schedule"),
    [
        ({"name": "reset", "preset": "nikishin_sac"}, {"every": 200_000}),
        ({"name": "reset", "preset": "nikishin_drq"}, {"every": 100_000}),
        ({"name": "reset", "preset": "nikishin_spr"}, {"every": 20_000}),
        ({"name": "fire", "preset": "paper_dqn"}, {"fractions": [0.5]}),
        ({"name": "shrink_and_perturb", "preset": "sr_dqn"}, {"fractions": [0.5]}),
        ({"name": "shrink_and_perturb", "preset": "sr_spr"}, None),
        ({"name": "fire"}, None),
        ("fire", None),
    ],
)
def test_presets_bring_their_published_schedule(spec, schedule):
    make_intervention(spec)
    assert published_schedule(spec) == schedule


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "shrink_and_perturb", "keep": 1.5}, r"`keep` must be .* 0 to 1, got 1\.5"),
        ({"name": "shrink_and_perturb", "keep": -0.1}, r"`keep` must be a number from 0 to 1"),
        ({"name": "shrink_and_perturb", "conv": "all"}, r"`conv` must be a number from 0 to 1"),
        ({"name": "shrink_and_perturb", "keep": True}, r"`keep` must be a number from 0 to 1"),
        ({"name": "shrink_and_perturb", "kep": 1}, r"no option 'kep'.*Did you mean 'keep'"),
        ({"name": "reset", "layers": "last:0"}, r"`layers` must be 'all', 'heads' or 'last:<k>'"),
        ({"name": "reset", "layers": 3}, r"`layers` must be 'all', 'heads' or 'last:<k>'.*got 3"),
        ({"name": "reset", "source": "old"}, r"`source` must be one of 'fresh', 'initial'"),
        ({"name": "reset", "preset": "nikishin_dqn"}, r"preset of reset.*nikishin_"),
        ({"name": "random_orthogonal", "scale": "best"}, r"`scale` must be one of 'published'"),
        ({"name": "random_orthogonal", "scale": 0}, r"`scale` must be a number above 0"),
        ({"name": "random_orthogonal", "conv": "project"}, r"`conv` must be one of 'draw'"),
        ({"name": "optimizer_reset", "target": "copy"}, r"`target` must be one of 'keep'"),
        ({"name": "entropy_temperature_reset", "entropy_temperature": "keep"}, r"must be one of 'reset'"),  # noqa: E501
        ({"name": "reset", "networks": []}, r"`networks` must name a role"),
        ({"name": "fire", "networks": []}, "`networks` must name a role"),
        ({"name": "rset"}, r"`intervention name`.*Did you mean 'reset'"),
    ],
)  # fmt: skip
def test_bad_options(spec, message):
    with pytest.raises(ValueError, match=message):
        make_intervention(spec)


def test_unknown_layers_and_roles():
    model = make_model("dqn")
    with pytest.raises(ValueError, match=r"`include` pattern 'q_net\.q_nt\.0' matches no layer"):
        apply_intervention(model, ShrinkAndPerturb(include="q_net.q_nt.0"))
    with pytest.raises(ValueError, match=r"`networks` must name roles of this model \(critic\)"):
        apply_intervention(model, Reset(networks=["actor"]))


def test_frozen_norm_layers_are_left_alone():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    network = Network.from_module(net)
    net[1].weight.requires_grad_(False)
    fresh = {name: tensor + 1 for name, tensor in network.tensors.items()}
    context = Context(lambda: fresh, lambda: fresh, dict, torch.Generator())
    updates = FIRE(norm_layers="reset").plan(network, context)
    assert "1.bias" in updates
    assert "1.weight" not in updates


def test_frozen_parameters_are_left_alone():
    model = make_model("dqn").learn(32)
    frozen = model.q_net.q_net[0]
    frozen.weight.requires_grad_(False)
    frozen.bias.requires_grad_(False)
    for seed, name in enumerate(("reset", "shrink_and_perturb", "random_orthogonal")):
        before = state_of(model)
        apply_intervention(model, name, seed=seed)
        moved = changed(before, state_of(model))
        assert not {n for n in moved if n.startswith("q_net.q_net.0")}, name
        assert moved
