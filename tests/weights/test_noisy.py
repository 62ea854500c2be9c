"""Noisy linear layers by the names that libraries give their parameters."""

import pytest
import torch
from torch import nn

from fire_rl import fire_, isometry_scale
from fire_rl.weights.layers import weight_layers
from fire_rl.weights.noisy import noisy_means
from fire_rl.weights.unread import unread_modules


def holder(**shapes):
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.randn(shape)))
    return module


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"weight_mu": (3, 5), "weight_sigma": (3, 5), "bias_mu": (3,), "bias_sigma": (3,)},
         ("weight_mu", "bias_mu")),
        ({"mu_W": (3, 5), "sigma_W": (3, 5), "mu_bias": (3,), "sigma_bias": (3,)},
         ("mu_W", "mu_bias")),
        ({"w_mu": (4, 4), "w_sigma": (4, 4)}, ("w_mu", None)),
        # Rows are inputs, or nobody says what they are.
        ({"weight_mu": (5, 3), "weight_sigma": (5, 3), "bias_mu": (3,), "bias_sigma": (3,)}, None),
        ({"weight_mu": (3, 5), "weight_sigma": (3, 5)}, None),
        ({"weight_mu": (3, 5), "weight_sigma": (5,)}, None),
        ({"mu": (3, 5)}, None),
        ({"weight": (3, 5)}, None),
    ],
)  # fmt: skip
def test_names(shapes, expected):
    assert noisy_means(holder(**shapes)) == expected


def test_out_features_say_which_side_is_which():
    module = holder(weight_mu=(3, 5), weight_sigma=(3, 5))
    module.out_features = 3
    assert noisy_means(module) == ("weight_mu", None)
    module.out_features = 5
    assert noisy_means(module) is None


def test_a_noisy_layer_is_a_linear_layer():
    module = holder(weight_mu=(3, 5), weight_sigma=(3, 5), bias_mu=(3,), bias_sigma=(3,))
    (layer,) = weight_layers(module)
    assert (layer.kind, layer.weight_names) == ("linear", ("weight_mu",))
    assert layer.bias is module.bias_mu
    noise = module.weight_sigma.detach().clone()
    fire_(module, method="exact", biases="zero")
    values = torch.linalg.svdvals(module.weight_mu)
    torch.testing.assert_close(values, torch.full_like(values, isometry_scale((3, 5))))
    assert not module.bias_mu.any()
    assert torch.equal(module.weight_sigma, noise)
    (unread,) = unread_modules([("noisy", module)])
    assert (unread.reason, set(unread.parameters)) == ("noise", {"weight_sigma", "bias_sigma"})


def test_what_is_no_weight_is_not_listed():
    norm, linear = nn.LayerNorm(4), nn.Linear(4, 4)
    lora = nn.Linear(4, 4)
    lora.low_rank = nn.Parameter(torch.ones(2, 4))
    lora.gain = nn.Parameter(torch.ones(4))
    named = [("norm", norm), ("linear", linear), ("lora", lora), ("act", nn.PReLU())]
    found = {unread.name: set(unread.parameters) for unread in unread_modules(named)}
    assert found == {"lora": {"low_rank", "gain"}, "act": {"weight"}}
