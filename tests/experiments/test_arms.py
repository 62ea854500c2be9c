"""train.py --branch-from and --arms: whole experiments from the command line."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from stable_baselines3 import DQN

from fire_rl.runs.recovery import recovery
from tests.helpers.runs import ENVIRONMENT, ROOT, scalars, train_here

SETTINGS = (
    "agent.learning_starts=100", "agent.buffer_size=1000", "checkpoint.every=500",
    "metrics.every=500", "metrics.probe_size=128", "eval=null", "agent.policy_kwargs.net_arch=[16]",
)  # fmt: skip
RUN = ("--algo", "dqn", "--env", "CartPole-v1", "-n", 1200, "--device", "cpu", "--set", *SETTINGS)


def weights(folder):
    return DQN.load(folder / "model.zip").policy.state_dict()


def events_of(folder):
    return [json.loads(line) for line in (folder / "interventions.jsonl").read_text().splitlines()]


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))


def test_branch_from_a_checkpoint(main, tmp_path):
    code, out, err = main(*RUN, "--log-dir", tmp_path / "run")
    assert (code, err) == (0, "")
    checkpoint = tmp_path / "run" / "checkpoints" / "500"
    for arm, options in (
        ("none", ()),
        ("fire", ()),
        ("late", ("--at", 900, "--arm-name", "late", "--set", "intervention.strength=0.5")),
    ):
        name = "fire" if arm == "late" else arm
        branch = ("--branch-from", checkpoint, "--intervention", name)
        code, out, err = main(*branch, "--log-dir", tmp_path / arm, *options)
        assert (code, err) == (0, ""), err
        assert "Finished after 1,200 steps" in out
    assert same(weights(tmp_path / "run"), weights(tmp_path / "none"))
    assert not same(weights(tmp_path / "run"), weights(tmp_path / "fire"))
    events = {arm: events_of(tmp_path / arm) for arm in ("none", "fire", "late")}
    assert [line["num_timesteps"] for line in events["fire"] if "networks" in line] == [500]
    (event, recovered) = events["late"]
    assert (event["num_timesteps"], event["options"]["strength"]) == (900, 0.5)
    assert (recovered["recovery"], recovered["end"]) == ("fire", 1200)
    config = yaml.safe_load((tmp_path / "late" / "config.yaml").read_text())
    assert config["branch"] == {"checkpoint": str(checkpoint), "arm": "late"}
    result = json.loads((tmp_path / "fire" / "result.json").read_text())
    assert (result["num_timesteps"], result["interventions"]) == (1200, 1)


ARMS = ("--arms", "none,fire,half,both", "--seeds", 2)
OWN = {
    "half": {"name": "fire", "strength": 0.5, "head_refit": {"ridge": 0.01}},
    "both": [{"name": "redo", "schedule": {"every": 100}}, {"name": "optimizer_reset"}],
}


@pytest.fixture
def config(tmp_path):
    values = {
        "algo": "dqn", "env": "CartPole-v1", "total_timesteps": 1200, "device": "cpu",
        "agent": {"learning_starts": 100, "buffer_size": 1000, "policy_kwargs": {"net_arch": [16]}},
        "checkpoint": {"every": 300}, "metrics": {"every": 500, "probe_size": 128}, "eval": None,
        "arms": OWN,
    }  # fmt: skip
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_arms_from_one_midpoint(main, config, tmp_path):
    root = tmp_path / "arms"
    command = ("--config", config, *ARMS, "--log-dir", root)
    code, out, err = main(*command)
    assert (code, err) == (0, ""), err
    assert out.count("Stopped to branch after 600 steps") == 2
    assert out.count("Finished after 1,200 steps") == 8
    table = (root / "recovery.md").read_text()
    assert table in out
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "none", "fire", "half", "both",
    ]  # fmt: skip

    rows = json.loads((root / "recovery.json").read_text())
    assert len(rows) == 8
    for row in rows:  # every number again, from the files that a user has
        folder = root / f"s{row['seed']}" / row["arm"]
        episodes = [
            tuple(map(float, line.split(",")[:2]))
            for line in (folder / "episodes.csv").read_text().splitlines()[1:]
        ]
        expected = recovery(episodes, 600, 1200)
        assert row["plateau"] == pytest.approx(expected.plateau)
        assert row["before"] == pytest.approx(expected.before)
        assert row["action_difference"] >= 0
    by_arm = {(row["arm"], row["seed"]): row for row in rows}
    assert by_arm["none", 0]["gain"] == by_arm["none", 1]["plateau_gain"] == 0
    assert by_arm["none", 0]["value_shift"] == 0 < by_arm["half", 0]["value_shift"]
    assert by_arm["half", 0]["value_shift"] < by_arm["fire", 0]["value_shift"]
    assert by_arm["none", 0]["before"] == by_arm["fire", 0]["before"]
    (compared,) = [line for line in events_of(root / "s0" / "half") if "recovery_against" in line]
    assert compared["gain"] == by_arm["half", 0]["gain"]
    logged = scalars(root / "s0" / "half").Scalars("recovery/vs_none/plateau_gain")
    assert [(point.step, point.value) for point in logged] == [
        (600, pytest.approx(by_arm["half", 0]["plateau_gain"]))
    ]
    both = events_of(root / "s0" / "both")
    events = [(line["num_timesteps"], line["intervention"]) for line in both if "networks" in line]
    assert events[:2] == [(600, "redo"), (600, "optimizer_reset")]
    assert [step for step, name in events if name == "redo"] == [600, 700, 800, 900]

    # Again: nothing is done twice; a lost arm is trained again, to the same end.
    code, out, _ = main(*command)
    assert code == 0
    assert "Training" not in out
    assert table in out
    before = weights(root / "s1" / "fire")
    (root / "s1" / "fire" / "result.json").unlink()
    for path in (root / "s1" / "fire" / "checkpoints").glob("[0-9]*"):
        (path / "manifest.json").unlink()
    code, out, _ = main(*command)
    assert code == 0
    assert out.count("Training dqn") == 1
    assert "fire was stopped before its first checkpoint: it begins anew" in out
    assert table in out
    assert same(before, weights(root / "s1" / "fire"))


def test_another_method_under_an_old_name_is_refused(main, config, tmp_path):
    command = ("--config", config, "--arms", "none,half", "--log-dir", tmp_path / "arms")
    assert main(*command)[0] == 0
    code, _, err = main(*command, "--set", "arms.half.strength=0.7")
    assert code == 2
    assert "s0/half holds another run: `intervention` was" in err
    assert "'strength': 0.5" in err
    code, _, err = main(*command, "--set", "agent.gamma=0.9")
    assert (code, "s0/trunk holds another run: `agent` was" in err) == (2, True), err
    assert main(*command, "--device", "auto")[0] == 0  # this decides no number


def test_an_experiment_that_is_killed_goes_on(config, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config)]
    command += ["--arms", "none,fire", "--log-dir"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train_here(*command[2:], whole) == 0
    process = subprocess.Popen(
        [*command, str(cut)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (cut / "s0" / "fire" / "checkpoints").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(
        [*command, str(cut)], env=ENVIRONMENT, check=True, capture_output=True, text=True
    )
    assert (cut / "recovery.md").read_text() == (whole / "recovery.md").read_text()
    assert same(weights(whole / "s0" / "fire"), weights(cut / "s0" / "fire"))
    assert "s0/none" not in done.stdout.replace(str(whole), "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--arms", "none,fier"), "--arms has no 'fier'"),
        (("--arms", "none,fier"), "Did you mean 'fire'?"),
        (("--arms", "fire,fire"), "--arms has 'fire' twice"),
        (("--arms", "fire", "--every", 5), "--arms says what is done: leave out --every"),
        (("--arms", "fire", "--set", "intervention=fire", "schedule.at=[5]"), "takes the place of"),
        (("--arms", "fire", "--set", "branch_at=1.5"), "`branch_at` must be less than 1, got 1.5"),
        (("--arms", "fire", "--set", "arms.half.strength=2"), "Arm 'half': `strength` must be"),
        (("--arms", "fire", "--set", "arms.odd.name=fyre"), "Arm 'odd': `intervention name` must"),
        (("--arms", "fire", "--set", "arms.trunk.name=fire"), "and not 'trunk', got 'trunk'"),
        (("--arms", "fire", "--set", "arms.a/b.name=fire"), "An arm's name is a folder's"),
        (("--arms", "fire", "--set", "arms.none.name=fire"), "the control arm cannot be another"),
        (("--arms", "fire", "--set", "arms.ctrl=null"), "Arm 'ctrl': there is nothing in it"),
        (("--arms", "fire", "--set", "arms=[a, b]"), "`arms` must be a mapping"),
        (("--intervention", "fire", "--every", 9, "--set", "arms=null"), "`arms` must be a mapping"),  # noqa: E501
        (("--arms", "half,b", "--set", "arms.b.name=fire", "arms.b.networks=actor"), "Arm 'b': `netw"),  # noqa: E501
        (("--arms", "b", "--set", "arms.b.name=fire", "arms.b.warmup_updates=-1"), "`warmup_updates`"),  # noqa: E501
        (("--arms", "fire", "--set", "algo=ppo", "agent={}"), "is reached at 2,048 only"),
        (("--arms", "b", "--set", "algo=ppo", "agent={n_steps: 64}", "arms.b.name=fire", "arms.b.warmup_updates=5"), "needs a replay buffer"),  # noqa: E501
        (("--arm-name", "x"), "--arm-name names a branch: add --branch-from"),
        (("--set", "intervention=[]"), "`intervention` must name at least one"),
        (("--set", "intervention.name=fire", "intervention.head_refit.rige=1"), "no option 'rige'"),
    ],
)  # fmt: skip
def test_bad_flags_of_experiments(main, config, flags, message, tmp_path):
    code, _, err = main("--config", config, "--log-dir", tmp_path / "x", *flags)
    assert code == 2
    assert message in err, err
    assert not (tmp_path / "x").exists()


def test_bad_branches(main, tmp_path):
    code, _, err = main("--branch-from", tmp_path / "checkpoints" / "5", "--intervention", "fire")
    assert (code, "5 is not there" in err) == (2, True), err
    (tmp_path / "empty").mkdir()
    code, _, err = main("--branch-from", tmp_path / "empty", "--intervention", "fire")
    assert (code, "is no run folder" in err) == (2, True), err
    code, _, err = main("--branch-from", tmp_path)
    assert (code, "--branch-from needs --intervention NAME" in err) == (2, True), err
    code, _, err = main(*RUN, "--log-dir", tmp_path / "run")
    assert code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "500"
    branch = ("--branch-from", checkpoint, "--log-dir", tmp_path / "arm")
    for flags, message in (
        (("--intervention", "fyre"), "Did you mean 'fire'?"),
        (("--intervention", "fire", "--seed", 3), "leave out --seed"),
        (("--intervention", "fire", "--at", 300), "would never act: {'at': [300]} has no event"),
        (("--intervention", "fire", "--arm-name", "../x"), "An arm's name is a folder's"),
        (("--intervention", "fire", "--set", "intervention.networks=actor"), "got 'actor'"),
        (
            ("--intervention", "fire", "--set", "algo=ppo", "agent={}"),
            "is one of DQN, the model is",
        ),
        (("--intervention", "fire", "--set", "env=Acrobot-v1"), "is one of another environment"),
        (("--intervention", "fire", "--set", "agent.gamma=0.5"), "gamma is 0.5, was 0.99"),
        (("--intervention", "shrink_and_perturb", "--set", "intervention.keep=2"), "from 0 to 1"),
    ):
        code, _, err = main(*branch, *flags)
        assert code == 2
        assert message in err, err
        assert not (tmp_path / "arm").exists()
    code, _, err = main("--branch-from", checkpoint.parent, "--intervention", "fire")
    assert (code, "holds several checkpoints: give" in err) == (2, True), err
    (checkpoint / "state" / "arrays.npz").write_bytes(b"damaged")
    code, _, err = main(*branch, "--intervention", "fire")
    assert (code, "arrays.npz is damaged" in err) == (2, True), err
