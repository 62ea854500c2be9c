"""Which runs are our own, and what a run of somebody else may not do: name code to import.

``config.yaml`` of a run can name modules: ``imports``, classes by dotted path, environments as
``module:Name``. train.py records every run that it makes in a file of the user's state folder, by
the SHA-256 of that file. A run that is not recorded there, moved or not, gets built-in names only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agents.classes import HOMES, split_name
from experiments.config import RunConfig
from experiments.plain_yaml import ConfigError, read_yaml
from fire_rl.utils.validation import NUMBER

# Keys of a run whose values are data: no word in them is ever looked up as a module.
_DATA = {"env_options", "intervention", "schedule", "arms", "metrics", "eval", "checkpoint",
         "branch", "device"}  # fmt: skip
# Packages that train.py has loaded already.
_BUILT_IN = {"torch", "stable_baselines3", "sb3_contrib", "fire_rl", "agents"}
# Wrappers that only look and change: a function of the packages above could write a file.
_WRAPPERS = {"stable_baselines3.common.atari_wrappers", "sb3_contrib.common.wrappers"}
_FOREIGN_MAKER = re.compile(r"GymV\d+Environment")  # gymnasium: its argument names another one
_FIRST, _LAST = "# Written by train.py, run ", "# The end of this file."


def state_file() -> Path:
    """Return the list of our own runs: ``$XDG_STATE_HOME/fire_rl/runs.jsonl``.

    Without the variable, ``~/.local/state`` (XDG Base Directory Specification 0.8).
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    home = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.local/state"))
    return home / "fire_rl" / "runs.jsonl"


def sign(text: str, run: str) -> str:
    """Return a configuration with a line for the run's id, and one that says that it is whole."""
    return f"{_FIRST}{run}\n{text}{_LAST}\n"


def run_id(text: str) -> str | None:
    """Return the id of the run that :func:`sign` has put into a configuration."""
    first = text.partition("\n")[0]
    return first.removeprefix(_FIRST).strip() if first.startswith(_FIRST) else None


def record(text: str) -> None:
    """Add a run to the list of our own, by its ``config.yaml``; a failure is a warning."""
    path, entry = state_file(), {"run": run_id(text), "sha256": _digest(text)}
    try:
        if not path.is_absolute():
            raise OSError("there is no home folder")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One write to a file that is open for appending: lines of two processes do not mix. The
        # line begins a new one, because a kill may have cut the last one short.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"\n{json.dumps(entry)}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        print(
            f"Warning: {path} cannot be written ({error}), so this run is not recorded as your "
            "own. If its config.yaml names modules of yours, --resume, --play and --branch-from "
            "will ask for --trust. Set XDG_STATE_HOME to a folder that can be written.",
            file=sys.stderr,
        )


def read_config_file(path: Path, trust: bool = False) -> dict[str, Any]:
    """Return the values in a run's ``config.yaml``, which may name modules if the run is our own.

    Args:
        path: The file.
        trust: Whether the user takes the run for his own: what it would import is printed, and it
            is recorded.

    Raises:
        ConfigError: If the file is damaged, or names modules and is not recorded.
    """
    text = _read(path)
    values = _mapping(path, text)
    modules = named_modules(values)
    listed = ", ".join(f"{module} (`{key}`)" for key, module in modules)
    if trust:
        print(f"{path} is trusted; it imports {listed or 'nothing'}.")
        record(text)
        return values
    ids, digests = _recorded()
    if _digest(text) in digests:
        return values
    changed = run_id(text) in ids
    if modules:
        reason = (
            "was changed since train.py wrote it"
            if changed
            else f"is of a run that is not recorded in {state_file()} as made here"
        )
        raise ConfigError(
            [f"{path} {reason}, and it names code to import: {listed}. Nothing was imported. If "
             "you know what this code does, add --trust; the run is then recorded as yours."]
        )  # fmt: skip
    if changed:
        print(
            f"Note: {path} was changed since train.py wrote it; what it says now holds. --trust "
            "records it as it is.",
            file=sys.stderr,
        )
    return values


def is_recorded(path: Path) -> bool:
    """Tell whether a ``config.yaml`` is one that train.py has written here, or trusted."""
    return _digest(_read(path)) in _recorded()[1]


def plain_values(path: Path) -> dict[str, Any]:
    """Return the values in a run's ``config.yaml``, to be read and not to be built.

    Raises:
        ConfigError: If the file is damaged.
    """
    return _mapping(path, _read(path))


def named_modules(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a configuration would import: the key that names it, and the module.

    Any word that might be a dotted name counts, so that a key which this function does not know is
    no way round it.
    """
    found = []
    for section in values:
        if section not in _DATA:
            for key, word in _words(values[section], str(section)):
                is_known = section in RunConfig.model_fields and section != "imports"
                if (module := _module(key, word) if is_known else word) is not None:
                    found.append((key, module))
    return found


def _read(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise OSError("it is no file" if path.exists() else "it is not there")
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} cannot be read: {error}."]) from error


def _mapping(path: Path, text: str) -> dict[str, Any]:
    """Return the values in a configuration's text."""
    repair = "Put back what train.py wrote, or begin a new run."
    if text.startswith(_FIRST) and _LAST not in text:
        raise ConfigError([f"{path} is half-written: its last line is missing. {repair}"])
    try:
        values = read_yaml(text)
    except ConfigError as error:
        raise ConfigError([f"{path} is damaged: {error} {repair}"]) from error
    if not isinstance(values, dict):
        found = "it is empty" if values is None else f"got {values!r}"
        raise ConfigError(
            [f"{path} must hold a run's values, such as `algo: dqn`; {found[:80]}. {repair}"]
        )
    return values


def _words(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield every word in nested values, keys too, with the dotted key where it stands."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield key, str(name)
            yield from _words(item, f"{key}.{name}")
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _words(item, key)
    elif isinstance(value, bytes):  # pydantic takes them for words
        yield key, value.decode("utf-8", errors="replace")
    elif isinstance(value, str):
        yield key, value


def _module(key: str, word: str) -> str | None:
    """Return the module that a word would import; None for a word that is no dotted name."""
    argument = key.rpartition(".")[2]
    if argument in HOMES and not split_name(argument, word)[0]:  # such as nn.ReLU
        return None
    if _FOREIGN_MAKER.match(word):
        return f"what `env_options` of {word} names"
    if ":" in word:
        return word.partition(":")[0]
    if "." not in word or NUMBER.fullmatch(word.removeprefix("lin_")):
        return None
    module = word.rpartition(".")[0]
    if key == "env_wrapper":
        return None if module in _WRAPPERS else module
    return None if word.partition(".")[0] in _BUILT_IN else module


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _recorded() -> tuple[set[str | None], set[str]]:
    """Return the ids of the recorded runs, and the SHA-256 of their configurations."""
    try:
        lines = state_file().read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set(), set()
    ids: set[str | None] = set()
    digests: set[str] = set()
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # cut short by a kill
            entry = json.loads(line)
            digests.add(str(entry["sha256"]))
            ids.add(entry["run"])
    return ids - {None}, digests
