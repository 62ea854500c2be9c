"""The folder of one run: where each file is, and what is written around the training."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import HParam, Logger, configure

from experiments.config import RunConfig, dump_yaml, parse_config
from experiments.interventions import names
from experiments.machine import describe_machine
from experiments.plain_yaml import ConfigError, read_yaml
from fire_rl.checkpoints.store import Checkpoint
from fire_rl.runs import layout
from fire_rl.sb3.loggers import guard_outputs
from fire_rl.sb3.progress_csv import WholeCSV


class RunFolder:
    """The files of one run, and where in it the training begins and ends.

    Args:
        path: The folder.

    Attributes:
        resume_from: A checkpoint of this run to go on from; None to start anew.
        branch_from: The checkpoint of another run that a new branch begins with, if it has been
            read already.
        stop_at: The step at which to save a checkpoint and stop.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / layout.CONFIG
        self.environment = self.path / layout.ENVIRONMENT
        self.model = self.path / layout.MODEL
        self.best_model = self.path / layout.BEST_MODEL
        self.vecnormalize = self.path / layout.VECNORMALIZE
        self.progress = self.path / layout.PROGRESS
        self.checkpoints = self.path / layout.CHECKPOINTS
        self.interventions = self.path / layout.INTERVENTIONS
        self.result = self.path / layout.RESULT
        self.resume_from: Checkpoint | None = None
        self.branch_from: Checkpoint | None = None
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
        environment = {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": [sys.executable, *sys.argv],
            **describe_machine(config.device),
        }
        text = json.dumps(environment, indent=2)
        self.environment.write_text(text + "\n", encoding="utf-8")

    def values(self) -> dict[str, Any]:
        """Return what ``config.yaml`` says, unchecked."""
        values: dict[str, Any] = read_yaml(self.config.read_text(encoding="utf-8"))
        return values

    def read_config(self) -> RunConfig:
        """Return the configuration that ``config.yaml`` holds."""
        return parse_config(self.values())

    def logger(self, tables: bool) -> Logger:
        """Return SB3's logger to ``progress.csv``, TensorBoard and, as tables, the terminal."""
        logger = configure(str(self.path), [*(["stdout"] if tables else []), "tensorboard"])
        logger.output_formats.append(WholeCSV(self.progress))
        guard_outputs(logger)
        return logger

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
        branch = self.values().get("branch")
        return Path(branch["checkpoint"]) if branch else None

    def normalization_of(self, model: Path) -> Path | None:
        """Return the statistics that belong to one of the folder's models, if there are any."""
        path = layout.vecnormalize_of(model)
        return path if path.exists() else None


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
        in_checkpoint = path.parent.parent.name == layout.CHECKPOINTS
        folder = RunFolder(path.parents[2] if in_checkpoint else path.parent)
        models = [path]
    else:
        folder = RunFolder(path)
        saved = sorted(
            folder.checkpoints.glob(f"*/{layout.MODEL}"), key=lambda p: p.stat().st_mtime
        )
        models = [p for p in (folder.model, folder.best_model, *saved[::-1]) if p.exists()]
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
    model.logger.record(layout.STEP_COLUMN, model.num_timesteps, exclude="tensorboard")
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
