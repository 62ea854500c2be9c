"""Ring 0 against independent oracles: SVD, the reference file, hand-worked cases."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fire_rl import (
    deviation_from_isometry,
    isometry_scale,
    newton_schulz,
    polar_factor,
    squared_frobenius_error,
)
from fire_rl.weights.orthogonal import singular_values

REFERENCE = np.load(Path(__file__).parents[1] / "helpers" / "data" / "reference.npz")
FIRE_LAYERS = sorted(key.split("/")[1] for key in REFERENCE if key.endswith("/in"))
SHAPES = [(64, 64), (1, 9), (9, 1), (1, 1), (48, 12), (12, 48), (512, 3136)]


def matrix_with(shape, condition, seed=0, dtype=torch.float32):
    """A random matrix of the given condition number, and its polar factor, from the definition."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(shape)

    def basis(size):
        gaussian = torch.randn(size, rank, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(gaussian)[0]

    left, right = basis(shape[0]), basis(shape[1])
    values = torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)
    return ((left * values) @ right.T).to(dtype), left @ right.T


def taps(weight):
    return weight.permute(2, 3, 0, 1) if weight.ndim == 4 else weight


@pytest.mark.parametrize("layer", FIRE_LAYERS)
@pytest.mark.parametrize("num_steps", [5, 10])
def test_newton_schulz_agrees_with_published_code(layer, num_steps):
    weight = torch.from_numpy(REFERENCE[f"fire/{layer}/in"])
    expected = torch.from_numpy(REFERENCE[f"fire/{layer}/n{num_steps}/out"])
    ours = newton_schulz(taps(weight), num_steps) * isometry_scale(weight.shape)
    torch.testing.assert_close(ours, taps(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(30, 30), (40, 25), (25, 40), (300, 20)])
def test_newton_schulz_is_the_cubic_iteration_on_both_routes(shape):
    """The oracle is the published loop written out; routes differ by aspect ratio."""
    matrix, _ = matrix_with(shape, 1e3)
    expected = matrix.double() / torch.linalg.matrix_norm(matrix.double())
    for _ in range(7):
        expected = 1.5 * expected - 0.5 * expected @ expected.mT @ expected
    torch.testing.assert_close(newton_schulz(matrix, 7).double(), expected, atol=2e-6, rtol=0)


def test_ten_steps_do_not_reach_isometry_on_a_square_layer():
    """What the paper's method does; `exact` exists because of it."""
    torch.manual_seed(0)
    weight = torch.nn.Linear(256, 256).weight
    assert deviation_from_isometry(newton_schulz(weight)) > 10
    assert deviation_from_isometry(polar_factor(weight)) < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", [1.0, 1e3, 3e4, 1e6])
def test_polar_factor_is_exact(shape, condition):
    matrix, expected = matrix_with(shape, condition)
    factor = polar_factor(matrix)
    assert factor.dtype == torch.float32
    assert factor.shape == matrix.shape
    values = torch.linalg.svdvals(factor.double())
    torch.testing.assert_close(values, torch.ones_like(values), atol=1e-6, rtol=0)
    if condition <= 1e3:  # rounding the input to float32 moves weak directions
        torch.testing.assert_close(factor.double(), expected, atol=1e-4, rtol=0)
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    torch.testing.assert_close(factor.double(), left @ right, atol=1e-5, rtol=0)


@pytest.mark.parametrize("condition", [1.0, 3e4, 1e6])
def test_polar_factor_of_a_mixed_batch(condition):
    """Matrices of one batch may take different routes."""
    easy, _ = matrix_with((12, 7), 2.0)
    hard, _ = matrix_with((12, 7), condition, seed=1)
    batch = torch.stack([easy, hard, torch.zeros_like(easy)])
    factors = polar_factor(batch)
    torch.testing.assert_close(factors[0], polar_factor(easy))
    torch.testing.assert_close(factors[1], polar_factor(hard), atol=1e-6, rtol=0)
    assert factors[2].count_nonzero() == 0


@pytest.mark.parametrize("function", [newton_schulz, polar_factor])
def test_zero_stays_zero(function):
    assert function(torch.zeros(2, 3, 4)).count_nonzero() == 0


def test_rank_deficient_matrices():
    """Null directions are kept or completed, by name; nothing is ever NaN."""
    diagonal = torch.diag(torch.tensor([3.0, 0.5, 0.0]))
    kept = polar_factor(diagonal)
    torch.testing.assert_close(kept, torch.diag(torch.tensor([1.0, 1.0, 0.0])))
    torch.testing.assert_close(
        newton_schulz(diagonal, 30), torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    )
    repeated = torch.ones(6, 4)
    for matrix in (diagonal, repeated, torch.zeros(4, 7)):
        completed = polar_factor(matrix, null_directions="complete")
        values = torch.linalg.svdvals(completed)
        torch.testing.assert_close(values, torch.ones_like(values))
        assert torch.equal(completed, polar_factor(matrix, null_directions="complete"))
    torch.testing.assert_close(torch.linalg.svdvals(polar_factor(repeated))[0], torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [newton_schulz, polar_factor])
def test_dtypes(function, dtype):
    matrix, _ = matrix_with((20, 8), 10.0, dtype=dtype)
    result = function(matrix)
    assert result.dtype == dtype
    tolerance = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        result.double(), function(matrix.double()), atol=max(tolerance, 1e-12), rtol=0
    )


@pytest.mark.parametrize("factor", [1e-30, 1e30])
@pytest.mark.parametrize("function", [newton_schulz, polar_factor])
def test_extreme_magnitudes(function, factor):
    matrix, _ = matrix_with((9, 5), 10.0)
    torch.testing.assert_close(function(matrix * factor), function(matrix), atol=1e-5, rtol=0)


