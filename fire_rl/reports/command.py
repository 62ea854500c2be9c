"""The sub-command ``fire-rl report``: its flags, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


def _flag(metavar: str, text: str | None = None, hint: str = "") -> Any:
    """Name a flag's value in the help, without tyro's types and defaults of None."""
    return tyro.conf.arg(metavar=metavar, help=text, help_behavior_hint=hint)


_TARGET = "The return that counts as solved, for the optimality gap; by default Gymnasium's reward "
_TARGET += "threshold, or the human score on Atari."
_ARM = "Runs whose path ends like this belong to this arm, for example slow=lr_1e-4/s*; may be "
_ARM += "repeated."


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

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], _flag("RUNS [RUNS ...]")]
    """Run folders, or folders of them."""
    out: Annotated[Path, _flag("DIR", hint="(required)")]
    """Folder of the report: new, empty, or an earlier report, which is replaced."""
    control: Annotated[str | None, _flag("ARM")] = None
    """The arm that others are compared with; by default `none`, if it is there."""
    score: Annotated[str, _flag("{mean,final}")] = "mean"
    """Score of a run: the mean over all its steps (default), or over the last tenth."""
    target: Annotated[float | None, _flag("RETURN", _TARGET)] = None
    floor: Annotated[float | None, _flag("RETURN")] = None
    """The return that counts as nothing; default 0."""
    until: Annotated[int | None, _flag("STEP")] = None
    """Leave out what comes after this step."""
    arm: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], _flag("NAME=GLOB", _ARM)] = ()
    env: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], _flag("NAME=GLOB")] = ()
    """The same for the environment, where nothing in the folder tells it."""
    title: Annotated[str | None, _flag("TITLE")] = None
    """Heading of the page."""

    def run(self) -> str:
        """Write the report; return what is printed."""
        from fire_rl.reports.writing import write_report

        if not self.runs:
            raise ValueError("RUNS is needed: run folders, or folders of them.")
        report = write_report(
            self.runs,
            self.out,
            control=self.control,
            score=self.score,
            target=self.target,
            floor=self.floor,
            until=self.until,
            arms=self.arm,
            envs=self.env,
            title=self.title,
        )
        shown = [table for table in report.tables if table.name in ("scores", "continual")]
        parts = [f"{table.title}\n\n{table.to_markdown()}\n" for table in shown]
        experiment = report.experiment
        lines = [
            f"{len(experiment.runs)} runs, {experiment.end:,} steps; the return is taken from "
            f"{experiment.source}.",
            *experiment.notes,
        ]
        return "\n".join([*parts, *lines, f"Report: {report.page}"])
