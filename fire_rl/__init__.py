"""Keep Stable-Baselines3 agents able to learn: FIRE reinitialization and plasticity metrics."""

from fire_rl.callbacks import (
    FireCallback,
    InterventionCallback,
    PlasticityMetricsCallback,
    RunCheckpointCallback,
    TrainingStopped,
)
from fire_rl.checkpoints.env_state import StateAccess
from fire_rl.checkpoints.store import CheckpointError, restore, save
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
    METRICS,
    Metric,
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
from fire_rl.runs.recovery import Recovery, recovery
from fire_rl.sb3.anatomy import Anatomy, PolicyOutputs, register_anatomy
from fire_rl.sb3.exploration import ExplorationRestart
from fire_rl.sb3.frame_replay import FrameReplayBuffer
from fire_rl.sb3.head_refit import HeadRefit
from fire_rl.sb3.networks import anatomy_of
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
    "METRICS",
    "Anatomy",
    "At",
    "AtFractions",
    "CheckpointError",
    "EntropyTemperatureReset",
    "Every",
    "ExplorationRestart",
    "FireCallback",
    "FrameReplayBuffer",
    "HeadRefit",
    "InterventionCallback",
    "InterventionReport",
    "LayerChange",
    "Metric",
    "Never",
    "NoIntervention",
    "OptimizerReset",
    "PlasticityMetricsCallback",
    "PolicyOutputs",
    "RandomOrthogonal",
    "ReDo",
    "Recovery",
    "Reset",
    "RunCheckpointCallback",
    "ShrinkAndPerturb",
    "StateAccess",
    "Threshold",
    "TrainingStopped",
    "anatomy_of",
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
    "recovery",
    "register_anatomy",
    "restore",
    "saturation_ratio",
    "save",
    "squared_frobenius_error",
    "srank",
    "stable_rank",
    "zero_activation_ratio",
]
