"""Checkpoints: a training that is resumed goes on as if nothing had happened."""

import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
from collections import deque
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.her import HerReplayBuffer

import envs
import fire_rl.checkpoints.store
from fire_rl import FireCallback
from fire_rl.callbacks.checkpoint import RunCheckpointCallback
from fire_rl.checkpoints.safe_tree import is_plain, read_tree, write_tree
from fire_rl.checkpoints.store import CheckpointError, checkpoints, latest, restore, save
from fire_rl.sb3.frame_replay import FrameReplayBuffer
from tests.helpers.models import make_model
from tests.helpers.resuming import assert_same_buffer, train
from tests.helpers.runs import scalars

ON_POLICY = {"n_steps": 32, "batch_size": 32, "n_epochs": 2}
OFF_POLICY = {"buffer_size": 200, "learning_starts": 50}
SHORT = {"max_episode_steps": 100}  # evaluations of whole episodes would take most of the time


def model_of(algorithm, env, policy="MlpPolicy", **options):
    # SB3 writes into `policy_kwargs`: each model gets its own.
    return algorithm(policy, env, seed=0, policy_kwargs={"net_arch": [16]}, **options)


def env_of(env_id, n_envs=2, **options):
    return envs.make_vec_env(env_id, n_envs=n_envs, seed=0, **options)


def atari(env_id):
    env = env_of(env_id, env_options={"sticky_actions": 0.25})
    options = {**OFF_POLICY, "replay_buffer_class": FrameReplayBuffer, "train_freq": 2}
    kwargs = {"net_arch": [16], "features_extractor_kwargs": {"features_dim": 16}}
    options |= {"policy_kwargs": kwargs, "batch_size": 8, "target_update_interval": 50, "seed": 0}
    return DQN("CnnPolicy", env, **options)


def noisy_sac():
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(3), 0.1 * np.ones(3))
    options = {**OFF_POLICY, "use_sde": True, "train_freq": 4, "action_noise": noise}
    return model_of(SAC, env_of("Hopper-v5", normalize=True), **options)


def recurrent_ppo():
    options = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 0}
    kwargs = {"net_arch": [16], "lstm_hidden_size": 8}
    return RecurrentPPO("MlpLstmPolicy", env_of("CartPole-v1"), policy_kwargs=kwargs, **options)


def maskable_ppo():
    env = make_vec_env(InvalidActionEnvDiscrete, 2, 0, env_kwargs={"dim": 6, "ep_length": 20,
                                                                   "n_invalid_actions": 3})  # fmt: skip  # noqa: E501
    return model_of(MaskablePPO, env, **ON_POLICY)


def her(**options):
    """Episodes of up to 12 steps, in a buffer that goes round."""
    env = make_vec_env(BitFlippingEnv, 2, 0, env_kwargs={"n_bits": 12, "continuous": True})
    kwargs = {"n_sampled_goal": 3, **options}
    values = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": kwargs}
    return model_of(SAC, env, "MultiInputPolicy", train_freq=4, **OFF_POLICY, **values)


def qrdqn_atari():
    env = env_of("ALE/Breakout-v5", env_options={"sticky_actions": 0.25})
    options = {**OFF_POLICY, "replay_buffer_class": FrameReplayBuffer, "train_freq": 2}
    kwargs = {"n_quantiles": 5, "features_extractor_kwargs": {"features_dim": 16}}
    return QRDQN("CnnPolicy", env, seed=0, policy_kwargs=kwargs, **options)


