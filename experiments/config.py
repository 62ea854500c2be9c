"""A run's configuration: one YAML file and flags, checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

import envs
from agents.algorithms import algorithm_name, check_agent, hyperparameters
from agents.classes import dotted_names as dotted_classes
from experiments.faults import described, misplaced
from experiments.interventions import (
    callback_arguments,
    check_arms,
    check_events,
    check_intervention,
    check_parts,
    check_schedule,
)
from experiments.plain_yaml import ConfigError
from fire_rl import InterventionCallback
from fire_rl.utils.validation import as_number


def _count(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic takes true for 1
        raise ValueError(f"must be a whole number, got {value!r}")
    return as_number(value)


Count = Annotated[int, BeforeValidator(_count), Field(ge=1)]


class Section(BaseModel):
    """A part of a configuration: unknown keys are faults, nothing changes once it is made."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, ser_json_inf_nan="constants"
    )


class Metrics(Section):
    """Arguments of PlasticityMetricsCallback."""

    every: Count = 10_000
    probe_size: Count | None = None
    per_layer: bool = True


class Evaluation(Section):
    """Periodic evaluation: the best model is kept. Steps are environment steps over all copies.

    The defaults are rl_zoo3's. ``deterministic`` null follows it, too: stochastic on Atari, where a
    deterministic policy can be caught in a loop, deterministic elsewhere.
    """

    every: Count = 25_000
    episodes: Count = 5
    n_envs: Count = 1
    deterministic: bool | None = None


class Checkpoint(Section):
    """All that a run needs to go on exactly; ``keep_last`` null keeps every one.

    With the default, a run of less than 100,000 steps saves a checkpoint only when it is stopped.
    """

    every: Count = 100_000
    keep_last: Count | None = 2


class Tasks(Section):
    """How the environment changes while the agent trains, and every how many steps.

    Values that are null are the change's own defaults; an option of another kind of change is an
    error. With ``evaluate_earlier`` the policy is evaluated at the end of each task, on it and on
    at most so many earlier ones; null for no such evaluation.
    """

    change: str
    every: Count
    seed: Annotated[int, Field(ge=0)] = 0
    recurring: Count | None = None
    std: Annotated[float, BeforeValidator(as_number), Field(gt=0)] | None = None
    parameters: list[str] | None = None
    range: list[Annotated[float, BeforeValidator(as_number)]] | None = None
    modes: list[int] | None = None
    difficulties: list[int] | None = None
    games: list[str] | None = None
    evaluate_earlier: Annotated[int, BeforeValidator(_count), Field(ge=0)] | None = None
    evaluate_episodes: Count = 5


class Branch(Section):
    """Where a run has branched off another one, written by train.py."""

    checkpoint: str
    arm: str


