"""`policy_kwargs` from plain values, checked against the constructor of the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.policies import BasePolicy

from agents.classes import HOMES, find_class
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
            f"{value!r}. Text is never evaluated."
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
    if isinstance(given, Mapping):
        # Handed on to a class that is known only later, such as `optimizer_kwargs`.
        return {key: as_number(item) for key, item in given.items()}
    return convert(label, known[name], given)
