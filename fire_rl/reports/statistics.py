"""Statistics of a few runs: interquartile mean, optimality gap, intervals and who is better.

As in Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(NeurIPS 2021, arXiv 2108.13264), from the definitions there.

Scores are one number per run. A task here is an environment, for example an Atari game, of which
every run has one: runs of different tasks are independent of one another. Scores are given as

- one list: the runs of a single task,
- an array of shape ``(..., runs, tasks)``: leading axes are cases, each with its own answer,
- a mapping from task to its runs, shape ``(..., runs)``; not all need as many.

NaN is a run that is missing, and is never counted as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fire_rl.utils.validation import check_int, check_share

Array = NDArray[np.float64]
Scores = Sequence[float] | Array | Mapping[str, Sequence[float] | Array]
Statistic = Callable[..., Any]

# Numbers that are held at a time while resampling: 160 MB.
_CHUNK = 20_000_000


def iqm(scores: Scores) -> Any:
    """Return the interquartile mean: the mean without the lowest and the highest quarter.

    Of ``n`` runs of all tasks together, ``n // 4`` are left out at either end: of fewer than four
    runs it is the mean.

    Returns:
        A float, or an array of the leading axes; NaN where there is no run.
    """
    matrix = _matrix(scores)
    flat = np.sort(matrix.reshape(*matrix.shape[:-2], -1), axis=-1)  # NaN last
    count = np.isfinite(flat).sum(axis=-1, keepdims=True)
    cut = count // 4
    rank = np.arange(flat.shape[-1])
    inner = (rank >= cut) & (rank < count - cut)
    return _float(_ratio(np.where(inner, flat, 0).sum(axis=-1), (count - 2 * cut)[..., 0]))


def mean(scores: Scores) -> Any:
    """Return the mean over the runs of all tasks; see :func:`iqm` for the shapes."""
    matrix = _matrix(scores)
    known = np.isfinite(matrix)
    return _float(_ratio(np.where(known, matrix, 0).sum(axis=(-2, -1)), known.sum(axis=(-2, -1))))


def optimality_gap(scores: Scores, target: float = 1.0) -> Any:
    """Return by how much the runs fall short of a target, ``mean(max(target - score, 0))``.

    A score above the target does not offset one below it. See :func:`iqm` for the shapes.
    """
    # `minimum` passes NaN on.
    return _float(target - np.asarray(mean(np.minimum(_matrix(scores), target))))


def probability_of_improvement(scores: Scores, others: Scores) -> Any:
    """Return the probability that a run is better than one of the other arm, mean over tasks.

    A tie counts as one half: 0.5 says that neither is better. It is the Mann-Whitney U of each task
    over the number of its pairs.

    Args:
        scores: Of the arm.
        others: Of the other arm, with the same tasks in the same order.

    Raises:
        ValueError: If the tasks are not the same.
    """
    if isinstance(scores, Mapping) and isinstance(others, Mapping):
        if set(scores) != set(others):
            raise ValueError(
                "`scores` and `others` must have the same tasks, got "
                f"{', '.join(scores)} and {', '.join(others)}."
            )
        others = {task: others[task] for task in scores}
    ours, theirs = _matrix(scores), _matrix(others)
    if ours.shape[-1] != theirs.shape[-1]:
        raise ValueError(
            "`scores` and `others` must have the same tasks, got "
            f"{ours.shape[-1]} and {theirs.shape[-1]} of them."
        )
    a, b = ours[..., :, None, :], theirs[..., None, :, :]
    wins = (a > b).sum(axis=(-3, -2)) + 0.5 * (a == b).sum(axis=(-3, -2))  # NaN never wins nor ties
    pairs = np.isfinite(ours).sum(axis=-2) * np.isfinite(theirs).sum(axis=-2)
    return _float(_ratio(wins, pairs).mean(axis=-1))


def bootstrap_interval(
    statistic: Statistic,
    *scores: Scores,
    confidence: float = 0.95,
    reps: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic under stratified bootstrap.

    The runs of each task are resampled with replacement, independently of other tasks and of the
    other arm. Where a task has a single run there is no interval: ``(nan, nan)``. With few runs the
    interval is too narrow, as with every bootstrap.

    Args:
        statistic: One of this module's, or any function that takes arrays of shape
            ``(..., runs, tasks)`` and returns one of the leading axes.
        scores: What the statistic takes.
        confidence: Share of the resamples that lies within.
        reps: Number of resamples.
        seed: Of the resampling.

    Example:
        >>> bootstrap_interval(iqm, [3.0, 4.0, 5.0, 9.0])
        (3.0, 9.0)
        >>> bootstrap_interval(probability_of_improvement, [3.0, 4.0, 5.0], [1.0, 2.0, 6.0])
        (0.0, 1.0)
    """
    low, high = bootstrap_band(statistic, *scores, confidence=confidence, reps=reps, seed=seed)
    if low.ndim:
        raise ValueError("`scores` has leading axes: use `bootstrap_band`.")
    return float(low), float(high)


