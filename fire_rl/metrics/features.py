"""Metrics of activations and features: tensors in, floats out.

Activations are post-activation outputs of hidden layers, ``(N, D)`` or, for convolutions,
``(N, C, *spatial)``; a unit is a feature or a channel. Features are ``(N, D)``: N observations,
D dimensions. Everything is computed in float32 or better.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from fire_rl.utils.validation import check_positive

Activations = Tensor | Mapping[str, Tensor]


def dormant_ratio(activations: Activations, tau: float = 0.025) -> float:
    """Return the share of τ-dormant units.

    A unit's score is ``s_i = E|h_i| / mean_k E|h_k|``, the expectation over observations and
    positions, the mean over the units of its layer; it is dormant if ``s_i ≤ τ`` (Sokar et al.
    2023, "The Dormant Neuron Phenomenon", definition 3.1).

    Args:
        activations: One layer's, or layer name to activations; pooled over all their units.
        tau: Threshold, at least 0. 0.025 and 0.1 are customary.

    Returns:
        A number in [0, 1]; NaN if an activation is. All units of a layer that is zero throughout
        are dormant.

    Raises:
        ValueError: If there are no activations, their shape is wrong, or ``tau`` is negative.
    """
    _check_tau(tau)
    return _mean_over_units([_share(_scores(layer), tau) for layer in _layers(activations)])


def dormant_mask(activation: Tensor, tau: float = 0.025) -> Tensor:
    """Return which units of one layer are τ-dormant, see :func:`dormant_ratio`.

    Args:
        activation: ``(N, D)`` or ``(N, C, *spatial)``.
        tau: Threshold, at least 0.

    Returns:
        Boolean tensor of shape ``(D,)`` or ``(C,)``.
    """
    _check_tau(tau)
    return _scores(activation) <= tau


def zero_activation_ratio(activations: Activations) -> float:
    """Return the share of units that are zero on every observation (score below 1e-8).

    Args:
        activations: As in :func:`dormant_ratio`.
    """
    return _mean_over_units([_share(_scores(layer), 1e-8) for layer in _layers(activations)])


def saturation_ratio(activations: Activations, threshold: float = 0.99) -> float:
    """Return the mean share of observations on which a bounded unit is saturated.

    ``E 1[|h| > threshold]``, averaged over units; for tanh, whose units are never dormant.

    Args:
        activations: As in :func:`dormant_ratio`.
        threshold: In (0, 1].
    """
    threshold = check_positive("threshold", threshold, 1.0)
    saturated = [
        torch.where(layer.isnan(), math.nan, (layer.abs() > threshold).float())
        for layer in _layers(activations)
    ]
    return _mean_over_units([_mean_over_samples(layer) for layer in saturated])


def effective_rank(features: Tensor) -> float:
    """Return the exponential of the entropy of the normalised singular values.

    ``exp(-Σ p_i ln p_i)``, ``p = σ / Σσ`` (Roy & Vetterli 2007). Like all four ranks here it is
    NaN, with a warning, where there are fewer observations than dimensions, NaN for non-finite
    features, and 0 for features that are zero throughout.

    Args:
        features: ``(N, D)`` with ``N ≥ D``.

    Raises:
        ValueError: If the shape is wrong.
    """
    return feature_ranks(features)["effective_rank"]


def srank(features: Tensor, delta: float = 0.01) -> float:
    """Return the smallest k whose singular values hold a share ``1 - delta`` of their sum.

    (Kumar et al. 2021, "Implicit Under-Parameterization".)

    Args:
        features: ``(N, D)``, see :func:`effective_rank`.
        delta: In (0, 1).
    """
    return feature_ranks(features, delta=delta)["srank"]


def approximate_rank(features: Tensor, delta: float = 0.01) -> float:
    """Return the smallest k whose squared singular values hold ``1 - delta`` of their sum.

    Without centring, as in "No Representation, No Trust" (Yang et al. 2020).

    Args:
        features: ``(N, D)``, see :func:`effective_rank`.
        delta: In (0, 1).
    """
    return feature_ranks(features, delta=delta)["approximate_rank"]


def feature_rank(features: Tensor, epsilon: float = 0.01) -> float:
    """Return the number of singular values of ``features / √N`` above ``epsilon``.

    (Lyle et al. 2022, "Understanding and Preventing Capacity Loss".)

    Args:
        features: ``(N, D)``, see :func:`effective_rank`.
        epsilon: Above 0.
    """
    return feature_ranks(features, epsilon=epsilon)["feature_rank"]


@torch.no_grad()
def feature_ranks(
    features: Tensor, *, delta: float = 0.01, epsilon: float = 0.01
) -> dict[str, float]:
    """Return all four ranks from one singular value decomposition, by their functions' names."""
    if not 0 < delta < 1:
        raise ValueError(f"`delta` must lie between 0 and 1, got {delta!r}.")
    epsilon = check_positive("epsilon", epsilon)
    features = _matrix("features", features)
    samples, dimensions = features.shape
    names = ("effective_rank", "srank", "approximate_rank", "feature_rank")
    if samples < dimensions:
        warnings.warn(
            f"A rank needs at least as many observations as feature dimensions, got {samples} of "
            f"{dimensions}: it is NaN.",
            RuntimeWarning,
            stacklevel=2,
        )
        return dict.fromkeys(names, math.nan)
    if not bool(torch.isfinite(features).all()):
        return dict.fromkeys(names, math.nan)
    values = torch.linalg.svdvals(features).double()
    if float(values[0]) == 0.0:
        return dict.fromkeys(names, 0.0)
    shares = values / values.sum()
    energy = values.square() / values.square().sum()
    return {
        "effective_rank": float(torch.special.entr(shares).sum().exp()),
        "srank": _count_until(shares, 1 - delta),
        "approximate_rank": _count_until(energy, 1 - delta),
        "feature_rank": float((values / math.sqrt(samples) > epsilon).sum()),
    }