CASES = {
    "ppo-cartpole-4-envs": lambda: model_of(PPO, env_of("CartPole-v1", 4), **ON_POLICY),
    "ppo-ant-normalized": lambda: model_of(
        PPO, env_of("Ant-v5", normalize=True, env_options=SHORT), **ON_POLICY
    ),
    "ppo-hopper-gsde": lambda: model_of(
        PPO, env_of("Hopper-v5"), use_sde=True, sde_sample_freq=4, **ON_POLICY
    ),
    "sac-cheetah-normalized": lambda: model_of(
        SAC, env_of("HalfCheetah-v5", 1, normalize=True, env_options=SHORT), **OFF_POLICY
    ),
    "dqn-breakout": lambda: atari("ALE/Breakout-v5"),
    "dqn-pong-episodic": lambda: atari("PongNoFrameskip-v4"),
    "ppo-worker-processes": lambda: model_of(
        PPO, env_of("Hopper-v5", vec_env="subproc"), **ON_POLICY
    ),
    "dqn-changing-tasks": lambda: model_of(
        DQN,
        env_of("CartPole-v1", tasks={"change": "offset", "every": 100}),
        **{**OFF_POLICY, "train_freq": 2},
    ),
    "sac-gsde-noise": noisy_sac,
    "td3-humanoid": lambda: model_of(TD3, env_of("Humanoid-v5", 1), **OFF_POLICY),
    "qrdqn-breakout": qrdqn_atari,
    "tqc-pendulum": lambda: model_of(
        TQC, env_of("Pendulum-v1", normalize=True), train_freq=4, **OFF_POLICY
    ),
    "crossq-pendulum": lambda: model_of(CrossQ, env_of("Pendulum-v1"), train_freq=4, **OFF_POLICY),
    "trpo-cartpole": lambda: model_of(TRPO, env_of("CartPole-v1"), n_steps=32, batch_size=32),
    "recurrent-ppo-cartpole": recurrent_ppo,
    "maskable-ppo": maskable_ppo,
    "her": her,
    "her-infos": lambda: her(copy_info_dict=True, goal_selection_strategy="final"),
}
MORE = {"sac-gsde-noise", "td3-humanoid", "dqn-changing-tasks", "ppo-hopper-gsde"}
MORE |= {"dqn-pong-episodic", "qrdqn-breakout", "tqc-pendulum", "trpo-cartpole", "her-infos"}


def logged(folder):
    """Every scalar but the clock's, with its step."""
    events = scalars(folder)
    return {
        tag: sorted((event.step, event.value) for event in events.Scalars(tag))
        for tag in events.Tags()["scalars"]
        if not tag.startswith("time/")
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name in MORE)) for name in CASES]
)
def test_resumed_training_is_the_same_to_the_bit(name, tmp_path):
    make, total, every = CASES[name], 512, 128
    whole, steps, callbacks = train(make, tmp_path / "whole", total, every)
    _, first, _ = train(make, tmp_path / "cut", total, every, stop=300)
    resumed, second, again = train(make, tmp_path / "cut", total, every, resume=True)

    assert min(second) > 256  # it began at the second checkpoint, not anew
    assert {**first, **second} == steps
    assert all(first[step] == second[step] for step in first.keys() & second.keys())
    for (key, one), (_, two) in zip(
        flatten(whole.get_parameters()), flatten(resumed.get_parameters()), strict=True
    ):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two, key
    if hasattr(whole, "replay_buffer"):
        assert_same_buffer(whole.replay_buffer, resumed.replay_buffer)
    for one, two in zip(callbacks[1].reports, again[1].reports, strict=True):
        assert {**one.to_dict(), "seconds": 0} == {**two.to_dict(), "seconds": 0}
    for name in ("best_mean_reward", "evaluations_results", "evaluations_timesteps"):
        assert getattr(callbacks[3], name) == getattr(again[3], name)
    assert str(callbacks[2].history) == str(again[2].history)  # NaN is not equal to itself
    assert str(logged(tmp_path / "whole")) == str(logged(tmp_path / "cut"))


