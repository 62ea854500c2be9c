"""`policy_kwargs` from plain values, checked against the constructor of the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from stable_baselines3.common.policies import BasePolicy

from agents.classes import HOMES, find_class
from agents.python_text import read_python
from agents.signatures import arguments, convert, hint
from fire_rl.utils.validation import as_number

_SET_BY_SB3 = ("observation_space", "action_space", "lr_schedule")


def check_policy_kwargs(policy: type[BasePolicy], value: Any) -> dict[str, Any]:
    """Check `policy_kwargs` against the constructor of a policy.

    Args:
        policy: The policy's class.
        value: Plain values; classes by name (``relu``, ``AdamW``) or dotted path.

    Returns:
        The same, with numbers converted to their declared types.

    Raises:
        ValueError: With one line for every fault.
    """
    if not isinstance(value, Mapping):
        raise ValueError(
            "`agent.policy_kwargs` must be a mapping such as {net_arch: [256, 256]}, got "
            f"{value!r}. Text is never evaluated.{_as_yaml(value)}"
        )
    known = {name: kind for name, kind in arguments(policy).items() if name not in _SET_BY_SB3}
    checked, faults = {}, []
    for name, given in value.items():
        try:
            checked[name] = _check(f"agent.policy_kwargs.{name}", name, given, policy, known)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    return checked


def _check(label: str, name: str, given: Any, policy: type, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise ValueError(
            f"`{label}` is not an argument of {policy.__name__}.{hint(name, sorted(known))}"
        )
    if name in HOMES:
        find_class(name, given)
        return given
    if name == "net_arch" and isinstance(given, list) and len(given) == 1:
        given = given[0] if isinstance(given[0], Mapping) else given  # SB3 reads [{pi: ...}] so
    if isinstance(given, Mapping):
        # Handed on to a class that is known only later, such as `optimizer_kwargs`.
        return {key: as_number(item) for key, item in given.items()}
    return convert(label, known[name], given)


def _as_yaml(value: Any) -> str:
    """Say how a Python text is written in YAML, if it can be."""
    try:
        read = read_python(str(value))
    except ValueError:
        return ""
    if not isinstance(read, Mapping):
        return ""
    flow = yaml.safe_dump(read, default_flow_style=True, sort_keys=False, width=10**6).strip()
    return f" In YAML: {flow}"
