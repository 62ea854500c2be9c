"""Every file under configs/ is valid, builds, and can be read back."""

import importlib.util
import math

import pytest

from agents import ALGORITHMS, make_agent
from agents.algorithms import hyperparameters
from experiments.build import make_env, plasticity_callbacks
from experiments.config import dump_yaml, parse_config
from experiments.folder import RunFolder
from experiments.plain_yaml import ConfigError, read_yaml
from fire_rl import InterventionCallback
from fire_rl.sb3.continuation import rollout_steps
from tests.helpers.runs import ROOT

FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml"))
# Modules named under `imports:` that no extra installs, and where to get them. A file that needs
# one is checked as far as it goes, and skipped.
ELSEWHERE = {"humanoid_bench": "https://github.com/carlosferrazza/humanoid-bench"}
PAIRS = [file for file in FILES if file.endswith("_fire.yaml")]


def load(file):
    values = read_yaml((ROOT / file).read_text(encoding="utf-8"))
    for module in values.get("imports", []):
        if module in ELSEWHERE and importlib.util.find_spec(module) is None:
            with pytest.raises(ConfigError) as caught:
                parse_config(values)
            (fault,) = caught.value.faults  # all else is right
            assert f"`imports` names the module '{module}', which cannot be imported" in fault
            pytest.skip(f"{module} is not installed: {ELSEWHERE[module]}")
    return parse_config(values)


def test_the_fixed_names_are_there():
    expected = {"configs/quickstart.yaml"}
    for kind, algorithms in (("atari", ("dqn", "ppo")), ("mujoco", ("sac", "td3", "ppo"))):
        for algo in algorithms:
            expected |= {f"configs/{kind}/{algo}.yaml", f"configs/{kind}/{algo}_fire.yaml"}
    assert expected <= set(FILES)
    assert {load(file).algo for file in FILES if "/smoke/" in file} == set(ALGORITHMS)


@pytest.mark.filterwarnings("ignore:`lstm_.*left as they are:UserWarning")  # RecurrentPPO's
@pytest.mark.parametrize("file", FILES)
def test_file_loads_builds_and_can_be_read_back(file):
    config = load(file)
    assert {"algo", "env", "total_timesteps", "seed"} <= set(read_yaml((ROOT / file).read_text()))
    assert parse_config(read_yaml(dump_yaml(config))) == config
    agent = dict(config.agent)
    if "buffer_size" in hyperparameters(config.algo):
        agent["buffer_size"] = 100  # the published ones do not fit
    env = make_env(config, n_envs=config.n_envs, training=True)
    model = make_agent(config.algo, env, agent, seed=config.seed, fast_cnn=config.fast_cnn)
    callbacks = plasticity_callbacks(config, RunFolder("unused"), model, verbose=False)
    check_events(callbacks, model, config.total_timesteps)
    env.close()


def check_events(callbacks, model, total):
    """Every planned event happens: after learning has started, before the last rollout ends."""
    rollout = rollout_steps(model)
    last_start = (math.ceil(total / rollout) - 1) * rollout
    for callback in callbacks:
        if isinstance(callback, InterventionCallback):
            planned = callback.clock.schedule.planned(total)
            assert not planned or getattr(model, "learning_starts", 0) < planned[0]
            assert not planned or planned[-1] <= last_start


@pytest.mark.parametrize("file", PAIRS)
def test_a_pair_differs_in_fire_only(file):
    treated, control = load(file), load(file.replace("_fire", ""))
    assert treated.intervention["name"] == "fire"
    assert control.intervention is None
    same = {"intervention": None, "schedule": None}
    assert treated.model_copy(update=same) == control


def test_published_configs_name_their_source():
    for file in FILES:
        if any(folder in file for folder in ("/atari/", "/mujoco/", "/paper/")):
            assert "# source:" in (ROOT / file).read_text(encoding="utf-8"), file
