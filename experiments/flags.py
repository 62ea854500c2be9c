"""The flags of train.py, and how they override a file."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents import ALGORITHMS
from experiments.config import RunConfig, parse_config
from experiments.interventions import entries
from experiments.plain_yaml import ConfigError, read_yaml, set_value
from experiments.zoo_yaml import from_zoo, is_zoo_file
from fire_rl.interventions import CONTROL, INTERVENTIONS


def _flag(metavar: str, **options: Any) -> Any:
    """Name a flag's value in the help, without tyro's types and defaults of None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", **options)


_INTERVENTION = (
    f"What to do to the networks while they train: {', '.join(INTERVENTIONS)}; {CONTROL} is the "
    "control arm."
)


@dataclass(frozen=True)
class Args:
    """Flags."""

    config: Annotated[Path | None, _flag("FILE")] = None
    """YAML file that describes the run; configs/ has ready-made ones. Or one of rl_zoo3's, such as
    ppo.yml, with --env for the entry. Or give --algo and --env."""
    algo: Annotated[str | None, _flag("NAME", help=f"Algorithm: {', '.join(ALGORITHMS)}.")] = None
    env: Annotated[str | None, _flag("ID")] = None
    """Environment: any gymnasium id, such as ALE/Breakout-v5 or HalfCheetah-v5."""
    seed: Annotated[int | None, _flag("N")] = None
    """Random seed of weights, exploration and environments."""
    seeds: Annotated[int, _flag("N")] = 1
    """Train N times, one after the other, with consecutive seeds."""
    total_timesteps: Annotated[str | None, _flag("STEPS", aliases=("-n",))] = None
    """Environment steps in all, over all parallel environments; 1e6 is understood."""
    n_envs: Annotated[int | None, _flag("N")] = None
    """Number of parallel environments."""
    intervention: Annotated[str | None, _flag("NAME", help=_INTERVENTION)] = None
    every: Annotated[str | None, _flag("STEPS")] = None
    """Intervene every so many environment steps, during the first 80 percent of the run."""
    at: Annotated[tuple[str, ...], _flag("STEP [STEP ...]")] = ()
    """Intervene at these environment steps instead."""
    set_: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
        _flag("SECTION.KEY=VALUE [...]", name="set"),
    ] = ()
    """Override any value of the file, for example --set agent.gamma=0.98 eval.every=50000."""
    device: Annotated[str | None, _flag("DEVICE")] = None
    """Where the networks live: auto, cpu or cuda."""
    num_threads: Annotated[int | None, _flag("N")] = None
    """CPU threads of torch."""
    log_dir: Annotated[Path | None, _flag("DIR")] = None
    """Run folder; by default a new one in runs/. One with files in it is never overwritten."""
    progress: Annotated[bool, tyro.conf.arg(help_behavior_hint="", aliases=("-P",))] = False
    """Show a progress bar instead of tables."""
    print_config: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print the complete configuration, all overrides applied, and exit."""
    resume: Annotated[Path | None, _flag("RUN")] = None
    """Go on with a run from its last checkpoint, to its original total; no other flags are
    needed."""
    branch_from: Annotated[Path | None, _flag("CHECKPOINT")] = None
    """Go on from a run's checkpoint (RUN/checkpoints/STEP) as a new run, with --intervention at
    its start, or as --every or --at say; to the original total."""
    arm_name: Annotated[str | None, _flag("NAME")] = None
    """Name of the branch, by default that of its intervention."""
    arms: Annotated[str | None, _flag("NAME,NAME,...")] = None
    """Compare interventions: train to the midpoint once per seed, branch into every arm, report
    dip, recovery and plateau. Names of interventions, or of the file's `arms`. Run it again and
    only what is missing is done."""
    play: Annotated[Path | None, _flag("RUN")] = None
    """Watch a trained agent: a run folder, or one of the zip files in it."""
    trust: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """With --resume, --branch-from or --play: let the run's config.yaml name modules to import.
    Runs that you made need no trust: their config.yaml is recorded, by its SHA-256, in
    ~/.local/state/fire_rl (or $XDG_STATE_HOME/fire_rl). All others get built-in classes only, no
    `imports`; --trust prints what would be imported and records the run as yours. Weights and
    statistics are always read as data, and nothing is written through links inside a run."""
    episodes: Annotated[int, _flag("N")] = 5
    """Number of episodes for --play (5)."""
    video: Annotated[Path | None, _flag("DIR")] = None
    """Write an MP4 of each episode of --play to this folder."""
    verbose: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Say more: one line per measurement, and tracebacks of errors."""


def parse_flags(description: str | None) -> Args:
    """Read the command line; ``--help`` shows the description.

    Raises:
        SystemExit: With the exit code, after ``--help`` and for unknown flags.
    """
    return tyro.cli(Args, description=description, config=(tyro.conf.FlagCreatePairsOff,))


