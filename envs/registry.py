"""Find environments by id, and say what is missing when one cannot be found."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import multiprocessing
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from envs import atari, minatar, mujoco
from fire_rl.utils.validation import nearest


def import_modules(imports: Sequence[str], label: str = "imports") -> list[ModuleType]:
    """Import the modules that register third-party environments, or hold something else.

    Raises:
        ImportError: If one of them cannot be imported; the key ``label`` names it.
    """
    modules = []
    for module in imports:
        try:
            modules.append(importlib.import_module(module))
        except ImportError as error:
            raise ImportError(
                f"`{label}` names the module {module!r}, which cannot be imported: {error}. "
                "Install it, or put its folder on PYTHONPATH."
            ) from error
    return modules


def find_spec(env_id: str, imports: Sequence[str] = ()) -> EnvSpec:
    """Return the gymnasium spec of an environment id.

    Args:
        env_id: Such as ``"ALE/Breakout-v5"`` or ``"HalfCheetah-v5"``.
        imports: Modules to import first, because they register environments.

    Raises:
        ValueError: If no such id is registered; the nearest ids are offered.
        ImportError: If a module of ``imports`` or an extra (ale-py, MinAtar, mujoco) is missing.
    """
    import_modules(imports)
    if atari.is_atari(env_id):
        atari.register()
    elif minatar.is_minatar(env_id):
        minatar.register()
    try:
        return gym.spec(env_id)
    except (gym.error.Error, ValueError) as error:
        for family in (atari, minatar):
            with contextlib.suppress(ImportError):
                family.register()
        known = list(gym.registry)
        raise ValueError(
            f"`env` {env_id!r} is not a registered environment.{nearest(env_id, known, 3)} An id "
            "of another package needs `imports: [package]`, the module that registers it."
        ) from error


def check_options(spec: EnvSpec, options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that the environment does not have, or that are no numbers."""
    if atari.is_atari(spec.id):
        known = [*atari.WRAPPER_OPTIONS, *atari.GAME_OPTIONS]
    else:
        parameters = inspect.signature(_creator(spec)).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return
        known = [*(name for name in parameters if name != "render_mode"), "max_episode_steps"]
    faults = [
        f"`env_options` has an unknown key {name!r} for {spec.id}."
        + (nearest(name, known) or f" Known are {', '.join(sorted(known))}.")
        for name in options
        if name not in known
    ]
    sticky = options.get("sticky_actions", 0)
    has_sticky = atari.is_atari(spec.id) or minatar.is_minatar(spec.id)
    if has_sticky and (not isinstance(sticky, int | float) or not 0 <= sticky <= 1):
        faults.append(
            f"`env_options.sticky_actions` is a probability, from 0 to 1, got {sticky!r}."
        )
    if faults:
        raise ValueError("\n".join(faults))


def make_env(
    env_id: str, imports: Sequence[str], options: Mapping[str, Any], render_mode: str | None
) -> gym.Env:
    """Make one plain environment; importable, so that a worker process can call it.

    Raises:
        ImportError: If the environment needs a package that is not installed.
        ValueError: If the environment refuses its options, or cannot be drawn.
    """
    spec = find_spec(env_id, imports)
    try:
        try:
            return gym.make(spec, render_mode=render_mode, **options)
        except TypeError:
            if render_mode is not None:
                raise
        env = gym.make(spec, **options)  # many constructors know no such argument
        if multiprocessing.parent_process() is None:  # worker processes need not say it again
            warnings.warn(_undrawn(spec), UserWarning, stacklevel=2)
        return env
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ImportError(f"{env_id} needs a package: {mujoco.extra_for(spec, error)}") from error
    except TypeError as error:
        raise ValueError(_refusal(spec, options, render_mode, error)) from error


def _creator(spec: EnvSpec) -> Any:
    creator: Any = spec.entry_point
    try:
        if getattr(creator, "__module__", "") == gym.envs.__name__:
            creator()  # no environment: gymnasium says there where it has moved it
        return load_env_creator(creator) if isinstance(creator, str) else creator
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ImportError(f"{spec.id} needs a package: {mujoco.extra_for(spec, error)}") from error


def _undrawn(spec: EnvSpec) -> str:
    return (
        f"The constructor of {spec.id} takes no `render_mode`: it trains, but `--play --video` "
        "cannot record it."
    )


def _refusal(
    spec: EnvSpec, options: Mapping[str, Any], render_mode: str | None, error: TypeError
) -> str:
    """Say why a constructor refuses its arguments."""
    if render_mode is not None and "render_mode" in str(error):
        return f"{spec.id} cannot be drawn: its constructor takes no `render_mode` ({error})."
    given = set(options) - (set(atari.MAKE_ARGUMENTS) if atari.is_atari(spec.id) else set())
    return (
        f"`env_options` does not fit {spec.id}: {error}"
        if given
        else (f"{spec.id} cannot be made: {type(error).__name__}: {error}")
    )
