"""What is done to networks: pure plans of new weights, and doing it to a plain module."""

from fire_rl.interventions.base import Aftermath, Context, Intervention, Network, Update
from fire_rl.interventions.entropy_temperature_reset import EntropyTemperatureReset
from fire_rl.interventions.fire import FIRE
from fire_rl.interventions.none import NoIntervention
from fire_rl.interventions.on_modules import fire_, intervene_
from fire_rl.interventions.optimizer_reset import OptimizerReset
from fire_rl.interventions.random_orthogonal import RandomOrthogonal
from fire_rl.interventions.redo import ReDo
from fire_rl.interventions.registry import (
    CONTROL,
    INTERVENTIONS,
    make_intervention,
    published_schedule,
)
from fire_rl.interventions.report import Changes, InterventionReport, LayerChange
from fire_rl.interventions.reset import Reset
from fire_rl.interventions.shrink_and_perturb import ShrinkAndPerturb

__all__ = [
    "CONTROL",
    "FIRE",
    "INTERVENTIONS",
    "Aftermath",
    "Changes",
    "Context",
    "EntropyTemperatureReset",
    "Intervention",
    "InterventionReport",
    "LayerChange",
    "Network",
    "NoIntervention",
    "OptimizerReset",
    "RandomOrthogonal",
    "ReDo",
    "Reset",
    "ShrinkAndPerturb",
    "Update",
    "fire_",
    "intervene_",
    "make_intervention",
    "published_schedule",
]
