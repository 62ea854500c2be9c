"""Environments of the workbench: any gymnasium id, Atari and MuJoCo with the usual wrappers."""

from envs.continual import check_tasks, set_task
from envs.make import check_env, frames_per_second, image_stack, is_atari, make_vec_env
from envs.mujoco import normalize_options
from envs.wrappers import check_wrappers, read_wrappers

__all__ = [
    "check_env",
    "check_tasks",
    "check_wrappers",
    "frames_per_second",
    "image_stack",
    "is_atari",
    "make_vec_env",
    "normalize_options",
    "read_wrappers",
    "set_task",
]
