"""The SB3 callback that applies FIRE on a schedule, with FIRE's options as its own arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fire_rl.callbacks.event_clock import Unit
from fire_rl.callbacks.intervention import InterventionCallback
from fire_rl.interventions import make_intervention, published_schedule
from fire_rl.sb3.exploration import ExplorationRestart
from fire_rl.sb3.head_refit import HeadRefit
from fire_rl.schedules import Threshold, make_schedule, make_threshold


class FireCallback(InterventionCallback):
    """Apply FIRE to an SB3 model's networks while it trains.

    One of ``every``, ``at``, ``fractions`` and ``threshold`` says when; without any, a ``preset``
    acts as published: once, at the midpoint.

    Args:
        every: Period in environment steps over all environments.
        at: Ascending steps.
        fractions: Ascending shares of the horizon, such as ``[0.5]``.
        threshold: A :class:`~fire_rl.Threshold` or its arguments as a mapping, such as
            ``{"metric": "dormant_ratio", "above": 0.3}``, which may have a ``stop`` too.
        stop: Share of the horizon after which ``every`` does nothing; 0.8 unless given, so that
            the agent can recover.
        horizon, unit, log_dir, save_before, probe_size, head_refit, warmup_updates,
            restart_exploration, seed, verbose: See :class:`InterventionCallback`.
        preset: ``"paper_dqn"`` or ``"paper_sac"``, see :class:`~fire_rl.FIRE`.
        **options: Options of :class:`~fire_rl.FIRE`.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu")
        >>> callback = FireCallback(every=128, method="exact")
        >>> model = model.learn(512, callback=callback)
        >>> [report.num_timesteps for report in callback.reports]
        [128, 256, 384]
    """

    def __init__(
        self,
        every: int | None = None,
        at: int | Sequence[int] | None = None,
        fractions: float | Sequence[float] | None = None,
        *,
        threshold: Threshold | Mapping[str, Any] | None = None,
        stop: float | None = None,
        horizon: int | None = None,
        unit: Unit = "timesteps",
        log_dir: str | Path | None = None,
        save_before: str | Path | None = None,
        probe_size: int | None = None,
        head_refit: HeadRefit | Mapping[str, Any] | bool | None = None,
        warmup_updates: int = 0,
        restart_exploration: ExplorationRestart | Mapping[str, Any] | int | None = None,
        seed: int | None = None,
        verbose: int = 0,
        preset: str | None = None,
        **options: Any,
    ) -> None:
        planned = {"every": every, "at": at, "fractions": fractions, "stop": stop}
        spec = {"name": "fire", "preset": preset, **options}
        if threshold is None and all(value is None for value in planned.values()):
            planned = dict(published_schedule(spec) or planned)
        super().__init__(
            make_intervention(spec),
            make_schedule(planned) if threshold is None else make_threshold(threshold, planned),
            horizon=horizon,
            unit=unit,
            log_dir=log_dir,
            save_before=save_before,
            probe_size=probe_size,
            head_refit=head_refit,
            warmup_updates=warmup_updates,
            restart_exploration=restart_exploration,
            seed=seed,
            verbose=verbose,
        )
