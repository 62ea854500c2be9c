"""Metrics of weights alone: deviation from isometry and norms. No data is needed."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fire_rl.weights.layers import WeightLayer


@torch.no_grad()
def weight_metrics(layer: WeightLayer) -> dict[str, float]:
    """Measure the weight of one layer.

    Args:
        layer: See :func:`fire_rl.weights.layers.weight_layers`.

    Returns:
        ``dfi``: deviation from isometry of ``W / s`` at FIRE's published scale, summed over the
        layer's matrices (FIRE, arXiv 2602.08040, section 3); ``dfi_per_sv``: the same divided by
        the number of singular values, so that layers compare; ``weight_norm``: Frobenius norm;
        ``spectral_norm``: largest singular value of any of the layer's matrices.
    """
    matrices = layer.matrices().float()
    if matrices.shape[-1] > matrices.shape[-2]:
        matrices = matrices.mT
    gram = matrices.mT @ matrices
    identity = torch.eye(gram.shape[-1], device=gram.device)
    dfi = float((gram / layer.scale**2 - identity).square().sum())
    largest = torch.linalg.eigvalsh(gram)[..., -1].max() if _finite(gram) else gram.sum()
    return {
        "dfi": dfi,
        "dfi_per_sv": dfi / layer.num_singular_values,
        "weight_norm": float(torch.linalg.vector_norm(matrices)),
        "spectral_norm": float(largest.clamp(min=0).sqrt()),
    }


def pool_weight_metrics(
    layers: Iterable[tuple[WeightLayer, dict[str, float]]],
) -> dict[str, float]:
    """Combine the metrics of several layers into those of a network.

    DfI adds up (per singular value: over all of them), the norm is that of all weights together,
    the spectral norm is the largest.
    """
    pairs = list(layers)
    if not pairs:
        return {}
    dfi = sum(metrics["dfi"] for _, metrics in pairs)
    return {
        "dfi": dfi,
        "dfi_per_sv": dfi / sum(layer.num_singular_values for layer, _ in pairs),
        "weight_norm": sum(metrics["weight_norm"] ** 2 for _, metrics in pairs) ** 0.5,
        "spectral_norm": max(metrics["spectral_norm"] for _, metrics in pairs),
    }


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
