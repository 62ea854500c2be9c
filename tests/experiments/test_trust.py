"""A run of somebody else imports nothing and runs nothing; one's own needs no question."""

import base64
import hashlib
import json
import os
import pickle
import shutil
import sys
import zipfile

import numpy as np
import pytest
import yaml
from stable_baselines3.common.vec_env import VecNormalize

from agents import ALGORITHMS
from experiments import trust
from experiments.build import make_env
from experiments.config import parse_config
from experiments.folder import RunFolder
from experiments.plain_yaml import ConfigError, read_yaml
from experiments.watch import play
from tests.conftest import SHORT

MODULE = """
from pathlib import Path
Path(__file__).with_name("was_run").touch()
from stable_baselines3.common.torch_layers import FlattenExtractor
class Net(FlattenExtractor): pass
"""


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A list of own runs for one test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "fire_rl" / "runs.jsonl"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that says when it is imported."""
    (tmp_path / "evil.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    yield tmp_path / "was_run"
    sys.modules.pop("evil", None)


def change(folder, text=None, **values):
    """Make a run somebody else's, or one that was changed by hand."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(text or path.read_text()), **values}))


def doors(folder, elsewhere):
    """Every way to build a run from its folder."""
    branch = ("--intervention", "none", "--log-dir", elsewhere)
    return (
        ("--play", folder, "--episodes", 1),
        ("--resume", folder),
        ("--branch-from", folder, *branch),
        ("--branch-from", folder / "checkpoints" / "400", *branch),
    )


def test_a_strangers_run_imports_nothing(main, run, evil, state, tmp_path):
    folder = run
    (folder / "result.json").unlink()
    saved = (folder / "config.yaml").read_text()
    agent = yaml.safe_load(saved)["agent"]
    network = {**agent, "policy_kwargs": {"features_extractor_class": "evil.Net"}}
    for number, values in enumerate(
        (
            {"imports": ["evil"]},
            {"imports": [b"evil"]},  # pydantic takes bytes for words
            {"env": "evil:CartPole-v1"},
            {"agent": network},
            {"agent": {**agent, "optimizer_class": "evil.Adam"}},
            {"tasks": {"change": "game", "every": 5, "games": ["evil:A-v0"]}},
            {"gym_packages": ["evil"]},  # a key of others
            {"callback": [{"evil.Callback": {"a": 1}}]},
        )
    ):
        change(folder, saved, **values)
        for door in doors(folder, tmp_path / "branch")[number % 2 :: 2]:
            code, _, err = main(*door)
            assert code == 2
            assert f"{folder / 'config.yaml'} is of a run that is not recorded" in err
            assert "it names code to import: evil" in err
            assert "add --trust" in err
    assert not evil.exists()
    assert not (tmp_path / "branch").exists()


def test_own_runs_need_no_trust_wherever_they_are(main, evil, state, tmp_path):
    folder = tmp_path / "run"
    assert main(*SHORT, "imports=[evil]", "--log-dir", folder)[::2] == (0, "")
    assert evil.exists()
    entry = json.loads(state.read_text())
    text = (folder / "config.yaml").read_text()
    assert entry == {
        "run": trust.run_id(text), "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }  # fmt: skip
    moved = folder.rename(tmp_path / "moved")
    assert main("--play", moved, "--episodes", 1)[0] == 0
    change(moved, env="Acrobot-v1")
    code, _, err = main("--play", moved)
    assert (code, "is of a run that is not recorded" in err) == (2, True)  # its id is gone
    (moved / "config.yaml").write_text(text.replace("gamma", "gama"))
    (moved / "config.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    code, _, err = main("--play", moved)
    assert (code, "config.yaml was changed since train.py wrote it" in err) == (2, True), err


def test_trust_says_what_is_imported_and_is_asked_once(main, run, evil, state):
    folder = run
    change(folder, imports=["evil"])
    code, out, err = main("--play", folder, "--episodes", 1, "--trust")
    assert (code, err) == (0, "")
    assert f"{folder / 'config.yaml'} is trusted; it imports evil (`imports`)." in out
    assert evil.exists()
    assert main("--play", folder, "--episodes", 1)[0] == 0
    for flags in (SHORT[:6], ("--config", "x.yaml"), ("--arms", "none", "--algo", "dqn")):
        code, _, err = main(*flags, "--trust")
        assert (code, "--trust is for a run that is there" in err) == (2, True)


def test_a_changed_run_that_names_no_code_goes_on_with_a_note(main, run, state):
    path = run / "config.yaml"
    trust.record(path.read_text())
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    code, _, err = main("--play", run, "--episodes", 1)
    assert code == 0
    assert err.startswith(f"Note: {path} was changed since train.py wrote it")
    state.unlink()  # a run of somebody else, which needs nothing but built-in classes
    assert main("--play", run, "--episodes", 1)[::2] == (0, "")


def test_a_list_that_cannot_be_written_or_read_is_no_end(state, tmp_path, monkeypatch, capsys):
    state.parent.parent.write_text("a file where the folder should be")
    config = parse_config({"algo": "dqn", "env": "CartPole-v1"})
    RunFolder(tmp_path).describe(config)
    err = capsys.readouterr().err
    assert err.startswith(f"Warning: {state} cannot be written")
    assert "will ask for --trust. Set XDG_STATE_HOME" in err
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "good"))
    assert trust.state_file() == tmp_path / "good" / "fire_rl" / "runs.jsonl"
    text = trust.sign("algo: dqn\n", "7")
    trust.state_file().parent.mkdir(parents=True)
    trust.state_file().write_bytes(b'\xff{"run": "5"}\n[]\n{"run": "6", "sha2')  # cut by a kill
    trust.record(text)
    (tmp_path / "own.yaml").write_text(text.replace("dqn", "dqn\nimports: [a.b]"))
    with pytest.raises(ConfigError, match="was changed since"):
        trust.read_config_file(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text(text)
    assert trust.read_config_file(tmp_path / "own.yaml") == {"algo": "dqn"}
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the specification: to be ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trust.state_file() == tmp_path / ".local/state/fire_rl/runs.jsonl"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"env": "ALE/Pong-v5", "agent": {"learning_rate": "lin_7.3e-4", "gamma": ".99"}}, []),
        ({"agent": {"policy_kwargs": {"activation_fn": "torch.nn.ReLU"}}}, []),
        ({"agent": {"policy_kwargs": {"activation_fn": "nn.ReLU"}, "optimizer": "a"}}, []),
        ({"agent": {"optimizer_class": "th.optim.Adam", "activation_fn": "optim.Adam"}}, ["optim"]),
        ({"env_wrapper": "stable_baselines3.common.atari_wrappers.WarpFrame"}, []),
        # Functions and classes of known packages that write to the path that they are given.
        ({"env_wrapper": [{"torch.save": {"f": "/out/x"}}]}, ["torch"]),
        ({"env_wrapper": [{"stable_baselines3.common.monitor.Monitor": {"filename": "/out/x"}}]},
         ["stable_baselines3.common.monitor"]),
        ({"agent": {"replay_buffer_class": "fire_rl.sb3.frame_replay.FrameReplayBuffer"}}, []),
        ({"intervention": {"include": ["q_net.0"]}, "env_options": {"xml_file": "a:b.xml"}}, []),
        ({"device": "cuda:0", "branch": {"checkpoint": "a.b/5"}}, []),
        ({"imports": ["imports"]}, ["imports"]),
        ({"agent": {"policy_kwargs": "dict(a=my.Net)"}}, ["dict(a=my"]),
        ({"agent": {"optimizer_class": "1-2.3.Adam"}}, ["1-2.3"]),
        ({"agent": {"torchy.Net": 1, "x": {"torchy.Net"}}}, ["torchy", "torchy"]),
        ({"env": "GymV21Environment-v0"}, ["what `env_options` of GymV21Environment-v0 names"]),
        ({"no_key_of_ours": {"a": "b"}}, ["a", "b"]),
    ],
)  # fmt: skip
def test_what_counts_as_a_module(values, expected):
    assert sorted(module for _, module in trust.named_modules(values)) == sorted(expected)


