"""Arguments of a constructor that a training changes: from then on they are state.

A callback that counts in one, or that sets the model's learning rate or entropy coefficient, goes
on from there. What has not changed is compared only: it may be another one in a resumed training.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.utils import FloatSchedule

from fire_rl.checkpoints.attributes import (
    check_attribute,
    constructor_arguments,
    holds_text,
    may_move,
)
from fire_rl.checkpoints.description import describe_schedule
from fire_rl.checkpoints.env_state import put_back
from fire_rl.checkpoints.safe_tree import is_plain

logger = logging.getLogger("fire_rl")

_RATE, _SCHEDULE = "learning_rate", "lr_schedule"  # SB3 makes the second of the first
_NO_STATE = {"action_noise", "policy_kwargs"}  # the first is captured by itself


def capture_changed(
    obj: Any, start: Mapping[str, Any], now: Mapping[str, Any], is_model: bool = False
) -> dict[str, Any]:
    """Return the arguments of an object that have changed, and what cannot be saved of them.

    Args:
        obj: A model, or a callback without a state of its own.
        start: Its options when the training began, in the words of
            :mod:`~fire_rl.checkpoints.identity`.
        now: Its options.
        is_model: Whether what cannot be saved matters in any case.
    """
    different = {name for name in {**start, **now} if start.get(name) != now.get(name)}
    names = {re.split(r"[.\[]", name)[0] for name in different} & constructor_arguments(type(obj))
    rates = [describe_schedule(getattr(obj, _SCHEDULE, None)), start.get(_RATE)]
    if is_model and rates[0] != rates[1] and all(isinstance(rate, float | list) for rate in rates):
        names.add(_SCHEDULE)
    values, lost = {}, []
    for name in sorted((names & vars(obj).keys()) - _NO_STATE):
        value = vars(obj)[name]
        value = describe_schedule(value) if callable(value) else value
        is_many = callable(vars(obj)[name]) and not isinstance(value, float)
        if is_plain(value) and not holds_text(value) and not is_many:
            values[name] = value
        elif is_model:
            lost.append(name)
    _name(obj, lost)
    return {"values": values, "lost": lost}


def restore_changed(obj: Any, state: Mapping[str, Any]) -> None:
    """Put back what :func:`capture_changed` has returned; a checkpoint may lack it.

    Raises:
        ValueError: If it would set what that does not write.
    """
    for name, value in state.get("values", {}).items():
        now = vars(obj).get(name)
        is_schedule = callable(now) and isinstance(value, float)
        known = name in constructor_arguments(type(obj)) | {_SCHEDULE} and name in vars(obj)
        if not known or holds_text(value) or holds_text(now) or may_move(obj, name, value):
            raise ValueError(f"it would set `{name}` of {type(obj).__name__}, which is no state")
        if is_schedule:
            setattr(obj, name, FloatSchedule(value))
        else:
            check_attribute(obj, name, value)
            put_back(obj, name, value)
    _name(obj, state.get("lost", []))


def _name(obj: Any, lost: list[str]) -> None:
    if lost:
        logger.warning(
            "A resumed training may not be exact: `%s` of %s was changed in training into what "
            "cannot be saved, and is there as it was built.",
            "`, `".join(lost), type(obj).__name__,
        )  # fmt: skip
