"""Capturing activations: the right tensors, and no trace left behind."""

import math

import pytest
import torch
from torch import nn

from fire_rl import dormant_ratio, zero_activation_ratio
from fire_rl.metrics.activations import capture_activations
from fire_rl.weights.layers import weight_layers


def capture(module, *inputs, heads=()):
    layers = {layer.name: layer.module for layer in weight_layers(module)}
    return capture_activations(layers, [module], lambda: module(*inputs), heads)


class Custom(nn.Module):
    """A layer per way of being activated."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.hidden = nn.Linear(12, 6)
        self.functional = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)
        self.act = nn.ReLU(inplace=True)  # one module for several layers
        self.flatten = nn.Sequential(nn.AvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))

    def forward(self, x):
        x = self.flatten(self.act(self.norm(self.conv(x))))
        x = self.act(self.hidden(x))
        self.features = torch.relu(self.functional(x))
        return self.head(self.features)


def test_every_way_of_being_activated():
    torch.manual_seed(0)
    module, x = Custom(), torch.randn(5, 2, 4, 4)
    found = capture(module, x, heads=["head"])
    module.eval()
    with torch.no_grad():
        conv = torch.relu(module.norm(module.conv(x)))
        hidden = torch.relu(module.hidden(conv.flatten(1)))
    assert set(found.post) == {"conv", "hidden"}
    torch.testing.assert_close(found.post["conv"], conv)
    torch.testing.assert_close(found.post["hidden"], hidden)
    assert found.kinds == {"conv": "ReLU", "hidden": "ReLU"}
    assert torch.equal(found.inputs["head"], module.features)
    assert found.unhooked == ("functional",)
    assert found.not_run == ("unused",)


def test_kinds_and_repeated_calls():
    layer, act = nn.Linear(3, 4), nn.Tanh()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act = layer, act

        def forward(self, x):
            return self.act(self.layer(x)) + self.act(self.layer(2 * x))

    x = torch.randn(5, 3)
    found = capture(Twice(), x)
    with torch.no_grad():
        expected = torch.cat([torch.tanh(layer(x)), torch.tanh(layer(2 * x))])
    torch.testing.assert_close(found.post["layer"], expected)
    assert found.kinds == {"layer": "Tanh"}


def test_diverged_units_are_not_reported_as_healthy():
    broken = {"a": torch.ones(10, 4), "b": torch.full((10, 4), math.nan)}
    assert math.isnan(dormant_ratio(broken, 0.1))
    assert math.isnan(zero_activation_ratio(broken))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_behind(fails):
    module = Custom().train()
    module.norm.eval()
    flags = [child.training for child in module.modules()]
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError):
            capture(module, torch.randn(5, 7, 4, 4, generator=torch.Generator()))
    else:
        capture(module, torch.randn(5, 2, 4, 4, generator=torch.Generator()))
    assert [child.training for child in module.modules()] == flags
    assert all(not child._forward_hooks for child in module.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())
