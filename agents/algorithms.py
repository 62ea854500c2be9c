"""Algorithm names and their hyper-parameters, checked against the classes' own signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
)
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import LinearSchedule

from agents.classes import HOMES, find_class
from agents.networks import SimBaPolicy, XavierCnnPolicy
from agents.policy_kwargs import check_policy_kwargs
from agents.signatures import arguments, convert, hint, one_of, takes_schedule
from fire_rl.utils.validation import NUMBER

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "a2c": A2C,
    "crossq": CrossQ,
    "ddpg": DDPG,
    "dqn": DQN,
    "maskable_ppo": MaskablePPO,
    "ppo": PPO,
    "qrdqn": QRDQN,
    "recurrent_ppo": RecurrentPPO,
    "sac": SAC,
    "td3": TD3,
    "tqc": TQC,
    "trpo": TRPO,
}
# rl_zoo3's names, and its docs'.
_SYNONYMS = {"ppo_lstm": "recurrent_ppo", "ppo_mask": "maskable_ppo"}
_REFUSED = {
    "ars": "ARS searches at random, without gradients: there is no plasticity to measure or to "
    "restore. Train it with rl_zoo3.",
    "her": "HER is a replay buffer in SB3, not an algorithm: choose sac, td3, ddpg, tqc or dqn "
    "with `replay_buffer_class: HerReplayBuffer`.",
}

# Policies beside SB3's own.
_POLICIES: dict[str, dict[str, type[BasePolicy]]] = {
    "dqn": {"XavierCnnPolicy": XavierCnnPolicy},
    "sac": {"SimBaPolicy": SimBaPolicy},
}

# Arguments of the classes that a run sets elsewhere, and where.
_SET_ELSEWHERE = {
    "env": "`env` of the run",
    "seed": "`seed` of the run",
    "device": "`device` of the run",
    "verbose": "`--verbose`",
    "tensorboard_log": "`--log-dir`",
    "action_noise": "`agent.noise_type` and `agent.noise_std`",
}
_NOISE: dict[str, type[ActionNoise]] = {
    "normal": NormalActionNoise,
    "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise,
}


def algorithm_name(name: str) -> str:
    """Return the key of :data:`ALGORITHMS` that a name, ours or rl_zoo3's, stands for.

    Raises:
        ValueError: If there is none; the nearest name is offered.
    """
    name = _SYNONYMS.get(name, name)
    if name in _REFUSED:
        raise ValueError(f"`algo` {name!r} is not trained here. {_REFUSED[name]}")
    if name not in ALGORITHMS:
        raise ValueError(f"`algo` is {name!r}, which is no algorithm here.{hint(name, ALGORITHMS)}")
    return name


def is_algorithm(name: str) -> bool:
    """Tell whether a name is that of an algorithm, ours or rl_zoo3's, trained here or not."""
    return name in {**ALGORITHMS, **_SYNONYMS, **_REFUSED}


def hyperparameters(algo: str) -> list[str]:
    """Return the names that ``agent:`` may have for an algorithm."""
    declared = arguments(ALGORITHMS[algo])
    noise = ["noise_type", "noise_std"] if "action_noise" in declared else []
    return sorted([*(name for name in declared if name not in _SET_ELSEWHERE), *noise])


def policies(algo: str) -> dict[str, type[BasePolicy]]:
    """Return the policies that an algorithm may have: SB3's, then ours."""
    return {**ALGORITHMS[algo].policy_aliases, **_POLICIES.get(algo, {})}


def check_agent(algo: str, agent: Mapping[str, Any]) -> dict[str, Any]:
    """Check the hyper-parameters of an algorithm and convert them to their declared types.

    Args:
        algo: A name in :data:`ALGORITHMS`.
        agent: Names and plain values; also rl_zoo3's ``noise_type`` and ``noise_std``, and
            ``"lin_3e-4"`` for a linear decay to 0 wherever SB3 takes a schedule.

    Returns:
        The same names with converted values, still plain and fit for YAML.

    Raises:
        ValueError: With one line for every fault.
    """
    converted: dict[str, Any] = {}
    faults: list[str] = []
    for name, value in agent.items():
        try:
            if name == "policy_kwargs":
                converted[name] = check_policy_kwargs(_policy(algo, agent), value)
            else:
                converted[name] = _check(algo, str(name), value)
        except ValueError as error:
            faults.append(str(error))
    has_noise = "action_noise" in arguments(ALGORITHMS[algo])
    if has_noise and ("noise_type" in agent) != ("noise_std" in agent):
        faults.append("`agent.noise_type` and `agent.noise_std` need each other: give both.")
    if faults:
        raise ValueError("\n".join(faults))
    return converted


def _check(algo: str, name: str, value: Any) -> Any:
    declared = arguments(ALGORITHMS[algo])
    if name in declared and name in _SET_ELSEWHERE:
        raise ValueError(f"`agent.{name}` is set by {_SET_ELSEWHERE[name]}: leave it out.")
    known = hyperparameters(algo)
    if name not in known:
        raise ValueError(f"`agent.{name}` is no hyper-parameter of {algo}.{hint(name, known)}")
    if name == "policy":
        return _check_name("agent.policy", value, policies(algo))
    if name == "noise_type":
        return _check_name("agent.noise_type", value, _NOISE)
    if name == "noise_std":
        std = convert("agent.noise_std", float, value)
        if std < 0:
            raise ValueError(f"`agent.noise_std` must be at least 0, got {value!r}.")
        return std
    if name in HOMES:
        find_class(name, value)
        return value
    if takes_schedule(declared[name]) and _linear_start(value) is not None:
        return value
    return convert(f"agent.{name}", declared[name], value)


def _policy(algo: str, agent: Mapping[str, Any]) -> type[BasePolicy]:
    """The policy that is asked for; without a known one SB3's first, whose arguments all share."""
    known = policies(algo)
    return known.get(str(agent.get("policy")), next(iter(known.values())))


def _check_name(label: str, value: Any, known: Mapping[str, Any]) -> str:
    if str(value) not in known:
        raise ValueError(f"`{label}` must be {one_of(known)}, got {value!r}.")
    return str(value)


def schedules(agent: Mapping[str, Any]) -> dict[str, LinearSchedule]:
    """Build SB3's own schedules from ``"lin_3e-4"``, so that plain SB3 can load them from a zip."""
    starts = {name: _linear_start(value) for name, value in agent.items()}
    return {
        name: LinearSchedule(start, 0.0, 1.0) for name, start in starts.items() if start is not None
    }


def action_noise(noise_type: str, noise_std: float, n_actions: int) -> ActionNoise:
    """Build exploration noise of mean 0 and one standard deviation for all actions."""
    return _NOISE[noise_type](np.zeros(n_actions), np.full(n_actions, noise_std))  # type: ignore[call-arg]


def _linear_start(value: Any) -> float | None:
    number = value.removeprefix("lin_") if isinstance(value, str) else ""
    return float(number) if value != number and NUMBER.fullmatch(number) else None
