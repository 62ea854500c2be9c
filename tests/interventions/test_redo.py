"""ReDo: which units it recycles, what exactly changes, and that they really learn again."""

import copy
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fire_rl import InterventionReport, ReDo, apply_intervention, make_intervention
from fire_rl.interventions.base import Context, Network, named_tensors
from fire_rl.interventions.operation import write
from fire_rl.metrics.activations import capture_activations
from fire_rl.metrics.unit_readers import trace_connections
from fire_rl.sb3.measurement import observe, observe_connections
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.networks import anatomy_of
from fire_rl.sb3.probe import ProbeSource
from tests.helpers.models import ALGORITHMS, TinyExtractor, changed, make_model, state_of

REFERENCE = np.load(Path(__file__).parents[1] / "helpers" / "data" / "reference.npz")
RELU = {"activation_fn": nn.ReLU}


def context_for(net, observations, fresh=None, layers=None):
    """The context of a plain module, as surgery makes it for a model."""
    network = Network.from_module(net)
    modules = {layer.name: layer.module for layer in network.layers}
    by_name = {layer.name: layer for layer in network.layers}
    seen = capture_activations(modules, [net], lambda: net(observations), network.heads)
    return network, Context(
        fresh=lambda: fresh if fresh is not None else dict(copy.deepcopy(net).named_parameters()),
        initial=dict,
        activations=lambda: seen.post,
        generator=torch.Generator(),
        connections=lambda: trace_connections(by_name, [net], lambda: net(observations[:1])),
        acted_on=by_name if layers is None else {name: by_name[name] for name in layers},
    )


def chain(*sizes):
    """A network of linear layers, weights 1, 2, 3, ... and biases 0."""
    layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in itertools.pairwise(sizes)]
    net = nn.Sequential(*itertools.chain(*layers))[:-1]
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.copy_(torch.arange(1.0, layer.weight.numel() + 1).view_as(layer.weight))
            layer.bias.zero_()
    return net


def test_three_units_by_hand():
    """Units give 3, 0 and 0.03 on average: scores 2.97, 0 and 0.03."""
    net = chain(1, 3, 2)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0], [0.01]]))
    observations = torch.tensor([[2.0], [4.0]])
    fresh = {name: torch.full_like(p, 7.0) for name, p in net.named_parameters()}
    network, context = context_for(net, observations, fresh)
    updates = ReDo(tau=0.0).plan(network, context)
    assert updates["0.weight"].value.tolist() == [[1.0], [7.0], [pytest.approx(0.01)]]
    assert updates["0.weight"].entries.tolist() == [[False], [True], [False]]
    assert updates["0.bias"].value.tolist() == [0.0, 7.0, 0.0]
    assert updates["2.weight"].value.tolist() == [[1.0, 0.0, 3.0], [4.0, 0.0, 6.0]]
    assert updates["2.weight"].entries.tolist() == [[False, True, False]] * 2
    assert set(updates) == {"0.weight", "0.bias", "2.weight"}
    assert [updates[n].action for n in updates] == ["recycle", "recycle", "zero"]
    assert {n: u.units for n, u in updates.items() if u.units} == {"0.weight": 1}
    updates = ReDo().plan(network, context)  # 0.0297 is not below 0.025
    assert updates["0.weight"].units == 1
    updates = ReDo(0.03).plan(network, context)
    assert updates["0.weight"].value.tolist() == [[1.0], [7.0], [7.0]]
    assert updates["2.weight"].value.tolist() == [[1.0, 0.0, 0.0], [4.0, 0.0, 0.0]]


def test_layers_are_judged_together_and_zero_wins_between_recycled_units():
    net = chain(1, 2, 2, 1)
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.bias[0] = -1e6
    fresh = {name: torch.full_like(p, 7.0) for name, p in net.named_parameters()}
    network, context = context_for(net, torch.ones(3, 1), fresh)
    updates = ReDo(tau=0).plan(network, context)
    assert updates["0.weight"].value.tolist() == [[7.0], [2.0]]
    assert updates["2.weight"].value.tolist() == [[0.0, 7.0], [0.0, 4.0]]
    assert updates["2.weight"].entries.tolist() == [[True, True], [True, False]]
    assert (updates["2.weight"].action, updates["2.weight"].units) == ("recycle", 1)
    assert updates["2.bias"].value.tolist() == [7.0, 0.0]
    assert updates["4.weight"].value.tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("tau", ["0.0", "0.025", "0.1"])
