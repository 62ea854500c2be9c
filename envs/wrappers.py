"""Wrappers of single environments that a configuration names, in rl_zoo3's form."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor

from envs import registry
from fire_rl.utils.validation import nearest

Wrapper = Mapping[str, Mapping[str, Any]]  # the dotted path, and its arguments


def read_wrappers(value: Any, label: str = "env_wrapper") -> list[dict[str, dict[str, Any]]]:
    """Return one ``{"module.Class": arguments}`` per wrapper, the innermost first.

    Args:
        value: A dotted path, ``{"module.Class": {...}}``, a list of these, or None.
        label: What the error calls it.

    Raises:
        ValueError: If it is anything else.
    """
    listed = value if isinstance(value, list) else [] if value is None else [value]
    wrappers = []
    for given in listed:
        wrapper = {given: {}} if isinstance(given, str) else given
        if not isinstance(wrapper, Mapping) or len(wrapper) != 1:
            raise ValueError(
                f"`{label}` must list dotted paths, each with its arguments if it has some, "
                f"such as [module.Class, module.Other: {{skip: 2}}], got {given!r}."
            )
        ((path, arguments),) = wrapper.items()
        if not isinstance(path, str) or not isinstance(arguments, Mapping | None):
            raise ValueError(
                f"`{label}` {path!r} must have a mapping of arguments, got {arguments!r}."
            )
        wrappers.append({path: dict(arguments or {})})
    return wrappers


class EndedEpisodes(gym.Wrapper):
    """Reports an episode that a wrapper outside SB3's ``Monitor`` has ended.

    ``Monitor`` sees no end then, and SB3's ``evaluate_policy`` would wait for one for ever.
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Make a step; at an end that was not reported, report the rewards that Monitor saw."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if (terminated or truncated) and "episode" not in info:
            monitor = self._monitor()
            if monitor is not None:
                seconds = round(time.time() - monitor.t_start, 6)
                score = round(sum(monitor.rewards), 6)
                info = {**info, "episode": {"r": score, "l": len(monitor.rewards), "t": seconds}}
        return observation, reward, terminated, truncated, info

    def _monitor(self) -> Monitor | None:
        env = self.env
        while isinstance(env, gym.Wrapper) and not isinstance(env, Monitor):
            env = env.env
        return env if isinstance(env, Monitor) else None


def check_wrappers(wrappers: Sequence[Wrapper]) -> None:
    """Check that all wrappers are there and take their arguments, without an environment.

    Raises:
        ValueError: With one line for every fault.
    """
    faults = []
    for path, arguments in _pairs(wrappers):
        try:
            inspect.signature(_find(path)).bind(None, **arguments)
        except ValueError as error:
            faults.append(str(error))
        except TypeError as error:
            faults.append(f"`env_wrapper` {path}: {error}.")
    if faults:
        raise ValueError("\n".join(faults))


def wrap(env: gym.Env, wrappers: Sequence[Wrapper]) -> gym.Env:
    """Wrap one environment, in order.

    Raises:
        ValueError: If a wrapper refuses the environment or its arguments; it is named.
    """
    for path, arguments in _pairs(wrappers):
        wrapper = _find(path)
        try:
            env = wrapper(env, **arguments)
        except Exception as error:
            raise ValueError(
                f"`env_wrapper` {path} does not fit {env}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(env, gym.Env):
            raise ValueError(f"`env_wrapper` {path} must return an environment, got {env!r}.")
    return env


def _pairs(wrappers: Sequence[Wrapper]) -> list[tuple[str, Mapping[str, Any]]]:
    return [pair for wrapper in wrappers for pair in wrapper.items()]


def _find(path: str) -> Callable[..., gym.Env]:
    """Return a wrapper's class, or a function that wraps."""
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(
            f"`env_wrapper` must be a dotted path such as gymnasium.wrappers.TimeAwareObservation, "
            f"got {path!r}."
        )
    try:
        (home,) = registry.import_modules([module], "env_wrapper")
    except ImportError as error:
        raise ValueError(str(error)) from error
    found = getattr(home, name, None)
    if (inspect.isclass(found) and issubclass(found, gym.Wrapper)) or inspect.isfunction(found):
        return found
    known = [
        key
        for key, kind in vars(home).items()
        if inspect.isclass(kind) and issubclass(kind, gym.Wrapper)
    ]
    raise ValueError(
        f"`env_wrapper` {path!r} must be a gymnasium.Wrapper or a function.{nearest(name, known)}"
    )
