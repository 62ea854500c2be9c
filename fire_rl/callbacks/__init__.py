"""What users attach to SB3's ``learn()``; every argument is a plain value that YAML can hold."""

from fire_rl.callbacks.checkpoint import RunCheckpointCallback, TrainingStopped
from fire_rl.callbacks.fire import FireCallback
from fire_rl.callbacks.intervention import InterventionCallback
from fire_rl.callbacks.plasticity_metrics import PlasticityMetricsCallback

__all__ = [
    "FireCallback",
    "InterventionCallback",
    "PlasticityMetricsCallback",
    "RunCheckpointCallback",
    "TrainingStopped",
]
