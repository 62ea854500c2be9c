"""Where is plasticity lost, and what restores it? Every arm of the evidence suite, every seed.

    python -m benchmarks.evidence.suite               # the headline, 14 arms, 5 seeds
    python -m benchmarks.evidence.suite --suite full  # everything (make evidence-full)
    python -m benchmarks.evidence.suite --suite full --only dqn_offset,sac_dynamics --seeds 1

Each run is one of `train.py`, with a configuration of configs/continual/ and one arm's
intervention, on one thread; two arms with the same seed see the same tasks. A finished run is not
trained again: stop at any time and go on later. Every result is a row of
benchmarks/results/continual.json with its commit, configuration and seed; rows that are not run
again stay. `python -m benchmarks.evidence.tables` turns them into tables and pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.common import RESULTS, ROOT, write_rows
from experiments import training
from experiments.config import parse_config
from experiments.flags import Args
from experiments.folder import RunFolder
from fire_rl.interventions import CONTROL
from fire_rl.runs import layout
from fire_rl.runs.episodes import read_episodes
from fire_rl.runs.readers import read_events, read_scalars, read_tasks

CONFIGS = ROOT / "configs" / "continual"
RESULT = "continual"
METRICS = ("/dormant_ratio", "/effective_rank", "/dfi_per_sv", "/weight_norm")
BINS = 8  # of each task: the first is "just after the switch", the last two are "the end"

# What each arm does at every change of task.
ARMS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "fire": {"name": "fire"},
    "fire_exact": {"name": "fire", "method": "exact"},
    "fire_heads_kept": {"name": "fire", "head": "keep"},
    "fire_heads_reset": {"name": "fire", "head": "reset"},
    "fire_half": {"name": "fire", "strength": 0.5},
    "fire_sfe_scale": {"name": "fire", "scale": "frobenius_optimal"},
    "fire_head_refit": {"name": "fire", "head_refit": True},
    # Not at changes of task, which it is not told of: when the actor has drifted from isometry.
    "fire_on_dfi": {
        "name": "fire",
        "schedule": {
            "metric": "dfi_per_sv", "above": 50, "network": "actor",
            "every": 4_096, "cooldown": 16_384, "stop": 0.99,
        },
    },
    "shrink_and_perturb": {"name": "shrink_and_perturb", "keep": 0.2},
    "reset": {"name": "reset"},
    # A method of maintenance: often, and a little. Published every 1,000 updates.
    "redo": {"name": "redo", "tau": 0.1, "schedule": {"every": 4_096, "stop": 0.99}},
    "optimizer_reset": {"name": "optimizer_reset"},
    "random_orthogonal": {"name": "random_orthogonal"},
}  # fmt: skip
SIX = ("none", "fire", "fire_exact", "shrink_and_perturb", "reset", "optimizer_reset")


@dataclass(frozen=True)
class Setting:
    """One setting of the suite.

    Attributes:
        config: File in configs/continual/, without its ending.
        arms: Names in :data:`ARMS`.
        seeds: How many.
        at: Step at which arms act, where no tasks change.
    """

    config: str
    arms: Sequence[str] = SIX
    seeds: int = 3
    at: int | None = None


HEADLINE = {
    name: Setting(name, tuple(ARMS), 5)
    for name in ("cartpole_permutation", "cartpole_offset", "cartpole_dynamics")
}
FULL = {
    **HEADLINE,
    **{
        name: Setting(name)
        for name in (
            "acrobot_offset",
            "acrobot_permutation",
            "dqn_offset",
            "dqn_offset_cleared",
            "dqn_permutation",
            "dqn_permutation_cleared",
            "minatar_games",
            "sac_dynamics",
        )
    },
    "sac_priming": Setting("sac_priming", at=1_024),
    # The same without priming: is that task learned when nothing has spoilt the networks?
    "sac_unprimed": Setting("sac_unprimed", arms=(CONTROL,)),
}
SUITES = {"headline": HEADLINE, "full": FULL}


def compared(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, of those in benchmarks/results/evidence.json, with several arms."""
    return {name: setting for name, setting in found.items() if len(setting["arms"]) > 1}


