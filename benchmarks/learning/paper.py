"""Compare FIRE with its rivals and controls, each from the same checkpoint: configs/paper/small/.

    python -m benchmarks.learning.paper                   # both, 3 seeds: 2 hours on one core
    python -m benchmarks.learning.paper --only sac_simba  # one of them

For each seed one agent is trained to the midpoint, and every arm goes on from there: the same
weights, optimizer, replay buffer and random numbers. What is finished is not done again. Writes
benchmarks/results/paper_small.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, write_result
from fire_rl.runs import layout
from fire_rl.runs.readers import read_events

ARMS = {
    "dqn_minatar": (
        "none,fire,fire_exact,fire_paper,fire_refit,reset,shrink_and_perturb,redo,"
        "optimizer_reset,random_orthogonal"
    ),
    "sac_simba": "none,fire,fire_paper,fire_refit,reset,shrink_and_perturb,optimizer_reset",
}
SEEDS = 3


def run(name: str, root: Path) -> None:
    """Do the experiment, or what is missing of it."""
    command = [sys.executable, "train.py", "--config", f"configs/paper/small/{name}.yaml"]
    command += ["--arms", ARMS[name], "--seeds", str(SEEDS), "--log-dir", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def summarise(root: Path) -> dict[str, Any]:
    """Collect the recovery of every arm and seed, and the plasticity before and after."""
    rows = json.loads((root / layout.RECOVERY).read_text())
    for row in rows:
        folder = layout.arm_folder(root, row["seed"], row["arm"])
        first = read_events(folder)[0]
        row["before_after"] = {
            role: {metric: [first["before"][role][metric], first["after"][role][metric]]
                   for metric in first["before"][role]}
            for role in first["before"]
        }  # fmt: skip
        environment = json.loads((folder / layout.ENVIRONMENT).read_text())
        row["commit"] = environment["git"]
        row["steps_per_second"] = round(
            json.loads((folder / layout.RESULT).read_text())["steps_per_second"], 1
        )
    return {
        "config": f"configs/paper/small/{root.name}.yaml",
        "table": (root / layout.RECOVERY_TABLE).read_text().splitlines(),
        "plateau": {
            arm: round(float(np.mean([row["plateau"] for row in rows if row["arm"] == arm])), 3)
            for arm in dict.fromkeys(row["arm"] for row in rows)
        },
        "rows": rows,
    }


def main() -> None:
    """Run, summarise, write JSON as results come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=list(ARMS), help="run this one")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "paper", help="run folders")
    arguments = parser.parse_args()
    results = {}
    for name in ARMS:
        root = arguments.runs / name
        if arguments.only in (None, name):
            run(name, root)
        if (root / layout.RECOVERY).exists():
            results[name] = summarise(root)
            print(name, *results[name]["table"], sep="\n")
            write_result("paper_small", {"results": results})


if __name__ == "__main__":
    main()
