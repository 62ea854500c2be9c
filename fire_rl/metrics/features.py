"""Metrics of activations and features: tensors in, floats out.

Activations are post-activation outputs of hidden layers, ``(N, D)`` or, for convolutions,
``(N, C, *spatial)``; a unit is a feature or a channel. Features are ``(N, D)``: N observations,
D dimensions. Everything is computed in float32 or better.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fire_rl.utils.kinds import check_tensor
from fire_rl.utils.validation import check_positive

Activations = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Units:
    """What the units of some layers did on a probe, for all metrics that read units.

    Attributes:
        parts: Layer name to its post-activation outputs, ``(N, D)`` or ``(N, C, *spatial)``, from a
            pass in several parts.
        kinds: Layer name to the class name of its activation, such as ``"Tanh"``.
        means: Layer name to the mean absolute activation of each of its units, ``(1, units)``:
            all that ratios of dormant units need.
    """

    parts: Mapping[str, Sequence[Tensor]]
    kinds: Mapping[str, str]
    means: Mapping[str, Tensor]

    @classmethod
    def observed(cls, parts: Mapping[str, Sequence[Tensor]], kinds: Mapping[str, str]) -> Units:
        """Reduce the outputs to the means: large maps are read once for all metrics."""
        return cls(parts, kinds, {name: _mean_absolute(maps) for name, maps in parts.items()})

    def of_layer(self, name: str) -> Units:
        """Return one layer's units."""
        return Units({name: self.parts[name]}, self.kinds, {name: self.means[name]})

    def of_kind(self, kind: str) -> dict[str, Tensor]:
        """Return the whole outputs of the layers with an activation of this class."""
        return {n: torch.cat(list(p)) for n, p in self.parts.items() if self.kinds[n] == kind}


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one layer, for all metrics that read features.

    Attributes:
        matrix: ``(N, D)``: N observations, D dimensions.
    """

    matrix: Tensor

    @cached_property
    def singular_values(self) -> Tensor | None:
        """In float64, the largest first; computed once.

        None where no rank is known: fewer observations than dimensions, or a value that is not
        finite.
        """
        matrix = _matrix("features", self.matrix)
        if matrix.shape[0] < matrix.shape[1] or not bool(torch.isfinite(matrix).all()):
            return None
        values: Tensor = torch.linalg.svdvals(matrix)
        return values.double()


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
    return _scores(check_tensor("activation", activation)) <= tau


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


def effective_rank(features: Tensor | Features) -> float:
    """Return the exponential of the entropy of the normalised singular values.

    ``exp(-Σ p_i ln p_i)``, ``p = σ / Σσ`` (Roy & Vetterli 2007). Like all four ranks here it is
    NaN, with a warning, where there are fewer observations than dimensions, NaN for non-finite
    features, and 0 for features that are zero throughout.

    Args:
        features: ``(N, D)`` with ``N ≥ D``; or :class:`Features`, whose singular values several
            ranks share, without the warning.

    Raises:
        ValueError: If the shape is wrong.
    """
    return _rank(features, lambda values: float(torch.special.entr(_shares(values)).sum().exp()))


def srank(features: Tensor | Features, delta: float = 0.01) -> float:
    """Return the smallest k whose singular values hold a share ``1 - delta`` of their sum.

    (Kumar et al. 2021, "Implicit Under-Parameterization".)

    Args:
        features: ``(N, D)``, see :func:`effective_rank`.
        delta: In (0, 1).
    """
    _check_delta(delta)
    return _rank(features, lambda values: _count_until(_shares(values), 1 - delta))


def approximate_rank(features: Tensor | Features, delta: float = 0.01) -> float:
    """Return the smallest k whose squared singular values hold ``1 - delta`` of their sum.

    Without centring, as in "No Representation, No Trust" (Yang et al. 2020).

    Args:
        features: ``(N, D)``, see :func:`effective_rank`.
        delta: In (0, 1).
    """
    _check_delta(delta)
    return _rank(features, lambda values: _count_until(_shares(values.square()), 1 - delta))


def feature_rank(features: Tensor | Features, epsilon: float = 0.01) -> float:
    """Return the number of singular values of ``features / √N`` above ``epsilon``.

    (Lyle et al. 2022, "Understanding and Preventing Capacity Loss".)

    Args:
        features: ``(N, D)``, see :func:`effective_rank`.
        epsilon: Above 0.
    """
    epsilon = check_positive("epsilon", epsilon)
    matrix = features.matrix if isinstance(features, Features) else features
    return _rank(features, lambda values: float((values / math.sqrt(len(matrix)) > epsilon).sum()))


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
def feature_norm(features: Tensor | Features) -> float:
    """Return the mean Euclidean norm of the features of an observation.

    Args:
        features: ``(N, D)``.
    """
    matrix = features.matrix if isinstance(features, Features) else features
    return float(torch.linalg.vector_norm(_matrix("features", matrix), dim=1).mean())


def _rank(features: Tensor | Features, of: Callable[[Tensor], float]) -> float:
    """Compute a rank from singular values, see :func:`effective_rank` for where there are none."""
    if not isinstance(features, Features):
        samples, dimensions = _matrix("features", features).shape
        if samples < dimensions:
            warnings.warn(
                f"A rank needs at least as many observations as feature dimensions, got {samples} "
                f"of {dimensions}: it is NaN.",
                RuntimeWarning,
                stacklevel=3,
            )
        features = Features(features)
    values = features.singular_values
    if values is None:
        return math.nan
    return of(values) if float(values[0]) != 0.0 else 0.0


def _shares(values: Tensor) -> Tensor:
    return values / values.sum()


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"`delta` must lie between 0 and 1, got {delta!r}.")


def _mean_absolute(parts: Sequence[Tensor]) -> Tensor:
    """Reduce ``(N, units, *spatial)``, in parts, to mean absolute activations, ``(1, units)``."""
    sums = [
        len(units) * units.abs().mean(dim=[axis for axis in range(units.ndim) if axis != 1])
        for units in parts
    ]
    return (torch.stack(sums).sum(0) / sum(map(len, parts)))[None]


def _layers(activations: Activations) -> list[Tensor]:
    layers = list(activations.values()) if isinstance(activations, Mapping) else [activations]
    if not layers:
        raise ValueError("`activations` must hold at least one layer, got an empty mapping.")
    return [check_tensor("activations", layer) for layer in layers]


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
    check_tensor(argument, matrix)
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ValueError(f"`{argument}` must have shape (N, D), got {tuple(matrix.shape)}.")
    return matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
