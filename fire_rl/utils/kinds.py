"""Say what kind of thing was passed, where a tensor, a module or a model is expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def describe(value: object) -> str:
    """Return a few words for what a value is, for an error message."""
    kind = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if is_agent(value):
        return f"an agent of class {kind}"
    if isinstance(value, nn.Module):
        return f"a torch module ({kind})"
    if isinstance(value, Mapping):
        return f"a mapping ({kind})"
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    return f"an object of class {kind}"


def is_agent(value: object) -> bool:
    """Tell whether a value is, or looks like, a model of SB3: an object with a policy."""
    return not isinstance(value, type) and isinstance(getattr(value, "policy", None), nn.Module)


def check_tensor(argument: str, value: Any) -> Tensor:
    """Return a tensor, or raise TypeError with what was passed instead and what to pass."""
    if isinstance(value, Tensor):
        return value
    advice = "Make a tensor of it with torch.as_tensor."
    if isinstance(value, nn.Module):
        advice = "Pass one of its weights, such as `module.weight`."
    elif is_agent(value):
        advice = "PlasticityMetricsCallback measures an agent; for one weight, pass it."
    elif isinstance(value, Mapping):
        advice = "Pass one of the tensors that it holds."
    raise TypeError(f"`{argument}` must be a torch.Tensor, got {describe(value)}. {advice}")


def check_module(argument: str, value: object) -> None:
    """Raise TypeError unless a value is a torch module; the message says what to pass."""
    if isinstance(value, nn.Module):
        return
    advice = "Pass the module whose weights are to change."
    if isinstance(value, type):
        advice = "Make a module of it first."
    elif is_agent(value):
        advice = "Use `apply_intervention(model, FIRE())`, or pass its `model.policy`."
    elif isinstance(value, Mapping):
        advice = "Load a state dict into its module (`load_state_dict`) and pass that."
    raise TypeError(f"`{argument}` must be a torch.nn.Module, got {describe(value)}. {advice}")


def check_tensors(argument: str, value: object) -> None:
    """Raise TypeError unless a value is a mapping of names to tensors, such as a state dict."""
    if isinstance(value, Mapping) and all(isinstance(item, Tensor) for item in value.values()):
        return
    advice = "Pass a copy of a `state_dict()`."
    raise TypeError(f"`{argument}` must map names to tensors, got {describe(value)}. {advice}")
