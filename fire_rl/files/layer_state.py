"""Describe each layer of a file: singular values, deviation from isometry, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fire_rl.metrics.weights import LayerWeight, dfi_per_sv
from fire_rl.utils.jsonable import without_nan
from fire_rl.weights.layers import WeightLayer

# Bounds of the verdicts, on numbers that the table shows. DfI per singular value is the mean of
# ((σ/s)² - 1)²: 1 for weights that have shrunk to nothing, and more only if singular values exceed
# √2 times FIRE's scale.
_ISOMETRIC, _NEAR, _ABOVE, _LOW_RANK = 0.01, 0.2, 1.0, 0.5


@dataclass(frozen=True)
class LayerState:
    """The state of one layer's weight. A convolution is one matrix per kernel tap.

    Attributes:
        name: Dotted name of the layer.
        role: ``"actor"``, ``"critic"``, ``"shared"``, ``"target"``, or ``""`` where unknown.
        kind: ``"linear"`` or ``"conv"``.
        is_head: Whether it is an output layer; False where that is not known.
        shape: Shape of the weight.
        dfi_per_sv: Deviation from isometry at FIRE's published scale, per singular value.
        largest: Largest singular value of any of the matrices.
        smallest: Smallest singular value of any of them.
        effective_rank: ``exp`` of the entropy of the singular values (Roy & Vetterli 2007), mean
            over the matrices.
        full_rank: ``min(m, n)``, the highest possible effective rank.
        norm: Frobenius norm of the weight.
        zero_rows: Units whose incoming weights are all zero.
        verdict: One of :data:`VERDICTS`.
    """

    name: str
    role: str
    kind: str
    is_head: bool
    shape: tuple[int, ...]
    dfi_per_sv: float
    largest: float
    smallest: float
    effective_rank: float
    full_rank: int
    norm: float
    zero_rows: int
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON: None for what is not finite."""
        values: dict[str, Any] = without_nan(asdict(self))
        return values


# The first rule that holds gives the verdict.
_RULES: Mapping[str, tuple[Callable[[LayerState], bool], str]] = {
    "broken": (lambda state: not math.isfinite(state.norm), "holds NaN or infinite values"),
    "zero": (lambda state: state.norm == 0, "every weight is zero"),
    "dead rows": (lambda state: state.zero_rows > 0, "some units have only zero incoming weights"),
    "low rank": (
        lambda state: state.effective_rank < _LOW_RANK * state.full_rank,
        f"the effective rank is below {_LOW_RANK:g} of the highest possible",
    ),
    "isometric": (lambda state: state.dfi_per_sv <= _ISOMETRIC, f"DfI/sv at most {_ISOMETRIC:g}"),
    "near": (
        lambda state: state.dfi_per_sv <= _NEAR,
        f"DfI/sv at most {_NEAR:g}: a square layer after ten Newton-Schulz steps",
    ),
    "above scale": (
        lambda state: state.dfi_per_sv > _ABOVE,
        f"DfI/sv above {_ABOVE:g}: singular values beyond √2 times FIRE's scale",
    ),
    "off scale": (lambda state: True, "none of these: smaller or uneven singular values"),
}
VERDICTS: Mapping[str, str] = {name: rule for name, (_, rule) in _RULES.items()}


@torch.no_grad()
def inspect_layer(layer: WeightLayer, role: str = "", is_head: bool = False) -> LayerState:
    """Describe the weight of one layer."""
    matrices = layer.matrices().float()
    rows = layer.weight.detach().float().flatten(1).abs().amax(dim=1)
    finite = bool(torch.isfinite(matrices).all())
    largest = smallest = rank = deviation = norm = math.nan
    if finite and (values := _singular_values(matrices)) is not None:
        largest, smallest = float(values.max()), float(values.min())
        total = values.sum(dim=-1, keepdim=True)
        shares = values / torch.where(total > 0, total, 1.0)
        entropy = torch.special.entr(shares).sum(dim=-1)
        rank = float(torch.where(total[..., 0] > 0, entropy.exp(), 0.0).mean())
        measured = LayerWeight.measured(layer)
        deviation, norm = dfi_per_sv([measured]), measured.norm
    state = LayerState(
        name=layer.name,
        role=role,
        kind=layer.kind,
        is_head=is_head,
        shape=tuple(layer.weight.shape),
        dfi_per_sv=deviation,
        largest=largest,
        smallest=smallest,
        effective_rank=rank,
        full_rank=min(matrices.shape[-2:]),
        norm=norm,
        zero_rows=int((rows == 0).sum()),
        verdict="",
    )
    verdict = next(name for name, (holds, _) in _RULES.items() if holds(state))
    return LayerState(**{**asdict(state), "shape": state.shape, "verdict": verdict})


def _singular_values(matrices: Tensor) -> Tensor | None:
    """Return the singular values, None where they have none that float32 can hold."""
    try:
        values = torch.linalg.svdvals(matrices).double()
    except RuntimeError:  # torch's LinAlgError: it does not converge
        return None
    return values if bool(torch.isfinite(values).all()) else None
