"""Watch a trained agent: whole episodes, raw returns, and a video of each if asked for."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

import envs
from experiments.build import EVAL_SEED_OFFSET, is_deterministic, make_env
from experiments.evaluation import evaluator
from experiments.flags import Args
from experiments.saved_models import build_for_play, find_models, load_first


def watch(path: Path, args: Args) -> None:
    """Play episodes of a trained agent, print their returns, write videos.

    Weights and statistics are read as data: a run folder of somebody else runs no code.
    """
    folder, models = find_models(path)
    config = folder.read_config(args.trust)
    seed = config.seed + EVAL_SEED_OFFSET if args.seed is None else args.seed
    render_mode = None if args.video is None else "rgb_array"
    env = make_env(config, 1, training=False, render_mode=render_mode, seed=seed)
    model = build_for_play(config, env)
    env.seed(seed)  # the agent has given it the training's
    used = load_first(model, env, models)
    if config.tasks is not None:  # the one that it was trained on last
        envs.set_task(env, max(model.num_timesteps - 1, 0) // config.tasks.every)
    fps = envs.frames_per_second(config.env, config.env_options, env)
    print(f"{used}: {config.algo} on {config.env}, {model.num_timesteps:,} steps of training")
    returns, lengths = play(model, env, args.episodes, is_deterministic(config), args.video, fps)
    env.close()
    print(f"\n{'episode':>7} {'return':>12} {'length':>8}")
    for number, (score, length) in enumerate(zip(returns, lengths, strict=True), start=1):
        print(f"{number:>7} {score:>12.2f} {length:>8}")
    print(f"{'mean':>7} {np.mean(returns):>12.2f} {np.mean(lengths):>8.0f}")
    print(f"{'std':>7} {np.std(returns):>12.2f} {np.std(lengths):>8.0f}")
    if args.video is not None:
        print(f"Videos: {args.video}")


def play(
    model: BaseAlgorithm,
    env: VecEnv,
    episodes: int,
    deterministic: bool,
    video: Path | None = None,
    fps: float = 30,
) -> tuple[list[float], list[int]]:
    """Play episodes.

    Args:
        model: The agent.
        env: One evaluation environment; made with ``render_mode="rgb_array"`` for videos.
        episodes: How many.
        deterministic: Whether to take the policy's most likely action.
        video: Folder for ``episode-1.mp4`` and so on, the first that is free; None for no videos.
        fps: Frames a second of the videos, one frame an agent step.

    Returns:
        Raw return and length of each episode, as SB3's Monitor counts them.

    Raises:
        OSError: If the environment cannot be drawn on this machine.
    """
    recorder = None if video is None else _Recorder(video, env, fps)
    try:
        returns, lengths = evaluator(model)(
            model,
            env,
            n_eval_episodes=episodes,
            deterministic=deterministic,
            return_episode_rewards=True,
            callback=recorder,
        )
    finally:
        if recorder is not None:
            recorder.close()
    assert isinstance(returns, list)
    assert isinstance(lengths, list)
    return returns, lengths


class _Recorder:
    """A callback of ``evaluate_policy`` that streams frames to one MP4 an episode.

    Neither gymnasium's ``RecordVideo`` nor SB3's ``VecVideoRecorder`` writes the same video. Both
    need moviepy and keep all frames of a video in memory until it ends: 27,000 frames of an Atari
    episode are 2.7 GB. ``VecVideoRecorder`` cuts videos by a number of steps, not by episodes,
    takes the first frame of the next episode for the last one of this, and plays at the
    environment's own frame rate, although an Atari agent acts on every fourth frame only.
    ``RecordVideo`` wraps a single environment, inside ``make_vec_env``, and names its files
    ``rl-video-episode-0.mp4``.
    """

    def __init__(self, folder: Path, env: VecEnv, fps: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.env, self.fps = folder, env, fps
        self.episode = 0
        self._writer: Generator[None, Any, None] | None = None

    def __call__(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """Add what is seen after a step; at the end of an episode the next one is seen already."""
        if locals_["done"]:
            self.close()
            return
        frame = self._render()
        if self._writer is None:
            self._writer = self._open(frame)
        self._writer.send(np.ascontiguousarray(frame))

    def close(self) -> None:
        """End the current video."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _render(self) -> np.ndarray:
        try:
            frame = self.env.render()
        except Exception as error:  # every OpenGL backend fails in its own way
            raise OSError(
                f"This machine cannot draw the environment: {error}. MuJoCo without a display "
                "needs EGL or OSMesa (apt-get install libegl1 libosmesa6), chosen with "
                "MUJOCO_GL=egl or MUJOCO_GL=osmesa."
            ) from error
        assert isinstance(frame, np.ndarray), "the environment has no rgb_array rendering"
        return frame

    def _path(self) -> Path:
        return self.folder / f"episode-{self.episode}.mp4"

    def _open(self, frame: np.ndarray) -> Generator[None, Any, None]:
        try:
            from imageio_ffmpeg import write_frames
        except ImportError:
            raise ImportError("Videos need imageio-ffmpeg: pip install -e '.[train]'") from None
        self.episode += 1
        while os.path.lexists(self._path()):  # an earlier video, or somebody's link
            self.episode += 1
        height, width = frame.shape[:2]
        writer: Generator[None, Any, None] = write_frames(
            str(self._path()),
            (width, height),
            fps=self.fps,
            macro_block_size=2,  # H.264 wants even sizes; the default of 16 would rescale 210 rows
        )
        writer.send(None)
        return writer
