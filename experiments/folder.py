"""The folder of one run: where each file is, and what is written around the training."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import HParam, Logger, configure

from experiments.config import RunConfig, dump_yaml
from experiments.interventions import names
from experiments.plain_yaml import ConfigError, read_yaml

_PACKAGES = (
    "fire-rl", "stable-baselines3", "torch", "numpy", "gymnasium", "ale-py", "mujoco",
    "opencv-python-headless", "tensorboard", "pydantic",
)  # fmt: skip


class RunFolder:
    """The files of one run.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.model = self.path / "model.zip"
        self.best_model = self.path / "best_model.zip"
        self.vecnormalize = self.path / "vecnormalize.pkl"
        self.progress = self.path / "progress.csv"
        self.checkpoints = self.path / "checkpoints"
        self.result = self.path / "result.json"
        self.resume_from: Path | None = None
        self.stop_at: int | None = None

    def check_free(self) -> None:
        """Raise FileExistsError if there is something in the folder: no run is overwritten."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(
                f"The run folder {self.path} exists and is not empty; no run is overwritten. "
                "Choose another with --log-dir, or move or delete it."
            )

    def check_run(self) -> None:
        """Raise ConfigError if this is no folder of a run."""
        if not self.config.exists():
            raise ConfigError(
                [f"{self.path} is no run folder: there is no {self.config}. Give a folder that "
                 "train.py wrote, for example one in runs/."]
            )  # fmt: skip

    def create(self) -> None:
        """Make the folder, which must be free."""
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)

    def describe(self, config: RunConfig) -> None:
        """Write ``config.yaml`` and ``environment.json``."""
        self.config.write_text(dump_yaml(config), encoding="utf-8")
        text = json.dumps(_environment(config.device), indent=2)
        self.environment.write_text(text + "\n", encoding="utf-8")

    def logger(self, tables: bool) -> Logger:
        """Return SB3's logger to ``progress.csv``, TensorBoard and, as tables, the terminal."""
        return configure(str(self.path), [*(["stdout"] if tables else []), "csv", "tensorboard"])

    def save(self, model: BaseAlgorithm) -> None:
        """Write ``model.zip``, and ``vecnormalize.pkl`` where it is used."""
        model.save(self.model)
        normalize = model.get_vec_normalize_env()
        if normalize is not None:
            normalize.save(str(self.vecnormalize))

    def finish(self, model: BaseAlgorithm, outcome: Mapping[str, float | None]) -> None:
        """Write ``result.json``, which says that the run has come to its end."""
        values = {"num_timesteps": model.num_timesteps, **outcome}
        self.result.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def branch_checkpoint(self) -> Path | None:
        """Return the checkpoint that the run has branched off, None if it is no branch."""
        values = read_yaml(self.config.read_text(encoding="utf-8"))
        branch = values.get("branch")
        return Path(branch["checkpoint"]) if branch else None

    def normalization_of(self, model: Path) -> Path | None:
        """Return the statistics that belong to one of the folder's models, if there are any."""
        name = "vecnormalize.pkl"
        if model == self.best_model:
            name = "best_vecnormalize.pkl"
        path = model.parent / name
        return path if path.exists() else None


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint: its folder's name, ``STEP`` or ``STEP.AGAIN``."""
    return int(checkpoint.name.partition(".")[0])


def default_path(config: RunConfig, root: str | Path = "runs") -> Path:
    """Return ``runs/<algo>_<env>_<intervention>_s<seed>_<timestamp>``."""
    intervention = config.branch.arm if config.branch else names(config.intervention)
    env = config.env.replace("/", "-").replace(":", "-")
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path(root) / f"{config.algo}_{env}_{intervention}_s{config.seed}_{time}"


def find_run(path: str | Path) -> tuple[RunFolder, Path]:
    """Return a run folder and the model in it to play.

    Args:
        path: A run folder, whose final model is taken, or else its best or latest checkpoint; or
            one of the zip files in it.

    Raises:
        ConfigError: If there is no run, or no model in it.
    """
    path = Path(path)
    if path.suffix == ".zip" and path.is_file():
        in_checkpoint = path.parent.parent.name == "checkpoints"
        folder = RunFolder(path.parents[2] if in_checkpoint else path.parent)
        models = [path]
    else:
        folder = RunFolder(path)
        latest = sorted(folder.checkpoints.glob("*/model.zip"), key=lambda p: p.stat().st_mtime)
        models = [p for p in (folder.model, folder.best_model, *latest[::-1]) if p.exists()]
    folder.check_run()
    if not models:
        raise ConfigError([f"{path} has no model yet: no model.zip, best_model.zip or checkpoint."])
    return folder, models[0]


def record_config(model: BaseAlgorithm, config: RunConfig) -> None:
    """Show the configuration as text in TensorBoard, with the first values that are logged."""
    indented = "".join(f"    {line}\n" for line in dump_yaml(config).splitlines())
    model.logger.record("config", indented, exclude=("stdout", "csv"))


def record_outcome(
    model: BaseAlgorithm, config: RunConfig, outcome: Mapping[str, float | None]
) -> None:
    """Write hyper-parameters and results to TensorBoard's HParams tab.

    Args:
        model: The trained model.
        config: Its configuration.
        outcome: Results by name; what is None was not measured.
    """
    metrics = {f"final/{name}": value for name, value in outcome.items() if value is not None}
    for name, value in metrics.items():
        model.logger.record(name, value)
    if metrics:
        hparams = HParam(_flatten(config.model_dump(mode="json")), metrics)
        model.logger.record("hparams", hparams, exclude=("stdout", "csv"))
    model.logger.record("time/total_timesteps", model.num_timesteps, exclude="tensorboard")
    model.logger.dump(model.num_timesteps)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | str | float]:
    """Flatten nested values to ``section.key``; TensorBoard shows numbers, words and flags."""
    flat: dict[str, bool | str | float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            plain = isinstance(value, bool | int | float | str)
            flat[prefix + key] = value if plain else str(value)
    return flat


def _environment(device: str) -> dict[str, Any]:
    """Describe what the run runs on."""
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
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
        status = ("status", "--porcelain", "--", ".", ":(top,exclude)benchmarks/results")
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
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
