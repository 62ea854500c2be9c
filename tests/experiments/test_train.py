"""The real entry point: runs, run folders, playing, errors, Ctrl-C."""

import ctypes.util
import json
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from agents import ALGORITHMS
from experiments.config import parse_config
from experiments.plain_yaml import read_yaml
from fire_rl.checkpoints.store import checkpoints
from tests.helpers.runs import ENVIRONMENT, ROOT, scalars, train_here, train_py

SMOKE = sorted(path.stem for path in ROOT.glob("configs/smoke/*.yaml"))
TINY = ["--algo", "dqn", "--env", "CartPole-v1", "-n", "200", "--num-threads", "1"]
TINY += ["--set", "agent.learning_starts=50", "eval.every=100", "eval.episodes=1"]


def cpu_seconds_of_children():
    """Unlike the wall clock, this does not count what other jobs take of the machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---------------------------------------------------------------------------------------- runs


# TRPO is as PPO, and TQC as SAC, to train.py.
TWINS = ("trpo_mlp", "tqc_mlp")


@pytest.mark.compat(
    section="Command line",
    algorithm=lambda p: p["name"].rpartition("_")[0],
    policy=lambda p: p["name"].rpartition("_")[2],
    setting="train.py with its file in configs/smoke",
    checked="A subprocess trains with FIRE and metrics; the folder is whole, --play runs.",
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.full] if n in TWINS else []) for n in SMOKE],
)
def test_smoke_config_trains_and_leaves_a_whole_run_folder(name, tmp_path, main):
    file, folder = ROOT / f"configs/smoke/{name}.yaml", tmp_path / "run"
    before = cpu_seconds_of_children()
    done = train_py("--config", file, "--log-dir", folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert cpu_seconds_of_children() - before < 40  # 20 when no other job is on the machine
    config = parse_config(read_yaml(file.read_text()))

    for part in ("Finished after", f"Logs:         {folder}", "tensorboard --logdir"):
        assert part in done.stdout
    assert parse_config(read_yaml((folder / "config.yaml").read_text())) == config
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["stable-baselines3"]
    assert environment["command"][1].endswith("train.py")
    assert {"python", "git", "device", "cpu", "num_threads"} <= set(environment)

    lines = map(json.loads, (folder / "interventions.jsonl").read_text().splitlines())
    events = [line for line in lines if "recovery" not in line]
    assert len(events) >= 1
    assert all(event["planned_step"] for event in events)
    assert (folder / "episodes.csv").read_text().startswith("step,return,length\n")
    accumulated = scalars(folder)
    tags = accumulated.Tags()["scalars"]
    measured = [tag for tag in tags if tag.startswith("plasticity/") and tag.endswith("/dfi")]
    assert measured
    assert len(accumulated.Scalars(measured[0])) >= 3
    assert any(tag.startswith("intervention/") for tag in tags)
    assert "config/text_summary" in accumulated.Tags()["tensors"]
    assert (folder / "progress.csv").read_text().count("\n") > 3

    ALGORITHMS[config.algo].load(folder / "model.zip")
    assert (folder / "vecnormalize.pkl").exists() == bool(config.normalize)
    if config.eval is not None:
        evaluations = np.load(folder / "evaluations.npz")
        assert evaluations["timesteps"][-1] == config.total_timesteps
        assert evaluations["results"].shape[1] == config.eval.episodes
        assert (folder / "best_model.zip").exists()
        assert (folder / "best_vecnormalize.pkl").exists() == bool(config.normalize)
        final = accumulated.Scalars("final/return")[-1].value
        assert final == pytest.approx(evaluations["results"][-1].mean(), rel=1e-5)
    if config.checkpoint is not None:
        kept = checkpoints(folder / "checkpoints")
        assert len(kept) <= config.checkpoint.keep_last
        for path in kept:
            assert int(path.name) % config.checkpoint.every < config.n_envs
            ALGORITHMS[config.algo].load(path / "model.zip")
            assert (path / "vecnormalize.pkl").exists() == bool(config.normalize)

    code, out, err = main("--play", folder, "--episodes", 1, "--seed", 3)
    assert code == 0, err
    assert "return" in out
    assert "mean" in out


def test_hyperparameters_and_outcome_are_in_hparams(tmp_path, main):
    code, _, err = main(*TINY, "--log-dir", tmp_path / "run")
    assert code == 0, err
    content = scalars(tmp_path / "run").summary_metadata
    assert "_hparams_/experiment" in content
    info = content["_hparams_/experiment"].plugin_data.content
    for expected in (b"agent.learning_starts", b"total_timesteps", b"algo", b"final/return"):
        assert expected in info


def test_flags_override_the_file_and_print_config_is_reloadable(main, tmp_path):
    code, out, _ = main(
        "--config", ROOT / "configs/atari/dqn_fire.yaml", "--seed", 5, "--every", "3e5",
        "--set", "agent.gamma=0.98", "eval.every=5e4", "--set", "intervention.strength=0.5",
        "--n-envs", 2, "--total-timesteps", "2e6", "--print-config",
    )  # fmt: skip
    assert code == 0
    values = yaml.safe_load(out)
    assert values["seed"] == 5
    assert values["n_envs"] == 2
    assert values["total_timesteps"] == 2_000_000
    assert values["schedule"] == {"every": 300_000}
    assert values["agent"]["gamma"] == 0.98
    assert values["agent"]["learning_rate"] == 1e-4
    assert values["eval"]["every"] == 50_000
    assert values["intervention"] == {"name": "fire", "strength": 0.5}
    (tmp_path / "printed.yaml").write_text(out)
    assert main("--config", tmp_path / "printed.yaml", "--print-config")[1] == out


def test_intervention_flag(main):
    file = ROOT / "configs/smoke/sac_mlp.yaml"
    for flags, expected in (
        ((), {"name": "fire", "preset": "paper_sac"}),
        (("--intervention", "fire"), {"name": "fire", "preset": "paper_sac"}),
        (("--intervention", "none"), {"name": "none"}),
    ):
        _, out, _ = main("--config", file, *flags, "--at", 100, 300, "--print-config")
        assert yaml.safe_load(out)["intervention"] == expected
        assert yaml.safe_load(out)["schedule"] == {"at": [100, 300]}


def test_same_seed_same_weights_and_seeds_give_one_folder_each(tmp_path, main):
    code, out, err = main(*TINY, "--seeds", 2, "--seed", 4, "--log-dir", tmp_path / "two")
    assert code == 0, err
    assert out.count("Finished after") == 2
    main(*TINY, "--seed", 5, "--log-dir", tmp_path / "one")

    def weights(folder):
        return ALGORITHMS["dqn"].load(folder / "model.zip").policy.state_dict()

    four, five = weights(tmp_path / "two/s4"), weights(tmp_path / "two/s5")
    again = weights(tmp_path / "one")
    assert all((again[key] == five[key]).all() for key in five)
    assert any((four[key] != five[key]).any() for key in five)


def test_default_run_folder_says_what_it_is(tmp_path, main, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = main(*TINY, "--intervention", "fire", "--at", 100, "--seed", 3)
    assert code == 0, err
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("dqn_CartPole-v1_fire_s3_")


# ------------------------------------------------------------------------------------- playing


@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "Hopper-v5"])
def test_play_records_videos_without_a_display(env_id, tmp_path):
    if env_id == "Hopper-v5" and not any(map(ctypes.util.find_library, ("EGL", "OSMesa"))):
        pytest.skip("MuJoCo draws without a display by EGL or OSMesa; neither is installed")
    algo = ["--algo", "ppo", "--env", env_id, "-n", "64", "--set", "agent.n_steps=64", "eval=null"]
    assert train_here(*algo, "--log-dir", tmp_path / "run") == 0
    done = train_py(
        "--play", tmp_path / "run", "--episodes", 1, "--video", tmp_path / "video", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "episode       return   length" in done.stdout
    (video,) = (tmp_path / "video").iterdir()
    assert video.suffix == ".mp4"
    assert video.stat().st_size > 5_000


def test_play_restores_the_normalisation_and_takes_any_model_of_the_run(
    tmp_path, main, monkeypatch
):
    folder = tmp_path / "run"
    code, _, err = main(
        "--algo", "ppo", "--env", "Pendulum-v1", "-n", "400", "--log-dir", folder,
        "--set", "normalize=true", "agent.n_steps=200", "agent.batch_size=50", "eval.every=200",
        "checkpoint.every=200",
    )  # fmt: skip
    assert code == 0, err
    for model in ("", "best_model.zip", "checkpoints/200/model.zip"):
        code, out, err = main("--play", folder / model, "--episodes", 1)
        assert code == 0, err
        raw_return = float(out.splitlines()[-3].split()[1])
        assert -2_000 < raw_return < -100  # a normalised one would be near 0
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as if it were not installed
    code, _, err = main("--play", folder, "--video", tmp_path / "video")
    assert (code, "Videos need imageio-ffmpeg: pip install" in err) == (2, True)
    (folder / "vecnormalize.pkl").unlink()  # for plain SB3 only
    assert main("--play", folder, "--episodes", 1)[0] == 0
    (folder / "vecnormalize.npz").unlink()
    code, _, err = main("--play", folder / "model.zip")
    assert code == 2
    assert "vecnormalize.npz" in err


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "`algo` is missing"),
        (["--algo", "dqnn", "--env", "CartPole-v1"], "Did you mean 'dqn'?"),
        (["--algo", "dqn", "--env", "CartPol-v1"], "Did you mean 'CartPole-v1'"),
        (["--algo", "dqn", "--env", "Pendulum-v1"], "dqn with MlpPolicy does not fit"),
        ([*TINY, "--intervention", "fire"], "`schedule` is missing"),
        ([*TINY, "--intervention", "fyre", "--every", "5"], "Did you mean 'fire'?"),
        ([*TINY, "--every", "5"], "`intervention` is missing"),
        ([*TINY, "--intervention", "fire", "--every", "0"], "whole number of at least 1"),
        ([*TINY, "--intervention", "fire", "--at", "20", "10"], "ascending"),
        ([*TINY, "--every", "5", "--at", "3"], "exclude each other"),
        ([*TINY, "--intervention", "fire", "--at", "9", "--set", "intervention.networks=[actor]"],
         "must name roles of this model (critic)"),
        ([*TINY, "--intervention", "fire", "--at", "9", "--set", "intervention.include=[nosuch]"],
         "nosuch"),
        ([*TINY, "--set", "agent.gama=3"], "Did you mean 'gamma'?"),
        ([*TINY, "--set", "agent.gamma"], "--set must be section.key=value"),
        ([*TINY, "--seeds", "0"], "--seeds must be at least 1"),
        ([*TINY, "--n-envs", "0"], "`n_envs` must be greater than or equal to 1, got 0"),
        pytest.param(
            [*TINY, "--device", "cuda"], "sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        (["--config", "no_such_file.yaml"], "no_such_file.yaml"),
        (["--play", "no_such_run"], "no_such_run is no run folder"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_message_and_exit_code_2(args, message, main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = main(*args)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())  # no half-made run folder


def test_all_faults_of_a_file_at_once_without_traceback(tmp_path):
    (tmp_path / "bad.yaml").write_text(
        "algo: dqn\nenv: ALE/Breakot-v5\ntotal_timestep: 5\nagent: {lr: 3, gama: 1}\n"
        "intervention: {name: fire, strenth: 2, method: exat}\n"
        "schedule: {every: -5, stop: 2}\nmetrics: {evry: 1}\n"
    )
    done = train_py("--config", "bad.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "found 9 faults in bad.yaml" in done.stderr
    for expected in ("'ALE/Breakout-v5'", "'total_timesteps'", "agent.lr", "'gamma'", "'strength'",
                     "'exact'", "at least 1", "`stop` must be", "`metrics.evry`"):  # fmt: skip
        assert expected in done.stderr


def test_unknown_flag_is_refused_with_the_nearest(main):
    code, _, err = main("--algoo", "dqn")
    assert code == 2
    assert "--algo" in err


def test_a_run_folder_is_never_overwritten(tmp_path, main):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "precious.txt").write_text("years of work")
    code, _, err = main(*TINY, "--log-dir", folder)
    assert code == 2
    assert f"{folder} exists and is not empty" in err
    assert "--log-dir" in err
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]


def test_ctrl_c_saves_before_it_leaves(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "-n", "1e7", "--log-dir", str(folder)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        progress = folder / "progress.csv"
        while not (progress.exists() and progress.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "Interrupted after" in out
    assert str(folder / "model.zip") in out
    assert ALGORITHMS["dqn"].load(folder / "model.zip").num_timesteps > 0


def test_an_error_in_training_saves_what_was_learned(tmp_path):
    (tmp_path / "fragile.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Fragile(CartPoleEnv):\n"
        "    steps = 0\n"
        "    def step(self, action):\n"
        "        self.steps += 1\n"
        "        if self.steps == 120: raise RuntimeError('the simulator broke')\n"
        "        return super().step(action)\n"
        "gym.register('Fragile-v0', Fragile)\n"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "--env", "Fragile-v0"]
    command += ["--set", "imports=[fragile]", "eval=null", "--log-dir", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the simulator broke" in done.stderr
    assert "Failed after 119 steps" in done.stdout
    assert ALGORITHMS["dqn"].load(tmp_path / "run" / "model.zip").num_timesteps == 119


def test_help_is_readable(main):
    code, out, _ = main("--help")
    assert code == 0
    for flag in ("--config FILE", "--env ID", "--set SECTION.KEY=VALUE", "--play RUN"):
        assert flag in out
    assert "None" not in out
