"""Matrix mathematics of FIRE: polar factors, the distance to isometry, the published scale.

Every function takes matrices of shape ``(..., m, n)`` with any leading batch dimensions, on any
device and of any floating dtype, computes in float32 or better and returns the input's dtype.
Nothing here knows modules or agents, and nothing is changed in place.

"Isometric" always refers to the smaller side: a tall matrix has orthonormal columns, a wide one
orthonormal rows (the constraint WᵀW = I cannot be met by a wide matrix).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

NullDirections = Literal["keep", "complete"]

# A Gram matrix in float64 resolves a squared singular value to about 1e-16 of the largest one.
# Relative eigenvalue above which the factor is isometric to 1e-7 as it comes ...
_POLISH_BELOW = 1e-8
# ... and below which even the polished factor is no longer the polar factor: decompose itself.
_DECOMPOSE_BELOW = 1e-10
# The direct iteration multiplies full matrices; on the Gram matrix it costs one decomposition.
# Measured (benchmarks/projection.py): the latter wins once a matrix is this much longer than wide.
_GRAM_FROM_ASPECT = 1.5


def newton_schulz(matrix: Tensor, num_steps: int = 10) -> Tensor:
    """Move a matrix towards its polar factor by the cubic Newton-Schulz iteration.

    ``X ← X / ‖X‖_F``, then ``num_steps`` times ``X ← 1.5 X - 0.5 X XᵀX``, as published (FIRE,
    arXiv 2602.08040, Algorithm 1). Each singular value follows ``σ ← 1.5 σ - 0.5 σ³``: ten steps
    bring those above 4 % of the Frobenius norm to 1 and leave smaller ones below it, so square
    matrices are *not* isometric afterwards; :func:`polar_factor` is.

    The iteration is a polynomial in the singular values. On matrices that are clearly longer than
    wide it is evaluated on the eigenvalues of the smaller Gram matrix in float64, which agrees
    with the loop to rounding and is faster.

    Args:
        matrix: Shape ``(..., m, n)``.
        num_steps: Number of iterations, at least 1.

    Returns:
        A tensor of the same shape and dtype. A zero matrix stays zero.

    Raises:
        ValueError: If the tensor is no matrix, is not finite, or ``num_steps`` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be an integer of at least 1, got {num_steps!r}.")
    _check_matrix(matrix)

    def gain(squared: Tensor) -> Tensor:
        total = torch.ones_like(squared)
        for _ in range(num_steps):
            step = 1.5 - 0.5 * squared
            total = total * step
            squared = squared * step.square()
        return total

    def iterate(tall: Tensor) -> Tensor:
        norm = torch.linalg.matrix_norm(tall, keepdim=True)
        tall = tall / torch.where(norm > 0, norm, 1.0)
        long, short = tall.shape[-2:]
        if long >= _GRAM_FROM_ASPECT * short:
            tall = tall.double()
            return tall @ _symmetric_function(tall.mT @ tall, gain)
        for _ in range(num_steps):
            tall = 1.5 * tall - 0.5 * tall @ (tall.mT @ tall)
        return tall

    return _on_tall(matrix, iterate)


def polar_factor(matrix: Tensor, null_directions: NullDirections = "keep") -> Tensor:
    """Return the nearest matrix with orthonormal columns (rows, if wide), exactly.

    ``W = Q P`` with ``Q = W (WᵀW)^(-1/2)``, the solution of the orthogonal Procrustes problem
    that FIRE poses (arXiv 2602.08040, section 3). Computed in float64 by the eigendecomposition of
    the smaller Gram matrix, polished where the spectrum is wide, and by a singular value
    decomposition where it is wider still; every singular value of the result is 1 to 1e-6 for
    condition numbers up to 1e6 and beyond.

    Args:
        matrix: Shape ``(..., m, n)``.
        null_directions: What becomes of directions that the matrix maps to zero (relative singular
            value below ``max(m, n)`` float64 epsilons), for which no nearest isometry is unique.
            ``"keep"`` leaves them zero, as Newton-Schulz does: the result is a partial isometry,
            and a zero matrix stays zero. ``"complete"`` gives them arbitrary but deterministic
            orthonormal images, so that the result is an isometry always.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        ValueError: If the tensor is no matrix or is not finite, or ``null_directions`` is unknown.
    """
    if null_directions not in ("keep", "complete"):
        raise ValueError(
            f"`null_directions` must be 'keep' or 'complete', got {null_directions!r}."
        )
    _check_matrix(matrix)
    return _on_tall(matrix, lambda tall: _polar(tall.double(), null_directions))


def isometry_scale(weight_shape: Sequence[int], groups: int = 1) -> float:
    """Return the factor by which FIRE multiplies the polar factor of a weight.

    ``sqrt(d_out / d_in)`` for a linear layer, ``sqrt(c_out / c_in) / (k₁···k_d)`` for each kernel
    tap of a convolution (FIRE, arXiv 2602.08040, Algorithm 1); per group for grouped convolutions.

    Args:
        weight_shape: Shape of the layer's weight, ``(out, in)`` or ``(out, in / groups, *kernel)``.
        groups: Number of groups of a convolution.

    Raises:
        ValueError: If the shape is no weight's, or ``groups`` does not divide the outputs.
    """
    if len(weight_shape) < 2 or min(weight_shape) < 1:
        raise ValueError(
            "`weight_shape` must be (out, in) or (out, in / groups, *kernel) with positive sizes, "
            f"got {tuple(weight_shape)}."
        )
    out, inputs, *kernel = weight_shape
    if groups < 1 or out % groups:
        raise ValueError(f"`groups` must divide the {out} outputs, got {groups}.")
    return math.sqrt(out / groups / inputs) / math.prod(kernel)


