"""rl_zoo3's files: every entry accepted or refused with the reason, and read as rl_zoo3 does."""

import argparse
import importlib.util
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path

import gymnasium as gym
import pytest
import rl_zoo3
import torch
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import PPO

from agents.algorithms import algorithm_name, schedules
from agents.classes import with_classes
from agents.python_text import read_python
from experiments.config import RunConfig, dotted_names, dump_yaml, parse_config
from experiments.flags import Args, read_configs
from experiments.plain_yaml import ConfigError, read_yaml
from experiments.zoo_yaml import from_zoo, is_zoo_file
from tests.helpers.runs import ROOT

FOLDER = Path(rl_zoo3.__path__[0]) / "hyperparams"
FILES = sorted(path.stem for path in FOLDER.glob("*.yml"))
# Packages that some entries need and that no extra of ours installs.
PACKAGES = ("Box2D", "pybullet_envs_gymnasium", "minigrid", "gymnasium_robotics", "panda_gym",
            "highway_env", "gym_donkeycar", "rocket_lander_gym", "ae")  # fmt: skip
REASONS = {
    "algorithm": r"`algo` '(ars|her)' is not trained here",
    "environment": r"`(imports|env_wrapper)` names the module '[\w.]+', which cannot be imported"
    r"|`env` '[\w-]+' is not a registered environment|[\w-]+-v\d needs a package: ",
    "value": r"`agent\.policy` must be 'MlpLstmPolicy' or .* got 'MlpPolicy'",
}
DISCRETE = ("a2c", "dqn", "ppo", "ppo_lstm", "qrdqn", "trpo", "ars")


@cache
def entries(file):
    return yaml.safe_load((FOLDER / f"{file}.yml").read_text())


def environment(file, entry):
    """An environment for which rl_zoo3 takes this entry."""
    plain = "CartPole-v1" if file in DISCRETE else "Pendulum-v1"
    return {"atari": "ALE/Breakout-v5", "default": plain}.get(entry, entry)


@cache
def outcomes(file):
    """The configuration of every entry, or its faults."""
    found = {}
    for entry in entries(file):
        env = environment(file, entry)
        try:
            (found[entry],) = read_configs(Args(config=FOLDER / f"{file}.yml", env=env))
        except ConfigError as error:
            found[entry] = error.faults
    return found


def reason(faults):
    """The reason of a refusal: that of the first kind, if every fault has one."""
    kinds = [next(kind for kind, text in REASONS.items() if re.match(text, f)) for f in faults]
    return min(kinds, key=list(REASONS).index)


@pytest.mark.parametrize("file", FILES)
def test_every_entry_is_accepted_or_refused_with_its_reason(file):
    counts = Counter(
        "accepted" if isinstance(found, RunConfig) else reason(found)
        for found in outcomes(file).values()
    )
    columns = [counts[key] for key in ("accepted", "environment", "algorithm", "value")]
    line = f"| `{file}.yml` | {sum(columns)} | " + " | ".join(map(str, columns)) + " |"
    if not any(importlib.util.find_spec(package) for package in PACKAGES):
        assert line in (ROOT / "configs/README.md").read_text(encoding="utf-8")


def zoo_reads(file, env):
    """What rl_zoo3 itself makes of the entry: the arguments of the algorithm, and its manager."""
    manager = ExperimentManager(
        argparse.Namespace(), file, env, "unused", config=str(FOLDER / f"{file}.yml"), verbose=0
    )
    raw, _ = manager.read_hyperparameters()
    arguments, wrapper, _, _ = manager._preprocess_hyperparams(raw)
    return manager, arguments, wrapper


