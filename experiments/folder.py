"""The folder of one run: where each file is, and what is written around the training."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import HParam, Logger, configure

from experiments.config import RunConfig, dump_yaml, parse_config
from experiments.interventions import names
from experiments.machine import describe_machine
from experiments.normalization import save_statistics
from experiments.own_files import check_free, check_links, remove_folder, remove_written
from experiments.plain_yaml import ConfigError
from experiments.trust import is_recorded, plain_values, read_config_file, record, run_id, sign
from fire_rl.checkpoints.folder import locked
from fire_rl.checkpoints.manifest import Checkpoint
from fire_rl.runs import layout
from fire_rl.sb3.loggers import guard_outputs
from fire_rl.sb3.progress_csv import WholeCSV
from fire_rl.utils.files import replacing, write_whole


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
        self.progress = self.path / layout.PROGRESS
        self.checkpoints = self.path / layout.CHECKPOINTS
        self.interventions = self.path / layout.INTERVENTIONS
        self.result = self.path / layout.RESULT
        self.resume_from: Checkpoint | None = None
        self.branch_from: Checkpoint | None = None
        self.stop_at: int | None = None
        self._lock = ExitStack()
        self._has_lock = False
        self._begins_anew = False

    def lock(self) -> None:
        """Keep every other process from writing here, until :meth:`release`.

        Before anything in a folder is changed or removed.

        Raises:
            CheckpointError: If another process trains into the folder.
            ConfigError: If files would be written through a symbolic link.
        """
        if not self._has_lock:
            check_links(self.path, not self.config.exists() or is_recorded(self.config))
            self._lock.enter_context(locked(self.checkpoints))
            self._has_lock = True

    def release(self) -> None:
        """Let other processes write here."""
        self._lock.close()
        self._has_lock = False

    def check_run(self) -> None:
        """Raise ConfigError if this is no folder of a run."""
        if not self.config.exists():
            raise ConfigError(
                [f"{self.path} is no run folder: there is no {self.config}. Give a folder that "
                 "train.py wrote, for example one in runs/."]
            )  # fmt: skip

    def create(self) -> None:
        """Make the folder, which must be free, and lock it."""
        if not self._begins_anew:
            check_free(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        if not self._begins_anew:
            check_free(self.path)  # another process may have been quicker

    def begin_anew(self) -> None:
        """Remove what a run has written that has nothing to go on from, and no other file.

        Raises:
            CheckpointError: If another process trains into the folder.
            ConfigError: If it is not marked as written by train.py, or holds what cannot stay.
        """
        self.lock()
        if run_id(self.config.read_text(encoding="utf-8")) is None:
            raise ConfigError(
                [f"{self.path} has no checkpoint to go on from, and no line in {self.config} says "
                 "that train.py wrote it: nothing in it is removed. Move it away, or choose "
                 "another folder with --log-dir."]
            )  # fmt: skip
        others = remove_written(self.path, keep=(layout.CONFIG,))
        kept = f" It keeps {', '.join(map(str, others))}." if others else ""
        print(f"{self.path} was stopped before its first checkpoint: it begins anew.{kept}")
        self._begins_anew = True

    def remove(self) -> None:
        """Remove a run in which nothing was learned; what is not of train.py stays."""
        with contextlib.suppress(ConfigError):  # it would hide why nothing was learned
            remove_folder(self.path)

    def describe(self, config: RunConfig) -> None:
        """Write ``config.yaml`` and ``environment.json``, and record the run as our own."""
        text = sign(dump_yaml(config), uuid.uuid4().hex)
        write_whole(self.config, text)
        record(text)
        environment = {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": [sys.executable, *sys.argv],
            **describe_machine(config.device),
        }
        write_whole(self.environment, json.dumps(environment, indent=2) + "\n")

    def values(self, trust: bool = False) -> dict[str, Any]:
        """Return what ``config.yaml`` says, unchecked, for a run that may be built.

        Raises:
            ConfigError: See :func:`~experiments.trust.read_config_file`.
        """
        return read_config_file(self.config, trust)

    def read_config(self, trust: bool = False) -> RunConfig:
        """Return the configuration that ``config.yaml`` holds, as :meth:`values` does."""
        return self.parsed(self.values(trust))

    def parsed(self, values: Mapping[str, Any]) -> RunConfig:
        """Check values of ``config.yaml``; faults name the file."""
        try:
            return parse_config(values)
        except ConfigError as error:
            raise ConfigError([f"{self.config}: {fault}" for fault in error.faults]) from None

    def logger(self, tables: bool) -> Logger:
        """Return SB3's logger to ``progress.csv``, TensorBoard and, as tables, the terminal."""
        logger = configure(str(self.path), [*(["stdout"] if tables else []), "tensorboard"])
        logger.output_formats.append(WholeCSV(self.progress))
        guard_outputs(logger)
        return logger

    def save(self, model: BaseAlgorithm) -> None:
        """Write ``model.zip``, and its normalisation where it is used."""
        save_model(model, self.model)

    def finish(self, model: BaseAlgorithm, outcome: Mapping[str, float | None]) -> None:
        """Write ``result.json``, which says that the run has come to its end."""
        values = {"num_timesteps": model.num_timesteps, **outcome}
        write_whole(self.result, json.dumps(values, indent=2) + "\n")

    def end(self) -> int | None:
        """Return the step at which the run came to its end; None if it did not, or files are cut.

        Such a run goes on from its last checkpoint, which writes the files again.
        """
        if not self.result.is_file():
            return None
        try:
            step = json.loads(self.result.read_text(encoding="utf-8"))["num_timesteps"]
            if type(step) is not int:
                raise TypeError(f"`num_timesteps` is {step!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{self.result} is damaged ({error!r}): the run counts as unfinished.")
            return None
        return step

    def branch_checkpoint(self) -> Path | None:
        """Return the checkpoint that the run has branched off, None if it is no branch."""
        branch = plain_values(self.config).get("branch")
        if branch is None:
            return None
        try:
            path = Path(branch["checkpoint"])
            layout.checkpoint_step(path)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError([f"{self.config}: `branch` is damaged: {error!r}"]) from error
        return path


def save_model(model: BaseAlgorithm, path: Path) -> None:
    """Write a model's zip file and, where it is used, its normalisation: each whole or not at all.

    Args:
        model: The model.
        path: Its place in a run folder, which says where the normalisation goes.
    """
    with replacing(path) as file:
        model.save(file)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        with replacing(layout.vecnormalize_of(path)) as file:
            pickle.dump(normalize, file)  # as VecNormalize.save() does: plain SB3 loads it
        save_statistics(normalize, layout.statistics_of(path))


def default_path(config: RunConfig, root: str | Path = "runs") -> Path:
    """Return ``runs/<algo>_<env>_<intervention>_s<seed>_<timestamp>``."""
    intervention = config.branch.arm if config.branch else names(config.intervention)
    env = config.env.replace("/", "-").replace(":", "-")
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path(root) / f"{config.algo}_{env}_{intervention}_s{config.seed}_{time}"


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
