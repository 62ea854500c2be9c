"""What a training is: all that it was built with. A checkpoint goes on in the same one only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from fire_rl.checkpoints.attributes import constructor_arguments, is_place, printed
from fire_rl.checkpoints.description import (
    KIND,
    describe,
    describe_object,
    describe_schedule,
    describe_vec_env,
)
from fire_rl.sb3.callback_tree import walk_callbacks

Identity = dict[str, Any]

# Arguments that a resumed run may change, and what is described by itself.
_FREE = {
    "verbose", "tensorboard_log", "device", "stats_window_size", "policy", "env", "self",
    "replay_buffer_kwargs", "action_noise",
}  # fmt: skip
_FREE_IN_CALLBACKS = {"verbose", "warn", "render", "model", "eval_env", "callback", "parent",
                      "save_before", "self"}  # fmt: skip
_FREE_IN_BUFFERS = {
    "device", "env", "n_envs", "observation_space", "action_space", "buffer_size"
}  # fmt: skip
_OF_A_BRANCH = ("seed",)  # what another training with the same model may have of its own
_GROWING = ("horizon", "total", "total_timesteps", "total_steps")
_SCHEDULES = ("learning_rate", "clip_range", "schedule")
# In the names that callbacks give a run: unique numbers, dates with a time, seconds since 1970.
_MOMENT = re.compile(
    r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}"
    r"|(19|20)\d\d([-_./]?)[01]\d\3[0-3]\d([T _-]*\d\d([:_-]?\d\d){1,2})?(\.\d+)?|\d{10,}(\.\d+)?"
)
_EPOCHS = (1.5e9, 4e9)
_STARTS = ("start_time", "started", "started_at", "t0")
_MOST = 12  # differences that are listed
_STATE = "~state"  # stands where a value has changed: it was no option
_NOT_GIVEN = "not given"


def identity(model: BaseAlgorithm, callbacks: Sequence[BaseCallback]) -> Identity:
    """Return what a training was built with, as plain values, at its start.

    Args:
        model: The model, which has an environment.
        callbacks: Its callbacks, lists of callbacks included.
    """
    assert model.env is not None
    return {
        "algorithm": type(model).__name__,
        "n_envs": model.n_envs,
        "spaces": {
            "observation space": printed(model.env.observation_space),
            "action space": printed(model.env.action_space),
        },
        "arguments": dict(_flat(_model_arguments(model))),
        "networks": _shapes(model.policy),
        "modules": _modules(model.policy),
        "environment": dict(_flat(describe_vec_env(model.env))),
        "callbacks": identity_of_callbacks(callbacks),
    }


def identity_of_callbacks(callbacks: Sequence[BaseCallback]) -> list[dict[str, Any]]:
    """Return class and options of every callback."""
    return [_callback(callback) for callback in walk_callbacks(callbacks)]


def compare(saved: Identity, mine: Identity, strict: bool, branch: bool) -> list[str]:
    """Say why a checkpoint may not go on in a training: nothing, if it may.

    Args:
        saved: The checkpoint's identity.
        mine: The training's.
        strict: Whether options that differ are a reason.
        branch: Whether this is another training: then the seed and the callbacks are its own.
    """
    if saved["algorithm"] != mine["algorithm"]:
        return [
            f"the checkpoint is one of {saved['algorithm']}, the model is a {mine['algorithm']}"
        ]
    found = _misfits(saved, mine)
    if not branch:
        found += _other_callbacks(saved, mine)
    return found + (_explain(_differences_of_options(saved, mine, branch)) if strict else [])


def without_state(start: Identity, now: Identity) -> Identity:
    """Return an identity without what has changed since the start: that is state.

    Environments and callbacks may count in an attribute that was an argument of their constructor.
    """
    callbacks = [
        {**one, "options": _unchanged(one["options"], two["options"])}
        for one, two in zip(start["callbacks"], now["callbacks"], strict=True)
    ]
    environment = _unchanged(start["environment"], now["environment"])
    return {**start, "environment": environment, "callbacks": callbacks}


def _misfits(saved: Identity, mine: Identity) -> list[str]:
    """What can never be put into a training that was built otherwise."""
    found = []
    for name, value in saved["spaces"].items():
        if value != mine["spaces"][name]:
            found.append(
                f"the checkpoint is one of another environment: its {name} is {value}, the "
                f"model's {mine['spaces'][name]}"
            )
    one, two = saved["environment"].get("id"), mine["environment"].get("id")
    if None not in (one, two) and one not in (two, _STATE):
        found.append(
            f"the checkpoint is one of another environment: its id is {one}, the model's {two}"
        )
    if saved["n_envs"] != mine["n_envs"]:
        found.append(f"`n_envs` is {mine['n_envs']}, was {saved['n_envs']}")
    one, two = (each["arguments"]["action_noise"] for each in (saved, mine))
    if one != two:
        found.append(f"`action_noise` is {two}, was {one}")
    shapes = _differences(saved["networks"], mine["networks"])
    return found + _listed("the networks have other shapes: ", shapes)


def _differences_of_options(saved: Identity, mine: Identity, branch: bool) -> list[str]:
    free = _OF_A_BRANCH if branch else ()
    one, two = (_without(each["arguments"], *free) for each in (saved, mine))
    found = _differences(one, two)
    found += _differences(saved["modules"], mine["modules"], "policy.")
    one, two = (_without(each["environment"], "id") for each in (saved, mine))
    if not _answered_alike(one, two):  # of one of the two less is known
        one, two = ({k: v for k, v in e.items() if k.startswith("vec_")} for e in (one, two))
    found += _differences(one, two, "environment.")
    if not branch:
        for was, now in zip(saved["callbacks"], mine["callbacks"], strict=False):
            if was["class"] == now["class"]:
                found += _differences(was["options"], now["options"], f"{was['class']}.")
    return found


def _other_callbacks(saved: Identity, mine: Identity) -> list[str]:
    one, two = ([callback["class"] for callback in each["callbacks"]] for each in (saved, mine))
    if one == two:
        return []
    words = [", ".join(classes) or "no callback" for classes in (two, one)]
    return [
        f"the callbacks are others than the checkpoint's: {words[0]} stand where {words[1]} stood"
    ]


def _explain(found: list[str]) -> list[str]:
    """All differences in one sentence, and what to do."""
    listed = _listed("the model has other hyper-parameters than the checkpoint: ", found)
    advice = "Build it as it was, or give strict=False to go on with the new ones"
    return [f"{text}. {advice}" for text in listed]


def _model_arguments(model: BaseAlgorithm) -> dict[str, Any]:
    """Arguments of the algorithm; of the policy and the buffers, as these have them."""
    found = {
        name: describe_schedule(value) if _is_schedule(name) else describe(value)
        for name, value in vars(model).items()
        if name in constructor_arguments(type(model)) - _FREE and not is_place(name, value)
        and not isinstance(value, nn.Module)
    }  # fmt: skip
    found["policy"] = type(model.policy).__qualname__
    for name in ("optimizer_class", "optimizer_kwargs"):
        found.get("policy_kwargs", {}).pop(name, None)
        if hasattr(model.policy, name):
            found[name] = describe(getattr(model.policy, name))
    noise = getattr(model, "action_noise", None)  # learn() makes it one for several environments
    found["action_noise"] = describe(getattr(noise, "base_noise", noise))
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        found["replay_buffer"] = describe_object(buffer, 2, _FREE_IN_BUFFERS.__contains__)
        given = getattr(model, "replay_buffer_kwargs", None) or {}
        kept = found["replay_buffer"]
        found["replay_buffer_kwargs"] = {
            name: describe(value) for name, value in given.items() if name not in kept
        }
    return found


def _callback(callback: BaseCallback) -> dict[str, Any]:
    """A callback's options: what it says itself, or what it keeps of its constructor's arguments.

    One that has a state of its own, ``get_state()``, says itself what must stay the same.
    """
    options: Any = {}
    if hasattr(callback, "get_options"):
        options = callback.get_options()
    elif not hasattr(callback, "get_state"):
        options = describe_object(callback, 3, _is_free_in_callbacks)
    flat = {name: _without_moments(name, value) for name, value in _flat(options)}
    return {"class": type(callback).__name__, "options": flat}


def options_of(callback: BaseCallback, *more: str) -> dict[str, Any]:
    """Return a callback's options for ``get_options()``.

    Args:
        callback: The callback.
        more: Names of attributes that are options, beside the constructor's arguments.
    """
    options: dict[str, Any] = describe_object(callback, 4, _is_free_in_callbacks)
    return {**options, **{name: describe(getattr(callback, name)) for name in more}}


def _without_moments(name: str, value: Any) -> Any:
    """Leave out of a callback's option when, or as which of many runs, it was made."""
    if isinstance(value, str):
        return _MOMENT.sub("…", value)
    of_a_clock = isinstance(value, float) and (
        _EPOCHS[0] < value < _EPOCHS[1] or name.rpartition(".")[2].strip("_") in _STARTS
    )
    return "…" if of_a_clock else value