def comparable(value):
    """Schedules by their values; everything that is a list as one."""
    if callable(value) and not isinstance(value, type):
        return [round(value(progress), 12) for progress in (1.0, 0.5, 0.0)]
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    return [comparable(item) for item in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("file", [file for file in FILES if file not in ("ars", "her")])
def test_what_is_accepted_is_what_rl_zoo3_reads(file):
    for entry, config in outcomes(file).items():
        if not isinstance(config, RunConfig):
            continue
        env = environment(file, entry)
        manager, expected, wrapper = zoo_reads(file, env)
        noise = {key: expected.pop(key, None) for key in ("noise_type", "noise_std")}
        ours = dict(config.agent)
        assert noise == {key: ours.pop(key, None) for key in noise}
        del expected["policy"], ours["policy"]  # names in both
        for name in ("learning_rate", "clip_range"):  # rl_zoo3 makes numbers schedules, too
            if callable(expected.get(name)) and isinstance(ours.get(name), float | int):
                expected[name] = expected[name](1.0)
        ours |= schedules(ours)
        if "policy_kwargs" in ours:
            ours["policy_kwargs"] = with_classes(ours["policy_kwargs"])
        assert comparable(with_classes(ours)) == comparable(expected), entry
        assert config.total_timesteps == manager.n_timesteps
        assert config.n_envs == manager.n_envs
        atari = entry == "atari"
        assert (config.frame_stack or 1) == (manager.frame_stack or 1) == (4 if atari else 1)
        assert bool(config.normalize) == bool(manager.normalize)
        kwargs = dict(config.normalize) if isinstance(config.normalize, dict) else {}
        assert {**manager.normalize_kwargs, "gamma": None} == {**kwargs, "gamma": None}
        assert (wrapper is not None) == (atari or bool(config.env_wrapper))
        assert config.algo == algorithm_name(file)
        assert parse_config(read_yaml(dump_yaml(config))) == config


def test_the_atari_entry_is_our_own_atari_configuration():
    own = parse_config(read_yaml((ROOT / "configs/atari/ppo.yaml").read_text()))
    found = outcomes("ppo")["atari"]
    assert own.agent == found.agent
    assert own.n_envs == found.n_envs
    assert (found.frame_stack, found.env_wrapper, found.env_options) == (4, [], {})


# --- what the files may say ---------------------------------------------------------------------

FILE = """
.base: &base
  n_timesteps: !!float 1e5
  policy: 'MlpPolicy'
  policy_kwargs: "dict(net_arch=[dict(pi=(8,), vf=[8, 4])], activation_fn=nn.ReLU)"
.more: &more
  <<: *base
  n_envs: 2
CartPole-v1:
  <<: *more
  n_envs: 4
  learning_rate: lin_7.3e-4
  normalize: "dict(norm_obs=True, gamma=0.5)"
  gamma: 0.98
  frame_stack: 2
  env_kwargs: {sutton_barto_reward: true}
  env_wrapper:
    - gymnasium.wrappers.TimeAwareObservation
    - gymnasium.wrappers.TransformReward: {func: null}
  callback:
    - fire_rl.FireCallback: {every: 20_000, stop: 0.9, networks: [critic], verbose: 1}
    - fire_rl.InterventionCallback: {intervention: reset, schedule: {at: 500}}
    - fire_rl.PlasticityMetricsCallback: {every: 5_000}
Pendulum-v1:
  <<: *base
  policy_kwargs: !!python/object/apply:dict [x]
"""


def converted(text, env, name="ppo", **options):
    found = from_zoo(read_yaml(text), name, env=env, **options)
    assert found.faults == []
    return parse_config(found.values)


def test_anchors_texts_wrappers_and_callbacks():
    text = FILE.partition("Pendulum-v1")[0]
    config = converted(text, "CartPole-v1")
    assert config.total_timesteps == 100_000
    assert (config.n_envs, config.frame_stack) == (4, 2)
    assert config.env_options == {"sutton_barto_reward": True}
    assert config.normalize == {"norm_obs": True, "gamma": 0.98}  # rl_zoo3: the agent's
    assert config.agent == {
        "policy": "MlpPolicy",
        "policy_kwargs": {"net_arch": {"pi": [8], "vf": [8, 4]}, "activation_fn": "nn.ReLU"},
        "learning_rate": "lin_7.3e-4",
        "gamma": 0.98,
    }
    assert config.env_wrapper == [
        {"gymnasium.wrappers.TimeAwareObservation": {}},
        {"gymnasium.wrappers.TransformReward": {"func": None}},
    ]
    assert config.intervention == [
        {"name": "fire", "networks": ["critic"], "schedule": {"every": 20_000, "stop": 0.9}},
        {"name": "reset", "schedule": {"at": 500}},
    ]
    assert config.metrics.every == 5_000
    with pytest.raises(ConfigError, match="not YAML"):
        read_yaml(FILE)


def test_an_anchor_that_is_used_before_it_is_complete():
    text = "p: &p {a: 1}\nx: {y: &m {<<: *p, a: 2}}\nz: {<<: *m}\n"
    assert read_yaml(text)["x"]["y"] == read_yaml(text)["z"] == {"a": 2}
    assert read_yaml("a: !!python/tuple [1, episode]") == {"a": [1, "episode"]}


GAME = """
atari: &game
  n_timesteps: 1e7
  policy: CnnPolicy
  env_wrapper:
    - stable_baselines3.common.atari_wrappers.AtariWrapper: {terminal_on_life_loss: false}
    - gymnasium.wrappers.TimeLimit: {max_episode_steps: 9}
  env_kwargs: {frameskip: 1, repeat_action_probability: 0.25}
ALE/Pong-v5: {<<: *game, env_wrapper: gymnasium.wrappers.TimeAwareObservation}
"""


def test_an_atari_game_keeps_its_one_wrapper():
    config = converted(GAME, "BreakoutNoFrameskip-v4")
    assert config.env_options == {"sticky_actions": 0.25, "terminal_on_life_loss": False}
    assert config.env_wrapper == [{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 9}}]
    assert config.frame_stack == 1  # rl_zoo3 stacks what it is told to
    (fault,) = from_zoo(read_yaml(GAME), "ppo", env="ALE/Pong-v5").faults
    assert "AtariWrapper once, in the first place" in fault


