"""Who reads whose units: against hand-worked networks and against brute force."""

import pytest
import torch
from torch import nn

from fire_rl.metrics.unit_readers import incoming_entries, outgoing_entries, trace_connections
from fire_rl.sb3.measurement import observe_connections
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.probe import ProbeSource
from fire_rl.weights.layers import WeightLayer, weight_layers
from tests.helpers.models import make_model, state_of


def connections_of(module, *inputs):
    layers = {layer.name: layer for layer in weight_layers(module)}
    found = trace_connections(layers, [module], lambda: module(*inputs))
    return {
        (connection.source, connection.consumer): connection.reads.tolist()
        for connections in found.values()
        for connection in connections
    }


class Net(nn.Module):
    """Layers ``a``, ``b``, ``c`` and a way to put them together."""

    def __init__(self, together, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.relu = nn.ReLU()
        self.together = together

    def forward(self, x):
        return self.together(self, x)


def test_a_chain_of_linear_layers():
    net = nn.Sequential(
        nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)
    )
    assert connections_of(net, torch.ones(2, 2)) == {
        ("0", "2"): [0, 1, 2],
        ("2", "5"): [0, 1, 2, 3],
    }


@pytest.mark.parametrize("inplace", [False, True])
def test_convolution_pooling_and_flattening(inplace):
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(inplace), nn.MaxPool2d(2), nn.BatchNorm2d(2),
        nn.Conv2d(2, 3, 2), nn.ReLU(inplace), nn.Dropout(0.5), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(12, 5),
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert connections_of(net, torch.rand(3, 1, 12, 12)) == {
        ("0", "4"): [0, 1],
        ("4", "9"): [0] * 4 + [1] * 4 + [2] * 4,
    }
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_observations_and_actions_between_units_are_no_units():
    def together(net, x):
        a, b = net.relu(net.a(x)), net.relu(net.b(x))
        return net.c(torch.cat([x, b, x[:, :1], a], dim=1))

    for constant in (0.0, 1.0, 1.1, 1.5, 3.5, 1e9, float("nan")):
        net = Net(together, a=nn.Linear(2, 2), b=nn.Linear(2, 3), c=nn.Linear(8, 1))
        assert connections_of(net, torch.full((4, 2), constant)) == {
            ("a", "c"): [-1, -1, -1, -1, -1, -1, 0, 1],
            ("b", "c"): [-1, -1, 0, 1, 2, -1, -1, -1],
        }


def test_another_order_of_flattening_and_a_part_of_the_units():
    def together(net, x):
        return net.b(net.relu(net.a(x)).permute(0, 2, 3, 1).flatten(1))

    net = Net(together, a=nn.Conv2d(1, 2, 2), b=nn.Linear(8, 1))
    assert connections_of(net, torch.rand(1, 1, 3, 3)) == {("a", "b"): [0, 1] * 4}
    net = Net(lambda net, x: net.b(net.relu(net.a(x))[:, 2:]), a=nn.Linear(2, 4), b=nn.Linear(2, 1))
    assert connections_of(net, torch.rand(1, 2)) == {("a", "b"): [2, 3]}


