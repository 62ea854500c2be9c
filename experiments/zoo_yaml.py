"""rl_zoo3's hyper-parameter files as configurations of runs: ``--config ppo.yml --env ID``.

Such a file holds one entry per environment and is named by its algorithm. What an entry says is
converted to our words; what has no counterpart is a fault that says why. Nothing is evaluated, and
nothing is left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import envs
from agents.algorithms import algorithm_name, hyperparameters, is_algorithm
from agents.python_text import read_python
from experiments.plain_yaml import ConfigError
from fire_rl.utils.validation import nearest

# rl_zoo3's words for our keys; those of gymnasium and of its command line too.
RENAMED: Mapping[str, str] = {
    "n_timesteps": "total_timesteps",
    "env_kwargs": "env_options",
    "env_id": "env",
    "gym_packages": "imports",
    "hyperparams": "agent",
}
# Its keys that have no counterpart, and what to do.
WITHOUT_COUNTERPART: Mapping[str, str] = {
    "callback": "callbacks are keys of the run: `intervention`, `metrics`, `eval`, `checkpoint`",
    "monitor_kwargs": "SB3's Monitor has no arguments here; leave it out",
    "vec_env_class": "write `vec_env: dummy` or `vec_env: subproc`",
    "vec_env_kwargs": "write `vec_env: dummy` or `vec_env: subproc`",
    "vec_env_wrapper": "vector environments are wrapped by `frame_stack` and `normalize` only; "
    "`env_wrapper` wraps each single environment",
}
# The keys of an entry that are keys of a run; all others are the algorithm's.
_KEYS = ("env_kwargs", "env_wrapper", "frame_stack", "n_envs", "n_timesteps", "normalize")
# What rl_zoo3 evaluates if it is a text.
_TEXTS = (
    "env_kwargs",
    "normalize",
    "policy_kwargs",
    "replay_buffer_class",
    "replay_buffer_kwargs",
)
# Packages that register environments; rl_zoo3 imports all that are installed.
_PACKAGES = (
    (r".*BulletEnv-v\d+|.*BulletDuckEnv-v\d+", "pybullet_envs_gymnasium"),
    (r"MiniGrid-.*", "minigrid"),
    (r"Panda.*", "panda_gym"),
    (r"(parking|highway|merge|roundabout|intersection|racetrack)(-.*)?-v\d+", "highway_env"),
    (r"(Fetch|Hand|Adroit|AntMaze|PointMaze).*", "gymnasium_robotics"),
    (r"donkey-.*", "gym_donkeycar"),
    (r"RocketLander-.*", "rocket_lander_gym"),
    (r".*NoVel-v\d+", "rl_zoo3.import_envs"),
)
_ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"
_FIRE, _INTERVENTION = "fire_rl.FireCallback", "fire_rl.InterventionCallback"
_METRICS = "fire_rl.PlasticityMetricsCallback"
_WHEN = ("every", "at", "fractions", "stop")


@dataclass(frozen=True)
class Converted:
    """A run's values from an entry of rl_zoo3.

    Attributes:
        values: As :func:`~experiments.config.parse_config` takes them, not checked yet.
        faults: What has no counterpart, one sentence each.
        entry: The key of the entry in the file.
    """

    values: dict[str, Any]
    faults: list[str]
    entry: str


def is_zoo_file(values: Mapping[str, Any], run_keys: Collection[str]) -> bool:
    """Tell rl_zoo3's files by their shape: entries with hyper-parameters, and no key of a run."""
    entries = [value for value in values.values() if isinstance(value, Mapping)]
    return not set(values) & set(run_keys) and any(
        {"n_timesteps", "policy"} & set(entry) for entry in entries
    )


def from_zoo(
    values: Mapping[str, Any], name: str, algo: str | None = None, env: str | None = None
) -> Converted:
    """Convert one entry of one of rl_zoo3's files.

    Args:
        values: The file's.
        name: The file's name without its ending, which is that of the algorithm unless ``algo`` is.
        algo: An algorithm.
        env: The environment. Without an entry of its own Atari games have ``atari``, and others
            ``default``.

    Raises:
        ConfigError: If the algorithm or the entry cannot be told.
    """
    listed = ", ".join(str(key) for key, entry in values.items() if isinstance(entry, Mapping))
    if env is None:
        raise ConfigError([f"This is a file of rl_zoo3: say which entry by --env ID, of {listed}."])
    if algo is None and not is_algorithm(name):
        raise ConfigError(
            [f"rl_zoo3 names its files by algorithm, and {name!r} is none: add --algo NAME."]
        )
    env_id = env.rpartition(":")[2]  # gymnasium's "module:ID"
    shared = "atari" if envs.is_atari(env_id) else "default"
    key = env_id if env_id in values else shared
    if not isinstance(values.get(key), Mapping):
        meant = nearest(env_id, [str(key) for key in values])
        missing = f"This file of rl_zoo3 has no entry for {env_id} and no `{shared}`"
        raise ConfigError([f"{missing}; it has {listed}.{meant}"])
    return _convert(values[key], algo or name, env, key)


