"""The console command ``fire-rl``: reports of runs, and FIRE on the weights in a file."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, Union

import tyro
from stable_baselines3.common.base_class import BaseAlgorithm

from fire_rl.files.apply import ALGORITHMS, find_algorithm, operate_on_file
from fire_rl.files.flags import FireFlags, documented, given_options
from fire_rl.files.formats import check_output, read_model_file, write_model_file
from fire_rl.files.inspection import inspect_file
from fire_rl.files.tables import EXPLANATION, inspection_text, surgery_text
from fire_rl.reports import write_report
from fire_rl.utils.limits import Limits, OutOfTime
from fire_rl.utils.plain_text import printable
from fire_rl.utils.validation import nearest
from fire_rl.utils.version import VERSION

_DESCRIPTION = """\
Compare runs; look at the weights of saved agents, make them trainable again.
`fire-rl --version` prints the version."""
_MODEL = tyro.conf.arg(
    metavar="MODEL",
    help="A zip of Stable-Baselines3 or sb3-contrib (`model.save`), or a state dict in a .pt, .pth "
    "or .safetensors file.",
)
_ALGO = tyro.conf.arg(
    metavar="NAME",
    help_behavior_hint="",
    help="Algorithm of the zip, which does not name it; needed with --trust: "
    f"{', '.join(sorted(ALGORITHMS))}, or module:Class.",
)
_TRUST = tyro.conf.arg(
    help_behavior_hint="",
    help="For custom policies, and `reset` rules with `--source fresh`: load the zip with SB3. "
    "This RUNS CODE that the zip contains, with all your rights: only for files from people whom "
    "you trust.",
)
_FIRE = tyro.conf.arg(name="FIRE", constructor=FireFlags, help="")
_FILE = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
_REPORT = documented(write_report)
_SWITCH = tyro.conf.arg(help_behavior_hint="")
_POSITIONAL = ("model", "runs")


@dataclass(frozen=True)
class LimitFlags(Limits):
    """How much memory and time the command may take."""

    max_memory: Annotated[float, tyro.conf.arg(metavar="GB")] = Limits.max_memory
    """Gigabytes of memory. What a file declares to hold is checked before it is read."""
    max_seconds: Annotated[float, tyro.conf.arg(metavar="N")] = Limits.max_seconds
    """Seconds until the command gives up."""


_Limits = Annotated[LimitFlags, tyro.conf.OmitArgPrefixes]


@dataclass(frozen=True)
class Inspect:
    """Show the state of every layer of a file.

    The table has one line for each linear layer and convolution. Only tensors are read: no code in
    the file is run, whoever made it.
    """

    model: Annotated[tyro.conf.Positional[Path], _MODEL]
    json: Annotated[bool, _SWITCH] = False
    """Print JSON instead of a table."""
    limits: _Limits = LimitFlags()

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is read."""
        return (self.model,)

    def run(self) -> str:
        """Inspect the file; return what is printed."""
        inspection = inspect_file(read_model_file(self.model, self.limits))
        if self.json:
            return json.dumps(inspection.to_dict(), indent=2)
        return inspection_text(inspection)


