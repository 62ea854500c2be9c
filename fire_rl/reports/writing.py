"""Write a whole report: tables, pictures, one HTML page, and all numbers as JSON."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fire_rl.reports import measures, tables
from fire_rl.reports.curves import draw_curves, draw_games, draw_surgery
from fire_rl.reports.experiment import Experiment, make_experiment
from fire_rl.reports.figures import Picture, draw_scores, draw_tasks
from fire_rl.reports.runs import read_runs
from fire_rl.reports.tables import Table, show
from fire_rl.runs.lines import from_json
from fire_rl.utils.jsonable import without_nan
from fire_rl.utils.limits import Limits
from fire_rl.utils.plain_text import markdown_text, printable
from fire_rl.utils.validation import check_choice
from fire_rl.utils.version import VERSION

FORMAT = "fire-rl report"
_INDEX = "report.json"
# Of the page: a heading, its tables, and how the names of its pictures begin.
_SECTIONS = (
    ("Scores", ("scores", "games"), ("scores",)),
    ("Learning curves", (), ("curves", "games")),
    ("Changing tasks", ("continual", "tasks"), ("tasks",)),
    ("Recovery from interventions", ("recovery",), ()),
    ("Plasticity", ("plasticity",), ()),
    ("What surgery did", ("surgery",), ("sfe", "spectrum")),
    ("Runs", ("runs",), ()),
)
# Names of files that a report, or one of an earlier version, is made of.
_OWN = re.compile(r"(\w+/)?[\w-][\w.-]*\.(html|md|json|csv|png|svg)")
_FOLDED = 16  # tables with more rows than this are folded


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        page: The HTML page.
        experiment: The runs.
        tables: All tables, the scores first.
        files: All files, relative to the report's folder.
    """

    page: Path
    experiment: Experiment
    tables: tuple[Table, ...]
    files: tuple[str, ...]


def write_report(  # noqa: D417  (`limits` is above: the others are the flags of `fire-rl report`)
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    control: str | None = None,
    score: str = "mean",
    target: float | None = None,
    floor: float | None = None,
    until: int | None = None,
    arms: Sequence[str] = (),
    envs: Sequence[str] = (),
    title: str | None = None,
    limits: Limits | None = None,
) -> Report:
    """Read run folders, compare their arms, write a report.

    The folders may be a stranger's: what their files hold is checked against ``limits`` before they
    are read, by default those of :class:`~fire_rl.utils.limits.Limits`.

    Args:
        runs: Run folders, or folders that hold some at any depth.
        out: Folder of the report: new, empty, or an earlier report, which is replaced.
        control: Arm that the others are compared with; by default ``none``, if there is such an
            arm.
        score: Score of a run: ``mean``, over all its steps, or ``final``, over the last tenth.
        target: Return that counts as solved, for the optimality gap; by default Gymnasium's reward
            threshold, or the human score on Atari.
        floor: Return that counts as nothing; by default 0, or that of random play on Atari.
        until: Last step that counts; by default the last one of the shortest run.
        arms: ``NAME=GLOB``, for example ``slow=lr_1e-4/s*``: all runs whose path ends with the
            pattern GLOB belong to the arm NAME. Several are possible.
        envs: ``NAME=GLOB``: all runs whose path ends with the pattern GLOB have the environment
            NAME; for runs that do not record it. Several are possible.
        title: Heading of the page.

    Raises:
        FileNotFoundError: If a folder does not exist.
        FileExistsError: If ``out`` holds something else than a report.
        ImportError: If a package of the extra ``report`` is missing.
        ValueError: If there is no run, or the runs cannot be compared.
    """
    check_choice("--score", score, ("mean", "final"))
    folder = Path(out)
    _check_free(folder)
    found = read_runs(runs, arms, envs, limits or Limits())
    experiment = make_experiment(found, control=control, target=target, floor=floor, until=until)
    contents = make_tables(experiment, score)
    pictures = [draw_scores(experiment, contents[0], score), *draw_curves(experiment)]
    pictures += [*draw_games(experiment), *draw_tasks(experiment), *draw_surgery(experiment)]
    names = experiment.arms
    arms_text = ", ".join(names) if len(names) <= 6 else f"{len(names)} arms"
    heading = printable(title or f"{', '.join(experiment.games) or 'Runs'}: {arms_text}")
    lead = _lead(experiment)
    page = make_page(heading, lead, experiment.notes, contents, pictures)
    text = _markdown(heading, lead, experiment.notes, contents)
    files: dict[str, str | bytes] = {"report.html": page, "report.md": text}
    for table in contents:
        files[f"tables/{table.name}.md"] = table.to_markdown() + "\n"
        files[f"tables/{table.name}.csv"] = table.to_csv()
    for picture in pictures:
        files |= {f"figures/{picture.name}.{end}": data for end, data in picture.files.items()}
    index = {"format": FORMAT, "title": heading, "files": [*files, _INDEX]}
    index |= _numbers(experiment, contents, score)
    files[_INDEX] = json.dumps(without_nan(index), indent=1, allow_nan=False) + "\n"
    _write(folder, files)
    return Report(folder / "report.html", experiment, tuple(contents), tuple(files))