def _convert(entry: Mapping[str, Any], algo: str, env: str, key: str) -> Converted:
    faults: list[str] = []
    given: dict[str, Any] = {}
    for word, value in entry.items():
        try:
            if value is not None or not _may_be_null(str(word)):
                given[str(word)] = _read(value) if word in _TEXTS else value
        except ValueError as error:
            faults.append(f"`{word}` {error}.")
    env_id = env.rpartition(":")[2]
    modules = [module for pattern, module in _PACKAGES if re.fullmatch(pattern, env_id)]
    run: dict[str, Any] = {"algo": algo, "env": env, "imports": modules}
    agent: dict[str, Any] = {}
    for word, value in given.items():
        if word == "callback":
            faults += _add_callbacks(run, value)
        elif word in WITHOUT_COUNTERPART:
            faults.append(f"`{word}` has no counterpart here: {WITHOUT_COUNTERPART[word]}.")
        elif word in _KEYS:
            run[RENAMED.get(word, word)] = value
        elif meant := _misspelt(word, algo):
            faults.append(f"`{word}` is no known key.{meant}")
        else:
            agent[word] = value
    _take_noise(agent)
    _take_normalize(run, agent)
    if envs.is_atari(env_id):
        faults += _take_atari(run)
    return Converted({**run, "agent": agent}, faults, key)


def _may_be_null(word: str) -> bool:
    """Tell whether null is as good as absent; it is a value of some of SB3's arguments."""
    ours = word in (*_KEYS, *WITHOUT_COUNTERPART) and word not in ("n_envs", "n_timesteps")
    return ours or word.endswith(("_kwargs", "_class"))


def _read(value: Any) -> Any:
    return read_python(value) if isinstance(value, str) else value


def _misspelt(word: str, algo: str) -> str:
    """Return which key of rl_zoo3's was meant, if none of the algorithm's is nearer."""
    try:
        known = hyperparameters(algorithm_name(algo))
    except ValueError:
        return ""  # said when the run is checked
    meant = nearest(word, [*known, *_KEYS, *WITHOUT_COUNTERPART])
    return meant if word not in known and meant != nearest(word, known) else ""


def _take_noise(agent: dict[str, Any]) -> None:
    """Read the noise as rl_zoo3 does: any text with "normal" in it is normal."""
    kind = agent.get("noise_type")
    if isinstance(kind, str):
        agent["noise_type"] = "normal" if "normal" in kind else kind.strip()


def _take_normalize(run: dict[str, Any], agent: Mapping[str, Any]) -> None:
    """Read the normalisation as rl_zoo3 does: the agent's discount counts, null is false."""
    options = run.get("normalize", False)
    if isinstance(options, Mapping) and "gamma" in options and "gamma" in agent:
        options = {**options, "gamma": agent["gamma"]}
    run["normalize"] = False if options is None else options


def _take_atari(run: dict[str, Any]) -> list[str]:
    """Replace AtariWrapper, which every game has here, by its options; return what is wrong."""
    try:
        wrappers = envs.read_wrappers(run.get("env_wrapper"))
    except ValueError:
        return []  # said when the run is checked
    places = [n for n, wrapper in enumerate(wrappers) if _ATARI_WRAPPER in wrapper]
    run["frame_stack"] = run.get("frame_stack") or 1
    given = run.get("env_options") or {}
    if not isinstance(given, Mapping):
        return []
    options = dict(given)
    if options.get("frameskip") == 1:  # as every game is made here
        del options["frameskip"]
    if "repeat_action_probability" in options:
        options["sticky_actions"] = options.pop("repeat_action_probability")
    if places != [0]:
        return [
            f"`env_wrapper` must have {_ATARI_WRAPPER} once, in the first place: here Atari games "
            "are always wrapped by it, inside of all others."
        ]
    arguments = dict(wrappers[0][_ATARI_WRAPPER])
    if "action_repeat_probability" in arguments:
        arguments["sticky_actions"] = arguments.pop("action_repeat_probability")
    run["env_options"] = {**options, **arguments}
    run["env_wrapper"] = wrappers[1:]
    return []


def _add_callbacks(run: dict[str, Any], value: Any) -> list[str]:
    """Turn fire_rl's callbacks into keys of the run, in place; return the faults of others."""
    faults, interventions = [], []
    try:
        listed = envs.read_wrappers(value, "callback")
    except ValueError as error:
        return [str(error)]
    for path, arguments in (pair for callback in listed for pair in callback.items()):
        options = {key: option for key, option in arguments.items() if key != "verbose"}
        if path == _METRICS:
            run["metrics"] = options
        elif path == _FIRE:
            interventions.append(_fire(options))
        elif path == _INTERVENTION:
            spec = options.pop("intervention", "fire")
            interventions.append(
                {**(spec if isinstance(spec, dict) else {"name": spec}), **options}
            )
        else:
            faults.append(f"`callback` {path} has no counterpart here: train.py attaches its own.")
    if interventions:
        run["intervention"] = interventions
    return faults


def _fire(options: dict[str, Any]) -> dict[str, Any]:
    """Return FireCallback's arguments as an entry of `intervention`."""
    schedule = {key: options.pop(key) for key in _WHEN if key in options}
    threshold = options.pop("threshold", None)
    schedule |= threshold if isinstance(threshold, dict) else {}
    if threshold is not None and not isinstance(threshold, dict):
        schedule["threshold"] = threshold  # said when the run is checked
    return {"name": "fire", **options, **({"schedule": schedule} if schedule else {})}
