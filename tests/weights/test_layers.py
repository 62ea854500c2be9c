"""Walking modules: which layers, in which order, as which matrices."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm
from torch.nn.utils.parametrize import register_parametrization

from fire_rl import fire_, isometry_scale, newton_schulz
from fire_rl.weights.layers import weight_layers
from fire_rl.weights.unread import unread_warnings

CONVS = {
    "conv1d": (nn.Conv1d(3, 5, 4), (2, 3, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2)), (2, 4, 7, 7)),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 7, 7)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (2, 4, 7, 7)),
    "transposed grouped": (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 7)),
}


@pytest.mark.parametrize("name", CONVS)
def test_matrices_round_trip_and_mean_what_they_say(name):
    """A kernel with one tap set acts on channels as that tap's matrix."""
    module, input_shape = CONVS[name]
    (layer,) = weight_layers(module)
    matrices = layer.matrices()
    torch.testing.assert_close(layer.from_matrices(matrices), layer.weight)
    taps = layer.weight[0, 0].numel()
    assert matrices.shape[0] == taps * module.groups
    # The centre tap alone, on a constant input: the output is the block-diagonal product.
    groups, tap = module.groups, 0
    only = torch.zeros_like(matrices).reshape(taps, groups, *matrices.shape[1:])
    only[tap] = torch.randn_like(only[tap])
    with torch.no_grad():
        module.weight.copy_(layer.from_matrices(only.reshape(matrices.shape)))
        module.bias.zero_()
        x = torch.randn(input_shape[:2])
        constant = x.reshape(*x.shape, *[1] * (len(input_shape) - 2)).expand(input_shape)
        output = module(constant)
    expected = torch.block_diag(*only[tap]) @ x.mT
    middle = tuple(size // 2 for size in output.shape[2:])
    torch.testing.assert_close(output[(slice(None), slice(None), *middle)], expected.mT)


@pytest.mark.parametrize("name", CONVS)
def test_fire_makes_every_tap_isometric(name):
    module, _ = CONVS[name]
    module.reset_parameters()
    (layer,) = weight_layers(module)
    before = layer.matrices().clone()
    (change,) = fire_(module, method="exact")
    out_features, in_features = layer.matrices().shape[1:]
    taps = module.weight[0, 0].numel()
    assert layer.scale == pytest.approx((out_features / in_features) ** 0.5 / taps)
    values = torch.linalg.svdvals(layer.matrices() / layer.scale)
    torch.testing.assert_close(values, torch.ones_like(values))
    assert change.sfe == pytest.approx(float((layer.matrices() - before).square().sum()), rel=1e-4)
    assert change.dfi_after < 1e-9 < change.dfi_before


def test_published_layout_of_a_convolution():
    module = nn.Conv2d(3, 5, 2)
    weight = module.weight.detach().clone()
    fire_(module)
    for row in range(2):
        for column in range(2):
            expected = newton_schulz(weight[:, :, row, column]) * isometry_scale(weight.shape)
            torch.testing.assert_close(module.weight[:, :, row, column].detach(), expected)


def test_order_heads_and_sharing():
    shared = nn.Linear(4, 4)
    module = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), shared, nn.Sequential(shared), nn.Linear(4, 2)
    )
    layers = weight_layers(module)
    assert [layer.name for layer in layers] == ["0", "2", "4"]
    assert [layer.is_head for layer in layers] == [False, False, True]
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert [layer.name for layer in weight_layers(tied)] == ["0"]
    assert [layer.is_head for layer in weight_layers(module, heads=["0"])] == [True, False, False]


def test_other_weights_are_named_not_passed_over():
    module = nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2))
    assert [layer.name for layer in weight_layers(module)] == ["1"]
    (said,) = unread_warnings(module.named_modules())
    assert said.startswith("`0` (LSTM) is no linear, convolutional or attention layer")


def test_computed_and_lazy_weights_are_refused_by_name():
    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    for computed, why in (
        (spectral_norm, "Layer `1` has spectral norm, .* cancels any scale, FIRE's too"),
        (nn.utils.spectral_norm, "Layer `1` has spectral norm"),
        (orthogonal, "Layer `1` is kept orthogonal"),
        (lambda layer: register_parametrization(layer, "weight", Halved()), "a parametrized weig"),
    ):
        module = nn.Sequential(nn.Linear(3, 3), computed(nn.Linear(3, 3)), nn.Linear(3, 3))
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        with pytest.raises(ValueError, match=why):
            fire_(module)
        assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
        fire_(module, exclude=["1"])
        after = module[1].state_dict()  # spectral norm's power iteration included
        assert all(torch.equal(t, before[f"1.{n}"]) for n, t in after.items())
    with pytest.raises(ValueError, match="Layer `0` is lazy"):
        fire_(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3)))
