"""The machine, the packages and the commit of a run or a benchmark."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "fire-rl", "stable-baselines3", "torch", "numpy", "gymnasium", "ale-py", "mujoco",
    "opencv-python-headless", "tensorboard", "pydantic",
)  # fmt: skip


def describe_machine(device: str = "auto") -> dict[str, Any]:
    """Return what numbers depend on beside the configuration: plain values, fit for JSON.

    Args:
        device: Where networks live: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Returns:
        ``git`` (commit, and whether files differ from it), ``python``, ``platform``, ``packages``
        (versions; None for what is not installed), ``device``, ``cpu`` and ``num_threads``.
    """
    return {
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": _device(device),
        "cpu": {"name": _cpu_name(), "count": os.cpu_count()},
        "num_threads": torch.get_num_threads(),
    }


def _git() -> dict[str, Any] | None:
    """Return the commit of this checkout and whether files differ from it."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Results of earlier runs have no part in this one.
        status = ("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git(*status))}
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or not a checkout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device(device: str) -> str:
    cuda = torch.cuda.is_available() and device != "cpu"
    return torch.cuda.get_device_name() if cuda else "cpu"


def _cpu_name() -> str:
    fallback = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return fallback
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else fallback
