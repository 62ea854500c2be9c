"""The SB3 callback that applies FIRE on a schedule, with FIRE's options as its own arguments."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from fire_rl.callbacks.event_clock import Unit
from fire_rl.callbacks.intervention import InterventionCallback
from fire_rl.interventions import FIRE, make_intervention, published_schedule
from fire_rl.interventions.fire import LayerRule
from fire_rl.sb3.exploration import ExplorationRestart
from fire_rl.sb3.head_refit import HeadRefit
from fire_rl.schedules import Threshold, make_schedule, make_threshold
from fire_rl.utils.validation import nearest
from fire_rl.weights.orthogonal import NullDirections

_Function = TypeVar("_Function", bound=Callable[..., Any])

Preset = Literal["paper_dqn", "paper_sac", "paper_vision", "paper_vit", "paper_gpt"]


class FireOptions(TypedDict, total=False):
    """Options of :class:`~fire_rl.FIRE` as keyword arguments, for editors and type checkers."""

    method: Literal["newton_schulz", "exact"]
    num_steps: int
    scale: Literal["published", "frobenius_optimal"] | float
    strength: float
    hidden: LayerRule
    conv: LayerRule
    head: LayerRule
    networks: str | Sequence[str] | None
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    source: Literal["fresh", "initial"]
    target: Literal["copy", "keep", "same"]
    optimizer_state: Literal["changed", "all", "keep"]
    entropy_temperature: Literal["keep", "reset"]
    vecnormalize: Literal["keep", "reset"]
    replay_buffer: Literal["keep", "clear"]
    null_directions: NullDirections
    biases: Literal["keep", "reset", "zero"]
    norm_layers: Literal["keep", "reset"]
    log_std: Literal["keep", "reset"]
    split: Literal["by_name"] | Mapping[str, Any]
    only: Literal["query_key"] | None
    recurrent: Literal["keep", "project"]
    tied: Literal["project", "keep"]


def _shows_options(function: _Function) -> _Function:
    """List FIRE's options, with their defaults, in the signature that people and editors see."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for option in dataclasses.fields(FIRE):
        default = {} if option.default is dataclasses.MISSING else option.default
        kind = inspect.Parameter.KEYWORD_ONLY
        own.append(inspect.Parameter(option.name, kind, default=default, annotation=option.type))
    function.__dict__["__signature__"] = signature.replace(parameters=own)
    return function


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
            the agent can recover. In a call that begins later than at step 0 only with ``horizon``.
        horizon: The steps in all, which ``stop`` and ``fractions`` refer to; by default the total
            of a ``learn()`` call that begins at step 0.
        unit: ``"timesteps"``, or ``"gradient_updates"``: steps of the optimizers.
        log_dir: Folder for ``interventions.jsonl``; by default that of the model's logs.
        save_before: Folder for a copy of the model of just before each event.
        probe_size: Observations to measure on before and after; by default ``max(1024, 2 D)``.
        head_refit: Whether to fit the output layers to their old answers after each event.
        warmup_updates: Gradient steps on the replay buffer after each event.
        restart_exploration: Steps over which DQN's ε falls from 1 again after each event.
        seed: Of the callback's own random numbers; by default the model's.
        verbose: 1 for the planned steps at the start and one line per event.
        preset: ``"paper_dqn"`` or ``"paper_sac"``: as in the authors' code.
        method: ``"newton_schulz"`` as published, or ``"exact"``, which reaches isometry.
        num_steps: Newton-Schulz steps; the paper takes 10.
        scale: ``"published"``, ``"frobenius_optimal"`` or a number.
        strength: β of ``W ← (1-β) W + β s Q`` in (0, 1]; less keeps more of what was learned.
        hidden: Linear layers that are no heads: ``"project"``, ``"reset"`` or ``"keep"``.
        conv: The same for convolutions.
        head: The same for output layers.
        networks: Roles to act on: ``"actor"``, ``"critic"``, ``"shared"``; all by default.
        include: Names or shell patterns of the only layers to touch.
        exclude: Names or shell patterns of layers to leave alone.
        source: Where ``"reset"`` takes weights from: ``"fresh"`` or ``"initial"``.
        target: Target networks: ``"copy"`` the online one, ``"keep"``, or do the ``"same"``.
        optimizer_state: Forget the moments of what ``"changed"``, of ``"all"``, or ``"keep"`` them.
        entropy_temperature: SAC's: ``"keep"`` or ``"reset"``.
        vecnormalize: Statistics of ``VecNormalize``: ``"keep"`` or ``"reset"``.
        replay_buffer: ``"keep"`` or ``"clear"``.
        null_directions: For ``"exact"``, where a weight is rank-deficient: ``"keep"``,
            ``"complete"``.
        biases: Of projected layers: ``"keep"``, ``"reset"`` or ``"zero"``.
        norm_layers: ``"keep"``, or ``"reset"`` scales, shifts and running statistics.
        log_std: ``"keep"``, or ``"reset"`` PPO's log standard deviation.
        split: Fused layers as several matrices: name pattern to blocks, or ``"by_name"``.
        only: ``"query_key"``: nothing but query and key projections of attention.
        recurrent: Weights of LSTMs, GRUs and RNNs: ``"keep"`` or ``"project"``, gate by gate.
        tied: A layer that shares its weight with an embedding: ``"project"`` or ``"keep"``.

    Raises:
        ValueError: If an argument is unknown or out of range; see :class:`~fire_rl.FIRE` for each
            option, and :class:`InterventionCallback` for what training raises and warns of.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu")
        >>> callback = FireCallback(every=128, method="exact")
        >>> model = model.learn(512, callback=callback)
        >>> [report.num_timesteps for report in callback.reports]
        [128, 256, 384]
    """

    @_shows_options
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
        preset: Preset | None = None,
        **options: Unpack[FireOptions],
    ) -> None:
        _check_names(options)
        planned = {"every": every, "at": at, "fractions": fractions, "stop": stop}
        spec = {"name": "fire", "preset": preset, **options}
        if threshold is None and all(value is None for value in planned.values()):
            planned = dict(published_schedule(spec) or planned)
        if threshold is None:
            _check_when(planned)
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


def _check_names(options: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that there is not."""
    known = list(inspect.signature(FireCallback).parameters)
    for option in options:
        if option in ("intervention", "schedule"):
            raise ValueError(
                f"`FireCallback` has no argument {option!r}, which is InterventionCallback's: it "
                "applies FIRE, and its own `every`, `at`, `fractions` and `threshold` say when."
            )
        if option not in known:
            raise ValueError(
                f"`FireCallback` has no argument {option!r}; it has {', '.join(known)}."
                f"{nearest(option, known)}"
            )


def _check_when(planned: Mapping[str, Any]) -> None:
    """Raise ValueError unless exactly one of the arguments that say when is given."""
    given = [key for key in ("every", "at", "fractions") if planned.get(key) is not None]
    if len(given) != 1:
        got = ", ".join(given) if given else "none of them, nor a `threshold`"
        raise ValueError(
            f"`FireCallback` must have exactly one of every, at and fractions, got {got}. Say when "
            "FIRE acts, for example FireCallback(every=200_000)."
        )