def test_noise_and_hindsight_replay():
    text = """
Pendulum-v1:
  n_timesteps: 100
  noise_type: " normal "
  noise_std: 0.1
  train_freq: !!python/tuple [1, episode]
  replay_buffer_class: HerReplayBuffer
  replay_buffer_kwargs: "dict(goal_selection_strategy='future', n_sampled_goal=4)"
  policy_kwargs: dict(optimizer_class=th.optim.AdamW, activation_fn=th.nn.Tanh, n_critics=1)
"""
    config = converted(text, "Pendulum-v1", "my_file", algo="td3")
    assert config.agent == {
        "noise_type": "normal",
        "noise_std": 0.1,
        "train_freq": [1, "episode"],
        "replay_buffer_class": "HerReplayBuffer",
        "replay_buffer_kwargs": {"goal_selection_strategy": "future", "n_sampled_goal": 4},
        "policy_kwargs": {
            "optimizer_class": "th.optim.AdamW",
            "activation_fn": "th.nn.Tanh",
            "n_critics": 1,
        },
    }
    assert dotted_names(config.model_dump()) == []  # all built in
    words = ("env_wrapper", "callback", "vec_env_wrapper", "policy_kwargs", "normalize",
             "env_kwargs", "frame_stack", "replay_buffer_class")  # fmt: skip
    nulls = {"n_timesteps": 9, **dict.fromkeys(words)}
    assert converted(yaml.safe_dump({"CartPole-v1": nulls}), "CartPole-v1").agent == {}