@pytest.mark.parametrize(
    "together",
    [
        lambda net, x: net.b(torch.relu(net.a(x))),
        lambda net, x: net.b(net.relu(net.a(x)) + x),
        lambda net, x: net.b(0.5 * (net.relu(net.a(x)) + net.relu(net.a(x)).flip(1))),
        lambda net, x: net.b(net.relu(net.a(x)) * 2),
        lambda net, x: net.b(torch.tanh(net.relu(net.a(x)))),
        lambda net, x: net.b(net.relu(net.a(x)).cumsum(1)),
        lambda net, x: net.b(net.relu(net.a(x))) + net.b(net.relu(net.a(x)).flip(1)),
        lambda net, x: net.b(net.relu(net.a(x))) + net.b(x),
        lambda net, x: net.b(net.relu(net.a(x))) + net.b(-net.a(x)),
        lambda net, x: net.b(net.relu(net.a(x))) + net.lstm(net.relu(net.a(x)))[0],
    ],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_layer_whose_reader_is_uncertain_is_left_out(together, gradients):
    net = Net(together, a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    net.lstm = nn.LSTM(3, 3)
    layers = {"a": WeightLayer("a", net.a), "b": WeightLayer("b", net.b)}
    with torch.set_grad_enabled(gradients):
        assert trace_connections(layers, [net], lambda: net(torch.rand(2, 3))) == {}


def test_one_layer_used_twice_in_the_same_way_counts():
    """A siamese trunk; its reader sees its units at both calls."""
    net = Net(
        lambda net, x: net.b(net.relu(net.a(x))) + net.b(net.relu(net.a(-x))),
        a=nn.Linear(2, 3), b=nn.Linear(3, 1),
    )  # fmt: skip
    assert connections_of(net, torch.rand(2, 2)) == {("a", "b"): [0, 1, 2]}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.ConvTranspose1d, nn.Linear]
)
def test_entries_against_brute_force(kind, groups):
    """Which weights can carry a change of one input, and which change one output."""
    if kind is nn.Linear:
        if groups == 2:
            pytest.skip("a linear layer has no groups")
        module, x = nn.Linear(4, 6), torch.rand(1, 4)
    else:
        module = kind(4, 6, 3, groups=groups)
        x = torch.rand(1, 4, *[5] * (module.weight.ndim - 2))
    layer = WeightLayer("layer", module)
    for unit in range(6):
        module.weight.grad = None
        module(x)[:, unit].sum().backward()
        expected = module.weight.grad != 0
        assert torch.equal(incoming_entries(layer, torch.arange(6) == unit), expected)
    for index in range(4):
        module.weight.grad = None
        one = torch.arange(4) == index
        module(x * one.reshape(1, 4, *[1] * (x.ndim - 2))).sum().backward()
        expected = module.weight.grad != 0
        assert torch.equal(outgoing_entries(layer, one), expected)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution_reads_channels_of_its_groups(groups):
    net = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=groups))
    assert connections_of(net, torch.rand(1, 1, 5, 5)) == {("0", "2"): [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("algo", "observation", "options", "expected"),
    [
        ("ppo", "cnn", {}, {("features_extractor.net.3", "mlp_extractor.policy_net.0"): (8, 8), ("features_extractor.net.3", "mlp_extractor.value_net.0"): (8, 8)}),  # noqa: E501
        ("sac", "mlp", {}, {("actor.latent_pi.2", "actor.mu"): (12, 12), ("actor.latent_pi.2", "actor.log_std"): (12, 12)}),  # noqa: E501
        ("sac", "cnn", {}, {("critic.features_extractor.net.3", "critic.qf0.0"): (8, 10), ("critic.features_extractor.net.3", "critic.qf1.0"): (8, 10)}),  # noqa: E501
        ("sac", "cnn", {"share_features_extractor": True}, {("actor.features_extractor.net.3", "actor.latent_pi.0"): (8, 8), ("actor.features_extractor.net.3", "critic.qf0.0"): (8, 10), ("actor.features_extractor.net.3", "critic.qf1.0"): (8, 10)}),  # noqa: E501
        ("dqn", "dict", {}, {("q_net.features_extractor.extractors.image.linear.0", "q_net.q_net.0"): (16, 19), ("q_net.features_extractor.extractors.image.cnn.4", "q_net.features_extractor.extractors.image.linear.0"): (64, 64)}),  # noqa: E501
    ],
)  # fmt: skip
def test_models_of_stable_baselines3(algo, observation, options, expected):
    model = make_model(algo, observation, policy_kwargs=options).learn(24)
    before, random = state_of(model), torch.get_rng_state()
    probe = ProbeSource(64, seed=0).live(model)
    found = observe_connections(ModelView(model), probe)
    shapes = {
        (c.source, c.consumer): (int((c.reads >= 0).sum()), len(c.reads))
        for connections in found.values()
        for c in connections
    }
    for pair, shape in expected.items():
        assert shapes[pair] == shape
        assert len(found[pair[0]]) == sum(source == pair[0] for source, _ in expected)
    hidden = {
        layer.name
        for g in ModelView(model).groups
        for layer in g.online.layers
        if not layer.is_head
    }
    assert set(found) == hidden
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(model).items())


def test_flattened_channels_of_a_critic_against_brute_force():
    """Silencing a unit of the extractor's convolution changes these inputs of its reader only."""
    model = make_model("sac", "cnn").learn(24)
    probe = ProbeSource(16, seed=0).live(model)
    net = model.critic.features_extractor.net
    (connection,) = observe_connections(ModelView(model), probe)["critic.features_extractor.net.0"]
    images = probe.observations.float() / 255
    with torch.no_grad():
        before = net[:3](images)
        for channel in range(4):
            kept = net[0].bias[channel].clone()
            net[0].bias[channel] += 10.0
            moved = (net[:3](images) != before).any(0)
            net[0].bias[channel] = kept
            assert torch.equal(moved, connection.inputs(torch.arange(4) == channel))