@dataclass(frozen=True)
class Job:
    """One run: a setting, an arm, a seed, and where its folder is."""

    setting: str
    arm: str
    seed: int
    folder: Path

    @property
    def key(self) -> tuple[str, str, int]:
        """What a row is known by."""
        return self.setting, self.arm, self.seed


def configuration(setting: Setting, arm: str, seed: int) -> dict[str, Any]:
    """Return a run's values: the file, the seed of everything, and the arm's intervention."""
    values: dict[str, Any] = yaml.safe_load((CONFIGS / f"{setting.config}.yaml").read_text())
    values["seed"] = seed
    moments = [setting.at]
    if values.get("tasks"):
        values["tasks"]["seed"] = seed
        period = values["tasks"]["every"]
        moments = list(range(period, values["total_timesteps"], period))
    entry = ARMS[arm]
    if entry is not None:
        listed = list(values.get("intervention") or [])
        values["intervention"] = [*listed, {"schedule": {"at": moments}, **entry}]
    return values


def train(job: Job) -> dict[str, Any]:
    """Train a run to its end, unless that is done, and return its row."""
    setting = FULL[job.setting]
    values = configuration(setting, job.arm, job.seed)
    folder = RunFolder(job.folder)
    if not folder.result.exists():
        shutil.rmtree(folder.path, ignore_errors=True)  # stopped in the middle: anew
        config = parse_config(values)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            if training.train(config, folder, Args()) != 0:
                raise RuntimeError(f"{job.folder} did not come to its end.")
    digest = hashlib.sha256((CONFIGS / f"{setting.config}.yaml").read_bytes()).hexdigest()
    source = {"config": f"configs/continual/{setting.config}.yaml", "config_sha256": digest}
    return {"setting": job.setting, "arm": job.arm, "seed": job.seed, **source, **row(folder.path)}


def row(folder: Path) -> dict[str, Any]:
    """Return what a run came to, from its folder.

    ``curve`` is the mean return of the training episodes that ended in each eighth of each task;
    an eighth in which none ended has the value of the one before it in the same task (the one
    after it, at the task's beginning). All other returns but ``evaluated`` are means of it.
    """
    config = yaml.safe_load((folder / layout.CONFIG).read_text())
    environment = json.loads((folder / layout.ENVIRONMENT).read_text())
    result = json.loads((folder / layout.RESULT).read_text())
    total = config["total_timesteps"]
    tasks = total // config["tasks"]["every"] if config["tasks"] else 1
    curve = task_curves(read_episodes(folder), total // tasks, tasks)
    evaluated = [
        (int(line["trained_task"]), int(line["task"]), round(line["return"], 2))
        for line in read_tasks(folder)
    ]
    earlier = [score for trained, task, score in evaluated if task != trained]
    current = [score for trained, task, score in evaluated if task == trained]
    return {
        **environment["git"],
        "intervention": config["intervention"],
        "mean_return": _rounded(curve.mean()),
        "by_task": _rounded(curve.mean(axis=1)),
        "after_switch": _rounded(curve[:, 0]),
        "at_end": _rounded(curve[:, -2:].mean(axis=1)),
        "current_tasks": _rounded(np.mean(current)) if current else None,
        "earlier_tasks": _rounded(np.mean(earlier)) if earlier else None,
        "evaluated": evaluated,
        "events": sorted(
            {r["num_timesteps"] for r in read_events(folder) if r["intervention"] != CONTROL}
        ),
        "plasticity": plasticity(folder),
        "steps_per_second": round(result["steps_per_second"], 1),
        "curve": _rounded(curve.flatten()),
    }


def task_curves(episodes: Sequence[tuple[int, float]], period: int, tasks: int) -> Any:
    """Return the mean return in each eighth of each task, shape ``(tasks, BINS)``."""
    width = period / BINS
    found: list[list[float]] = [[] for _ in range(tasks * BINS)]
    for step, score in episodes:
        found[min(int(np.ceil(step / width)) - 1, len(found) - 1)].append(score)
    curve = np.array([np.mean(scores) if scores else np.nan for scores in found])
    curve = curve.reshape(tasks, BINS)
    for line in curve:
        known = np.flatnonzero(np.isfinite(line))
        if len(known) == 0:
            raise ValueError(f"No episode ended in a task of {period:,} steps: make tasks longer.")
        line[:] = line[known[np.maximum(np.searchsorted(known, np.arange(BINS), "right") - 1, 0)]]
    return curve


def plasticity(folder: Path) -> dict[str, list[list[float]]]:
    """Return ``[step, value]`` of every pooled metric of the networks, by log key."""
    return {
        key: [
            [int(step), float(f"{value:.4g}")]
            for step, value in zip(series.steps, series.values, strict=True)
        ]
        for key, series in read_scalars(folder)[0].items()
        if key.startswith(("plasticity/", "live/")) and key.endswith(METRICS)
    }


def _rounded(values: Any) -> Any:
    return np.round(np.asarray(values, float), 3).tolist()


def main() -> int:
    """Train what is missing, two at a time, and write JSON as results come."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=list(SUITES), default="headline")
    parser.add_argument("--only", help="settings, separated by commas")
    parser.add_argument("--seeds", type=int, help="as many, instead of the suite's 5 or 3")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "evidence", help="run folders")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument(
        "--check", action="store_true", help="one run of each setting, to the digit"
    )
    parser.add_argument("--fill", action="store_true", help="only what the JSON has no row of")
    arguments = parser.parse_args()
    plan = planned(SUITES[arguments.suite], arguments.only, arguments.seeds, arguments.runs)
    rows = {(r["setting"], r["arm"], r["seed"]): r for r in committed_rows()}
    if arguments.check:
        return check(plan, rows, arguments.jobs)
    if arguments.fill:
        plan = [job for job in plan if job.key not in rows]
    print(f"{len(plan)} runs in {arguments.runs}", flush=True)
    with workers(arguments.jobs) as pool:
        jobs = {pool.submit(train, job): job for job in plan}
        failed = 0
        for count, future in enumerate(as_completed(jobs), start=1):
            key = jobs[future].key
            try:
                rows[key] = future.result()
            except Exception as error:  # the other runs go on
                failed += 1
                outcome = f"FAILED: {error!r}"
            else:
                write_rows(RESULT, in_order(rows))
                outcome = f"{rows[key]['mean_return']:.1f}"
            print(f"{count}/{len(plan)} {' '.join(map(str, key))}: {outcome}", flush=True)
    return 1 if failed else 0


def workers(jobs: int) -> ProcessPoolExecutor:
    """Return processes that train one run each, and have imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.training"])
    return ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1)