def test_all_that_has_no_counterpart_is_named_at_once(tmp_path, main):
    (tmp_path / "ppo.yml").write_text("""
CartPole-v1:
  n_timesteps: many
  policy: MlpPolicy
  policy_kwargs: "dict(net_arch=__import__('os').system('touch evaluated'))"
  normalize: "[x for x in (1, 2)]"
  vec_env_wrapper: stable_baselines3.common.vec_env.VecMonitor
  vec_env_class: subproc
  monitor_kwargs: dict(info_keywords=('is_success',))
  callback: [rl_zoo3.callbacks.RawStatisticsCallback, fire_rl.FireCallback: {every: 0}]
  env_wrapper: [rl_zoo3.wrappers.FrameSkp, gymnasium.wrappers.TimeLimit]
  noise_std: 0.1
  env_id: Other-v0
  learning_rat: 3
  normalise: true
  clip_range: const_0.2
""")
    code, _, err = main("--config", tmp_path / "ppo.yml", "--env", "CartPole-v1", "--seeds", 0)
    assert code == 2
    for expected in (
        "`policy_kwargs` holds \"__import__('os').system('touch evaluated')\"; read are only",
        "`normalize` holds '[x for x in (1, 2)]'",
        "`vec_env_wrapper` has no counterpart here: vector environments are wrapped by",
        "`vec_env_class` has no counterpart here: write `vec_env: dummy`",
        "`monitor_kwargs` has no counterpart here",
        "`callback` rl_zoo3.callbacks.RawStatisticsCallback has no counterpart here",
        "`every` must be a whole number of at least 1, got 0",
        "'rl_zoo3.wrappers.FrameSkp' must be a gymnasium.Wrapper or a function. Did you mean "
        "'FrameSkip'?",
        "`env_wrapper` gymnasium.wrappers.TimeLimit: missing a required argument",
        "`agent.learning_rat` is no hyper-parameter of ppo. Did you mean 'learning_rate'",
        "`agent.clip_range` must be a number or a linear schedule such as lin_3e-4",
        "`total_timesteps` must be a valid integer, got 'many'",
        "--seeds must be at least 1",
        "`normalise` is no known key. Did you mean 'normalize'?",
        "`agent.noise_std` is no hyper-parameter of ppo",
        "`agent.env_id` is called `env` here",
        "found 16 faults",
    ):
        assert expected in err, (expected, err)


@pytest.mark.parametrize(
    ("file", "flags", "message"),
    [
        ("ppo.yml", [], "say which entry by --env ID, of CartPole-v1, default."),
        ("fire_ppo.yml", ["--env", "CartPole-v1"], "'fire_ppo' is none: add --algo NAME"),
        ("ppo.yml", ["--env", "ALE/Pong-v5"], "has no entry for ALE/Pong-v5 and no `atari`"),
        ("ars.yml", ["--env", "CartPole-v1"], "`algo` 'ars' is not trained here"),
        ("her.yml", ["--env", "CartPole-v1"], "HER is a replay buffer in SB3"),
        ("ppo.yml", ["--env", "Acrobot-v1"], "`n_timesteps` is missing in `default`: give --total"),
        ("ppo.py", ["--env", "CartPole-v1"], "is Python, which is not run"),
    ],
)
def test_what_cannot_be_told_is_asked_for(file, flags, message, tmp_path, main):
    entry = "{n_timesteps: 100, policy: MlpPolicy}"
    (tmp_path / file).write_text(f"CartPole-v1: {entry}\ndefault: {{policy: MlpPolicy}}\n")
    code, _, err = main("--config", tmp_path / file, *flags)
    assert code == 2
    assert message in err


def test_default_is_used_and_said(tmp_path, main):
    (tmp_path / "td3.yml").write_text("default: {n_timesteps: 100, policy: MlpPolicy}\n")
    code, out, err = main("--config", tmp_path / "td3.yml", "--env", "Pendulum-v1",
                          "--set", "agent.gamma=0.5", "-n", 7, "--print-config")  # fmt: skip
    assert code == 0
    assert "its `default` is used for Pendulum-v1" in err
    values = read_yaml(out)
    assert (values["total_timesteps"], values["agent"]["gamma"]) == (7, 0.5)


