"""Values that JSON can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fire_rl.utils.files import append_whole


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity, for which JSON has no number, by None; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_json(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one line to a file of JSON lines; NaN becomes null, for JSON has none.

    A last line that a kill has cut short stays a line of its own.
    """
    append_whole(path, json.dumps(without_nan(entry)) + "\n")