def check(
    plan: Sequence[Job], rows: Mapping[tuple[str, str, int], Mapping[str, Any]], jobs: int
) -> int:
    """Train one run of FIRE of each setting anew; return 1 if one differs from its row."""
    different = 0
    with tempfile.TemporaryDirectory() as folder, workers(jobs) as pool:
        chosen = [job for job in plan if (job.arm, job.seed) == ("fire", 0)]
        again = pool.map(train, (replace(j, folder=Path(folder) / j.setting) for j in chosen))
        for job, row in zip(chosen, again, strict=True):
            now = json.loads(json.dumps(row))  # as it would be read
            same = all(now[k] == rows[job.key][k] for k in ("curve", "evaluated", "events"))
            different += not same
            print(f"{job.setting}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return int(different > 0)


def planned(
    suite: Mapping[str, Setting], only: str | None, seeds: int | None, runs: Path
) -> list[Job]:
    """Return the runs of a suite, all arms of one seed before the next seed.

    Raises:
        SystemExit: If a setting is unknown.
    """
    names = only.split(",") if only else list(suite)
    if unknown := [name for name in names if name not in suite]:
        raise SystemExit(f"--only has {unknown}; this suite has {', '.join(suite)}.")
    return [
        Job(name, arm, seed, layout.seed_folder(runs / name / arm, seed))
        for name in names
        for seed in range(seeds or suite[name].seeds)
        for arm in suite[name].arms
    ]


def committed_rows() -> list[dict[str, Any]]:
    """Return the rows that there are."""
    path = RESULTS / f"{RESULT}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return found


def in_order(rows: Mapping[tuple[str, str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all rows, in the suite's order; those that are no longer in it last."""
    order = [job.key for job in planned(FULL, None, None, Path())]
    return [*(rows[k] for k in order if k in rows), *(rows[k] for k in rows if k not in order)]


if __name__ == "__main__":
    sys.exit(main())