def test_only_files_of_entries_are_taken_for_rl_zoo3s():
    keys = RunConfig.model_fields
    assert is_zoo_file({".lr": "lin_1e-3", "X-v0": {"n_timesteps": 1}}, keys)
    for own in ({"agent": {"policy": "x"}}, {"algo": "ppo", "X-v0": {"policy": 1}}, {}, {"a": 3}):
        assert not is_zoo_file(own, keys)


@pytest.mark.parametrize("text", ["[1] * 2", "f(1)", "a().b", "dict(**x)", "dict(a=1, a=2)",
                                  "{1: 2}", "lambda: 1", "1j", "b'x'", "x[0]", "1 if x else 2", "(",
                                  "f'{x}'", "dict([('a', 1)])", "-'a'", "not 1"])  # fmt: skip
def test_python_in_texts_is_never_run(text):
    with pytest.raises(ValueError, match=r"holds|is no Python value|gives"):
        read_python(text)


def test_python_values_in_texts():
    text = "  dict(a=-1, b=+2.5, c=(1, 'x'), d={'e': None}, f=[], g=a.b.C, h=True)"
    assert read_python(text) == {
        "a": -1, "b": 2.5, "c": [1, "x"], "d": {"e": None}, "f": [], "g": "a.b.C", "h": True
    }  # fmt: skip


# --- in a file of one's own ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_timesteps": 1}, "`n_timesteps` is called `total_timesteps` here."),
        ({"env_kwargs": {}}, "`env_kwargs` is called `env_options` here."),
        ({"callback": "x"}, "`callback` has no counterpart here: callbacks are keys of the run"),
        ({"vec_env_wrapper": "x"}, "`vec_env_wrapper` has no counterpart here"),
        ({"agent": {"n_timesteps": 1}}, "is called `total_timesteps` here, and stands at the top"),
        ({"agent": {"normalize": True}}, "key of the run: write `normalize` at the top"),
        ({"agent": {"n_envs": 2}}, "One of rl_zoo3's files is read as it is: --config FILE --env"),
        ({"agent": {"frame_stack": 2}}, "`agent.frame_stack` is a key of the run"),
        ({"agent": {"env_wrapper": "x"}}, "`agent.env_wrapper` is a key of the run"),
        ({"agent": {"callback": "x"}}, "`agent.callback` has no counterpart here"),
        ({"agent": {"policy_kwargs": "dict(net_arch=[8])"}}, "In YAML: {net_arch: [8]}"),
        ({"env_wrapper": [{"a.B": 1, "c.D": 2}]}, "`env_wrapper` must list dotted paths"),
        ({"env_wrapper": "TimeLimit"}, "`env_wrapper` must be a dotted path"),
        ({"env_wrapper": {"gymnasium.wrappers.TimeLimit": 5}}, "must have a mapping of arguments"),
        ({"env_wrapper": "no.such.Wrapper"}, "`env_wrapper` names the module 'no.such'"),
        ({"env_wrapper": "os.path.sep"}, "must be a gymnasium.Wrapper or a function"),
    ],
)
def test_its_words_are_explained(values, message):
    with pytest.raises(ConfigError) as caught:
        parse_config({"algo": "ppo", "env": "CartPole-v1", **values})
    (fault,) = caught.value.faults
    assert message in fault


def test_every_name_that_must_be_imported_is_listed_without_importing_it():
    values = {
        "env": "games:Some-v0",
        "imports": ["packs"],
        "env_wrapper": ["no.Skip", {"no.Other": {"n": 1}}],
        "agent": {
            "replay_buffer_class": "mine.Buffer",
            "policy_kwargs": {
                "optimizer_class": "torch.optim.Adam",
                "activation_fn": "nn.ReLU",
                "features_extractor_class": "mine.Small",
                "net_arch": [8],
            },
        },
    }
    assert dotted_names(values) == [
        "packs", "games", "no.Skip", "no.Other", "mine.Buffer", "mine.Small"
    ]  # fmt: skip
    assert dotted_names({"algo": "ppo"}) == []


# --- trained ------------------------------------------------------------------------------------

