"""What ``fire-rl inspect`` and ``fire-rl apply`` print, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from fire_rl.files.apply import FileSurgery
from fire_rl.files.inspection import Inspection
from fire_rl.files.layer_state import VERDICTS, LayerState
from fire_rl.interventions.report import LayerChange

EXPLANATION = "\n".join(
    (
        "columns:",
        "  DfI/sv     deviation from isometry of W / s at FIRE's published scale s, per",
        "             singular value; 0 after an exact projection",
        "  largest, smallest",
        "             singular values; of a convolution, over all its kernel taps",
        "  rank       effective rank (exp of the entropy of the singular values, mean",
        "             over taps) / the highest possible",
        "  norm       Frobenius norm",
        "  zero rows  units whose incoming weights are all zero",
        "",
        "verdict: the first rule that holds.",
        *(f"  {name:<11} {rule}" for name, rule in VERDICTS.items()),
        "",
        "Freshly initialised layers are above or off FIRE's scale, too: compare with the file that "
        "was saved at the start. Whether an agent still learns is seen from its returns.",
    )
)
_STATE = (
    *("layer", "role", "kind", "shape", "DfI/sv", "largest", "smallest", "rank", "norm"),
    *("zero rows", "verdict"),
)
_CHANGE = ("layer", "shape", "action", "DfI/sv before", "after", "relative SFE")


def inspection_text(inspection: Inspection) -> str:
    """Return one line about the file, the table of its layers, and what else it holds."""
    about = "; ".join(f"{k}: {v}" for k, v in inspection.about.items() if v is not None)
    lines = [about, *_table(_STATE, [_state_row(layer) for layer in inspection.layers])]
    if inspection.others:
        shown = ", ".join(f"{name} {_shape(shape)}" for name, shape in inspection.others.items())
        lines.append(_paragraph(f"Other tensors: {shown}."))
    for member, numbers in inspection.optimizers.items():
        count = numbers["parameters_with_state"]
        lines.append(_paragraph(f"Optimizer {member}: state of {count} parameters."))
    return "\n".join(lines)


def surgery_text(surgery: FileSurgery, out: Path | None) -> str:
    """Return the table of what changed, and where it was written; ``out=None``: nowhere."""
    lines = [f"{surgery.file.path}: {surgery.recognised}"]
    lines += _table(_CHANGE, [_change_row(layer) for layer in surgery.layers])
    if surgery.kept:
        kept = "; ".join(f"{name} ({why})" for name, why in surgery.kept.items())
        lines.append(_paragraph(f"Kept: {kept}"))
    if surgery.report is not None:
        count = surgery.report.optimizer_entries_forgotten
        lines.append(_paragraph(f"Optimizer state forgotten: that of {count} parameters."))
        lines += [_paragraph(f"{n}: {value}") for n, value in surgery.report.around.items()]
    members = ", ".join(sorted(surgery.content)) if surgery.file.format == "sb3" else "weights"
    written = f"Wrote {out}; changed: {members or 'nothing'}."
    return "\n".join([*lines, "Nothing was written." if out is None else written])


def _state_row(state: LayerState) -> tuple[str, ...]:
    return (
        state.name,
        state.role,
        state.kind + (", head" if state.is_head else ""),
        _shape(state.shape),
        f"{state.dfi_per_sv:.3g}",
        f"{state.largest:.3g}",
        f"{state.smallest:.3g}",
        f"{state.effective_rank:.1f}/{state.full_rank}",
        f"{state.norm:.3g}",
        str(state.zero_rows),
        state.verdict,
    )


def _change_row(change: LayerChange) -> tuple[str, ...]:
    count = change.num_singular_values
    norm = change.norm_before
    relative = change.sfe / norm / norm if norm else 0.0
    return (
        change.name,
        _shape(change.shape),
        change.action,
        f"{change.dfi_before / count:.3g}",
        f"{change.dfi_after / count:.3g}",
        f"{relative:.3g}",
    )


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 100, subsequent_indent="  ", break_long_words=False)