def test_nothing_is_unpickled(main, tmp_path, monkeypatch):
    """Neither from the zip nor from the normalisation, of the end, the best and a checkpoint."""

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_run"),)

    folder = tmp_path / "run"
    code, _, err = main(
        "--algo", "ppo", "--env", "Pendulum-v1", "-n", "400", "--log-dir", folder, "--set",
        "normalize=true", "agent.n_steps=100", "n_envs=2", "agent.batch_size=50", "eval.every=200",
        "eval.episodes=1", "checkpoint.every=200", "metrics=null",
    )  # fmt: skip
    assert (code, err) == (0, "")
    models = ("model.zip", "best_model.zip", "checkpoints/200/model.zip")
    expected = [main("--play", folder / name, "--episodes", 1)[1] for name in models]
    config = RunFolder(folder).read_config()
    env = make_env(config, 1, training=False, normalize=False)
    env = VecNormalize.load(str(folder / "vecnormalize.pkl"), env)
    env.training = env.norm_reward = False
    loaded = ALGORITHMS["ppo"].load(folder / "model.zip", device="cpu")  # as plain SB3 does it
    assert f"{play(loaded, env, 1, True)[0][0]:.2f}" in expected[0]
    bomb = base64.b64encode(pickle.dumps(Code())).decode()
    for name in models:
        path = folder / name
        shutil.copy(path, tmp_path / "good.zip")
        with zipfile.ZipFile(tmp_path / "good.zip") as good, zipfile.ZipFile(path, "w") as bad:
            for info in good.infolist():
                raw = good.read(info)
                if info.filename == "data":
                    raw = json.loads(raw)
                    for value in raw.values():
                        if isinstance(value, dict) and ":serialized:" in value:
                            value[":serialized:"] = bomb
                    raw = json.dumps(raw)
                bad.writestr(info, raw)
        best = "best_" if "best" in name else ""
        path.with_name(f"{best}vecnormalize.pkl").write_bytes(base64.b64decode(bomb))
    for name, before in zip(models, expected, strict=True):
        code, out, err = main("--play", folder / name, "--episodes", 1)
        assert (code, err) == (0, "")
        assert out == before
    assert not (tmp_path / "was_run").exists()
    statistics = folder / "vecnormalize.npz"
    for mean in (np.array([Code()], object), np.zeros(2), np.full(3, np.nan)):
        np.savez(statistics, **{"mean/": mean, "var/": np.ones(3), "count/": 1})
        code, _, err = main("--play", folder / "model.zip")
        assert (code, f"{statistics} holds no statistics" in err) == (2, True)
    statistics.unlink()
    code, _, err = main("--play", folder / "model.zip")
    assert (code, "needs vecnormalize.npz, which is not there" in err) == (2, True)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("text", ["a: &a [*a]", "&a {b: *a}", "a: 2026-99-99", "a: \0"])
def test_yaml_without_end_is_refused(text):
    with pytest.raises(ConfigError):
        read_yaml(text)


def test_aliases_are_bounded():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]
    with pytest.raises(ConfigError, match=r"stands for more than 100,000 values"):
        read_yaml("\n".join(lines))
    assert read_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}