def check_combination(args: Args) -> None:
    """Refuse flags that would be ignored.

    Raises:
        ConfigError: Naming each of them.
    """
    given = {
        field.name.rstrip("_").replace("_", "-")
        for field in dataclasses.fields(args)
        if getattr(args, field.name) != field.default
    }
    everywhere = {"verbose"}
    watching = {"play", "episodes", "video"}
    branching = {"branch-from", "arm-name", "intervention", "every", "at", "set", "log-dir"}
    branching |= {"progress", "print-config", "num-threads", "device", "trust"}
    for mode, allowed in (
        ("play", {*watching, "seed", "trust"}),
        ("resume", {"resume", "progress", "trust"}),
        ("branch-from", branching),
    ):
        if mode in given and (extra := given - allowed - everywhere):
            flags = ", ".join(f"--{name}" for name in sorted(extra))
            raise ConfigError(
                [f"--{mode} takes everything from the run folder: leave out {flags}."]
            )
    if "branch-from" in given and "intervention" not in given:
        raise ConfigError(
            ["--branch-from needs --intervention NAME, what the branch does; none is the control."]
        )
    if "arm-name" in given and "branch-from" not in given:
        raise ConfigError(["--arm-name names a branch: add --branch-from RUN/checkpoints/STEP."])
    if "arms" in given and (extra := given & {"intervention", "every", "at", "print-config"}):
        flags = ", ".join(f"--{name}" for name in sorted(extra))
        raise ConfigError([f"--arms says what is done: leave out {flags}."])
    if "arms" in given and not {"config", "algo"} & given:
        raise ConfigError(["--arms needs a run to branch: give --config FILE."])
    if "play" not in given and (extra := given & watching):
        flags = ", ".join(f"--{name}" for name in sorted(extra))
        raise ConfigError([f"{flags} is for watching: add --play RUN."])
    if "trust" in given and not {"play", "resume", "branch-from"} & given:
        raise ConfigError(
            ["--trust is for a run that is there: add --resume, --branch-from or --play. What "
             "--config FILE names is imported in any case."]
        )  # fmt: skip
    if args.episodes < 1:
        raise ConfigError([f"--episodes must be at least 1, got {args.episodes}."])


def read_configs(args: Args) -> list[RunConfig]:
    """Return the configuration of each seed: the file, the flags, checked as a whole.

    Raises:
        ConfigError: With every fault that there is, or if the file cannot be read.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    if args.config is not None:
        if args.config.suffix == ".py":
            raise ConfigError([f"--config {args.config} is Python, which is not run: give YAML."])
        try:
            loaded = read_yaml(args.config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"--config {args.config} cannot be read: {error}"]) from error
        if not isinstance(loaded, dict):
            raise ConfigError([f"{args.config} must hold keys such as `algo: dqn`."])
        values = loaded
        if is_zoo_file(values, RunConfig.model_fields):
            zoo = from_zoo(values, args.config.stem, args.algo, args.env)
            if zoo.entry == "default":
                print(f"{args.config}: its `default` is used for {args.env}.", file=sys.stderr)
            values, faults = zoo.values, list(zoo.faults)
            if "total_timesteps" not in values and args.total_timesteps is None:
                faults.append(f"`n_timesteps` is missing in `{zoo.entry}`: give --total-timesteps.")
    faults += _apply_flags(values, args)
    try:
        first = parse_config(values)
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    if faults:
        raise ConfigError(faults)
    return [first.model_copy(update={"seed": first.seed + k}) for k in range(args.seeds)]


def overridden(values: Mapping[str, Any], args: Args) -> dict[str, Any]:
    """Return a run's values with the flags applied, and without its own schedules.

    Raises:
        ConfigError: With every flag that is wrong.
    """
    applied = dict(values)
    applied["schedule"] = None
    listed = entries(values.get("intervention"))
    stripped = [{k: v for k, v in entry.items() if k != "schedule"} for entry in listed]
    applied["intervention"] = stripped[0] if len(stripped) == 1 else stripped or None
    if faults := _apply_flags(applied, args):
        raise ConfigError(faults)
    return applied


def _apply_flags(values: dict[str, Any], args: Args) -> list[str]:
    """Override a file's values, in place; return what is wrong with the flags."""
    faults = []
    if args.seeds < 1:
        faults.append(f"--seeds must be at least 1, got {args.seeds}.")
    for flag in ("algo", "env", "seed", "n_envs", "device", "num_threads"):
        if getattr(args, flag) is not None:
            values[flag] = getattr(args, flag)
    if args.total_timesteps is not None:
        values["total_timesteps"] = read_yaml(args.total_timesteps)
    if args.intervention is not None:
        # Options in the file are those of the intervention in the file.
        old = values.get("intervention")
        name = old.get("name") if isinstance(old, Mapping) else old
        if name != args.intervention:
            arms = values.get("arms")
            own = arms.get(args.intervention) if isinstance(arms, Mapping) else None
            values["intervention"] = own or {"name": args.intervention}
    if args.every is not None and args.at:
        faults.append("--every and --at exclude each other: give one of them.")
    if args.every is not None:
        old = values.get("schedule")
        stop = {"stop": old["stop"]} if isinstance(old, Mapping) and "stop" in old else {}
        values["schedule"] = {"every": read_yaml(args.every), **stop}
    if args.at:
        values["schedule"] = {"at": [read_yaml(step) for step in args.at]}
    for assignments in args.set_:
        for assignment in assignments:
            try:
                set_value(values, assignment)
            except ConfigError as error:
                faults += error.faults
    return faults