def test_recycled_units_agree_with_published_code(tau):
    names = [key.split("/")[-1] for key in REFERENCE if key.startswith("dormant/activations/")]
    assert names
    for name in names:
        activations = torch.from_numpy(REFERENCE[f"dormant/activations/{name}"])
        expected = torch.from_numpy(REFERENCE[f"dormant/tau{tau}/{name}"])
        width = activations.shape[1]
        net = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 2))
        network, context = context_for(net, torch.ones(2, 1))
        context = Context(
            fresh=lambda net=net: {n: torch.full_like(p, 9.0) for n, p in net.named_parameters()},
            initial=dict,
            activations=lambda seen=activations: {"0": seen},
            generator=torch.Generator(),
            connections=context.connections,
            acted_on=context.acted_on,
        )
        updates = ReDo(tau=float(tau)).plan(network, context)
        found = updates["0.weight"].entries[:, 0] if updates else torch.zeros(width).bool()
        assert torch.equal(found, expected)
        if updates:
            assert torch.equal(updates["2.weight"].entries, expected.expand(2, -1))


def silence(model, units=(1, 3)):
    """Make units dead by hand, in the live model; return their masks by layer."""
    dead = {}
    with torch.no_grad():
        for group in ModelView(model).groups:
            for layer in group.online.layers:
                if not layer.is_head:
                    # No other unit is dead, and the sum of positive inputs stays their average.
                    layer.bias.fill_(0.1)
                    weight = layer.weight.abs_()
                    weight /= weight.flatten(1).sum(1).reshape(-1, *[1] * (weight.ndim - 1))
                    layer.bias[list(units)] = -1e6
                    dead[layer.name] = torch.zeros(len(layer.bias)).bool()
                    dead[layer.name][list(units)] = True
    return dead


def positive(model):
    """A probe of positive observations, on which units of positive weights are alive."""
    probe = ProbeSource(64, seed=0).live(model)
    boxes = probe.observations
    tensors = boxes.values() if isinstance(boxes, dict) else [boxes]
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.abs_()
    return probe


def answers(model, probe):
    """Everything that the networks answer."""
    with torch.no_grad():
        return anatomy_of(model).forward(model.policy, probe.observations, probe.actions)


def optimizer_state(model):
    """Live state by the name of the parameter."""
    return {
        name: group.optimizer.state[tensor]
        for group in ModelView(model).groups
        for name, tensor in group.online.tensors.items()
        if tensor in group.optimizer.state
    }


