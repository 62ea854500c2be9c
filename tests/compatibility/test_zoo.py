"""The callbacks in rl_zoo3: named in its YAML files, trained by its command line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from rl_zoo3.callbacks import ParallelTrainCallback, SaveVecNormalizeCallback
from rl_zoo3.utils import ALGOS, get_callback_list
from stable_baselines3.common.callbacks import CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.vec_env import VecNormalize

from fire_rl import FireCallback, InterventionCallback, PlasticityMetricsCallback, Threshold
from tests.helpers.models import changed, make_model, state_of
from tests.helpers.runs import ENVIRONMENT, scalars

BOTH = "[fire_rl.FireCallback: {every: 256}, fire_rl.PlasticityMetricsCallback: {every: 256}]"
COMMON = {"policy": "MlpPolicy", "n_timesteps": 1024, "policy_kwargs": "dict(net_arch=[16])"}
OFF_POLICY = COMMON | {"buffer_size": 1000, "learning_starts": 100, "batch_size": 16}
ON_POLICY = COMMON | {"n_steps": 64, "batch_size": 64, "n_epochs": 2, "n_envs": 2}
RUNS = {
    "ppo": ("CartPole-v1", ON_POLICY | {"normalize": True}),
    "a2c": ("CartPole-v1", COMMON | {"n_envs": 4, "n_steps": 8, "frame_stack": 2}),
    "dqn": ("CartPole-v1", OFF_POLICY | {"train_freq": 4, "learning_rate": "lin_1e-3"}),
    "sac": ("Pendulum-v1", OFF_POLICY | {"train_freq": 8, "normalize": "{'norm_reward': False}"}),
    "ppo_lstm": (
        "CartPole-v1",
        ON_POLICY | {"policy": "MlpLstmPolicy", "policy_kwargs": "dict(lstm_hidden_size=8)"},
    ),
    "tqc": ("Pendulum-v1", OFF_POLICY | {"train_freq": [1, "episode"], "gradient_steps": 8}),
}


def zoo(folder, algo, *args, callback=BOTH, **options):
    """Train as a user of rl_zoo3 does, in a folder; return what it printed."""
    env, settings = RUNS[algo]
    text = yaml.safe_dump({env: settings | options}, default_flow_style=False)
    callback = callback.replace("\n", "\n  ")
    (folder / "hyperparameters.yml").write_text(f"{text}  callback: {callback}\n")
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", algo, "--env", env]
    command += ["--conf-file", "hyperparameters.yml", "-tb", "tb", "--device", "cpu"]
    command += ["--seed", "1", "--eval-freq", "512", "--eval-episodes", "1", *args]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def logs(folder, algo, run=1):
    """TensorBoard's scalars, as the steps of each tag, and the entries of the report."""
    (folder,) = (folder / "tb" / RUNS[algo][0]).glob(f"*_{run}")
    events = scalars(folder)
    tags = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    lines = (folder / "interventions.jsonl").read_text().splitlines()
    return tags, [json.loads(line) for line in lines]


def agent(folder, algo, run=1):
    env = RUNS[algo][0]
    return ALGOS[algo].load(folder / "logs" / algo / f"{env}_{run}" / f"{env}.zip", device="cpu")


@pytest.mark.compat(
    section="Command line",
    setting="python -m rl_zoo3.train",
    checked="Named under `callback:`: events and metrics at their steps in its TensorBoard logs.",
)
@pytest.mark.parametrize(
    "algo", ["ppo", *(pytest.param(a, marks=pytest.mark.full) for a in RUNS if a != "ppo")]
)
def test_the_zoo_trains_with_fire_and_metrics(algo, tmp_path):
    recurrent = algo == "ppo_lstm"
    callback = BOTH.replace("256}", "256, recurrent: project}", 1) if recurrent else BOTH
    run = zoo(tmp_path, algo, "--save-freq", "512", callback=callback)
    assert run.returncode == 0, run.stderr
    tags, entries = logs(tmp_path, algo)
    reports = [entry for entry in entries if "planned_step" in entry]
    events = [report["num_timesteps"] for report in reports]
    assert [report["planned_step"] for report in reports] == [256, 512, 768]
    networks = reports[0]["networks"].values()
    kinds = {layer["kind"] for changes in networks for layer in changes["layers"]}
    assert kinds == ({"linear", "recurrent"} if recurrent else {"linear"})
    assert all(0 <= r["num_timesteps"] - r["planned_step"] < 256 for r in reports)
    assert tags["intervention/critic/dfi_after"] == events
    assert tags["plasticity/critic/dfi"][:3] == events  # measured at the same rollout starts
    assert tags["eval/mean_reward"] == [512, 1024]
    told = [entry["step"] for entry in entries if "recovery" in entry]
    assert len(told) == len(set(told))  # once, though the zoo ends a training twice
    folder = tmp_path / "logs" / algo / f"{RUNS[algo][0]}_1"
    assert {"best_model.zip", "rl_model_512_steps.zip"} <= {path.name for path in folder.iterdir()}
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [512, 1024]
    normalized = "normalize" in RUNS[algo][1]
    assert (folder / RUNS[algo][0] / "vecnormalize.pkl").exists() == normalized
    agent(tmp_path, algo)