def flatten(tree, path=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


# ------------------------------------------------------------------------------------ the files


def test_trees_come_back_as_they_were(tmp_path):
    tree = {
        "numbers": [1, -2.5, 2**80, float("inf"), True, None, np.float32(0.1), np.int64(3)],
        "containers": (1, {2, 3}, frozenset({4}), deque([5, 6], maxlen=2), b"\0bytes"),
        "keys": {1: "a", (2, "b"): "c", "~": "d"},
        "arrays": {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "empty": np.zeros((0, 2))},
        "tensor": torch.arange(3.0).to(torch.bfloat16),
        "nan": float("nan"),
    }
    assert is_plain(tree)
    write_tree(tmp_path, tree)
    found = read_tree(tmp_path)
    assert str(found) == str(tree)
    assert type(found["numbers"][6]) is np.float32
    assert found["containers"][3].maxlen == 2
    assert found["arrays"]["x"].dtype == np.uint8
    assert not is_plain({"a": [object()]})
    with pytest.raises(TypeError, match="is not plain data"):
        write_tree(tmp_path, {"a": [object()]})


@pytest.fixture
def two(tmp_path):
    """A folder with two checkpoints of a training with a replay buffer."""
    make = lambda: make_model("dqn", n_envs=2)  # noqa: E731
    callback = RunCheckpointCallback(60, tmp_path)
    model = make()
    model.learn(150, callback=callback)
    assert [path.name for path in checkpoints(tmp_path)] == ["60", "120"]
    return make, tmp_path, callback


def test_nothing_is_written_twice_and_old_ones_go(two):
    make, folder, callback = two
    second = callback.saved[1]
    manifest = json.loads((second.path / "manifest.json").read_text())
    segments = manifest["replay"]["segments"]
    assert [(item["first"], item["last"]) for item in segments] == [(0, 30), (30, 60)]
    assert second.total == second.written + segments[0]["bytes"]
    model = make()
    saver = RunCheckpointCallback(60, folder, resume=latest(folder), keep_last=1)
    model.learn(1000, callback=saver)
    (last,) = checkpoints(folder)
    assert last.name == "960"
    listed = json.loads((last / "manifest.json").read_text())["replay"]["segments"]
    on_disk = {path.name for path in (folder / "replay").iterdir()}
    assert on_disk == {item["file"] for item in listed}
    assert listed[0]["last"] > 480 - 200  # the buffer holds 200 rows: older segments are gone


def test_every_damaged_file_is_named_and_the_earlier_checkpoint_is_taken(two, caplog):
    _, folder, _ = two
    newest = folder / "120"
    files = [path for path in newest.rglob("*") if path.is_file()]
    segment = sorted((folder / "replay").iterdir())[-1]
    assert len(files) == 5
    for path in [*files, segment]:
        good = path.read_bytes()
        for bad in (good[: len(good) // 2], good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], b""):
            path.write_bytes(bad)
            caplog.clear()
            assert latest(folder).path == folder / "60"
            assert "no usable checkpoint" in caplog.text
            assert path.name in caplog.text or path.name == "manifest.json"
        path.write_bytes(good)
    assert latest(folder).path == newest
    (newest / "manifest.json").unlink()
    assert latest(folder).path == folder / "60"


def test_a_hostile_file_executes_nothing(two, tmp_path):
    make, folder, _ = two
    path, proof = folder / "120", tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {proof}",)

    text = (path / "manifest.json").read_text()

    def write_manifest():
        manifest.pop("checksum", None)
        manifest["checksum"] = fire_rl.checkpoints.store._checksum(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    for name in ("tensors.pt", "arrays.npz"):
        manifest = json.loads(text)
        file = path / "state" / name
        good = file.read_bytes()
        if name == "tensors.pt":
            torch.save(Evil(), file)
        else:
            np.savez(file, np.array([Evil()], dtype=object))
        for item in manifest["files"]:
            if item["file"] == name:
                item["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        write_manifest()
        with pytest.raises(CheckpointError, match="does not fit"):
            restore(make(), path)
        file.write_bytes(good)
    manifest = json.loads(text)
    manifest["files"][0]["file"] = "../../../etc/passwd"
    write_manifest()
    with pytest.raises(CheckpointError, match="names a file elsewhere"):
        restore(make(), path)
    (path / "manifest.json").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        restore(make(), path)
    assert not proof.exists()


def test_a_full_disk_at_any_moment_leaves_the_earlier_checkpoint(two, tmp_path, monkeypatch):
    make, folder, _ = two
    model = make()
    model.learn(100)
    model.num_timesteps = 180
    calls, fail_at, real = [], 0, os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == fail_at:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save(model, tmp_path / "elsewhere")
    number = len(calls)
    assert number >= 9
    for fail_at in range(1, number + 1):
        calls.clear()
        with pytest.raises(CheckpointError, match="No space left on device") as error:
            save(model, folder)
        good = latest(folder).path
        assert f"the last good one is {good}." in str(error.value)
        assert good.name == "120" or fail_at == number  # the last one: it is in place already
        assert not list(folder.glob(".*.tmp"))
        resumed = make()
        resumed.learn(122, callback=RunCheckpointCallback(60, folder, resume=folder / "120"))
        assert resumed.num_timesteps >= 122


def test_each_file_that_does_not_fit_leaves_the_earlier_checkpoint(two, tmp_path):
    make, folder, _ = two
    model = make()
    model.learn(100)
    model.num_timesteps = 180
    elsewhere = save(model, tmp_path / "elsewhere")
    sizes = {item["bytes"] for item in elsewhere.manifest["files"]}
    assert len(sizes) == 4  # the model, tree, arrays and tensors
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in sizes:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
            with pytest.raises(CheckpointError, match="at step 180 could not be written") as error:
                save(model, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert isinstance(error.value.__cause__, OSError)
        assert latest(folder).path.name == "120"
        assert not list(folder.glob(".*.tmp"))
    assert save(model, folder).path.name == "180"


def test_an_unknown_replay_buffer_is_refused_before_training(tmp_path):
    class Mine(ReplayBuffer):
        pass

    model = make_model("dqn", replay_buffer_class=Mine)
    with pytest.raises(ValueError, match=r"A Mine cannot be saved .*FrameReplayBuffer"):
        model.learn(10, callback=RunCheckpointCallback(60, tmp_path))
    assert model.num_timesteps == 0


def test_two_runs_in_one_folder_are_refused(two):
    make, folder, _ = two
    hold = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]):"
    hold += "\n    print('held', flush=True)\n    sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder / ".lock")], stdin=-1, stdout=-1, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="Another process trains into"):
            make().learn(10, callback=RunCheckpointCallback(60, folder))
        other.communicate("")
    make().learn(10, callback=RunCheckpointCallback(60, folder))


def test_another_model_is_refused_with_what_differs(two):
    make, folder, _ = two
    path = folder / "120"
    for other, message in (
        (make_model("sac", n_envs=2), "one of DQN, the model is a SAC"),
        (make_model("dqn", n_envs=2, gamma=0.5), r"gamma is 0.5, was 0.99"),
        (make_model("dqn", n_envs=2, buffer_size=100), "buffer_size is 100, was 400"),
        (make_model("dqn", n_envs=1), "its replay buffer is a ReplayBuffer of"),
    ):
        with pytest.raises(CheckpointError, match=message):
            other.learn(200, callback=RunCheckpointCallback(60, folder, resume=path))
    other = make_model("dqn", n_envs=2, gamma=0.5)
    other.learn(200, callback=RunCheckpointCallback(60, folder, resume=path, strict=False))
    assert other.gamma == 0.5
    with pytest.raises(CheckpointError, match="the callbacks are others"):
        make().learn(
            200, callback=[FireCallback(at=[9]), RunCheckpointCallback(60, folder, resume=path)]
        )


class Opaque(gym.Env):
    """An environment with a state that nobody can read."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.engine = iter(range(10**9))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(2, np.float32), {}

    def step(self, action):
        return np.full(2, next(self.engine) % 7, np.float32), 1.0, False, False, {}


def test_an_environment_that_cannot_be_captured_is_named(tmp_path, caplog):
    def make():
        return PPO("MlpPolicy", Opaque(), n_steps=16, batch_size=16, seed=0, device="cpu")

    make().learn(40, callback=RunCheckpointCallback(16, tmp_path))
    assert "`Opaque.engine` is a builtins.range_iterator" in caplog.text
    assert "the episodes in progress are dropped" in caplog.text
    caplog.clear()
    model = make()
    model.learn(64, callback=RunCheckpointCallback(16, tmp_path, resume=latest(tmp_path)))
    assert "state is not restored completely: `Opaque.engine`" in caplog.text
    assert model.num_timesteps == 64


def test_recurrent_states_keep_their_type(tmp_path):
    class States(NamedTuple):
        pi: tuple[torch.Tensor, ...]
        vf: tuple[torch.Tensor, ...]

    def make(value):
        model = make_model("ppo")
        model._last_lstm_states = States(
            (torch.full((2,), value),), (torch.zeros(1), torch.ones(1))
        )
        return model

    make(3.0).learn(40, callback=RunCheckpointCallback(16, tmp_path))
    resumed = make(0.0)
    resumed.learn(48, callback=RunCheckpointCallback(16, tmp_path, resume=latest(tmp_path)))
    states = resumed._last_lstm_states
    assert type(states) is States
    assert states.pi[0].tolist() == [3.0, 3.0]
    assert states.vf[1].tolist() == [1.0]


class OpaqueFlips(BitFlippingEnv):
    """A task with goals and with a state that nobody can read."""

    def __init__(self):
        super().__init__(n_bits=6, continuous=True)
        self.engine = iter(range(10**9))


def test_hindsight_does_not_lead_from_one_episode_into_another(tmp_path):
    """Where the environment cannot be restored, a resumed run begins new episodes."""

    def make():
        values = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 20, "batch_size": 8}
        env = make_vec_env(OpaqueFlips, 2, 0)
        return SAC("MultiInputPolicy", env, seed=0, buffer_size=100, train_freq=4, **values)

    make().learn(40, callback=RunCheckpointCallback(30, tmp_path))
    model = make()
    model.learn(33, callback=RunCheckpointCallback(30, tmp_path, resume=latest(tmp_path)))
    (step,) = {int(path.name) for path in checkpoints(tmp_path)}
    row = step // 2
    buffer = model.replay_buffer
    assert (buffer._current_ep_start >= row).all()
    assert (buffer.ep_start[:row] + buffer.ep_length[:row] <= row).all()
    assert buffer.timeouts[row - 1].any()


def test_infos_that_are_no_plain_data_are_refused(tmp_path):
    model = her(copy_info_dict=True).learn(30)
    model.replay_buffer.infos[2, 1]["engine"] = object()
    with pytest.raises(CheckpointError, match=r"`copy_info_dict` keeps .* no plain data"):
        save(model, tmp_path)
