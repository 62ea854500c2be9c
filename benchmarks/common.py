"""What the benchmarks share: where they ran, and how they write their results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy", "ale-py", "mujoco")


def machine() -> dict[str, Any]:
    """Describe the machine, the versions and the commit."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "commit": commit.stdout.strip() or None,
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