@pytest.mark.full
@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_the_zoo_goes_on_with_a_trained_agent_and_repeats_itself(algo, tmp_path):
    for _ in range(2):
        kind = "subproc" if algo == "ppo" else "dummy"
        run = zoo(tmp_path, algo, "--save-replay-buffer", "--vec-env", kind)
        assert run.returncode == 0, run.stderr
    assert not changed(*(state_of(agent(tmp_path, algo, run)) for run in (1, 2)))
    env = RUNS[algo][0]
    run = zoo(tmp_path, algo, "-i", f"logs/{algo}/{env}_1/{env}.zip", "-n", "512")
    assert run.returncode == 0, run.stderr
    _, entries = logs(tmp_path, algo, 3)
    assert [e["planned_step"] for e in entries if "planned_step" in e] == [256]
    assert changed(*(state_of(agent(tmp_path, algo, run)) for run in (1, 3)))


def test_what_its_yaml_may_say():
    def listed(text):
        return get_callback_list({"callback": yaml.safe_load(text)})

    fire, metrics = listed(BOTH)
    assert isinstance(fire, FireCallback)
    assert (fire.clock.schedule.steps, fire.clock.schedule.stop) == (256, 0.8)
    assert metrics.clock.schedule.steps == 256
    (metrics,) = listed("fire_rl.PlasticityMetricsCallback")
    assert isinstance(metrics, PlasticityMetricsCallback)
    (fire,) = listed("fire_rl.callbacks.FireCallback: {every: 1e6, strength: 5e-1}")
    assert (fire.clock.schedule.steps, fire.intervention.strength) == (1_000_000, 0.5)
    text = """
    - fire_rl.FireCallback:
        threshold: {metric: dormant_ratio, above: 0.3, patience: 2}
        networks: [critic]
        head: keep
    - fire_rl.InterventionCallback:
        intervention: {name: shrink_and_perturb, keep: 0.8}
        schedule: {fractions: [0.5]}
        log_dir: somewhere
    """
    fire, other = listed(text)
    assert fire.clock.schedule == Threshold("dormant_ratio", 0.3, patience=2)
    assert (fire.intervention.networks, fire.intervention.head) == (("critic",), "keep")
    assert isinstance(other, InterventionCallback)
    assert other.intervention.keep == 0.8


@pytest.mark.full
def test_a_fault_in_its_yaml_is_named(tmp_path):
    run = zoo(tmp_path, "ppo", callback="[fire_rl.FireCallback: {every: 256, include: [pi]}]")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("ValueError: `include` pattern 'pi' matches no")


@pytest.mark.full
def test_without_tensorboard_the_report_needs_a_folder(tmp_path):
    callback = "[fire_rl.FireCallback: {at: 256, log_dir: report}]"
    run = zoo(tmp_path, "dqn", "-tb", "", callback=callback)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "report" / "interventions.jsonl").exists()


@pytest.mark.full
@pytest.mark.parametrize("order", [1, -1])
def test_parallel_training_is_refused_on_the_command_line(order, tmp_path):
    callbacks = ["fire_rl.FireCallback: {every: 256}", "rl_zoo3.callbacks.ParallelTrainCallback"]
    run = zoo(tmp_path, "sac", callback=f"[{', '.join(callbacks[::order])}]")
    assert run.returncode == 1
    expected = "RuntimeError: FireCallback does not work beside rl_zoo3's ParallelTrainCallback"
    assert expected in run.stderr  # the last line only if FIRE is named first: its own end fails


class Own(ParallelTrainCallback):
    """A user's subclass."""


@pytest.mark.compat(
    section="Refused, with the reason",
    algorithm="sac",
    setting="beside rl_zoo3's ParallelTrainCallback",
    checked="In any order and nesting: an error says that it would undo the surgery.",
)
@pytest.mark.parametrize(
    "arrange",
    [
        lambda parallel, fire: [parallel, fire],
        lambda parallel, fire: [fire, parallel],
        lambda parallel, fire: CallbackList([CallbackList([CallbackList([parallel])]), fire]),
        lambda parallel, fire: CallbackList([CallbackList([fire]), CallbackList([parallel])]),
        lambda parallel, fire: [EveryNTimesteps(8, parallel), fire],
        lambda parallel, fire: [fire, EvalCallback(_env(), callback_after_eval=parallel)],
        lambda parallel, fire: [EvalCallback(_env(), CallbackList([parallel])), fire],
    ],
)
@pytest.mark.parametrize("kind", [ParallelTrainCallback, Own])
@pytest.mark.filterwarnings(  # it leaves a temporary file open
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)
def test_parallel_training_is_refused_in_every_arrangement(arrange, kind):
    model = make_model("sac")
    before = state_of(model)
    with pytest.raises(RuntimeError, match="beside rl_zoo3's ParallelTrainCallback"):
        model.learn(64, callback=arrange(kind(), FireCallback(every=16)))
    assert (model.num_timesteps, changed(before, state_of(model))) == (0, set())


def _env():
    return make_model("sac", n_envs=1).get_env()


def test_beside_the_zoos_way_of_saving_statistics(tmp_path):
    env = VecNormalize(make_model("ppo").get_env())
    model = make_model("ppo")
    model.set_env(env)
    test_env = VecNormalize(make_model("ppo", n_envs=1).get_env(), training=False)
    saving = SaveVecNormalizeCallback(save_freq=1, save_path=str(tmp_path))
    fire = FireCallback(at=[32])
    model.learn(64, callback=[fire, EvalCallback(test_env, saving, eval_freq=16, verbose=0)])
    assert [report.num_timesteps for report in fire.reports] == [32]
    saved = VecNormalize.load(tmp_path / "vecnormalize.pkl", make_model("ppo").get_env())
    assert saved.obs_rms.count > 1