def deviation_from_isometry(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Measure how far matrices are from a scaled isometry: DfI.

    ``‖(W/s)ᵀ(W/s) - I‖_F²`` with the smaller of the two Gram matrices (FIRE, arXiv 2602.08040,
    section 3). Zero exactly when all singular values equal ``scale``. Divide by ``min(m, n)`` to
    compare layers.

    Args:
        weight: Matrices of shape ``(..., m, n)``.
        scale: The singular value that counts as isometric, above 0.

    Returns:
        Shape ``(...)``, float32 or better.

    Raises:
        ValueError: If the tensor is no matrix, or ``scale`` is not a positive number.
    """
    _check_matrix(weight, finite=False)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"`scale` must be a positive number, got {scale!r}.")
    tall = _at_least_float32(weight.mT if weight.shape[-1] > weight.shape[-2] else weight) / scale
    gram = tall.mT @ tall
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return (gram - identity).square().sum(dim=(-2, -1))


def squared_frobenius_error(new: Tensor, old: Tensor) -> Tensor:
    """Measure how far matrices have moved: SFE = ``‖new - old‖_F²`` (FIRE, section 3).

    Args:
        new: Shape ``(..., m, n)``.
        old: The same shape.

    Returns:
        Shape ``(...)``, float32 or better.

    Raises:
        ValueError: If the shapes differ or are no matrices'.
    """
    _check_matrix(new, finite=False)
    if new.shape != old.shape:
        raise ValueError(
            f"`new` and `old` must have the same shape, got {tuple(new.shape)} and "
            f"{tuple(old.shape)}."
        )
    return (_at_least_float32(new) - _at_least_float32(old)).square().sum(dim=(-2, -1))


def _polar(tall: Tensor, null_directions: NullDirections) -> Tensor:
    """Polar factors of float64 matrices ``(..., m, n)`` with ``m >= n``."""
    gram = tall.mT @ tall
    values, vectors = torch.linalg.eigh(gram)
    relative = (values[..., 0] / values[..., -1]).nan_to_num(0.0)  # 0/0: the zero matrix
    decompose = relative < _DECOMPOSE_BELOW
    safe = torch.where(decompose[..., None], 1.0, values)
    factor = tall @ ((vectors * safe.rsqrt()[..., None, :]) @ vectors.mT)
    if bool(((relative < _POLISH_BELOW) & ~decompose).any()):
        # One step of the third-order iteration: an error of 1e-5 becomes 1e-15.
        error = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) - (
            factor.mT @ factor
        )
        factor = factor + factor @ (0.5 * error + 0.375 * error @ error)
    if bool(decompose.any()):
        factor[decompose] = _polar_by_svd(tall[decompose], null_directions)
    return factor


def _polar_by_svd(tall: Tensor, null_directions: NullDirections) -> Tensor:
    left, values, right = torch.linalg.svd(tall, full_matrices=False)
    if null_directions == "keep":
        floor = tall.shape[-2] * torch.finfo(tall.dtype).eps * values[..., :1]
        left = left * (values > floor)[..., None, :]
    product: Tensor = left @ right
    return product


def _symmetric_function(gram: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a scalar function to the eigenvalues of symmetric matrices."""
    values, vectors = torch.linalg.eigh(gram)
    return (vectors * function(values.clamp(min=0.0))[..., None, :]) @ vectors.mT


def _on_tall(matrix: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute a scale-invariant function on the tall orientation, in at least float32."""
    device = matrix.device
    # Apple's MPS has no float64.
    work = _at_least_float32(matrix.cpu() if device.type == "mps" else matrix)
    # Squares of very large or very small entries must neither overflow nor vanish. A power of two
    # leaves every digit as it was: weak directions of ill-conditioned matrices live in the last.
    exponent = torch.frexp(work.abs().amax(dim=(-2, -1), keepdim=True)).exponent
    work = torch.ldexp(work, -exponent.clamp(-126, 126))
    wide = work.shape[-1] > work.shape[-2]
    result = compute(work.mT if wide else work)
    return (result.mT if wide else result).to(device=device, dtype=matrix.dtype).contiguous()


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _check_matrix(matrix: Tensor, finite: bool = True) -> None:
    if matrix.ndim < 2 or 0 in matrix.shape[-2:]:
        raise ValueError(
            f"`matrix` must have shape (..., m, n) with m, n ≥ 1, got {tuple(matrix.shape)}."
        )
    if not matrix.is_floating_point():
        raise ValueError(f"`matrix` must have a real floating dtype, got {matrix.dtype}.")
    if finite and not bool(torch.isfinite(matrix).all()):
        raise ValueError("`matrix` must be finite, got NaN or infinite entries.")
