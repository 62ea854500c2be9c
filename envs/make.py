"""Build vectorised environments for training and for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
from stable_baselines3.common import env_util
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecTransposeImage,
)

from envs import atari, mujoco, registry
from envs import wrappers as named
from envs.continual import TaskSequence, check_tasks, inner_change, outer_change
from envs.masks import with_action_masks
from fire_rl.checkpoints.env_state import StateAccess


def check_env(
    env_id: str, env_options: Mapping[str, Any] | None = None, imports: Sequence[str] = ()
) -> None:
    """Check that an environment can be made, without making it.

    Raises:
        ValueError: If the id or an option is unknown.
        ImportError: If a package is missing.
    """
    registry.check_options(registry.find_spec(env_id, imports), env_options or {})


def make_vec_env(
    env_id: str,
    *,
    n_envs: int = 1,
    seed: int | None = None,
    training: bool = True,
    env_options: Mapping[str, Any] | None = None,
    env_wrapper: Sequence[named.Wrapper] = (),
    normalize: bool | Mapping[str, Any] = False,
    gamma: float | None = None,
    frame_stack: int | None = None,
    tasks: Mapping[str, Any] | None = None,
    vec_env: Literal["dummy", "subproc"] = "dummy",
    imports: Sequence[str] = (),
    monitor_dir: str | Path | None = None,
    render_mode: str | None = None,
    action_masks: bool = False,
) -> VecEnv:
    """Make ``n_envs`` copies of an environment with the wrappers that its kind needs.

    Every copy sits in SB3's Monitor, below all that changes rewards: logged returns are raw.

    Args:
        env_id: Any registered gymnasium id.
        n_envs: Number of copies.
        seed: Of the first copy; the others count up.
        training: False for evaluation: whole episodes, raw rewards, frozen normalisation.
        env_options: Arguments of ``gym.make``; for Atari also those of :func:`envs.atari.wrap`.
        env_wrapper: Wrappers by dotted path, see :func:`envs.wrappers.read_wrappers`, the innermost
            first: outside of those for Atari, inside of ``tasks``.
        normalize: True, or options of VecNormalize.
        gamma: The agent's discount, for the normalisation of rewards.
        frame_stack: Frames that the agent sees at once; by default 4 for Atari, else 1.
        tasks: ``{"change": "offset", "every": 16_384}``, and optionally ``"seed"``,
            ``"recurring"`` and options of the change, see :mod:`envs.continual`; ``every`` counts
            over all copies. For evaluation the task stays until :func:`envs.set_task`.
        vec_env: ``"dummy"`` runs the copies in this process, ``"subproc"`` one process each.
        imports: Modules to import first, because they register environments.
        monitor_dir: Folder for ``*.monitor.csv`` files, one line an episode; by default none.
        render_mode: ``"rgb_array"`` to record videos.
        action_masks: Whether the agent asks which actions are valid, see
            :class:`envs.masks.MaskFromInfo`.

    Raises:
        ValueError: If the id or an option is unknown; the nearest names are offered.
        ImportError: If a package is missing; the error says how to install it.
    """
    options = dict(env_options or {})
    check_env(env_id, options, imports)
    if render_mode is not None:
        mujoco.choose_renderer()
    wrappers: list[Callable[[gym.Env], gym.Env]] = []
    if atari.is_atari(env_id):
        options, wrapper_options = atari.split_options(options)
        wrappers.append(partial(atari.wrap, training=training, options=wrapper_options))
        frame_stack = atari.DEFAULT_FRAME_STACK if frame_stack is None else frame_stack
    if env_wrapper:
        wrappers.append(partial(named.wrap, wrappers=env_wrapper))
        # In training on Atari the end of a life is none of an episode.
        if not (training and atari.is_atari(env_id)):
            wrappers.append(named.EndedEpisodes)
    make: Any = partial(registry.make_env, env_id, tuple(imports), options, render_mode)
    if tasks is not None:
        check_tasks(tasks, n_envs if training else 1, env_id, env_options, imports)
        every = tasks["every"] // n_envs if training else None
        if tasks["change"] == "game" and atari.is_atari(env_id):
            options["full_action_space"] = True
        make_one = partial(
            registry.make_env, imports=tuple(imports), options=options, render_mode=render_mode
        )
        make = inner_change(tasks, env_id, make_one)
        wrappers += outer_change(tasks)
        wrappers.append(partial(TaskSequence, every=every, recurring=tasks.get("recurring")))
    if action_masks:
        wrappers.append(with_action_masks)
    if vec_env == "subproc":
        _wrap_all(make(), wrappers).close()  # what does not fit is said here, and not in a worker
        wrappers.append(StateAccess)  # checkpoints reach into the worker processes through it
    backend: Any = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[vec_env]
    venv = env_util.make_vec_env(
        make,
        n_envs=n_envs,
        seed=seed,
        monitor_dir=None if monitor_dir is None else str(monitor_dir),
        wrapper_class=partial(_wrap_all, wrappers=wrappers),
        vec_env_cls=backend,
    )
    if frame_stack is not None and frame_stack > 1:
        venv = VecFrameStack(venv, frame_stack)
    # SB3 would do this itself, but then training and evaluation environments differ in type, and
    # VecNormalize, whose originals go into the replay buffer, must be outermost.
    if _has_channels_last_images(venv.observation_space):
        venv = VecTransposeImage(venv)
    return mujoco.wrap_normalize(venv, normalize, training, gamma)


def image_stack(venv: VecEnv) -> tuple[int, int]:
    """Return how many frames an observation stacks and how many channels it has; 1, 0 if none."""
    inner = venv
    while isinstance(inner, VecEnvWrapper):
        if isinstance(inner, VecFrameStack) and is_image_space(inner.observation_space):
            shape = venv.observation_space.shape or (0,)
            return inner.stacked_obs.n_stack, shape[0]
        inner = inner.venv
    return 1, 0


def is_atari(env_id: str) -> bool:
    """Tell whether an environment gets the Atari wrappers."""
    return atari.is_atari(env_id)


def frames_per_second(env_id: str, env_options: Mapping[str, Any], venv: VecEnv) -> float:
    """Return how many agent steps make a second of video in real time."""
    if atari.is_atari(env_id):
        return atari.FRAMES_PER_SECOND / int(env_options.get("frame_skip", 4))
    return float(venv.get_attr("metadata")[0].get("render_fps", 30))


def _wrap_all(env: gym.Env, wrappers: Sequence[Callable[[gym.Env], gym.Env]]) -> gym.Env:
    return reduce(lambda wrapped, wrapper: wrapper(wrapped), wrappers, env)


def _has_channels_last_images(space: gym.Space[Any]) -> bool:
    boxes = space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]
    images = (box for box in boxes if isinstance(box, gym.spaces.Box) and is_image_space(box))
    return not all(is_image_space_channels_first(image) for image in images)