@pytest.mark.parametrize("observation", ["mlp", "cnn", "dict"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_recycling_in_live_models(algo, observation):
    model = make_model(algo, observation, policy_kwargs=dict(RELU)).learn(48)
    dead = silence(model)
    probe = positive(model)
    connections = observe_connections(ModelView(model), probe)
    before, old = state_of(model), answers(model, probe)
    memory = {
        name: {key: torch.as_tensor(v).clone() for key, v in state.items()}
        for name, state in optimizer_state(model).items()
    }
    live = optimizer_state(model)
    for state in memory.values():
        assert state["step"] > 0
    report = apply_intervention(model, ReDo(tau=0), probe=probe)

    # the expected masks, from the names of the dead units and who reads them
    groups = ModelView(model).groups
    layers = {layer.name: layer for group in groups for layer in group.online.layers}
    rows, columns = {}, {}
    for name, mask in dead.items():
        entries = torch.zeros_like(layers[name].weight, dtype=torch.bool)
        entries[mask] = True
        rows[f"{name}.weight"], rows[f"{name}.bias"] = entries, mask
        assert connections[name]
        for connection in connections[name]:
            entries = torch.zeros_like(layers[connection.consumer].weight, dtype=torch.bool)
            entries[:, torch.isin(connection.reads, mask.nonzero())] = True
            key = f"{connection.consumer}.weight"
            columns[key] = entries | columns.get(key, torch.zeros_like(entries))

    # the live weights: outgoing really zero, incoming new, everything else equal to the bit
    tensors = {name: t for group in groups for name, t in group.online.tensors.items()}
    nothing = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in tensors.items()}
    fresh = named_tensors(ModelView(model).fresh_policy(model.seed + model.num_timesteps))
    for name, tensor in tensors.items():
        row, column = rows.get(name, nothing[name]), columns.get(name, nothing[name])
        assert not tensor[column].any(), name
        assert torch.equal(tensor[row & ~column], fresh[name][row & ~column]), name
        assert torch.equal(tensor[~(row | column)], before[name][~(row | column)]), name
        if (row | column).any():
            assert not torch.equal(tensor, before[name]), name
    # nothing else: targets are kept
    assert changed(before, state_of(model)) <= {
        key for key, t in model.policy.state_dict().items()
        if any(t.data_ptr() == tensors[name].data_ptr() for name in rows | columns)
    }  # fmt: skip

    # the live optimizer state: both slices forgotten, the step too, other entries not
    after = optimizer_state(model)
    assert report.optimizer_entries_forgotten == len(rows | columns)
    for name, state in after.items():
        assert state is live[name]
        mask = rows.get(name, nothing[name]) | columns.get(name, nothing[name])
        for key, value in state.items():
            value = torch.as_tensor(value)
            if key == "step":
                assert value == (0 if mask.any() else memory[name]["step"])
                continue
            assert not value[mask].any(), (name, key)
            assert torch.equal(value[~mask], memory[name][key][~mask]), (name, key)

    # dead units change nothing: what the networks compute is preserved
    new = answers(model, probe)
    for name in ("action", "values"):
        torch.testing.assert_close(getattr(old, name), getattr(new, name), atol=1e-6, rtol=1e-6)

    # the report counts them
    assert {c.name: c.units for c in report.layers if c.units} == dict.fromkeys(dead, 2)
    again = InterventionReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert [c.units for c in again.layers] == [c.units for c in report.layers]
    for role, changes in report.networks.items():
        units = 2 * len([change for change in changes.layers if change.units])
        assert f"{role}: {len(changes.layers)} of" in report.summary()
        assert f", {units} units recycled" in report.summary()
        assert report.scalars()[f"intervention/{role}/recycled_units"] == units

    # and it really trains: what reads a unit that is alive again, on most of the observations
    post = observe(ModelView(model), probe).activations.post
    active = {
        name: (units.flatten(2).mean(2) if units.ndim > 2 else units) > 0
        for name, units in post.items()
    }
    alive = {name: mask & (active[name].float().mean(0) > 0.5) for name, mask in dead.items()}
    assert sum(int(mask.sum()) for mask in alive.values()) >= len(dead) / 3
    model.learn(64, reset_num_timesteps=False)
    for name, mask in alive.items():
        for connection in connections[name] if mask.any() else ():
            assert layers[connection.consumer].weight[:, connection.inputs(mask)].any(), connection


def test_moments_of_other_entries_go_on_and_the_next_step_differs():
    """Forgetting a slice and keeping it lead to other updates: the state is the live one."""
    models = [make_model("dqn", policy_kwargs=dict(RELU)).learn(48) for _ in range(2)]
    for model, choice in zip(models, ("changed", "keep"), strict=True):
        silence(model)
        apply_intervention(model, ReDo(tau=0, optimizer_state=choice))
    one, two = map(state_of, models)
    assert not changed(one, two)
    for model in models:
        model.learn(8, reset_num_timesteps=False)
    assert changed(state_of(models[0]), state_of(models[1]))


def test_no_dormant_unit_no_change():
    model = make_model("sac", policy_kwargs=dict(RELU)).learn(48)
    silence(model, units=())
    before = state_of(model)
    report = apply_intervention(model, ReDo(tau=0), probe=positive(model))
    assert not changed(before, state_of(model))
    assert report.optimizer_entries_forgotten == 0
    assert not any("recycled" in key for key in report.scalars())


def recycled(report):
    return {change.name for change in report.layers if change.units}


def zeroed(report):
    return {change.name for change in report.layers if change.action == "zero"}


def test_a_shared_extractor_needs_all_who_read_it():
    extractor = {"features_extractor.net.0", "features_extractor.net.3"}
    policy = {"mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2"}
    value = {"mlp_extractor.value_net.0", "mlp_extractor.value_net.2"}
    for networks, units, readers in (
        (["actor"], policy, {"action_net"}),
        (["critic"], value, {"value_net"}),
        (["actor", "critic"], extractor | policy | value, {"action_net", "value_net"}),
        (None, extractor | policy | value, {"action_net", "value_net"}),
        # only what is read inside
        (["shared"], {"features_extractor.net.0"}, set()),
    ):
        model = make_model("ppo", "cnn", policy_kwargs=dict(RELU)).learn(16)
        silence(model)
        report = apply_intervention(model, ReDo(tau=0, networks=networks), probe=positive(model))
        assert recycled(report) == units
        assert zeroed(report) == (readers or {"features_extractor.net.3"})


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_an_extractor_that_both_networks_share(algo):
    kwargs = {**RELU, "share_features_extractor": True}
    model = make_model(algo, "cnn", policy_kwargs=kwargs).learn(48)
    silence(model)
    apply_intervention(model, ReDo(tau=0), probe=positive(model))
    trunk = model.actor.latent_pi[0] if algo == "sac" else model.actor.mu[0]
    for reader in (trunk, model.critic.qf0[0], model.critic.qf1[0]):
        assert not reader.weight[:, [1, 3]].any()
        assert reader.weight[:, [0, 2, 4, 5, 6, 7]].any(0).all()
    assert model.critic.qf0[0].weight[:, 8:].all(), "actions are no units"


def test_frozen_layers_and_what_they_read_are_left_alone():
    model = make_model("dqn", policy_kwargs={**RELU, "net_arch": [8, 8, 8]}).learn(32)
    silence(model)
    model.q_net.q_net[2].weight.requires_grad = False
    report = apply_intervention(model, ReDo(tau=0), probe=positive(model))
    assert recycled(report) == {"q_net.q_net.4"}
    assert zeroed(report) == {"q_net.q_net.6"}


def test_patterns_choose_whose_units_are_recycled():
    for options, units, readers in (
        ({"include": "*.0"}, {"q_net.q_net.0"}, {"q_net.q_net.2"}),
        ({"exclude": ["*.0"]}, {"q_net.q_net.2"}, {"q_net.q_net.4"}),
    ):
        model = make_model("dqn", policy_kwargs=dict(RELU)).learn(32)
        silence(model)
        report = apply_intervention(model, ReDo(tau=0, **options), probe=positive(model))
        assert recycled(report) == units
        assert zeroed(report) == readers
    with pytest.raises(ValueError, match=r"`include` pattern 'q_nt' matches no layer"):
        apply_intervention(model, ReDo(include="q_nt"))


@pytest.mark.parametrize("target", ["keep", "copy", "same"])
def test_targets(target):
    """With "same" the units are the online network's, the remaining weights the target's own."""
    model = make_model("dqn", policy_kwargs=dict(RELU)).learn(70)
    silence(model)
    old = {name: t.clone() for name, t in model.q_net_target.state_dict().items()}
    apply_intervention(model, ReDo(tau=0, target=target), probe=positive(model))
    online, new = model.q_net.state_dict(), model.q_net_target.state_dict()
    if target == "keep":
        assert not changed(old, new)
    elif target == "copy":
        assert not changed(online, new)
    else:
        units = torch.tensor([1, 3])
        others = torch.tensor([i for i in range(16) if i not in (1, 3)])
        assert torch.equal(new["q_net.0.weight"][units], online["q_net.0.weight"][units])
        assert torch.equal(new["q_net.0.weight"][others], old["q_net.0.weight"][others])
        assert not new["q_net.4.weight"][:, units].any()
        assert torch.equal(new["q_net.4.bias"], old["q_net.4.bias"])
        assert changed(online, new)


def test_weights_of_the_beginning():
    model = make_model("dqn", policy_kwargs=dict(RELU))
    initial = {n: t.detach().clone() for n, t in model.policy.named_parameters()}
    model.learn(48)
    silence(model)
    apply_intervention(model, ReDo(0, source="initial"), initial=initial, probe=positive(model))
    for part in ("weight", "bias"):
        now, then = (tensors[f"q_net.q_net.0.{part}"] for tensors in (state_of(model), initial))
        assert torch.equal(now[[1, 3]], then[[1, 3]])


def test_tanh_units_and_a_layer_all_of_whose_units_are_dead():
    model = make_model("ppo", policy_kwargs={"activation_fn": nn.Tanh}).learn(16)
    assert not recycled(apply_intervention(model, ReDo(tau=0.0)))
    with torch.no_grad():
        model.policy.mlp_extractor.value_net[0].weight.zero_()
        model.policy.mlp_extractor.value_net[0].bias.zero_()
    report = apply_intervention(model, ReDo())
    assert [c.units for c in report.layers if c.name == "mlp_extractor.value_net.0"] == [16]
    assert not model.policy.mlp_extractor.value_net[2].weight.any()
    model.learn(32, reset_num_timesteps=False)
    assert model.policy.mlp_extractor.value_net[2].weight.any()


class FunctionalExtractor(TinyExtractor):
    """Its last activation is called as a function."""

    def forward(self, observations):
        return torch.relu(self.net(observations))


def test_a_layer_that_cannot_be_seen_is_named_and_left_alone():
    kwargs = {**RELU, "features_extractor_class": FunctionalExtractor}
    model = make_model("dqn", policy_kwargs=kwargs).learn(32)
    silence(model)
    with pytest.warns(UserWarning, match=r"ReDo leaves q_net\.features_extractor\.net\.0 alone"):
        report = apply_intervention(model, ReDo(tau=0), probe=positive(model))
    assert recycled(report) == {"q_net.q_net.0", "q_net.q_net.2"}
    apply_intervention(model, ReDo(tau=0, exclude="*.net.0"), probe=positive(model))


def test_nothing_to_see_yet():
    with pytest.raises(ValueError, match="no observations yet"):
        apply_intervention(make_model("dqn"), ReDo())


def test_parametrized_layers_are_named():
    model = make_model("dqn", policy_kwargs=dict(RELU)).learn(16)
    silence(model)
    nn.utils.parametrizations.weight_norm(model.q_net.q_net[2])
    with pytest.raises(ValueError, match=r"`q_net\.q_net\.2` has a parametrized weight"):
        apply_intervention(model, ReDo(tau=0), probe=positive(model))
    report = apply_intervention(model, ReDo(0, exclude="*.q_net.2"), probe=positive(model))
    assert recycled(report) == set()


@pytest.mark.parametrize("tau", [-0.1, math.nan, math.inf, True, "a tenth", None])
def test_tau_is_a_number_of_at_least_zero(tau):
    with pytest.raises(ValueError, match=r"`tau` must be a number of at least 0, got"):
        ReDo(tau=tau)


def test_from_plain_values():
    assert make_intervention({"name": "redo", "tau": 0.1}) == ReDo(0.1)
    assert make_intervention({"name": "redo", "preset": "paper"}) == ReDo.paper() == ReDo(tau=0.025)
    assert ReDo().aftermath.target == "keep"
    with pytest.raises(ValueError, match="no option 'ta'"):
        make_intervention({"name": "redo", "ta": 0.1})


def test_older_reports_are_read():
    model = make_model("dqn").learn(32)
    values = apply_intervention(model, "fire").to_dict()
    for changes in values["networks"].values():
        for layer in changes["layers"]:
            del layer["units"]
    assert {c.units for c in InterventionReport.from_dict(values).layers} == {0}


def test_convolutions_with_groups():
    """A grouped convolution reads channels in its own groups only."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip
    with torch.no_grad():
        net[0].bias[3] = net[2].bias[1] = -100.0
    observations = torch.rand(5, 1, 4, 4)
    fresh = {n: torch.randn_like(p) for n, p in net.named_parameters()}
    network, context = context_for(net, observations, fresh)
    before = net(observations)
    updates = ReDo(tau=0).plan(network, context)
    write(network, updates)
    torch.testing.assert_close(net(observations), before)
    assert not net[2].weight[2:, 1].any(), "channel 3 is the second one of the second group"
    assert net[2].weight[:2].any(dim=(2, 3)).all()
    assert not net[5].weight[:, 4:8].any()
