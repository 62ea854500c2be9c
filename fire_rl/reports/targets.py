"""What counts as a solved environment, and what as nothing: human and random scores, thresholds."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path

import gymnasium

_FILE = Path(__file__).with_name("atari_scores.csv")
# ALE/Breakout-v5, BreakoutNoFrameskip-v4, Breakout-ramDeterministic-v4. MinAtar/... is not Atari.
_ATARI = re.compile(r"(?:ALE/)?(\w+?)(?:-ram)?(?:NoFrameskip|Deterministic)?-v\d+")


@cache
def atari_scores() -> dict[str, tuple[float, float]]:
    """Return ``(random, human)`` scores of the Atari games by name, such as ``"SpaceInvaders"``."""
    with _FILE.open(newline="", encoding="utf-8") as file:
        lines = (line for line in file if not line.startswith("#"))
        return {
            row["game"]: (float(row["random"]), float(row["human"]))
            for row in csv.DictReader(lines)
        }


def atari_game(env: str | None) -> str | None:
    """Return the Atari game that an environment plays, if its scores are known, else None."""
    match = _ATARI.fullmatch(env or "")
    return match[1] if match and match[1] in atari_scores() else None


def reward_threshold(env: str | None) -> float | None:
    """Return the return at which Gymnasium calls an environment solved; None if it does not say.

    Only what is registered is asked: nothing is imported for it.
    """
    spec = gymnasium.registry.get(env or "")
    return None if spec is None else spec.reward_threshold