def _is_free_in_callbacks(name: str) -> bool:
    return name in _FREE_IN_CALLBACKS


def _is_schedule(name: str) -> bool:
    return any(word in name for word in _SCHEDULES)


def _shapes(policy: nn.Module) -> dict[str, Any]:
    """The shape of every tensor of the networks, by its name before any compilation."""
    return {
        name.replace("_orig_mod.", ""): list(tensor.shape)
        for name, tensor in policy.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }


def _modules(policy: nn.Module) -> dict[str, Any]:
    """Every innermost module, as it prints itself: activations and their options among them."""
    return {
        name.replace("_orig_mod.", ""): printed(module)
        for name, module in policy.named_modules()
        if name and not any(True for _ in module.children())
    }


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a description under dotted names; a class under that of its object."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, name if key == KIND and name else f"{name}.{key}".strip("."))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        yield f"{name}.len", len(value)
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}[{index}]")
    else:
        yield name, value


def _unchanged(start: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if _equal(value, now.get(name)) else _STATE for name, value in start.items()
    }


def _differences(saved: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: dict[str, str] = {}
    for name in {**saved, **mine}:
        was, now = saved.get(name, _NOT_GIVEN), mine.get(name, _NOT_GIVEN)
        inside = name.startswith(tuple(f"{outer}{mark}" for outer in found for mark in ".["))
        if inside or _STATE in (was, now) or _equal(was, now) or _has_grown(name, was, now):
            continue
        words = [each if each is _NOT_GIVEN else repr(each) for each in (now, was)]
        found[name] = f"{prefix}{name} is {words[0]}, was {words[1]}"
    return list(found.values())


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_equal, one, two))
    return bool(one == two) or (one != one and two != two)  # NaN


def _has_grown(name: str, was: Any, now: Any) -> bool:
    numbers = isinstance(was, int | float) and isinstance(now, int | float)
    return name.rpartition(".")[2] in _GROWING and (was is None or (numbers and now >= was))


def _answered_alike(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    forms = [("environment" in each, each.get("copies") == []) for each in (one, two)]
    return forms[0] == forms[1]


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def _listed(start: str, found: list[str]) -> list[str]:
    if not found:
        return []
    more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return [f"{start}{'; '.join(found[:_MOST])}{more}"]
