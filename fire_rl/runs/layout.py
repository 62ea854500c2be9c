"""The files of a run folder: every name, every column and every folder pattern, once.

A run folder::

    config.yaml                      all values of the run
    environment.json                 commit, packages and machine
    progress.csv                     SB3's logger, one row per dump
    events.out.tfevents.*            TensorBoard
    monitor.csv, 0.monitor.csv, ...  SB3's Monitor, one file per environment
    episodes.csv                     every training episode
    interventions.jsonl              a line for each report of an intervention
    continual.csv                    evaluations at the end of each task
    evaluations.npz                  SB3's EvalCallback
    model.zip                        the model at the end
    vecnormalize.pkl, vecnormalize.npz  its normalisation, for plain SB3 and as plain numbers
    best_model.zip, best_vecnormalize.*  the best one in evaluations
    checkpoints/STEP/                or STEP.AGAIN; complete once it has a manifest.json
    checkpoints/finished.json        the training that wrote the last of them has come to its total
    checkpoints/event_files.json     the TensorBoard files that this training has begun
    videos/                          recorded episodes
    result.json                      written last: the run has come to its end

An experiment of several arms::

    s<seed>/trunk/                   the run that all arms of a seed branch off
    s<seed>/<arm>/                   a run of one arm
    recovery.json, recovery.md       the comparison of all arms
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
RESULT = "result.json"

PROGRESS = "progress.csv"
STEP_COLUMN = "time/total_timesteps"  # of progress.csv, and a key of SB3's logger
EVENTS = "events.out.tfevents.*"
MONITOR = "monitor.csv"
MONITORS = f"*{MONITOR}"
EPISODES = "episodes.csv"
EPISODE_COLUMNS = ("step", "return", "length")
CONTINUAL = "continual.csv"
CONTINUAL_COLUMNS = ("step", "trained_task", "task", "return", "return_std", "episodes")
INTERVENTIONS = "interventions.jsonl"
EVALUATIONS = "evaluations.npz"

MODEL = "model.zip"
BEST_MODEL = "best_model.zip"
VECNORMALIZE = "vecnormalize.pkl"
BEST_VECNORMALIZE = "best_vecnormalize.pkl"
STATISTICS = "vecnormalize.npz"
BEST_STATISTICS = "best_vecnormalize.npz"

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
FINISHED = "finished.json"
EVENT_FILES = "event_files.json"  # in the folder of checkpoints
VIDEOS = "videos"

TRUNK = "trunk"
RECOVERY = "recovery.json"
RECOVERY_TABLE = "recovery.md"

# A folder with one of these is a run of which a report can be made.
RUN_DATA = (EVENTS, PROGRESS, MONITORS, EPISODES)

# What train.py writes into a run folder, as patterns of paths; nothing else in it is ever removed.
_STEPS = (f"{CHECKPOINTS}/[0-9]*", f"{CHECKPOINTS}/.[0-9]*.tmp")
_FILES = (
    CONFIG, ENVIRONMENT, RESULT, PROGRESS, EPISODES, CONTINUAL, INTERVENTIONS, EVALUATIONS, MODEL,
    BEST_MODEL, VECNORMALIZE, BEST_VECNORMALIZE, STATISTICS, BEST_STATISTICS,
)  # fmt: skip
WRITTEN = (
    *_FILES, *(f".{name}.tmp" for name in _FILES), EVENTS.replace("*", "[0-9]*"),
    f"{CHECKPOINTS}/.lock", f"{CHECKPOINTS}/replay/*.zst",
    *(f"{CHECKPOINTS}/{name}" for name in (FINISHED, EVENT_FILES)),
    *(f"{CHECKPOINTS}/.{name}.tmp" for name in (FINISHED, EVENT_FILES)),
    *(f"{step}/{name}" for step in _STEPS for name in (MANIFEST, MODEL, VECNORMALIZE)),
    *(f"{step}/state/*.{kind}" for step in _STEPS for kind in ("json", "npz", "pt")),
)  # fmt: skip

_CHECKPOINT = re.compile(r"(\d+)(?:\.(\d+))?")
_SEED = re.compile(r"s(\d+)")


def checkpoint_name(step: int, again: int = 0) -> str:
    """Return the name of a checkpoint's folder; ``again`` counts earlier ones at the same step."""
    return f"{step}.{again}" if again else str(step)


def checkpoint_order(path: str | Path) -> tuple[int, int]:
    """Return the step of a checkpoint, and which of several at this step it is, from its name.

    Raises:
        ValueError: If the folder's name is neither ``STEP`` nor ``STEP.AGAIN``.
    """
    match = _CHECKPOINT.fullmatch(Path(path).name)
    if match is None:
        raise ValueError(
            f"A checkpoint's folder is named STEP or STEP.AGAIN, such as 50000 or 50000.1; got "
            f"{Path(path).name!r}."
        )
    return int(match[1]), int(match[2] or 0)


def checkpoint_step(path: str | Path) -> int:
    """Return the step of a checkpoint from its folder's name, see :func:`checkpoint_order`."""
    return checkpoint_order(path)[0]


def checkpoint_paths(folder: str | Path) -> list[Path]:
    """Return the checkpoints in a folder of checkpoints, oldest first; incomplete ones left out."""
    found = [path.parent for path in Path(folder).glob(f"[0-9]*/{MANIFEST}")]
    named = [path for path in found if _CHECKPOINT.fullmatch(path.name)]
    return sorted(named, key=checkpoint_order)


def vecnormalize_of(model: str | Path) -> Path:
    """Return where the normalisation that belongs to a model's zip file is kept, if it has one."""
    path = Path(model)
    return path.with_name(BEST_VECNORMALIZE if path.name == BEST_MODEL else VECNORMALIZE)


def statistics_of(model: str | Path) -> Path:
    """Return where the same normalisation is kept as plain numbers."""
    return vecnormalize_of(model).with_suffix(Path(STATISTICS).suffix)


def is_written(path: str | Path) -> bool:
    """Tell whether a path, relative to a run folder, is one of :data:`WRITTEN`."""
    parts = Path(path).parts
    patterns = (Path(pattern).parts for pattern in WRITTEN)
    return any(
        len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern)) for pattern in patterns
    )


def seed_folder(root: str | Path, seed: int) -> Path:
    """Return the folder of one seed in an experiment: ``<root>/s<seed>``."""
    return Path(root) / f"s{seed}"


def arm_folder(root: str | Path, seed: int, arm: str) -> Path:
    """Return the run folder of an arm, or of :data:`TRUNK`: ``<root>/s<seed>/<arm>``."""
    return seed_folder(root, seed) / arm


def seeds_of(root: str | Path) -> list[int]:
    """Return the seeds that have a folder ``s<seed>`` in an experiment, in order."""
    matches = (_SEED.fullmatch(path.name) for path in Path(root).glob("s*"))
    return sorted(int(match[1]) for match in matches if match)