def bootstrap_band(
    statistic: Statistic,
    *scores: Scores,
    confidence: float = 0.95,
    reps: int = 2_000,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Return the intervals of a statistic at each of the leading axes, such as points of a curve.

    As :func:`bootstrap_interval`, which explains the arguments, but pointwise: a resample holds the
    same runs at all points. A run without a value at a point is left out there; a point with a
    single run of a task has no interval.

    Returns:
        Two arrays of the leading axes, NaN where there is no interval.
    """
    check_share("confidence", confidence)
    check_int("reps", reps, 1)
    arms = [_matrix(given) for given in scores]
    counts = [np.isfinite(arm).sum(axis=-2) for arm in arms]
    few = [(count == 1).any(axis=-1) | (count == 0).all(axis=-1) for count in counts]
    single = np.any(np.broadcast_arrays(*few), axis=0)
    if single.all():
        return np.full(single.shape, np.nan), np.full(single.shape, np.nan)
    generator = np.random.default_rng(seed)
    values = np.concatenate(
        [
            np.asarray(statistic(*(_resample(arm, size, generator) for arm in arms)), np.float64)
            for size in _chunks(reps, arms)
        ]
    )
    edge = (1 - confidence) / 2
    values[:, single] = 0  # all NaN, perhaps, of which nanquantile would warn
    low, high = np.nanquantile(values, [edge, 1 - edge], axis=0)
    return np.where(single, np.nan, low), np.where(single, np.nan, high)


def normalise(scores: Sequence[float] | Array | float, floor: float, target: float) -> Any:
    """Return scores of which 0 is the floor and 1 the target, ``(x - floor) / (target - floor)``.

    Raises:
        ValueError: If the target does not lie above the floor.
    """
    if not target > floor:
        raise ValueError(f"`target` must lie above the floor {floor:g}, got {target:g}.")
    return _float((np.asarray(scores, np.float64) - floor) / (target - floor))


def _matrix(scores: Scores) -> Array:
    """Return scores as ``(..., runs, tasks)``, NaN where a task has fewer runs than another."""
    if isinstance(scores, Mapping):
        columns = [np.asarray(runs, np.float64) for runs in scores.values()]
        most = max((runs.shape[-1] for runs in columns), default=0)
        lead = columns[0].shape[:-1] if columns else ()
        array = np.full((*lead, most, len(columns)), math.nan)
        for task, runs in enumerate(columns):
            array[..., : runs.shape[-1], task] = runs
    else:
        array = np.asarray(scores, np.float64)
    array = np.where(np.isfinite(array), array, np.nan)
    return array.reshape(-1, 1) if array.ndim < 2 else array


def _resample(arm: Array, reps: int, generator: np.random.Generator) -> Array:
    """Resample the runs of each task: ``(reps, ..., runs, tasks)``."""
    *_, runs, tasks = arm.shape
    present = np.asarray(np.isfinite(arm).reshape(-1, runs, tasks).any(axis=0))
    drawn = np.full((reps, *arm.shape), np.nan)
    for task in range(tasks):
        known = np.flatnonzero(present[:, task])
        if len(known):
            chosen = np.take(known, generator.integers(len(known), size=(reps, len(known))))
            values = arm[..., chosen, task]  # (..., reps, runs)
            drawn[..., : len(known), task] = np.moveaxis(values, -2, 0)
    return drawn


def _chunks(reps: int, arms: Sequence[Array]) -> Iterator[int]:
    """Cut a number of resamples so that each part, and its pairs of runs, fit into memory."""
    largest = max(arm.size for arm in arms) * max(arm.shape[-2] for arm in arms)
    size = max(1, _CHUNK // max(largest, 1))
    for done in range(0, reps, size):
        yield min(size, reps - done)


def _ratio(total: Any, count: Any) -> Array:
    """Divide; NaN where nothing was counted."""
    count = np.asarray(count, np.float64)
    return np.asarray(total, np.float64) / np.where(count > 0, count, np.nan)


def _float(value: Any) -> Any:
    """Return an array without axes as a float."""
    array = np.asarray(value)
    return array if array.ndim else float(array)
