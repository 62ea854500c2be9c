"""What the arms of an experiment came to: each one's recovery, compared with the control."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from experiments.folder import RunFolder
from experiments.plain_yaml import ConfigError
from fire_rl.interventions import CONTROL
from fire_rl.runs import layout
from fire_rl.runs.episodes import read_episodes
from fire_rl.runs.readers import read_events
from fire_rl.runs.recovery import recovery
from fire_rl.utils.files import write_whole
from fire_rl.utils.jsonable import append_json, without_nan

COMPARED = ("gain", "plateau_gain", "dip_below_control", "steps_to_reach_control")
_HEADER = ",".join(layout.EPISODE_COLUMNS).encode()


def is_done(folder: RunFolder) -> bool:
    """Tell whether a run has come to its end with files that a comparison can read.

    One that has not goes on from its last checkpoint, which writes the files again.
    """
    if folder.end() is None:
        return False
    path = folder.path / layout.EPISODES
    try:
        raw = path.read_bytes() if path.is_file() else b""
        if not raw.startswith(_HEADER) or not raw.endswith(b"\n"):
            raise ValueError("it is cut short")
        read_episodes(folder.path)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        print(f"{path} is damaged or missing ({error}): the run counts as unfinished.")
        return False
    return True


def summarise(root: Path, seeds: Sequence[int], arms: Sequence[str]) -> str:
    """Measure every arm's recovery, write ``recovery.json`` and ``recovery.md``; return the table.

    The comparison of an arm with the control is also written to the arm's ``interventions.jsonl``
    and TensorBoard. Seeds of earlier calls are included if all their arms are finished.
    """
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    rows = []
    for seed in sorted({*layout.seeds_of(root), *seeds}):
        folders = {arm: RunFolder(layout.arm_folder(root, seed, arm)) for arm in arms}
        if not all(map(is_done, folders.values())):
            continue
        control = read_episodes(folders[CONTROL].path) if CONTROL in folders else None
        for arm, folder in folders.items():
            checkpoint, end = folder.branch_checkpoint(), folder.end()
            if checkpoint is None or end is None:
                raise ConfigError([f"{folder.path} is no branch of a trunk: move it elsewhere."])
            step = layout.checkpoint_step(checkpoint)
            measured = recovery(read_episodes(folder.path), step, end, control)
            numbers = {**measured.to_dict(), **_policy_change(folder)}
            _record(folder, arm, step, numbers)
            found[arm].append(numbers)
            rows.append({"arm": arm, "seed": seed, **numbers})
    from fire_rl.reports import recovery_table  # here: a training needs no reports

    table = recovery_table(found, CONTROL).to_markdown()
    write_whole(root / layout.RECOVERY, json.dumps(without_nan(rows), indent=1) + "\n")
    write_whole(root / layout.RECOVERY_TABLE, table + "\n")
    return table


def _record(folder: RunFolder, arm: str, step: int, numbers: Mapping[str, float]) -> None:
    """Add the comparison with the control to the arm's own log and to its TensorBoard, once."""
    log = folder.interventions
    entry = {"recovery_against": CONTROL, "arm": arm, **numbers}
    compared = {key: numbers[key] for key in COMPARED if not math.isnan(numbers[key])}
    if not compared or (log.exists() and b'"recovery_against"' in log.read_bytes()):
        return
    folder.lock()
    try:
        append_json(log, entry)
        with SummaryWriter(str(folder.path)) as writer:
            for key, value in compared.items():
                writer.add_scalar(f"recovery/vs_none/{key}", value, step)
    finally:
        folder.release()


def _policy_change(folder: RunFolder) -> dict[str, float]:
    """Return what the first event did to the policy's answers on the probe."""
    try:
        events = read_events(folder.path)  # none: a threshold that was never crossed
        return dict(events[0].get("policy_change", {})) if events else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            [f"{folder.interventions} is damaged: {error!r}. Put it back or move it away: without "
             "it the comparison lacks only what the event did to the policy's answers."]
        ) from error  # fmt: skip
