"""Plasticity metrics: tensors in, floats out."""

from fire_rl.metrics.features import (
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
from fire_rl.metrics.registry import METRICS, Metric

__all__ = [
    "METRICS",
    "Metric",
    "approximate_rank",
    "dormant_mask",
    "dormant_ratio",
    "effective_rank",
    "feature_norm",
    "feature_rank",
    "saturation_ratio",
    "srank",
    "stable_rank",
    "zero_activation_ratio",
]