def make_tables(experiment: Experiment, kind: str) -> list[Table]:
    """Return the tables for which there are data, the scores, of a ``kind``, first."""
    found = [tables.scores_table(experiment, kind)]
    if experiment.human:
        found.append(tables.games_table(experiment, kind))
    if experiment.tasks:
        found += tables.task_tables(experiment)
    found += [tables.events_table(experiment), tables.plasticity_table(experiment)]
    found += [tables.surgery_table(experiment), tables.runs_table(experiment)]
    return [table.without_empty_columns() for table in found if table.rows]


def _markdown(title: str, lead: str, notes: Sequence[str], tables: Sequence[Table]) -> str:
    title, lead, *texts = map(markdown_text, (title, lead, *notes))
    lines = [f"# {title}", "", lead, "", *(f"- {note}" for note in texts), ""]
    for table in tables:
        lines.append(f"## {table.title}\n\n{markdown_text(table.about)}\n\n{table.to_markdown()}\n")
    return "\n".join(lines)


def _lead(experiment: Experiment) -> str:
    counts = {"run": len(experiment.runs), "arm": len(experiment.arms)}
    what = " of ".join(f"{count} {word}{'s' * (count > 1)}" for word, count in counts.items())
    settings = sorted({run.setting for run in experiment.runs if run.env}) or ["not recorded"]
    control = "" if experiment.control is None else f" The control is {experiment.control}."
    return (
        f"{what}, {experiment.end:,} steps each. Environment: {'; '.join(settings)}. "
        f"The return is taken from {experiment.source}.{control}"
    )


def _numbers(experiment: Experiment, tables: Sequence[Table], kind: str) -> dict[str, Any]:
    """Return all numbers of a report as plain values."""
    runs = [
        {
            "path": str(run.path),
            **{name: getattr(run, name) for name in ("arm", "seed", "env", "steps")},
            "score": measures.score(run, experiment, kind),
            "events": measures.event_steps(run, experiment),
        }
        for run in experiment.runs
    ]
    tags = [measures.plasticity_tag(role, metric)
            for role in measures.roles_of(experiment) for metric in measures.METRICS]  # fmt: skip
    curves = {}
    for arm in experiment.arms:
        own = {tag: measures.metric_curve(experiment, arm, tag) for tag in tags}
        own = {"return": measures.return_curve(experiment, arm), **own}
        curves[arm] = {
            tag: {name: values.tolist() for name, values in vars(curve).items()}
            for tag, curve in own.items() if curve is not None
        }  # fmt: skip
    names = ("control", "start", "end", "target", "floor", "about_target", "notes")
    return {
        "returns_from": experiment.source,
        "score": kind,
        **{name: getattr(experiment, name) for name in names},
        "runs": runs,
        "tables": {table.name: table.to_dict() for table in tables},
        "curves": curves,
    }


def make_page(
    title: str,
    lead: str,
    notes: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
) -> str:
    """Return one HTML page with everything in it: no other file, no outside address, no script.

    ``lead`` says what was compared, ``notes`` what the reader has to know first.

    Raises:
        ImportError: If jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError:
        raise ImportError("The page needs jinja2: pip install 'fire-rl[report]'") from None
    sections = []
    for heading, names, kinds in _SECTIONS:
        own = {
            "heading": heading,
            "anchor": heading.lower().replace(" ", "-"),
            "tables": [table for table in tables if table.name in names],
            "pictures": [one for one in pictures if one.name.partition("_")[0] in kinds],
        }
        if own["tables"] or own["pictures"]:
            sections.append(own)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        title=title, lead=lead, notes=notes, sections=sections, folded=_FOLDED, version=VERSION,
        show=show, base64=lambda data: base64.b64encode(data).decode("ascii"),
    )  # fmt: skip


def _check_free(folder: Path) -> None:
    """Raise FileExistsError unless a folder is new, empty or an earlier report."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"`--out` must be a folder; {folder} is a file.")
    if folder.exists() and any(folder.iterdir()) and _files_of(folder) is None:
        raise FileExistsError(
            f"The folder {folder} is not empty and holds no report of fire-rl; nothing is "
            "overwritten. Choose another with --out."
        )


def _files_of(folder: Path) -> list[Path] | None:
    """Return the files of the report in a folder, None if there is no report in it.

    Only what a report is made of: an index that lists other files deletes none of them.
    """
    path = folder / _INDEX
    index = (
        from_json(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    )
    if not isinstance(index, Mapping) or index.get("format") != FORMAT:
        return None
    names = index.get("files")
    found = names if isinstance(names, list) else []
    paths = [folder / name for name in found if isinstance(name, str) and _OWN.fullmatch(name)]
    return [path for path in paths if _is_inside(path, folder) and path.is_file()]


def _is_inside(path: Path, folder: Path) -> bool:
    """Tell whether a file of a report lies in its folder: a link may lead out of it."""
    return path.parent.resolve() in (folder.resolve(), folder.resolve() / path.parent.name)


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write the files; those of an earlier report are deleted first."""
    for path in _files_of(folder) or ():
        path.unlink()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _is_inside(path, folder):
            raise ValueError(f"`--out`: {path.parent} is a link to another folder; remove it.")
        raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(raw)
        os.replace(temporary, path)  # a link in its place is replaced, not followed