@torch.no_grad()
def stable_rank(matrix: Tensor) -> float:
    """Return ``‖A‖_F² / ‖A‖₂²``, of weights or features; 0 for a zero matrix.

    Args:
        matrix: ``(m, n)``.

    Raises:
        ValueError: If the shape is wrong.
    """
    values = torch.linalg.svdvals(_matrix("matrix", matrix)).double()
    return float(values.square().sum() / values[0].square()) if values[0] != 0 else 0.0


@torch.no_grad()
def feature_norm(features: Tensor) -> float:
    """Return the mean Euclidean norm of the features of an observation.

    Args:
        features: ``(N, D)``.
    """
    return float(torch.linalg.vector_norm(_matrix("features", features), dim=1).mean())


def _layers(activations: Activations) -> list[Tensor]:
    layers = list(activations.values()) if isinstance(activations, Mapping) else [activations]
    if not layers:
        raise ValueError("`activations` must hold at least one layer, got an empty mapping.")
    return layers


def _share(scores: Tensor, most: float) -> Tensor:
    """Which scores are at most so large, as numbers to average; NaN stays NaN."""
    return torch.where(scores.isnan(), math.nan, (scores <= most).float())


def _check_tau(tau: float) -> None:
    if not tau >= 0:
        raise ValueError(f"`tau` must be a number of at least 0, got {tau!r}.")


def _mean_over_units(units: list[Tensor]) -> float:
    return float(torch.cat([unit.flatten() for unit in units]).float().mean())


@torch.no_grad()
def _mean_over_samples(activation: Tensor) -> Tensor:
    """Mean over observations and positions, shape ``(units,)``."""
    if activation.ndim < 2 or activation.numel() == 0:
        raise ValueError(
            "`activations` must have shape (N, D) or (N, C, *spatial) and not be empty, got "
            f"{tuple(activation.shape)}."
        )
    return activation.mean(dim=[axis for axis in range(activation.ndim) if axis != 1])


def _scores(activation: Tensor) -> Tensor:
    """Each unit's mean absolute activation over that of its layer; 0 for a zero layer."""
    activation = activation.detach()
    absolute = activation.to(torch.promote_types(activation.dtype, torch.float32)).abs()
    mean = _mean_over_samples(absolute)
    layer = mean.mean()
    return mean / torch.where(layer > 0, layer, 1.0)


def _count_until(shares: Tensor, total: float) -> float:
    """How many of the descending shares reach a total."""
    return float((shares.cumsum(0) < total).sum() + 1)


def _matrix(argument: str, matrix: Tensor) -> Tensor:
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ValueError(f"`{argument}` must have shape (N, D), got {tuple(matrix.shape)}.")
    return matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
