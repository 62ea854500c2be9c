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
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from fire_rl.utils.kinds import check_tensor, describe
from fire_rl.utils.validation import check_int

NullDirections = Literal["keep", "complete"]

# A Gram matrix in float64 resolves a squared singular value to about 1e-16 of the largest one. The
# bounds are on its smallest eigenvalue, relative to the largest.
# Above this, the last product may be computed in float32.
_FLOAT32_ABOVE = 1e-1
# Above this, the factor is isometric to 1e-7; below, it needs a polishing step.
_POLISH_BELOW = 1e-8
# Below this, even the polished factor is not the polar factor: decompose the matrix itself.
_DECOMPOSE_BELOW = 1e-10
# The direct iteration multiplies full matrices; on the Gram matrix it costs one decomposition,
# which is faster once a matrix is this much longer than wide (benchmarks/speed/projection.py).
_GRAM_FROM_ASPECT = 1.5


def newton_schulz(matrix: Tensor, num_steps: int = 10) -> Tensor:
    """Move a matrix towards its polar factor by the cubic Newton-Schulz iteration.

    ``X ← X / ‖X‖_F``, then ``num_steps`` times ``X ← 1.5 X - 0.5 X XᵀX``, as published (FIRE,
    arXiv 2602.08040, Algorithm 1). Each singular value follows ``σ ← 1.5 σ - 0.5 σ³``: ten steps
    bring those above 4 % of the Frobenius norm to 1 and leave smaller ones below 1, so square
    matrices are *not* isometric afterwards. The result of :func:`polar_factor` is.

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
    num_steps = check_int("num_steps", num_steps, 1)
    _check_matrix(matrix)

    short, long = sorted(matrix.shape[-2:])
    if long >= _GRAM_FROM_ASPECT * short:
        return _on_float64_device(matrix, lambda work: _iterate_on_gram(work, num_steps))
    work = _within_range(_at_least_float32(matrix))
    return _iterate(work, num_steps).to(matrix.dtype)


def polar_factor(matrix: Tensor, null_directions: NullDirections = "keep") -> Tensor:
    """Return the nearest matrix with orthonormal columns (rows, if wide), exactly.

    ``W = Q P`` with ``Q = W (WᵀW)^(-1/2)``, the solution of the orthogonal Procrustes problem
    that FIRE poses (arXiv 2602.08040, section 3). Computed in float64 by the eigendecomposition of
    the smaller Gram matrix. For large condition numbers a polishing step follows; for still larger
    ones a singular value decomposition is used instead. Every singular value of the result differs
    from 1 by at most 1e-6, for condition numbers up to 1e6 and beyond.

    Args:
        matrix: Shape ``(..., m, n)``.
        null_directions: What becomes of directions that the matrix maps to zero (relative singular
            value below ``max(m, n)`` float64 epsilons), for which no nearest isometry is unique.
            ``"keep"`` leaves them zero, as Newton-Schulz does: the result is a partial isometry,
            and a zero matrix stays zero. (A float32 product of lower rank has rounding errors above
            that bound: its null directions count as small, not as zero.) ``"complete"`` gives them
            arbitrary but deterministic orthonormal images: the result is always an isometry.

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
    return _on_float64_device(matrix, lambda work: _polar(work, null_directions))


def isometry_scale(weight_shape: Sequence[int], groups: int = 1) -> float:
    """Return the factor by which FIRE multiplies the polar factor of a weight.

    ``sqrt(d_out / d_in)`` for a linear layer, ``sqrt(c_out / c_in) / (k₁···k_d)`` for each kernel
    tap of a convolution (FIRE, arXiv 2602.08040, Algorithm 1); per group for grouped convolutions.

    Args:
        weight_shape: Shape of the layer's weight, ``(out, in)`` or ``(out, in / groups, *kernel)``.
        groups: Number of groups of a convolution.

    Raises:
        ValueError: If the shape is not that of a weight, or ``groups`` does not divide the outputs.
        TypeError: If it is no shape.
    """
    if not isinstance(weight_shape, Sequence) or not all(
        isinstance(size, Integral) for size in weight_shape
    ):
        raise TypeError(
            "`weight_shape` must be a sequence of whole numbers such as `module.weight.shape`, got "
            f"{describe(weight_shape)}."
        )
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
    _check_matrix(weight, finite=False, argument="weight")
    if isinstance(scale, bool) or not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"`scale` must be a positive number, got {scale!r}.")
    gram = _gram(_at_least_float32(weight) / scale)
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
        ValueError: If the shapes differ, or the tensors are no matrices.
    """
    _check_matrix(new, finite=False, argument="new")
    check_tensor("old", old)
    if new.shape != old.shape:
        raise ValueError(
            f"`new` and `old` must have the same shape, got {tuple(new.shape)} and "
            f"{tuple(old.shape)}."
        )
    return (_at_least_float32(new) - _at_least_float32(old)).square().sum(dim=(-2, -1))


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values of matrices, the largest first.

    Computed from the eigenvalues of the smaller Gram matrix in float64; the error is at most about
    1e-8 of the largest singular value.

    Args:
        matrix: Shape ``(..., m, n)``.

    Returns:
        Shape ``(..., min(m, n))``, of the input's dtype.

    Raises:
        ValueError: If the tensor is no matrix or is not finite.
    """
    _check_matrix(matrix)
    work = _at_least_float32(matrix.cpu() if matrix.device.type == "mps" else matrix).double()
    squared: Tensor = torch.linalg.eigvalsh(_lower_gram(work)).flip(-1)
    return squared.clamp(min=0.0).sqrt().to(device=matrix.device, dtype=matrix.dtype)