@dataclass(frozen=True)
class Apply:
    """Write a copy of a file with FIRE applied.

    The copy holds what `fire_rl.apply_intervention` makes of the model: new weights, target
    networks and optimizer state. The rest of a zip stays as it is, byte for byte. Policies that
    come with SB3 and sb3-contrib are recognised by the names of their tensors, and no code in the
    file is run.
    """

    model: Annotated[tyro.conf.Positional[Path], _MODEL]
    fire: Annotated[Any, _FIRE]
    out: Annotated[Path | None, _FILE] = None
    """The new file, of the same format."""
    force: Annotated[bool, _SWITCH] = False
    """Replace FILE if it exists."""
    dry_run: Annotated[bool, _SWITCH] = False
    """Show what would change, and stop."""
    json: Annotated[bool, _SWITCH] = False
    """Print JSON instead of a table."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Seed of new draws; by default the model's seed plus its steps."""
    initial: Annotated[Path | None, _FILE] = None
    """The same agent as it was before training, for `--source initial`."""
    trust: Annotated[bool, _TRUST] = False
    algo: Annotated[str | None, _ALGO] = None
    limits: _Limits = LimitFlags()

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is read."""
        return (self.model,) if self.initial is None else (self.model, self.initial)

    def run(self) -> str:
        """Write the new file; return what is printed."""
        file = read_model_file(self.model, self.limits)
        if self.out is None and not self.dry_run:
            raise ValueError("`--out FILE` is needed: where to write the new file (or --dry-run).")
        if self.out is not None:
            check_output(self.out, file.path, self.force)
        surgery = operate_on_file(
            file,
            given_options(self.fire),
            algorithm=self._algorithm(),
            initial=self.initial,
            seed=self.seed,
        )
        out = None if self.dry_run else self.out
        if out is not None:
            write_model_file(file, surgery.content, out, self.force)
        if self.json:
            return json.dumps(surgery.to_dict(out), indent=2)
        return surgery_text(surgery, out)

    def _algorithm(self) -> type[BaseAlgorithm] | None:
        """Return the class that loads the zip; None if the zip is read without its code."""
        if not self.trust:
            if self.algo is not None:
                raise ValueError(
                    "`--algo` is for --trust; without it the zip is recognised by itself."
                )
            return None
        if self.algo is None:
            raise ValueError("`--trust` needs --algo NAME: a zip does not name its algorithm.")
        note = f"--trust: loading `{self.model}` runs code that it contains."
        warnings.warn(note, UserWarning, stacklevel=2)
        return find_algorithm(self.algo)


def _flag(argument: str, metavar: str, hint: str = "") -> Any:
    """Describe a flag by what :func:`write_report` says of its argument."""
    return tyro.conf.arg(metavar=metavar, help=_REPORT.get(argument, ""), help_behavior_hint=hint)


@dataclass(frozen=True)
class Report:
    """Compare runs: tables, pictures, one HTML page.

    The report compares several arms: scores with confidence intervals, probability of improvement,
    recovery after interventions, learning curves over plasticity, singular values before and after.
    It is written as one HTML page, as tables (Markdown, CSV), as pictures (PNG, SVG) and as JSON.

    Runs are folders that train.py or Stable-Baselines3 wrote: with TensorBoard events,
    progress.csv, episodes.csv or monitor.csv. They are searched for in all sub-folders. The arm and
    the seed of a run are read from its path (<arm>/s<seed>, s<seed>/<arm> or <arm>_<seed>) or from
    its config.yaml.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], _flag("runs", "RUNS [RUNS ...]")]
    out: Annotated[Path, _flag("out", "DIR", "(required)")]
    control: Annotated[str | None, _flag("control", "ARM")] = None
    score: Annotated[str, _flag("score", "{mean,final}", "(default: mean)")] = "mean"
    target: Annotated[float | None, _flag("target", "RETURN")] = None
    floor: Annotated[float | None, _flag("floor", "RETURN")] = None
    until: Annotated[int | None, _flag("until", "STEP")] = None
    arm: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], _flag("arms", "NAME=GLOB")] = ()
    env: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], _flag("envs", "NAME=GLOB")] = ()
    title: Annotated[str | None, _flag("title", "TITLE")] = None
    limits: _Limits = LimitFlags()

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is read."""
        return self.runs

    def run(self) -> str:
        """Write the report; return what is printed."""
        if not self.runs:
            raise ValueError("RUNS is needed: run folders, or folders of them.")
        options = {**vars(self), "arms": self.arm, "envs": self.env}
        del options["arm"], options["env"]
        report = write_report(**options)
        shown = [table for table in report.tables if table.name in ("scores", "continual")]
        experiment = report.experiment
        lines = [
            *(f"{table.title}\n\n{table.to_markdown()}\n" for table in shown),
            f"{len(experiment.runs)} runs, {experiment.end:,} steps; the return is taken from "
            f"{experiment.source}.",
            *experiment.notes,
            f"Report: {report.page}",
        ]
        return "\n".join(lines)


Command: TypeAlias = Inspect | Apply | Report
COMMANDS: dict[str, type[Command]] = {"inspect": Inspect, "apply": Apply, "report": Report}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 if the user has to change something."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"fire-rl {VERSION}")
        return 0
    command = _parse(words)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        output, error = _run(command)
    if error:
        for path in map(str, command.paths):
            error = error.replace(path, printable(path))
        _print_to_stderr(_prog(command), f"error: {error}")
    else:
        print(_printable(output))
    texts = [str(note.message) for note in notes if issubclass(note.category, UserWarning)]
    for text in dict.fromkeys(texts):
        _print_to_stderr(_prog(command), f"note: {text}")
    return 2 if error else 0


def _run(command: Command) -> tuple[str, str]:
    """Run a command within its limits; return what it prints, and the fault if there is one."""
    files = ", ".join(f"`{path}`" for path in command.paths)
    try:
        with command.limits.enforced():
            return command.run(), ""
    except (ValueError, OSError, ImportError, RecursionError) as error:
        if isinstance(error, RecursionError):
            return "", f"{files}: nested too deep to be read."
        named = any(str(path) in str(error) for path in command.paths)
        strange = isinstance(error, UnicodeError) and not named
        return "", f"{files}: {error}" if strange else str(error)
    except OutOfTime:
        seconds = command.limits.max_seconds
        return "", f"{files}: no end after {seconds:g} seconds. More of them: --max-seconds."
    except MemoryError:
        memory = command.limits.max_memory
        return "", f"{files}: {memory:g} GB of memory are not enough. More of it: --max-memory."
    except Exception as error:  # a stranger's file may bring up what we have not thought of
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {printable(str(error), 200)}"
        return "", f"{files}: unexpected {what} ({Path(place.filename).name}:{place.lineno})"


def _parse(words: list[str]) -> Command:
    """Read the flags. If help is asked for or a flag is wrong, print that and exit."""
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        hint = nearest(words[0], list(COMMANDS))
        _print_to_stderr("fire-rl", f"error: unknown command {words[0]!r}.{hint}")
        raise SystemExit(2)
    kinds = tuple(
        Annotated[kind, tyro.conf.subcommand(name, description=_description(name, words[:1]))]
        for name, kind in COMMANDS.items()
    )
    kind: Any = Union[kinds]  # noqa: UP007  (a tuple)
    command: Command
    command, unknown = tyro.cli(
        kind,
        prog="fire-rl",
        description=_DESCRIPTION,
        args=words,
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if unknown:
        hint = nearest(unknown[0], list(_flags(command)))
        _print_to_stderr(_prog(command), f"error: unknown argument {unknown[0]!r}.{hint}")
        raise SystemExit(2)
    return command


def _description(name: str, asked: Sequence[str]) -> str:
    """Return the first line of a command's documentation; all of it for the command in ``asked``.

    Paragraphs are wrapped here, since tyro does not wrap them. Their further lines are indented:
    tyro would join a line that begins with a letter to the line before it.
    """
    text = inspect.cleandoc(COMMANDS[name].__doc__ or "")
    if name not in asked:
        return text.partition("\n")[0]
    if name == "inspect":
        text = f"{text}\n\n{EXPLANATION}"
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n\n".join(
        part if "\n  " in part else textwrap.fill(part, width, subsequent_indent="  ")
        for part in text.split("\n\n")
    )


def _flags(command: object) -> Iterator[str]:
    """Yield the flags that fill a dataclass, those of a nested one included."""
    for field in fields(command):  # type: ignore[arg-type]
        value = getattr(command, field.name)
        if is_dataclass(value):
            yield from _flags(value)
        elif field.name not in _POSITIONAL:
            yield f"--{field.name.replace('_', '-')}"


def _prog(command: Command) -> str:
    return f"fire-rl {type(command).__name__.lower()}"


def _print_to_stderr(prog: str, text: str) -> None:
    print(_printable(f"{prog}: {text}"), file=sys.stderr)


def _printable(text: str) -> str:
    """Replace control characters: names in a stranger's file must not control the terminal."""
    return "\n".join(printable(line) for line in text.split("\n"))


if __name__ == "__main__":
    sys.exit(main())
