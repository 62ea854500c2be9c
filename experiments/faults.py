"""Faults of a configuration in a user's words."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from agents.algorithms import ALGORITHMS, hyperparameters
from agents.signatures import hint
from experiments.zoo_yaml import RENAMED, WITHOUT_COUNTERPART


def described(error: ValidationError, config: type[BaseModel]) -> list[str]:
    """Return one sentence for every fault that pydantic found.

    Args:
        error: Its error.
        config: The class of the whole configuration.
    """
    return [line for fault in error.errors() for line in _describe(fault, config).split("\n")]


def misplaced(name: str, run_keys: Collection[str]) -> str | None:
    """Return where a key belongs that stands under ``agent`` and is no hyper-parameter.

    Args:
        name: The key.
        run_keys: The keys of a run.
    """
    whole = "One of rl_zoo3's files is read as it is: --config FILE --env ID"
    if name in RENAMED:
        return (
            f"`agent.{name}` is called `{RENAMED[name]}` here, and stands at the top of the file, "
            f"not under `agent`. {whole}"
        )
    if name in WITHOUT_COUNTERPART:
        return f"`agent.{name}` has no counterpart here: {WITHOUT_COUNTERPART[name]}."
    if name in run_keys and name not in ("env", "seed", "device"):  # SB3 has these, too
        return f"`agent.{name}` is a key of the run: write `{name}` at the top of the file. {whole}"
    return None


def _describe(fault: Any, config: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "value_error":
        message = str(fault["ctx"]["error"])
        return f"`{path}` {message}." if message.startswith("must be") else message
    if fault["type"] in ("dict_type", "model_type", "mapping_type"):
        return (
            f"`{path}` must be a mapping such as `{path}: {{key: value}}`, got {fault['input']!r}."
        )
    if path.endswith("[key]"):
        path = path.rpartition(".")[0]
    if "string" in fault["type"] and not isinstance(fault["input"], str) and path:
        return f"`{path}` must be a word, got {fault['input']!r}."
    if fault["type"] == "invalid_key":
        return f"Keys must be words, got {fault['loc'][-1]!r}."
    if fault["type"] == "missing":
        flag = f", or give --{path}" if path in ("algo", "env") else ""
        return f"`{path}` is missing: write `{path}: ...` in the file{flag}."
    if fault["type"] == "extra_forbidden":
        return _unknown(path, config)
    expected = fault["msg"].removeprefix("Input should be ").partition(",")[0]
    return f"`{path}` must be {expected}, got {fault['input']!r}."


def _unknown(path: str, config: type[BaseModel]) -> str:
    section, _, key = path.rpartition(".")
    if not section and key in RENAMED:
        return f"`{key}` is called `{RENAMED[key]}` here."
    if not section and key in WITHOUT_COUNTERPART:
        return f"`{key}` has no counterpart here: {WITHOUT_COUNTERPART[key]}."
    if not section and any(key in hyperparameters(algo) for algo in ALGORITHMS):
        return (
            f"`{path}` is no known key. Hyper-parameters of the algorithm stand under `agent`: "
            f"`agent.{key}`."
        )
    return f"`{path}` is no known key.{hint(key, _keys(section, config))}"


def _keys(section: str, config: type[BaseModel]) -> Collection[str]:
    """Return the keys of a section of the configuration, or of the whole."""
    field = config.model_fields.get(section)
    for kind in (field.annotation, *get_args(field.annotation)) if field else ():
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.model_fields
    return config.model_fields