@pytest.mark.parametrize("exponent", [-44, -40, -38, -30, 0, 30, 38])
@pytest.mark.parametrize("shape", [(6, 3), (4, 4), (3, 6), (16, 4)])
def test_extreme_entries_are_projected_as_any_others(exponent, shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape).clamp(-2, 2)
    tiny = (matrix.double() * 10.0**exponent).float()
    assert bool(torch.isfinite(tiny).all())
    rescaled = (tiny.double() * 10.0**-exponent).float()  # what is left of it below 1e-38
    for project in (polar_factor, newton_schulz):
        found = project(tiny)
        torch.testing.assert_close(found, project(rescaled), rtol=1e-4, atol=1e-4)
    values = torch.linalg.svdvals(polar_factor(tiny))
    torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none here")
@pytest.mark.parametrize("function", [newton_schulz, polar_factor])
def test_cuda(function):
    matrix, _ = matrix_with((20, 8), 1e3)
    result = function(matrix.cuda())
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), function(matrix), atol=1e-5, rtol=0)


matrices = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000)).map(
    lambda t: torch.randn(
        t[0], t[1], generator=torch.Generator().manual_seed(t[2]), dtype=torch.float64
    )
)
scales = st.floats(1e-3, 1e3)


@settings(max_examples=60, deadline=None)
@given(matrix=matrices, factor=scales)
def test_polar_factor_properties(matrix, factor):
    polar = polar_factor(matrix)
    # positive scale, transposition, rotation of either side, idempotence
    torch.testing.assert_close(polar_factor(matrix * factor), polar, atol=1e-7, rtol=0)
    torch.testing.assert_close(polar_factor(matrix.mT), polar.mT, atol=1e-7, rtol=0)
    turn = torch.linalg.qr(torch.randn(matrix.shape[0], matrix.shape[0], dtype=torch.float64))[0]
    torch.testing.assert_close(polar_factor(turn @ matrix), turn @ polar, atol=1e-6, rtol=0)
    torch.testing.assert_close(polar_factor(polar), polar, atol=1e-7, rtol=0)
    assert deviation_from_isometry(polar) < 1e-10
    # the nearest isometry: no rotation of it is nearer
    assert squared_frobenius_error(polar, matrix) <= (
        squared_frobenius_error(turn @ polar, matrix) + 1e-9
    )


@settings(max_examples=60, deadline=None)
@given(matrix=matrices, factor=scales)
def test_newton_schulz_properties(matrix, factor):
    result = newton_schulz(matrix)
    torch.testing.assert_close(newton_schulz(matrix * factor), result, atol=1e-7, rtol=0)
    torch.testing.assert_close(newton_schulz(matrix.mT), result.mT, atol=1e-7, rtol=0)
    assert torch.linalg.svdvals(result)[0] < 1 + 1e-6


@settings(max_examples=40, deadline=None)
@given(matrix=matrices, factor=scales)
def test_deviation_from_isometry_properties(matrix, factor):
    deviation = deviation_from_isometry(matrix)
    assert deviation >= 0
    torch.testing.assert_close(deviation_from_isometry(matrix.mT), deviation)
    torch.testing.assert_close(
        deviation_from_isometry(factor * matrix, scale=factor), deviation, rtol=1e-6, atol=1e-9
    )
    # by the singular values, which the implementation never computes
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(deviation, (values.square() - 1).square().sum())


def test_measures_by_hand():
    matrix = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert deviation_from_isometry(matrix) == 9.0  # (4 - 1)² + (1 - 1)²
    assert deviation_from_isometry(2 * matrix, scale=2.0) == 9.0
    assert squared_frobenius_error(matrix, torch.zeros(3, 2)) == 5.0
    batch = torch.stack([matrix, 2 * matrix])
    torch.testing.assert_close(deviation_from_isometry(batch), torch.tensor([9.0, 234.0]))


@pytest.mark.parametrize("shape", [*SHAPES, (3, 5, 40, 8)])
def test_singular_values_are_those_of_the_decomposition(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(matrix.double()).float()
    torch.testing.assert_close(singular_values(matrix), expected, rtol=1e-5, atol=1e-6)


def test_isometry_scale_by_hand():
    assert isometry_scale((8, 2)) == 2.0
    assert isometry_scale((1, 64)) == 0.125
    assert isometry_scale((32, 8, 8, 8)) == 2.0 / 64
    assert isometry_scale((16, 4, 3), groups=4) == 1.0 / 3  # per group: 4 of 4
    assert isometry_scale((8, 2, 1, 1, 2)) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: newton_schulz(torch.ones(3)), r"`matrix` must have shape \(\.\.\., m, n\)"),
        (lambda: newton_schulz(torch.ones(3, 3), 0), "`num_steps` must be .* at least 1, got 0"),
        (lambda: newton_schulz(torch.eye(2), 2.5), "`num_steps` must be a whole number"),
        (lambda: polar_factor(torch.ones(0, 3)), r"got \(0, 3\)"),
        (lambda: polar_factor(torch.tensor([[math.nan]])), "must be finite"),
        (lambda: polar_factor(torch.ones(2, 2, dtype=torch.int64)), "floating dtype"),
        (lambda: polar_factor(torch.ones(2, 2), "drop"), "'keep' or 'complete', got 'drop'"),
        (lambda: isometry_scale((3,)), "`weight_shape` must be"),
        (lambda: isometry_scale((4, 4), groups=3), "must divide the 4 outputs, got 3"),
        (lambda: deviation_from_isometry(torch.ones(2, 2), 0.0), "`scale` must be a positive"),
        (lambda: squared_frobenius_error(torch.ones(2, 2), torch.ones(2, 3)), "same shape"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