def _iterate(matrix: Tensor, num_steps: int) -> Tensor:
    """Run the published loop; the Gram matrix is the smaller of the two."""
    norm = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
    x = matrix / torch.where(norm > 0, norm, 1.0)
    wide = x.shape[-1] > x.shape[-2]
    for _ in range(num_steps):
        x = 1.5 * x - 0.5 * ((x @ x.mT) @ x if wide else x @ (x.mT @ x))
    return x


def _iterate_on_gram(matrix: Tensor, num_steps: int) -> Tensor:
    """Compute the same polynomial from the eigenvalues of the smaller Gram matrix."""
    values, vectors = torch.linalg.eigh(_lower_gram(matrix.double()))
    norm = values.clamp(min=0.0).sum(dim=-1, keepdim=True).sqrt()  # ‖X‖_F² is the Gram's trace
    norm = torch.where(norm > 0, norm, 1.0)
    squared = values.clamp(min=0.0) / norm.square()
    gain = norm.reciprocal()
    for _ in range(num_steps):
        step = 1.5 - 0.5 * squared
        gain = gain * step
        squared = squared * step.square()
    # Gains differ by at most 1.5^num_steps: up to ten steps float32 loses less than 1e-5.
    exact = matrix if num_steps <= 10 else matrix.double()
    return _apply(exact, (vectors * gain[..., None, :]) @ vectors.mT)


def _polar(matrix: Tensor, null_directions: NullDirections) -> Tensor:
    work = matrix.double()
    values, vectors = torch.linalg.eigh(_lower_gram(work))
    relative = (values[..., 0] / values[..., -1]).nan_to_num(0.0)  # 0/0: the zero matrix
    decompose = relative < _DECOMPOSE_BELOW
    inverse_root = torch.where(decompose[..., None], 1.0, values).rsqrt()
    transform = (vectors * inverse_root[..., None, :]) @ vectors.mT
    if bool((relative > _FLOAT32_ABOVE).all()):
        return _apply(matrix, transform)
    factor = _apply(work, transform)
    if bool(((relative < _POLISH_BELOW) & ~decompose).any()):
        # One step of the third-order iteration: an error of 1e-5 becomes 1e-15.
        gram = _gram(factor)
        error = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) - gram
        factor = factor + _apply(factor, 0.5 * error + 0.375 * error @ error)
    if bool(decompose.any()):
        factor[decompose] = _polar_by_svd(work[decompose], null_directions)
    return factor


def _polar_by_svd(matrix: Tensor, null_directions: NullDirections) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    if null_directions == "keep":
        floor = max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps * values[..., :1]
        left = left * (values > floor)[..., None, :]
    product: Tensor = left @ right
    return product


def _gram(matrix: Tensor) -> Tensor:
    """The smaller Gram matrix: W Wᵀ of a wide matrix, WᵀW of others."""
    wide = matrix.shape[-1] > matrix.shape[-2]
    return matrix @ matrix.mT if wide else matrix.mT @ matrix


def _lower_gram(matrix: Tensor, blocks: int = 4) -> Tensor:
    """The lower triangle of the smaller Gram matrix, all that `eigh` reads; the rest is zero."""
    rows = matrix if matrix.shape[-1] > matrix.shape[-2] else matrix.mT
    size = rows.shape[-2]
    if size < 32 * blocks:
        return rows @ rows.mT
    gram = rows.new_zeros(*rows.shape[:-2], size, size)
    for block in range(blocks):
        start, stop = size * block // blocks, size * (block + 1) // blocks
        gram[..., start:stop, :stop] = rows[..., start:stop, :] @ rows[..., :stop, :].mT
    return gram


def _apply(matrix: Tensor, transform: Tensor) -> Tensor:
    """Multiply a symmetric transform onto the smaller side, in the matrix's precision."""
    transform = transform.to(matrix.dtype)
    wide = matrix.shape[-1] > matrix.shape[-2]
    return transform @ matrix if wide else matrix @ transform


def _on_float64_device(matrix: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute a scale-invariant function in at least float32, on a device that has float64."""
    # Apple's MPS has no float64.
    work = _at_least_float32(matrix.cpu() if matrix.device.type == "mps" else matrix)
    return compute(_within_range(work)).to(device=matrix.device, dtype=matrix.dtype)


def _within_range(matrix: Tensor) -> Tensor:
    """Divide matrices with extreme entries by a power of two, so that squares do not overflow."""
    exponent = torch.frexp(matrix.abs().amax(dim=(-2, -1), keepdim=True)).exponent
    if bool((exponent.abs() < 30).all()):
        return matrix
    half = -exponent // 2  # in two steps: 2^140 is no float32
    return torch.ldexp(torch.ldexp(matrix, half), -exponent - half)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _check_matrix(matrix: Tensor, finite: bool = True, argument: str = "matrix") -> None:
    check_tensor(argument, matrix)
    if matrix.ndim < 2 or 0 in matrix.shape[-2:]:
        raise ValueError(
            f"`{argument}` must have shape (..., m, n) with m, n ≥ 1, got {tuple(matrix.shape)}."
        )
    if not matrix.is_floating_point():
        raise ValueError(f"`{argument}` must have a real floating dtype, got {matrix.dtype}.")
    if finite and not bool(torch.isfinite(matrix).all()):
        raise ValueError("`matrix` must be finite, got NaN or infinite entries.")
