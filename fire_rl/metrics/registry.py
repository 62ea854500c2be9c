"""Every metric that is logged, by name: logs, thresholds, reports and tables derive from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fire_rl.metrics.features import (
    dormant_ratio,
    effective_rank,
    feature_norm,
    saturation_ratio,
    srank,
    zero_activation_ratio,
)
from fire_rl.metrics.weights import dfi, dfi_per_sv, spectral_norm, weight_norm
from fire_rl.utils.validation import check_choice

Reads = Literal["units", "features", "weights"]
Place = Literal["table", "curves", "tensorboard"]


@dataclass(frozen=True)
class Metric:
    """One plasticity metric.

    Args:
        name: The field's word for it.
        reads: What it is computed from, which is what ``measure`` is given: ``"units"``
            (:class:`~fire_rl.metrics.features.Units`) and ``"features"``
            (:class:`~fire_rl.metrics.features.Features`) on observations, ``"weights"`` (a list of
            :class:`~fire_rl.metrics.weights.LayerWeight`) without any. Of a whole network or of one
            layer; features are averaged over a network's heads.
        worse: Where it goes when plasticity is lost, ``"higher"`` or ``"lower"``.
        measure: Returns the number; None where it does not apply, and then it is not logged.
        description: One line that says what the number is.
        title: For people, in tables and pictures; by default the name with spaces.
        log_key: The last part of its log keys, by default the name. SB3's table of logged values
            raises where two keys share their first 36 characters.
        ratio: Whether it lies between 0 and 1.
        shown: Where it is shown besides the logs: in the ``"table"`` of a report, under the
            learning ``"curves"`` of a report, in TensorBoard's Custom Scalars tab.
        event_key: Its short name in the logs of events, which hold it before and after; None
            where they do not. Not for metrics that read weights.

    Raises:
        ValueError: If a choice is unknown, or a text that is needed is empty.

    Example:
        >>> from fire_rl.metrics.features import approximate_rank
        >>> Metric("approximate_rank", "features", "lower", approximate_rank, "Yang et al.").title
        'approximate rank'
    """

    name: str
    reads: Reads
    worse: Literal["higher", "lower"]
    measure: Callable[[Any], float | None]
    description: str
    title: str = ""
    log_key: str = ""
    ratio: bool = False
    shown: tuple[Place, ...] = ("table",)
    event_key: str | None = None

    def __post_init__(self) -> None:
        check_choice("reads", self.reads, ("units", "features", "weights"))
        check_choice("worse", self.worse, ("higher", "lower"))
        for place in self.shown:
            check_choice("shown", place, ("table", "curves", "tensorboard"))
        for text in ("name", "description"):
            if not getattr(self, text):
                raise ValueError(f"`{text}` of a metric must be a text, got an empty one.")
        if self.event_key is not None and self.reads == "weights":
            raise ValueError(
                f"`event_key` is for metrics of units and features, and {self.name} reads weights: "
                "leave it out. Reports of events have the norms and the deviation from isometry."
            )
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))
        object.__setattr__(self, "log_key", self.log_key or self.name)


def _saturation(outputs: Mapping[str, Tensor]) -> float | None:
    return saturation_ratio(outputs) if outputs else None


# In the order of the columns of a report.
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "dormant_ratio",
            "units",
            "higher",
            lambda units: dormant_ratio(units.means, tau=0.025),
            "share of units whose mean magnitude is at most 0.025 of their layer's average",
            ratio=True,
            shown=("table", "curves", "tensorboard"),
            event_key="dormant",
        ),
        Metric(
            "dormant_ratio_0.1",
            "units",
            "higher",
            lambda units: dormant_ratio(units.means, tau=0.1),
            "share of units whose mean magnitude is at most 0.1 of their layer's average",
            title="dormant ratio (τ 0.1)",
            ratio=True,
            shown=(),
        ),
        Metric(
            "zero_activation_ratio",
            "units",
            "higher",
            lambda units: zero_activation_ratio(units.means),
            "share of units that are zero on every observation",
            log_key="zero_activation",
            ratio=True,
            shown=(),
        ),
        Metric(
            "saturation_ratio",
            "units",
            "higher",
            lambda units: _saturation(units.of_kind("Tanh")),
            "mean share of observations on which a tanh unit is beyond ±0.99",
            ratio=True,
            shown=(),
        ),
        Metric(
            "effective_rank",
            "features",
            "lower",
            effective_rank,
            "exponential of the entropy of the features' normalised singular values",
            shown=("table", "curves", "tensorboard"),
            event_key="erank",
        ),
        Metric(
            "srank",
            "features",
            "lower",
            srank,
            "smallest number of singular values that hold 99 % of their sum",
            shown=(),
        ),
        Metric(
            "dfi",
            "weights",
            "higher",
            dfi,
            "deviation from isometry at FIRE's published scale, summed over layers",
            title="DfI",
            shown=(),
        ),
        Metric(
            "dfi_per_sv",
            "weights",
            "higher",
            dfi_per_sv,
            "`dfi` divided by the number of singular values, so that networks compare",
            title="DfI per singular value",
            shown=("table", "curves", "tensorboard"),
        ),
        Metric(
            "weight_norm",
            "weights",
            "higher",
            weight_norm,
            "Frobenius norm of all weight matrices together",
            shown=("table", "curves"),
        ),
        Metric(
            "spectral_norm",
            "weights",
            "higher",
            spectral_norm,
            "largest singular value of any weight matrix",
            shown=(),
        ),
        Metric(
            "feature_norm",
            "features",
            "higher",
            feature_norm,
            "mean Euclidean norm of an observation's features",
        ),
    )
}


def find_metric(word: object) -> Metric:
    """Return the metric with a name or a log key.

    Raises:
        ValueError: If there is none; the nearest name is offered.
    """
    names = {metric.log_key: name for name, metric in METRICS.items()}
    name = names.get(word, word) if isinstance(word, str) else word
    check_choice("metric", name, tuple(METRICS))
    return METRICS[str(name)]


def measure(reads: Reads, what: Any) -> dict[str, float]:
    """Return every metric of units, features or weights by its log key, where it applies.

    Args:
        reads: Which metrics.
        what: What they read, see :class:`Metric`.
    """
    found = {m.log_key: m.measure(what) for m in METRICS.values() if m.reads == reads}
    return {key: value for key, value in found.items() if value is not None}


class Shown(Mapping[str, str]):
    """Log key to title of the metrics that are shown in one place, whatever METRICS holds now.

    Args:
        place: See :class:`Metric`.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def __getitem__(self, key: str) -> str:
        return self._titles()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._titles())

    def __len__(self) -> int:
        return len(self._titles())

    def _titles(self) -> dict[str, str]:
        return {m.log_key: m.title for m in METRICS.values() if self._place in m.shown}
