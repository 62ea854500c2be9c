"""What verbose callbacks print, in scripts of users with and without logging of their own."""

import subprocess
import sys

import pytest

from tests.helpers.runs import ENVIRONMENT

SCRIPT = """
import logging, sys, tempfile
{setup}
before = list(logging.getLogger().handlers)
from fire_rl import FireCallback, RunCheckpointCallback
from stable_baselines3 import PPO

model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, n_epochs=1, device="cpu")
saver = RunCheckpointCallback(128, tempfile.mkdtemp(), verbose={verbose})
model.learn(192, callback=[FireCallback(at=[64], probe_size=16, verbose={verbose}), saver])
assert logging.getLogger("fire_rl").handlers == []
assert logging.getLogger("fire_rl").level == logging.NOTSET
assert logging.getLogger().handlers == before, "the root's handlers"
"""
SETUPS = {"none": "", "basicConfig": "logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)"}


def run(script):
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("setup", SETUPS)
def test_a_verbose_callback_prints_and_adds_no_handler(setup):
    done = run(SCRIPT.format(setup=SETUPS[setup], verbose=1))
    lines = done.stdout.splitlines()
    assert lines[0] == "fire: planned at 64 timesteps"
    assert lines[1].startswith("fire at step 64; actor: 3 of 3 layers, DfI/sv ")
    assert lines[2].startswith("checkpoint ")
    assert not [line for line in done.stderr.splitlines() if "fire at" in line]


def test_without_verbose_nothing_is_printed():
    assert run(SCRIPT.format(setup="", verbose=0)).stdout == ""


def test_importing_adds_no_handler():
    run(
        "import logging, fire_rl, fire_rl.callbacks, fire_rl.checkpoints.store\n"
        "assert logging.getLogger('fire_rl').handlers == logging.getLogger().handlers == []"
    )
