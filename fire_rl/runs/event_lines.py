"""The lines that one training adds to ``interventions.jsonl``, a file that several may share."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from fire_rl.runs.layout import INTERVENTIONS
from fire_rl.utils.files import write_whole
from fire_rl.utils.jsonable import append_json

logger = logging.getLogger("fire_rl")


class EventLines:
    """Add lines to the file, and take back those that are about to be added again.

    Args:
        training: Says whose the lines are; every line has it.
    """

    def __init__(self, training: str = "") -> None:
        self.training = training
        self.written = 0

    @classmethod
    def of(cls, *told: object) -> EventLines:
        """Tell this training from others by what identifies it: a few words or numbers."""
        return cls(sha256(repr(told).encode()).hexdigest()[:12])

    def append(self, folder: Path | None, entry: Mapping[str, Any]) -> None:
        """Add a line to the file in a folder, if there is one.

        After an error, which names the file, it is as it was.
        """
        if folder is not None:
            append_json(folder / INTERVENTIONS, {**entry, "training": self.training})
            self.written += 1

    def take_back(self, folder: Path | None) -> None:
        """Take out what this training has added since the state that it goes on from.

        Lines of others stay; a line that a kill has cut off goes. The log is not needed to go on:
        what is missing is named in a warning.
        """
        if folder is None:
            return
        path = folder / INTERVENTIONS
        try:
            data = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            *lines, cut_off = data.split("\n")
            kept, own = [], 0
            for line in lines:
                mine = self._is_mine(line)
                own += mine
                if not mine or own <= self.written:
                    kept.append(line)
            if cut_off or len(kept) < len(lines):
                write_whole(path, "".join(f"{line}\n" for line in kept))
        except OSError as error:
            logger.warning("%s cannot be put back to the checkpoint: %s", path, error)
            return
        if own < self.written and folder.is_dir() and any(folder.iterdir()):  # no new folder
            logger.warning(
                "%s has %d lines of this training less than when the checkpoint was saved: they "
                "are lost, or in another folder.", path, self.written - own,
            )  # fmt: skip
        self.written = min(own, self.written)

    def _is_mine(self, line: str) -> bool:
        try:
            entry = json.loads(line)
        except ValueError:
            return False
        return isinstance(entry, dict) and entry.get("training") == self.training

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        return {"training": self.training, "written": self.written}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`."""
        self.training, self.written = state["training"], state["written"]
