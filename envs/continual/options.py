"""What `tasks:` in a config may say, and the wrappers that it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym

from envs import atari, minatar, registry
from envs.continual.dynamics import PARAMETERS, ChangingDynamics
from envs.continual.games import ChangingGame, ChangingMode
from envs.continual.goals import ChangingActions, ChangingDirection
from envs.continual.observations import ChangingObservations
from fire_rl.utils.validation import nearest

Make = Callable[[], gym.Env[Any, Any]]
Wrap = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]

# What each change can be told besides when and in which order. The first task of every change is
# the environment as it is.
CHANGES: Mapping[str, tuple[str, ...]] = {
    "offset": ("std",),
    "drift": ("std",),
    "permutation": (),
    "dynamics": ("parameters", "range"),
    "direction": (),
    "actions": (),
    "mode": ("modes", "difficulties"),
    "game": ("games",),
}
_OPTIONS = sorted({option for options in CHANGES.values() for option in options})


def check_tasks(
    tasks: Mapping[str, Any],
    n_envs: int,
    env_id: str,
    env_options: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
) -> None:
    """Check a sequence of tasks without making the environment.

    Raises:
        ValueError: With every fault, one a line: an unknown change, options of another change,
            tasks that the copies cannot share, games that do not exist.
    """
    change, every = tasks["change"], tasks["every"]
    faults = []
    if every % n_envs:
        faults.append(
            f"`tasks.every` counts steps over all environments: it must be a multiple of `n_envs` "
            f"{n_envs}, got {every}."
        )
    if change not in CHANGES:
        listed = ", ".join(map(repr, CHANGES))
        faults.append(
            f"`tasks.change` must be one of {listed}, got {change!r}.{nearest(change, CHANGES)}"
        )
        raise ValueError("\n".join(faults))
    given = {name: tasks[name] for name in _OPTIONS if tasks.get(name) is not None}
    for name in given:
        if name not in CHANGES[change]:
            owners = " and ".join(c for c, options in CHANGES.items() if name in options)
            faults.append(f"`tasks.{name}` belongs to `change: {owners}`, not to {change}.")
    faults += _check_values(given)
    if change == "mode" and not atari.is_atari(env_id):
        faults.append(
            f"`tasks.change: mode` needs an Atari game such as ALE/Pong-v5, not {env_id}."
        )
    if change == "game":
        faults += _check_games(given.get("games"), env_id, env_options or {}, imports)
    if faults:
        raise ValueError("\n".join(faults))


def inner_change(
    tasks: Mapping[str, Any],
    env_id: str,
    make: Callable[[str], gym.Env[Any, Any]],
) -> Make:
    """Return what makes the environment, with changes that belong below the Monitor.

    Those of the world and of its rewards: logged returns are those of the task.

    Args:
        tasks: Checked by :func:`check_tasks`.
        env_id: The environment, the first of a sequence of games.
        make: Makes the environment of an id; of Atari with all actions, if games change.
    """
    change, seed = tasks["change"], tasks.get("seed", 0)
    given = {k: tasks[k] for k in CHANGES[change] if tasks.get(k) is not None}
    if change == "game":
        return partial(ChangingGame, [partial(make, game) for game in given["games"]])
    if change == "direction":
        return partial(_make_wrapped, partial(make, env_id), ChangingDirection)
    if change in ("dynamics", "mode"):
        kind: Any = {"dynamics": ChangingDynamics, "mode": ChangingMode}[change]
        return partial(_make_wrapped, partial(make, env_id), partial(kind, seed=seed, **given))
    return partial(make, env_id)


def outer_change(tasks: Mapping[str, Any]) -> list[Wrap]:
    """Return the wrapper of a change of what the agent sees or does, if it is one of those."""
    change, seed = tasks["change"], tasks.get("seed", 0)
    if change in ("offset", "drift", "permutation"):
        return [partial(ChangingObservations, change=change, seed=seed, std=tasks.get("std"))]
    return [partial(ChangingActions, seed=seed)] if change == "actions" else []


def _make_wrapped(make: Make, wrap: Wrap) -> gym.Env[Any, Any]:
    return wrap(make())


def _check_values(given: Mapping[str, Any]) -> list[str]:
    faults = [
        f"`tasks.parameters` has an unknown name {name!r}."
        + (nearest(name, PARAMETERS) or f" Known are {', '.join(PARAMETERS)}.")
        for name in given.get("parameters", ())
        if name not in PARAMETERS
    ]
    faults += [f"`tasks.{name}` is empty." for name, value in given.items() if value == []]
    span = given.get("range", (1, 1))
    if len(span) != 2 or not (0 < span[0] <= span[1] and math.isfinite(span[1])):
        faults.append(
            "`tasks.range` must be the smallest and the largest factor, both above 0, such as "
            f"[0.5, 2.0], got {list(span)}."
        )
    return faults


def _check_games(
    games: Sequence[str] | None,
    env_id: str,
    env_options: Mapping[str, Any],
    imports: Sequence[str],
) -> list[str]:
    if not games or games[0] != env_id:
        return [
            f"`tasks.games` must list the games in their order, the first one being `env` "
            f"{env_id}, got {games}."
        ]
    family = atari.is_atari if atari.is_atari(env_id) else minatar.is_minatar
    if not family(env_id):
        return [f"`tasks.change: game` needs games of Atari or of MinAtar, `env` is {env_id}."]
    faults = []
    if env_options.get("full_action_space", True) is not True:
        faults.append(
            "`env_options.full_action_space` is always true for `tasks.change: game`: the games "
            "have one action space. Leave it out."
        )
    for game in games:
        if not family(game):
            faults.append(
                f"`tasks.games` has {game!r}, which is not of the same family as {env_id}."
                f"{nearest(game, list(gym.registry))}"
            )
            continue
        try:
            registry.check_options(registry.find_spec(game, imports), env_options)
        except ValueError as error:
            faults += str(error).replace("`env` ", "`tasks.games` has ").split("\n")
    return list(dict.fromkeys(faults))
