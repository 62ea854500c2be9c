"""Keep Stable-Baselines3 agents able to learn: FIRE reinitialization and plasticity metrics."""

from fire_rl.callbacks import (
    FireCallback,
    InterventionCallback,
    PlasticityMetricsCallback,
    RunCheckpointCallback,
    TrainingStopped,
)
from fire_rl.interventions import (
    FIRE,
    INTERVENTIONS,
    EntropyTemperatureReset,
    InterventionReport,
    LayerChange,
    NoIntervention,
    OptimizerReset,
    RandomOrthogonal,
    ReDo,
    Reset,
    ShrinkAndPerturb,
    make_intervention,
)
from fire_rl.interventions.on_modules import fire_, intervene_
from fire_rl.metrics import (
    approximate_rank,
    dormant_ratio,
    effective_rank,
    feature_norm,
    feature_rank,
    saturation_ratio,
    srank,
    stable_rank,
    zero_activation_ratio,
)
from fire_rl.sb3.anatomy import Anatomy, PolicyOutputs, register_anatomy
from fire_rl.sb3.frame_replay import FrameReplayBuffer
from fire_rl.sb3.surgery import apply_intervention
from fire_rl.schedules import At, AtFractions, Every, Never, Threshold, make_schedule
from fire_rl.utils.version import VERSION
from fire_rl.weights.orthogonal import (
    deviation_from_isometry,
    isometry_scale,
    newton_schulz,
    polar_factor,
    squared_frobenius_error,
)

__version__ = VERSION

__all__ = [
    "FIRE",
    "INTERVENTIONS",
    "Anatomy",
    "At",
    "AtFractions",
    "EntropyTemperatureReset",
    "Every",
    "FireCallback",
    "FrameReplayBuffer",
    "InterventionCallback",
    "InterventionReport",
    "LayerChange",
    "Never",
    "NoIntervention",
    "OptimizerReset",
    "PlasticityMetricsCallback",
    "PolicyOutputs",
    "RandomOrthogonal",
    "ReDo",
    "Reset",
    "RunCheckpointCallback",
    "ShrinkAndPerturb",
    "Threshold",
    "TrainingStopped",
    "apply_intervention",
    "approximate_rank",
    "deviation_from_isometry",
    "dormant_ratio",
    "effective_rank",
    "feature_norm",
    "feature_rank",
    "fire_",
    "intervene_",
    "isometry_scale",
    "make_intervention",
    "make_schedule",
    "newton_schulz",
    "polar_factor",
    "register_anatomy",
    "saturation_ratio",
    "squared_frobenius_error",
    "srank",
    "stable_rank",
    "zero_activation_ratio",
]
