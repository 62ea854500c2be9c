"""What the benchmarks share: where they ran, and how they write their results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.machine import describe_machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy", "ale-py", "mujoco")


def machine() -> dict[str, Any]:
    """Describe the machine, the versions and the commit."""
    here = describe_machine()
    git = here["git"]
    return {
        "cpu": here["cpu"]["name"],
        "cores": here["cpu"]["count"],
        "torch_threads": here["num_threads"],
        "cuda": None if here["device"] == "cpu" else here["device"],
        "python": here["python"],
        "versions": {name: here["packages"][name] for name in _PACKAGES},
        "commit": git and git["commit"][:7] + ("-dirty" if git["modified"] else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write a result as JSON beside its machine; return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    return path


def write_rows(name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON beside the machine, a line each; return the path.

    All or nothing: a stop in the middle leaves the old file.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = f'{{\n"machine": {json.dumps(machine())},\n"rows": [\n{lines}\n]\n}}\n'
    new = path.with_suffix(".tmp")
    new.write_text(text)
    os.replace(new, path)
    return path