class RunConfig(Section):
    """Everything that decides a run. The order of the fields is the order of the checks."""

    algo: str
    env: str
    total_timesteps: Count = 1_000_000
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    n_envs: Count = 1
    vec_env: Literal["dummy", "subproc"] = "dummy"
    imports: list[str] = []
    env_options: dict[str, Any] = {}
    env_wrapper: list[dict[str, dict[str, Any]]] = []
    normalize: bool | dict[str, Any] = False
    frame_stack: Count | None = None
    tasks: Tasks | None = None
    agent: dict[str, Any] = {}
    intervention: dict[str, Any] | list[dict[str, Any]] | None = None
    schedule: dict[str, Any] | None = None
    arms: dict[str, dict[str, Any] | list[dict[str, Any]]] = {}
    branch_at: Annotated[float, BeforeValidator(as_number), Field(gt=0, lt=1)] = 0.5
    branch: Branch | None = None
    metrics: Metrics | None = Metrics()
    eval: Evaluation | None = Evaluation()
    checkpoint: Checkpoint | None = Checkpoint()
    device: str = "auto"
    num_threads: Count | None = None
    fast_cnn: bool = True
    log_interval: Count | None = None

    @field_validator("algo")
    @classmethod
    def _check_algo(cls, algo: str) -> str:
        return algorithm_name(algo)

    @field_validator("normalize", mode="before")
    @classmethod
    def _check_normalize(cls, value: Any) -> Any:
        if not isinstance(value, bool | Mapping):
            raise ValueError(
                "`normalize` must be true, false or a mapping such as {norm_obs: true, "
                f"norm_reward: false}}, got {value!r}."
            )
        return value

    @field_validator("env_wrapper", mode="before")
    @classmethod
    def _check_env_wrapper(cls, value: Any) -> Any:
        wrappers = envs.read_wrappers(value)
        envs.check_wrappers(wrappers)
        return wrappers

    @field_validator("env_options", "normalize", "tasks")
    @classmethod
    def _check_environment(cls, value: Any, info: ValidationInfo) -> Any:
        run = info.data
        if value is None or not {"env", "imports"} <= set(run):  # they have faults of their own
            return value
        if info.field_name == "env_options":
            _as_value_errors(envs.check_env, run["env"], value, run["imports"])
        elif info.field_name == "normalize":
            _as_value_errors(envs.normalize_options, value)
        else:
            rest = run.get("n_envs", 1), run["env"], run.get("env_options", {}), run["imports"]
            _as_value_errors(envs.check_tasks, value.model_dump(), *rest)
        return value

    @field_validator("agent")
    @classmethod
    def _check_agent(cls, agent: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "algo" not in info.data:
            return agent
        known = hyperparameters(info.data["algo"])
        faults = {name: misplaced(name, cls.model_fields) for name in agent if name not in known}
        lines = [fault for fault in faults.values() if fault]
        rest = {name: value for name, value in agent.items() if not faults.get(name)}
        try:
            checked = check_agent(info.data["algo"], rest)
        except ValueError as error:
            lines.append(str(error))
        if lines:
            raise ValueError("\n".join(lines))
        return checked

    @field_validator("intervention", mode="before")
    @classmethod
    def _check_intervention(cls, value: Any) -> Any:
        checked = check_intervention(value)
        for arguments in callback_arguments(checked, None):
            _as_value_errors(InterventionCallback, **arguments)
        return checked

    @field_validator("schedule", mode="before")
    @classmethod
    def _check_schedule(cls, value: Any, info: ValidationInfo) -> Any:
        if faults := check_parts(value):
            raise ValueError("\n".join(faults))
        # An intervention with a fault of its own is missing from info.data.
        if "intervention" in info.data:
            check_schedule(value, info.data["intervention"])
            if "total_timesteps" in info.data:
                check_events(value, info.data["intervention"], info.data["total_timesteps"])
        return value

    @field_validator("arms", mode="before")
    @classmethod
    def _check_arms(cls, value: Any) -> Any:
        return check_arms(value) if isinstance(value, Mapping) else value

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if device != "auto":
            if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
                raise ValueError(f"`device` must be 'auto', 'cpu' or 'cuda', got {device!r}.")
            if device.startswith("cuda") and not torch.cuda.is_available():
                raise ValueError(
                    f"`device` is {device!r}, but this torch sees no CUDA device. Use 'auto'."
                )
        return device


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Check a run's values as a whole: hyper-parameters, environment, tasks and interventions.

    Args:
        values: As read from YAML, flags applied.

    Raises:
        ConfigError: With every fault that there is.
    """
    try:
        return RunConfig.model_validate(_split_module(_move_frame_stack(values)))
    except ValidationError as error:
        raise ConfigError(described(error, RunConfig)) from None


def dump_yaml(config: RunConfig) -> str:
    """Write a configuration so that :func:`read_yaml` and :func:`parse_config` restore it."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def dotted_names(values: Mapping[str, Any]) -> list[str]:
    """Return every module, class or function that a run's values name and that is not built in.

    They are imported when the values are checked, so this looks at them without a check.

    Args:
        values: As read from YAML.
    """
    values = _split_module(values)
    imports, agent = values.get("imports"), values.get("agent")
    names = [str(module) for module in (imports if isinstance(imports, list) else [])]
    wrappers = envs.read_wrappers(values.get("env_wrapper"))
    names += [path for wrapper in wrappers for path in wrapper]
    return [*names, *(dotted_classes(agent) if isinstance(agent, Mapping) else [])]


def _move_frame_stack(values: Mapping[str, Any]) -> dict[str, Any]:
    """Accept `frame_stack` among the environment's options, too."""
    moved = dict(values)
    options = moved.get("env_options")
    if isinstance(options, Mapping) and "frame_stack" in options and "frame_stack" not in moved:
        moved["frame_stack"] = options["frame_stack"]
        moved["env_options"] = {k: v for k, v in options.items() if k != "frame_stack"}
    return moved


def _split_module(values: Mapping[str, Any]) -> dict[str, Any]:
    """Accept gymnasium's ``env: "module:ID"``, too: the module is imported first."""
    env, imports = values.get("env"), values.get("imports", [])
    module, colon, env_id = env.partition(":") if isinstance(env, str) else ("", "", "")
    if not module or not colon or not isinstance(imports, list):
        return dict(values)
    return {**values, "env": env_id, "imports": [*imports, module]}


def _as_value_errors(check: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Call a check; pydantic collects ValueErrors only."""
    try:
        check(*args, **options)
    except (TypeError, ImportError) as error:
        raise ValueError(str(error)) from error
