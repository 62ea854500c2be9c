"""Metrics of weights alone: deviation from isometry and norms. No data is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fire_rl.weights.layers import WeightLayer


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """The weight of one layer, measured once for all metrics that read weights.

    Attributes:
        layer: See :func:`fire_rl.weights.layers.weight_layers`.
        dfi: Deviation from isometry of ``W / s`` at FIRE's published scale s, summed over the
            layer's matrices: ``‖(W/s)ᵀ(W/s) - I‖_F²`` (FIRE, arXiv 2602.08040, section 3).
        norm: Frobenius norm.
        spectral_norm: Largest singular value of any of the layer's matrices.
    """

    layer: WeightLayer
    dfi: float
    norm: float
    spectral_norm: float

    @classmethod
    @torch.no_grad()
    def measured(cls, layer: WeightLayer) -> LayerWeight:
        """Measure the weight of a layer."""
        matrices = layer.matrices().float()
        if matrices.shape[-1] > matrices.shape[-2]:
            matrices = matrices.mT
        gram = matrices.mT @ matrices
        identity = torch.eye(gram.shape[-1], device=gram.device)
        finite = bool(torch.isfinite(gram).all())
        largest = torch.linalg.eigvalsh(gram)[..., -1].max() if finite else gram.sum()
        return cls(
            layer=layer,
            dfi=float((gram / layer.scale**2 - identity).square().sum()),
            norm=float(torch.linalg.vector_norm(matrices)),
            spectral_norm=float(largest.clamp(min=0).sqrt()),
        )


def dfi(weights: Sequence[LayerWeight]) -> float:
    """Return the deviation from isometry at FIRE's published scale, summed over the layers.

    Args:
        weights: One layer's weight, or those of a network; at least one.
    """
    return sum(weight.dfi for weight in weights)


def dfi_per_sv(weights: Sequence[LayerWeight]) -> float:
    """Return :func:`dfi` divided by the number of singular values, so that layers compare.

    Args:
        weights: As in :func:`dfi`.
    """
    return dfi(weights) / sum(weight.layer.num_singular_values for weight in weights)


def weight_norm(weights: Sequence[LayerWeight]) -> float:
    """Return the Frobenius norm of all weights together.

    Args:
        weights: As in :func:`dfi`.
    """
    norm: float = sum(weight.norm**2 for weight in weights) ** 0.5
    return norm


def spectral_norm(weights: Sequence[LayerWeight]) -> float:
    """Return the largest singular value of any matrix.

    Args:
        weights: As in :func:`dfi`.
    """
    return max(weight.spectral_norm for weight in weights)