SHORT = {
    "ppo": ("CartPole-v1", ["agent.n_epochs=1"]),
    "a2c": ("Pendulum-v1", []),
    "td3": ("Pendulum-v1", ["agent.learning_starts=100", "agent.batch_size=16"]),
    "tqc": ("Pendulum-v1", ["agent.learning_starts=250", "agent.batch_size=16"]),
    "qrdqn": ("Acrobot-v1", ["agent.learning_starts=250", "agent.batch_size=16"]),
}


@pytest.mark.parametrize("file", SHORT)
def test_an_entry_is_trained(file, main, tmp_path):
    env, options = SHORT[file]
    code, _, err = main(
        "--config", FOLDER / f"{file}.yml", "--env", env, "-n", 256, "--log-dir", tmp_path / "run",
        "--device", "cpu", "--set", "eval=null", "metrics=null", *options,
    )  # fmt: skip
    assert code == 0, err
    found = parse_config(read_yaml((tmp_path / "run" / "config.yaml").read_text()))
    assert (found.algo, found.env, found.total_timesteps) == (file, env, 256)
    assert (tmp_path / "run" / "model.zip").exists()


GOALS = """
import gymnasium as gym
from stable_baselines3.common.envs import BitFlippingEnv

gym.register("Flip-v0", lambda **given: BitFlippingEnv(n_bits=4, max_steps=8, **given))
"""


def test_hindsight_replay_is_trained(main, tmp_path, monkeypatch):
    (tmp_path / "my_goals.py").write_text(GOALS)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "dqn.yml").write_text("""
Flip-v0:
  n_timesteps: 200
  policy: MultiInputPolicy
  learning_starts: 50
  replay_buffer_class: HerReplayBuffer
  replay_buffer_kwargs: "dict(n_sampled_goal=2, goal_selection_strategy='final')"
  policy_kwargs: "dict(net_arch=[8])"
""")
    code, _, err = main("--config", tmp_path / "dqn.yml", "--env", "my_goals:Flip-v0",
                        "--log-dir", tmp_path / "run", "-n", 100, "--set", "eval=null",
                        "metrics=null")  # fmt: skip
    del gym.registry["Flip-v0"]
    assert code == 0, err


WRAPPED = """
Pendulum-v1:
  n_timesteps: 512
  policy: MlpPolicy
  n_steps: 128
  batch_size: 64
  policy_kwargs: dict(net_arch=[8])
  env_wrapper:
    - sb3_contrib.common.wrappers.TimeFeatureWrapper
    - rl_zoo3.wrappers.FrameSkip: {skip: 3}
    - rl_zoo3.wrappers.HistoryWrapper: {horizon: 2}
"""


def test_a_run_with_wrappers_goes_on_exactly(main, tmp_path):
    (tmp_path / "ppo.yml").write_text(WRAPPED)
    run = tmp_path / "run"
    code, _, err = main("--config", tmp_path / "ppo.yml", "--env", "Pendulum-v1", "--log-dir", run,
                        "--set", "eval=null", "metrics=null", "checkpoint.every=256",
                        "checkpoint.keep_last=null")  # fmt: skip
    assert code == 0, err
    whole = PPO.load(run / "model.zip").policy.state_dict()
    (run / "model.zip").unlink()
    (run / "result.json").unlink()
    for later in (run / "checkpoints").iterdir():
        if later.name.lstrip("0") == "512":
            shutil.rmtree(later)
    code, out, err = main("--resume", run)
    assert code == 0, err
    assert "resumed from" in out
    resumed = PPO.load(run / "model.zip").policy.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.full
def test_the_atari_entry_is_trained(main, tmp_path):
    code, _, err = main(
        "--config", FOLDER / "dqn.yml", "--env", "ALE/Pong-v5", "-n", 300, "--device", "cpu",
        "--log-dir", tmp_path / "run", "--set", "eval=null", "metrics=null",
        "agent.buffer_size=1000", "agent.learning_starts=100",
    )  # fmt: skip
    assert code == 0, err
