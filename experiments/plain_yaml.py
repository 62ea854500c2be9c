"""YAML as people write it, values set by path, and the error of a faulty configuration.

Why PyYAML with a loader of our own, and not ruamel.yaml: rl_zoo3 reads its files with PyYAML, that
is as YAML 1.1. ruamel.yaml reads YAML 1.2, where ``yes``, ``on`` and ``off`` are words and ``010``
is ten, so the same file would say one thing there and another here. ``1e6`` is a float in both
libraries, and here it must be a count, so a loader of our own would be needed in any case.
ruamel.yaml would only save the check for equal keys, at the price of a dependency.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fire_rl.utils.bounded_yaml import load_yaml


class ConfigError(ValueError):
    """A configuration with faults.

    Attributes:
        faults: One sentence each.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


def read_yaml(text: str) -> Any:
    """Read YAML with numbers as people write them: ``1e-3`` is one, too.

    Raises:
        ConfigError: If it is not YAML, or its aliases stand for more values than any run has.
    """
    try:
        return load_yaml(text, _Loader)
    except ValueError as error:
        raise ConfigError([f"This is not YAML: {error}"]) from error


def set_value(values: dict[str, Any], assignment: str) -> None:
    """Apply ``section.key=value`` to nested values, in place.

    Raises:
        ConfigError: If it is not of that form.
    """
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            [f"--set must be section.key=value, for example agent.gamma=0.98, got {assignment!r}."]
        )
    for key in keys[:-1]:
        inner = values.get(key)
        if isinstance(inner, str) and key == "intervention":
            inner = {"name": inner}  # `intervention: fire` is short for this
        values[key] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[key]
    values[keys[-1]] = read_yaml(text)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps.

    It wants ``1.0e-3`` where people write ``1e-3``, and keeps the last of two equal keys.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._checked: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse keys that are given twice, before ``<<: *anchor`` adds those of the anchor."""
        keys = [] if node in self._checked else [key.value for key, _ in node.value]
        self._checked.add(node)
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", node.start_mark
                )
        super().flatten_mapping(node)


def _construct_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    number = float(loader.construct_scalar(node).replace("_", ""))
    return int(number) if number.is_integer() else number  # 1e6 is a count


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)  # as in rl_zoo3's files; a list is one here


_Loader.add_constructor("!number", _construct_number)
_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)
_Loader.add_implicit_resolver(
    "!number", re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)
