"""The sub-command ``fire-rl report``: its flags, and what it says."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Compare the runs of several arms: scores with confidence intervals, probability of
improvement, recovery after interventions, learning curves over plasticity, singular
values before and after; as one HTML page, as tables (Markdown, CSV), as pictures (PNG,
SVG) and as JSON.

Runs are folders that train.py or Stable-Baselines3 wrote: with TensorBoard events,
progress.csv, episodes.csv or monitor.csv. They are searched in all sub-folders. Which arm
and seed one is, <arm>/s<seed>, s<seed>/<arm>, <arm>_<seed> or its config.yaml says."""


def add_report(commands: Any, command: Callable[[argparse.Namespace], None]) -> None:
    """Add the sub-command to ``fire-rl``.

    Args:
        commands: The sub-parsers.
        command: What it calls.
    """
    parser = commands.add_parser(
        "report",
        usage="fire-rl report RUNS [RUNS ...] --out DIR [options]",
        help="compare runs: tables, pictures, one HTML page",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUNS", help="run folders, or folders of them"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", required=True,
        help="folder of the report: new, empty, or an earlier report, which is replaced",
    )  # fmt: skip
    parser.add_argument(
        "--control", metavar="ARM",
        help="the arm that others are compared with; by default `none`, if it is there",
    )  # fmt: skip
    parser.add_argument(
        "--score", choices=("mean", "final"), default="mean",
        help="of a run: the mean over all its steps (default), or over the last tenth",
    )  # fmt: skip
    parser.add_argument(
        "--target", type=float, metavar="RETURN",
        help="the return that counts as solved, for the optimality gap; by default Gymnasium's "
        "reward threshold, or the human score on Atari",
    )  # fmt: skip
    parser.add_argument(
        "--floor", type=float, metavar="RETURN", help="the return that counts as nothing; default 0"
    )
    parser.add_argument(
        "--until", type=int, metavar="STEP", help="leave out what comes after this step"
    )
    parser.add_argument(
        "--arm", action="append", default=[], metavar="NAME=GLOB",
        help="runs whose path ends so are this arm, for example slow=lr_1e-4/s*; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=GLOB",
        help="the same for the environment, where nothing in the folder tells it",
    )  # fmt: skip
    parser.add_argument("--title", help="heading of the page")
    parser.set_defaults(command=command, parser=parser)


def run_report(arguments: argparse.Namespace) -> str:
    """Write the report; return what there is to say."""
    from fire_rl.reports.writing import write_report

    report = write_report(
        arguments.runs,
        arguments.out,
        control=arguments.control,
        score=arguments.score,
        target=arguments.target,
        floor=arguments.floor,
        until=arguments.until,
        arms=arguments.arm,
        envs=arguments.env,
        title=arguments.title,
    )
    shown = [table for table in report.tables if table.name in ("scores", "continual")]
    parts = [f"{table.title}\n\n{table.to_markdown()}\n" for table in shown]
    experiment = report.experiment
    told = [
        f"{len(experiment.runs)} runs, {experiment.end:,} steps; the return is taken from "
        f"{experiment.source}.",
        *experiment.notes,
    ]
    return "\n".join([*parts, *told, f"Report: {report.page}"])
