"""Feature metrics against the reference file, hand-worked cases and their invariances."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fire_rl.metrics import (
    approximate_rank,
    dormant_mask,
    dormant_ratio,
    effective_rank,
    feature_norm,
    feature_rank,
    saturation_ratio,
    srank,
    stable_rank,
    zero_activation_ratio,
)

REFERENCE = np.load(Path(__file__).parents[1] / "helpers" / "data" / "reference.npz")
LAYERS = ("conv0", "conv1", "linear0")


def activations():
    return {name: torch.from_numpy(REFERENCE[f"dormant/activations/{name}"]) for name in LAYERS}


@pytest.mark.parametrize("tau", ["0.0", "0.025", "0.1"])
def test_dormant_units_agree_with_published_code(tau):
    masks = [torch.from_numpy(REFERENCE[f"dormant/tau{tau}/{name}"]) for name in LAYERS]
    for name, mask in zip(LAYERS, masks, strict=True):
        assert torch.equal(dormant_mask(activations()[name], float(tau)), mask)
    pooled = float(torch.cat(masks).float().mean())
    assert dormant_ratio(activations(), float(tau)) == pytest.approx(pooled)
    assert pooled > 0


@pytest.mark.parametrize("index", [0, 1, 2])
def test_ranks_agree_with_published_code(index):
    def reference(name):
        return float(REFERENCE[f"rank/{index}/{name}"][0])

    features = torch.from_numpy(REFERENCE[f"rank/{index}/features"])
    expected = reference("effective_rank_vetterli")
    assert effective_rank(features) == pytest.approx(expected, rel=1e-4)
    assert srank(features) == reference("srank_kumar")
    assert approximate_rank(features) == reference("approximate_rank_pca")
    assert feature_rank(features) == reference("feature_rank_lyle")


def test_three_units_by_hand():
    """Means 2, 0 and 1: scores 2, 0 and 1."""
    layer = torch.tensor([[4.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    assert dormant_mask(layer, 0.0).tolist() == [False, True, False]
    assert dormant_ratio(layer, 1.0) == pytest.approx(2 / 3)
    assert zero_activation_ratio(layer) == pytest.approx(1 / 3)
    assert dormant_ratio({"a": layer, "b": torch.ones(2, 1)}, 0.0) == pytest.approx(1 / 4)
    assert saturation_ratio(torch.tensor([[0.995, 0.5], [-1.0, 0.2]])) == pytest.approx(0.5)
    assert feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == pytest.approx(3.0)


def test_ranks_by_hand():
    """Singular values 3 and 1, and a zero."""
    features = torch.zeros(4, 3)
    features[0, 0], features[1, 1] = 3.0, 1.0
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(features) == pytest.approx(math.exp(entropy))
    assert srank(features) == srank(features, delta=0.2) == 2
    assert srank(features, delta=0.3) == 1
    assert approximate_rank(features, delta=0.11) == 1  # 9 of 10
    assert feature_rank(features, epsilon=0.6) == 1  # 3 / 2 and 1 / 2
    assert stable_rank(features) == pytest.approx(10 / 9)


def test_zero_non_finite_and_too_few():
    zero = torch.zeros(5, 3)
    assert dormant_ratio(zero) == zero_activation_ratio(zero) == 1.0
    assert effective_rank(zero) == srank(zero) == feature_rank(zero) == stable_rank(zero) == 0.0
    assert math.isnan(effective_rank(torch.full((5, 3), math.nan)))
    with pytest.warns(RuntimeWarning, match="got 2 of 3: it is NaN"):
        assert math.isnan(srank(torch.ones(2, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    features = torch.rand(40, 6).to(dtype)
    assert effective_rank(features) == pytest.approx(effective_rank(features.float()), rel=1e-4)
    assert 0 <= dormant_ratio(features) <= 1


seeds = st.integers(0, 10_000)


def random_features(seed, samples=12, dimensions=5):
    generator = torch.Generator().manual_seed(seed)
    rank = int(torch.randint(1, dimensions + 1, (1,), generator=generator))
    left = torch.randn(samples, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, dimensions, generator=generator, dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, scale=st.floats(0.01, 100))
def test_rank_properties(seed, scale):
    features = random_features(seed)
    turn = torch.linalg.qr(random_features(seed + 1, 5, 5) + torch.eye(5))[0]
    for rank in (effective_rank, srank, approximate_rank, stable_rank):
        assert 1 - 1e-9 <= rank(features) <= 5 + 1e-9
        assert rank(scale * features) == pytest.approx(rank(features), rel=1e-6)
        assert rank(features @ turn) == pytest.approx(rank(features), rel=1e-6)
    assert effective_rank(features) <= torch.linalg.matrix_rank(features) + 1e-6


@settings(max_examples=50, deadline=None)
@given(seed=seeds, scale=st.floats(0.01, 100), tau=st.floats(0, 2))
def test_dormant_properties(seed, scale, tau):
    layer = torch.relu(random_features(seed).float())
    ratio = dormant_ratio(layer, tau)
    assert 0 <= ratio <= 1
    assert dormant_ratio(layer[:, [4, 2, 0, 1, 3]], tau) == pytest.approx(ratio)
    assert ratio <= dormant_ratio(layer, tau + 0.5)
    assert zero_activation_ratio(layer) <= dormant_ratio(layer, tau) + 1e-6
    assert dormant_mask(4.0 * layer, tau).equal(dormant_mask(layer, tau))
    assert dormant_ratio(layer[:, :, None, None].expand(-1, -1, 3, 2), 0) == dormant_ratio(layer, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dormant_ratio(torch.ones(2, 2), -0.1), "`tau` must be a number of at least 0"),
        (lambda: dormant_ratio({}), "at least one layer"),
        (lambda: dormant_ratio(torch.ones(3)), r"`activations` must have shape .* got \(3,\)"),
        (lambda: srank(torch.ones(3, 3, 3)), r"`features` must have shape \(N, D\)"),
        (lambda: srank(torch.ones(3, 3), 1.0), "`delta` must lie between 0 and 1"),
        (lambda: feature_rank(torch.ones(3, 3), 0.0), "`epsilon` must be a number above 0"),
        (lambda: saturation_ratio(torch.ones(3, 3), 2.0), "`threshold` must be .* at most 1"),
        (lambda: stable_rank(torch.ones(0, 3)), r"`matrix` must have shape"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
