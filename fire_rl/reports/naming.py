"""Which arm and seed a run folder is: by its place, its configuration, or as the user says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fire_rl.interventions import CONTROL

_SEED = re.compile(r"(?:s|seed|run)[_-]?(\d+)", re.IGNORECASE)  # s0, seed_0
_NUMBERED = re.compile(r"(.+?)[_-](?:s|seed|run)?(\d+)", re.IGNORECASE)  # PPO_1, fire_s0
TRUNK = "trunk"

Rules = Sequence[tuple[str, str]]


def parse_rule(text: str, flag: str) -> tuple[str, str]:
    """Read ``NAME=GLOB``.

    Raises:
        ValueError: If it is something else.
    """
    name, separator, pattern = text.partition("=")
    if not (name.strip() and separator and pattern.strip()):
        raise ValueError(
            f"`{flag}` must be NAME=GLOB, such as slow=lr_1e-4/s*, matched against the end of each "
            f"run folder's path; got {text!r}."
        )
    return name.strip(), pattern.strip()


def by_rule(path: Path, rules: Rules) -> str | None:
    """Return the name of the first rule whose pattern matches a path or the end of it."""
    text = path.as_posix()
    return next((name for name, glob in rules if _matches(text, glob)), None)


def check_rules(paths: Sequence[Path], rules: Rules, flag: str) -> None:
    """Raise ValueError for a rule that matches no run."""
    for name, glob in rules:
        if not any(_matches(path.as_posix(), glob) for path in paths):
            raise ValueError(
                f"`{flag} {name}={glob}` matches none of the run folders: "
                f"{listed([str(path) for path in paths])}."
            )


def _matches(text: str, glob: str) -> bool:
    return fnmatchcase(text, glob) or fnmatchcase(text, f"*/{glob}")


def arm_and_seed(path: Path, config: Mapping[str, Any], rules: Rules) -> tuple[str, int]:
    """Return the arm and the seed of a run.

    ``<arm>/s<seed>`` and ``s<seed>/<arm>`` say both; else ``config.yaml`` does; else names such as
    ``PPO_1`` and ``fire_s1``; else the folder's name is the arm, and the seed 0.
    """
    arm, seed = _by_place(path)
    if arm is None and config:
        arm, seed = _by_config(config)
    if arm is None:
        numbered = _NUMBERED.fullmatch(path.name)
        arm, seed = (numbered[1], int(numbered[2])) if numbered else (path.name, 0)
    return by_rule(path, rules) or arm, seed


def _by_place(path: Path) -> tuple[str | None, int]:
    own, parent = _SEED.fullmatch(path.name), _SEED.fullmatch(path.parent.name)
    if own:
        return path.parent.name, int(own[1])
    if parent:
        return path.name, int(parent[1])
    return None, 0


def _by_config(config: Mapping[str, Any]) -> tuple[str, int]:
    """Return the branch's arm or the interventions' names, and the seed."""
    branch = config.get("branch")
    if isinstance(branch, Mapping) and branch.get("arm"):
        arm = str(branch["arm"])
    else:
        given = config.get("intervention") or []
        entries = given if isinstance(given, list) else [given]
        names = [str(e.get("name")) if isinstance(e, Mapping) else str(e) for e in entries]
        arm = "+".join(names) or CONTROL
    seed = config.get("seed", 0)
    return arm, seed if isinstance(seed, int) else 0


def is_trunk(path: Path) -> bool:
    """Tell whether a folder is the common past of an experiment's arms: ``s<seed>/trunk``."""
    return path.name == TRUNK and _SEED.fullmatch(path.parent.name) is not None


def listed(words: Sequence[str], limit: int = 6) -> str:
    """Return words with commas, the first ones only if there are many."""
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
