"""When an intervention happens: at planned steps, or when a metric crosses a line."""

from fire_rl.schedules.make import make_schedule, make_threshold
from fire_rl.schedules.planned import At, AtFractions, Every, Never, Schedule
from fire_rl.schedules.threshold import Threshold

__all__ = [
    "At",
    "AtFractions",
    "Every",
    "Never",
    "Schedule",
    "Threshold",
    "make_schedule",
    "make_threshold",
]
