"""Every file under configs/ is valid, builds, and can be read back."""

from pathlib import Path

import pytest

import train
from agents import make_agent, parse_config
from agents.config import dump_yaml
from agents.plain_yaml import read_yaml
from agents.run_folder import RunFolder

ROOT = Path(train.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml"))
PAIRS = [file for file in FILES if file.endswith("_fire.yaml")]


def load(file):
    return parse_config(read_yaml((ROOT / file).read_text(encoding="utf-8")), train.CHECKS)


def test_the_fixed_names_are_there():
    expected = {"configs/quickstart.yaml"}
    for kind, algorithms in (("atari", ("dqn", "ppo")), ("mujoco", ("sac", "td3", "ppo"))):
        for algo in algorithms:
            expected |= {f"configs/{kind}/{algo}.yaml", f"configs/{kind}/{algo}_fire.yaml"}
    assert expected <= set(FILES)
    assert {load(file).algo for file in FILES if "/smoke/" in file} == {
        "a2c", "ddpg", "dqn", "ppo", "sac", "td3",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_file_loads_builds_and_can_be_read_back(file):
    config = load(file)
    assert {"algo", "env", "total_timesteps", "seed"} <= set(read_yaml((ROOT / file).read_text()))
    assert parse_config(read_yaml(dump_yaml(config)), train.CHECKS) == config
    agent = dict(config.agent)
    if "buffer_size" in agent or config.algo in ("dqn", "sac", "td3", "ddpg"):
        agent["buffer_size"] = 100  # the published ones do not fit
    env = train.make_env(config, n_envs=min(config.n_envs, 2), training=True)
    model = make_agent(config.algo, env, agent, seed=config.seed, fast_cnn=config.fast_cnn)
    train.plasticity_callbacks(config, RunFolder("unused"), model, verbose=False)
    env.close()


@pytest.mark.parametrize("file", PAIRS)
def test_a_pair_differs_in_fire_only(file):
    treated, control = load(file), load(file.replace("_fire", ""))
    assert treated.intervention["name"] == "fire"
    assert control.intervention is None
    same = {"intervention": None, "schedule": None}
    assert treated.model_copy(update=same) == control


def test_published_configs_name_their_source():
    for file in FILES:
        if "/atari/" in file or "/mujoco/" in file:
            assert "# source:" in (ROOT / file).read_text(encoding="utf-8"), file
