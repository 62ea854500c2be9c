"""The console command ``fire-rl``: reports of runs, and FIRE on the weights in a file."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fire_rl.files.apply import (
    ALGORITHMS,
    FileSurgery,
    find_algorithm,
    operate_on_file,
    state_dict_layers,
)
from fire_rl.files.flags import FireOptions
from fire_rl.files.formats import (
    ModelFile,
    check_output,
    named_tensors,
    read_model_file,
    write_model_file,
)
from fire_rl.files.layer_state import VERDICTS, LayerState, inspect_layer
from fire_rl.files.rebuild import build_skeleton, identity
from fire_rl.files.recognise import make_stand_in
from fire_rl.interventions.report import LayerChange
from fire_rl.reports.command import add_report, run_report
from fire_rl.sb3.model_view import ModelView
from fire_rl.utils.validation import nearest
from fire_rl.utils.version import VERSION
from fire_rl.weights.layers import weight_layers_of

_FILE = (
    "a zip of Stable-Baselines3 or sb3-contrib (`model.save`), or a state dict in a .pt, .pth or "
    ".safetensors file"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 if the user has to change something."""
    parser = _parser()
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [flag for action in known.parser._actions for flag in action.option_strings]
        known.parser.error(f"unknown argument {unknown[0]!r}.{nearest(unknown[0], flags)}")
    command: Callable[[argparse.Namespace], None] = known.command
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            command(known)
            status = 0
        except (ValueError, OSError, ImportError, RecursionError) as error:
            print(_printable(f"{known.parser.prog}: error: {error}"), file=sys.stderr)
            status = 2
    told = [str(note.message) for note in notes if issubclass(note.category, UserWarning)]
    for text in dict.fromkeys(told):
        print(_printable(f"{known.parser.prog}: note: {text}"), file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fire-rl",
        description="Compare runs; look at the weights of saved agents, make them trainable again.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fire-rl {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_inspect, _add_apply):
        add(commands)
    add_report(commands, lambda arguments: print(_printable(run_report(arguments))))
    return parser


def _add_inspect(commands: Any) -> None:
    rules = "\n".join(f"  {name:<11} {rule}" for name, rule in VERDICTS.items())
    parser = commands.add_parser(
        "inspect",
        help="show the state of every layer of a file",
        description="Show the state of every linear layer and convolution of a file. Tensors are "
        "read, and nothing else: no code in the file is run, whoever made it.",
        epilog="columns:\n"
        "  DfI/sv     deviation from isometry of W / s at FIRE's published scale s, per\n"
        "             singular value; 0 after an exact projection\n"
        "  largest, smallest\n"
        "             singular values; of a convolution, over all its kernel taps\n"
        "  rank       effective rank (exp of the entropy of the singular values, mean over\n"
        "             taps) of the highest possible\n"
        "  norm       Frobenius norm\n"
        "  zero rows  units whose incoming weights are all zero\n\n"
        f"verdict: the first rule that holds.\n{rules}\n"
        "Freshly initialised layers are above or off FIRE's scale, too: compare with the file\n"
        "saved at the start. Whether an agent still learns, its returns say.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=_FILE)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(command=_inspect, parser=parser)


def _add_apply(commands: Any) -> None:
    parser = commands.add_parser(
        "apply",
        usage="fire-rl apply MODEL --out FILE [options]",
        help="write a copy of a file with FIRE applied",
        description="Write a copy of a file to which FIRE was applied, as "
        "`fire_rl.apply_intervention` does it: weights, target networks and optimizer state; all "
        "else in a zip stays as it is, byte for byte. Policies that come with SB3 and sb3-contrib "
        "are known by the names of their tensors, and no code in the file is run.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=_FILE)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the new file, of the same format")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--dry-run", action="store_true", help="show what would change, and stop")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--seed", type=int, help="of new draws; by default the model's seed plus its steps"
    )
    parser.add_argument(
        "--initial", type=Path, metavar="FILE",
        help="the same agent as it was before training, for `--source initial`",
    )  # fmt: skip
    trust = parser.add_argument_group("custom policies, and `reset` rules with `--source fresh`")
    trust.add_argument(
        "--trust",
        action="store_true",
        help="load the zip with SB3. This RUNS CODE that the zip contains, with all your rights: "
        "only for files from people whom you trust",
    )
    trust.add_argument(
        "--algo",
        metavar="NAME",
        help="algorithm of the zip, which does not name it; needed with --trust: "
        f"{', '.join(sorted(ALGORITHMS))}, or module:Class",
    )
    options = FireOptions()
    options.add_to(parser.add_argument_group("options of FIRE"))
    parser.set_defaults(command=_apply, parser=parser, fire_options=options)


def _inspect(arguments: argparse.Namespace) -> None:
    file = read_model_file(arguments.model)
    recognised, layers, others = _layer_states(file)
    optimizers = {
        member: {
            "parameters_with_state": len(content.get("state", ())),
            "tensors": len(named_tensors(content)),
        }
        for member, content in file.optimizers.items()
        if file.format == "sb3" and isinstance(content, dict)
    }
    about = {
        "file": str(file.path),
        "format": file.format,
        "recognised_as": recognised,
        "sb3_version": file.version,
        "num_timesteps": file.num_timesteps,
    }
    if arguments.json:
        described = [layer.to_dict() for layer in layers]
        found = {**about, "layers": described, "others": others, "optimizers": optimizers}
        print(json.dumps(found, indent=2))
        return
    print(_printable("; ".join(f"{k}: {v}" for k, v in about.items() if v is not None)))
    header = ("layer", "role", "kind", "shape", "DfI/sv", "largest", "smallest", "rank", "norm")
    rows = [_state_row(layer) for layer in layers]
    _print_table((*header, "zero rows", "verdict"), rows)
    if others:
        shown = ", ".join(f"{name} {_shape(shape)}" for name, shape in others.items())
        _print_paragraph(f"Other tensors: {shown}.")
    for member, numbers in optimizers.items():
        count = numbers["parameters_with_state"]
        _print_paragraph(f"Optimizer {member}: state of {count} parameters.")


def _layer_states(
    file: ModelFile,
) -> tuple[str | None, list[LayerState], dict[str, tuple[int, ...]]]:
    """What the policy was recognised as, its layers, and the shapes of its other tensors."""
    tensors = file.tensors
    recognised, roles, heads = None, dict[str, str](), set[str]()
    if file.format == "sb3":
        skeleton = build_skeleton(tensors)
        try:
            stand_in = make_stand_in(file)
            groups = ModelView(stand_in.model).groups
            recognised, skeleton = stand_in.kind.algorithms, stand_in.model.policy
            for group in groups:
                roles |= {layer.name: group.role for layer in group.online.layers}
                heads |= set(group.online.heads)
        except (ValueError, ImportError) as error:
            warnings.warn(f"Roles are not known. {error}", UserWarning, stacklevel=2)
    else:
        skeleton, _ = state_dict_layers(file)
    layers = weight_layers_of(skeleton.named_modules())
    states = [
        inspect_layer(layer, roles.get(layer.name, _target(layer.name)), layer.name in heads)
        for layer in layers
    ]
    used = {identity(layer.weight) for layer in layers}
    used |= {identity(layer.bias) for layer in layers if layer.bias is not None}
    others = {n: tuple(t.shape) for n, t in tensors.items() if identity(t) not in used}
    return recognised, states, others


def _target(name: str) -> str:
    return "target" if any(part.endswith("_target") for part in name.split(".")) else ""


def _apply(arguments: argparse.Namespace) -> None:
    file = read_model_file(arguments.model)
    out: Path | None = arguments.out
    if out is None and not arguments.dry_run:
        raise ValueError("`--out FILE` is needed: where to write the new file (or --dry-run).")
    if out is not None:
        check_output(out, file.path, arguments.force)
    if arguments.algo is not None and not arguments.trust:
        raise ValueError("`--algo` is for --trust; without it the zip is recognised by itself.")
    algorithm = None
    if arguments.trust:
        if arguments.algo is None:
            raise ValueError("`--trust` needs --algo NAME: a zip does not name its algorithm.")
        warnings.warn(
            f"--trust: loading `{file.path}` runs code that it contains.", UserWarning, stacklevel=2
        )
        algorithm = find_algorithm(arguments.algo)
    surgery = operate_on_file(
        file,
        arguments.fire_options.given(arguments),
        algorithm=algorithm,
        initial=arguments.initial,
        seed=arguments.seed,
    )
    written = out is not None and not arguments.dry_run
    if written:
        assert out is not None
        write_model_file(file, surgery.content, out, arguments.force)
    print_result = _print_surgery_json if arguments.json else _print_surgery
    print_result(surgery, out if written else None)


def _print_surgery_json(surgery: FileSurgery, out: Path | None) -> None:
    found = {
        "file": str(surgery.file.path),
        "out": None if out is None else str(out),
        "recognised_as": surgery.recognised,
        "changed_members": sorted(surgery.content),
        "kept": dict(surgery.kept),
        "layers": [asdict(layer) for layer in surgery.layers],
        "report": None if surgery.report is None else surgery.report.to_dict(),
    }
    print(json.dumps(found, indent=2))


def _print_surgery(surgery: FileSurgery, out: Path | None) -> None:
    print(_printable(f"{surgery.file.path}: {surgery.recognised}"))
    rows = [_change_row(layer) for layer in surgery.layers]
    _print_table(("layer", "shape", "action", "DfI/sv before", "after", "relative SFE"), rows)
    if surgery.kept:
        _print_paragraph("Kept: " + "; ".join(f"{n} ({why})" for n, why in surgery.kept.items()))
    if surgery.report is not None:
        count = surgery.report.optimizer_entries_forgotten
        _print_paragraph(f"Optimizer state forgotten: that of {count} parameters.")
        for name, value in surgery.report.around.items():
            _print_paragraph(f"{name}: {value}")
    if out is None:
        print("Nothing was written.")
    else:
        members = ", ".join(sorted(surgery.content)) if surgery.file.format == "sb3" else "weights"
        print(_printable(f"Wrote {out}; changed: {members or 'nothing'}."))


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
    relative = change.sfe / change.norm_before**2 if change.norm_before else 0.0
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


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(_printable("  ".join(cells).rstrip()))


def _print_paragraph(text: str) -> None:
    print(textwrap.fill(_printable(text), 100, subsequent_indent="  ", break_long_words=False))


def _printable(text: str) -> str:
    """Without control characters: names in a stranger's file may not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


if __name__ == "__main__":
    sys.exit(main())
