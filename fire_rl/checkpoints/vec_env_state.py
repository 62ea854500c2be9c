"""The state of a vector environment: its wrappers, and every copy in the middle of an episode."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from fire_rl.checkpoints.env_state import (
    Problem,
    State,
    StateAccess,
    capture_object,
    restore_object,
)

logger = logging.getLogger("fire_rl")

_LISTED = 8  # problems that a warning names


def capture_vec_env(venv: VecEnv) -> State:
    """Return the state of a vector environment, and name in a warning what could not be captured.

    Then the episodes in progress are dropped when the training is resumed, and new ones begin;
    all else is restored.
    """
    base = venv.unwrapped
    state: State = {"venv": capture_object(venv), "workers": None}
    problems = [Problem(*each) for each in state["venv"]["missing"]]
    if not isinstance(base, DummyVecEnv):
        if _has_access(base):
            state["workers"] = base.env_method("training_state")
            for copy, worker in enumerate(state["workers"]):
                problems += [Problem(copy, *each[1:]) for each in worker["missing"]]
        elif (text := _unreachable(base)) is not None:
            problems.append(Problem(None, text))
    lost, notes = _sentences(problems)
    state["missing"] = lost or None
    if notes:
        logger.warning("A resumed training may not be exact: %s.", _listed(notes))
    if lost:
        logger.warning(
            "The environments' state cannot be saved completely: %s. When this training is "
            "resumed, that begins as a new training makes it, the episodes in progress are dropped "
            "and new ones begin; every other attribute of the environments is restored.",
            _listed(lost),
        )
    return state


def restore_vec_env(venv: VecEnv, state: State) -> bool:
    """Put a state back; return False, with a warning, if new episodes must begin."""
    base = venv.unwrapped
    problems = restore_object(venv, state["venv"], list(_numbered(venv, state["venv"]["nodes"])))
    workers = state["workers"]
    if workers is not None and len(workers) != base.num_envs:
        problems.append(Problem(None, f"there were {len(workers)} environments"))
    elif workers is not None and not _has_access(base):
        problems.append(Problem(None, _unreachable(base) or "there were worker processes"))
    elif workers is not None:
        for copy, saved in enumerate(workers):
            (found,) = base.env_method("restore_training_state", saved, indices=[copy])
            problems += [Problem(copy, each.text, each.is_note) for each in found]
    elif (text := _unreachable(base)) is not None:
        problems.append(Problem(None, text))
    lost, notes = _sentences(problems)
    if notes:
        logger.warning(
            "The environments are resumed, but not exactly as they were: %s.", _listed(notes)
        )
    if lost:
        logger.warning(
            "The environments' state is not restored completely: %s. That begins as this training "
            "has made it, the episodes in progress are dropped and new ones begin; every other "
            "attribute of the environments is restored.",
            _listed(lost),
        )
    return not lost


def _has_access(base: VecEnv) -> bool:
    """Tell whether every copy is wrapped in :class:`StateAccess`, in a way that ends no worker."""
    try:
        if isinstance(base, SubprocVecEnv):  # answered without the class being sent
            return base.has_attr("restore_training_state") and all(base.env_is_wrapped(StateAccess))
        answers = base.env_is_wrapped(StateAccess)
        return list(answers) == [True] * base.num_envs
    except Exception:  # of the user's own vector environment
        return False


def _unreachable(base: VecEnv) -> str | None:
    """Say which environments are out of reach; None if all that there is are attributes."""
    if isinstance(base, SubprocVecEnv) or hasattr(base, "remotes") or hasattr(base, "processes"):
        return (
            f"{type(base).__name__} keeps its environments in other processes, where they cannot "
            "be read: wrap each of them in fire_rl.StateAccess, for example by "
            "make_vec_env(..., wrapper_class=fire_rl.StateAccess)"
        )
    return None


def _numbered(venv: VecEnv, nodes: Sequence[State]) -> Iterator[tuple[int, Any]]:
    """Yield the environments of this process, each with the number of its node."""
    number: Any = 0
    base = venv
    while isinstance(base, VecEnvWrapper):
        base = base.venv
        saved = nodes[number].get("attributes", {}).get("venv")
        if not isinstance(saved, dict):
            return
        number = saved["ref"]
    saved = nodes[number].get("attributes", {}).get("envs")
    if isinstance(base, DummyVecEnv) and isinstance(saved, dict):
        for item, env in zip(nodes[saved["ref"]]["items"], base.envs, strict=False):
            yield item["ref"], env


def _sentences(problems: Sequence[Problem]) -> tuple[list[str], list[str]]:
    """Return what is lost and what is only to be noted, each with the copies where it is."""
    copies: dict[tuple[bool, str], list[int]] = {}
    for problem in problems:
        numbers = copies.setdefault((problem.is_note, problem.text), [])
        if problem.copy is not None:
            numbers.append(problem.copy)
    both = [
        [f"{text}{_where(numbers)}" for (note, text), numbers in copies.items() if note is is_note]
        for is_note in (False, True)
    ]
    return both[0], both[1]


def _where(numbers: Sequence[int]) -> str:
    listed = sorted(set(numbers))
    if not listed:
        return ""
    if len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1)):
        return f" (environments {listed[0]} to {listed[-1]})"
    return f" (environment{'s' * (len(listed) > 1)} {', '.join(map(str, listed))})"


def _listed(sentences: Sequence[str]) -> str:
    more = len(sentences) - _LISTED
    return "; ".join(sentences[:_LISTED]) + (f"; and {more} more" if more > 0 else "")
