"""Every file of a checkpoint is hashed once: on resume, on branching, and after it was written."""

import dataclasses
import pickle
from collections import Counter
from pathlib import Path

import pytest

from fire_rl import RunCheckpointCallback, TrainingStopped
from fire_rl.checkpoints import replay_segments, store
from fire_rl.checkpoints.store import Checkpoint, CheckpointError, check, latest, restore, save
from tests.helpers.models import changed, make_model, state_of

RUN = ["--algo", "dqn", "--env", "CartPole-v1", "--device", "cpu", "-n", 300, "--set",
       "agent.buffer_size=400", "agent.learning_starts=20", "agent.policy_kwargs.net_arch=[8]",
       "eval=null", "metrics=null", "checkpoint.every=100"]  # fmt: skip


@pytest.fixture
def hashed(monkeypatch):
    """How often each file was hashed since the last ``clear()``."""
    counts = Counter()

    def count(path, real=replay_segments.digest):
        counts[Path(path).resolve()] += 1
        return real(path)

    monkeypatch.setattr(store, "digest", count)
    monkeypatch.setattr(replay_segments, "digest", count)
    return counts


def files_of(path):
    """The files of a checkpoint but for the manifest, which holds its own checksum."""
    listed = check(path).manifest
    own = {file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"}
    segments = {path.parent / "replay" / item["file"] for item in listed["replay"]["segments"]}
    return {file.resolve() for file in own | segments}


@pytest.fixture
def cut(tmp_path, main):
    """A run of train.py that is over at step 200, as after a kill at step 250."""
    folder = tmp_path / "run"
    assert main(*RUN, "checkpoint.keep_last=9", "--log-dir", folder)[0] == 0
    for path in (folder / "checkpoints" / "300").rglob("*"):
        if path.is_file():
            path.unlink()
    (folder / "result.json").unlink()
    return folder


def test_a_resumed_run_hashes_its_checkpoint_once(cut, main, hashed):
    last = cut / "checkpoints" / "200"
    files = files_of(last)
    assert len(files) == 6  # two segments, model.zip and three files of the state
    hashed.clear()
    code, out, err = main("--resume", cut)
    assert code == 0, err
    assert f"resumed from {last} at step 200" in out
    assert {file: hashed[file] for file in files} == dict.fromkeys(files, 1)


def test_a_branch_hashes_its_checkpoint_once(cut, main, hashed, tmp_path):
    trunk = cut / "checkpoints" / "200"
    files = files_of(trunk)
    for origin in (trunk, cut):  # the checkpoint itself, or a run: its newest one
        hashed.clear()
        arm = tmp_path / f"arm of {origin.name}"
        flags = ["--branch-from", origin, "--intervention", "fire", "--log-dir", arm]
        assert main(*flags)[0] == 0
        assert {file: hashed[file] for file in files} == dict.fromkeys(files, 1)


def test_a_save_hashes_no_old_segment(tmp_path, hashed):
    model = make_model("dqn", n_envs=2)
    callback = RunCheckpointCallback(60, tmp_path, keep_last=None)
    model.learn(100, callback=callback)
    (first,) = (tmp_path / "replay").iterdir()
    hashed.clear()
    callback = RunCheckpointCallback(60, tmp_path, resume=latest(tmp_path))
    make_model("dqn", n_envs=2).learn(190, callback=callback)
    assert [saved.path.name for saved in callback.saved] == ["120", "180"]
    assert hashed[first.resolve()] == 1  # by latest(): neither restored nor saved anew
    new = [path for path in files_of(callback.saved[0].path) if path != first.resolve()]
    assert all(hashed[path] >= 2 for path in new)  # for the manifest, and to verify it


def test_what_a_save_has_written_is_verified(tmp_path, monkeypatch):
    """A disk that returns something else is noticed, in a new segment too."""
    model = make_model("dqn", n_envs=2)
    model.learn(60)
    base = save(model, tmp_path)
    model.learn(60, reset_num_timesteps=False)

    def broken(*args, real=store._write):
        written = real(*args)
        newest = max((tmp_path / "replay").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        newest.write_bytes(b"something else")
        return written

    monkeypatch.setattr(store, "_write", broken)
    with pytest.raises(CheckpointError, match=r"30-60-\d+\.zst is damaged"):
        save(model, tmp_path, base=base)
    assert latest(tmp_path).path == base.path


def test_an_old_segment_must_still_be_there(tmp_path):
    model = make_model("dqn", n_envs=2)
    model.learn(60)
    base = save(model, tmp_path)
    (segment,) = (tmp_path / "replay").iterdir()
    segment.unlink()
    model.learn(60, reset_num_timesteps=False)
    with pytest.raises(CheckpointError, match="is missing"):
        save(model, tmp_path, base=base)


def test_a_verified_checkpoint_is_a_value(tmp_path):
    model = make_model("ppo")
    model.learn(32, callback=RunCheckpointCallback(16, tmp_path))
    found = latest(tmp_path)
    assert isinstance(found, Checkpoint)
    assert found == check(found.path)
    assert found.manifest["num_timesteps"] == int(found.path.name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.path = tmp_path


@pytest.mark.parametrize("form", [str, Path, check, lambda path: True])
def test_every_way_to_name_a_checkpoint_resumes_it(form, tmp_path):
    whole = make_model("ppo")
    whole.learn(64, callback=RunCheckpointCallback(32, tmp_path / "whole"))
    callback = RunCheckpointCallback(32, tmp_path / "cut", stop_at=32)
    with pytest.raises(TrainingStopped):
        make_model("ppo").learn(64, callback=callback)
    resume = form(tmp_path / "cut" / "32")
    again = make_model("ppo")
    again.learn(64, callback=RunCheckpointCallback(32, tmp_path / "cut", resume=resume))
    assert not changed(state_of(whole), state_of(again))


def test_a_path_is_verified_before_it_is_restored(tmp_path):
    make_model("ppo").learn(32, callback=RunCheckpointCallback(16, tmp_path))
    path = latest(tmp_path).path
    (path / "model.zip").write_bytes(b"")
    for form in (str, Path):
        with pytest.raises(CheckpointError, match=r"model\.zip is damaged"):
            restore(make_model("ppo"), form(path))
        callback = RunCheckpointCallback(16, tmp_path, resume=form(path))
        with pytest.raises(CheckpointError, match=r"model\.zip is damaged"):
            make_model("ppo").learn(64, callback=callback)


def test_a_stopped_training_says_where_it_is_and_is_there(tmp_path):
    model = make_model("ppo")
    saver = RunCheckpointCallback(1_000, tmp_path, stop_at=20)
    with pytest.raises(TrainingStopped) as stopped:
        model.learn(64, callback=saver)
    checkpoint = stopped.value.checkpoint
    assert checkpoint == saver.saved[-1]
    assert model.num_timesteps == checkpoint.manifest["num_timesteps"] == 32
    assert str(stopped.value) == f"The training was stopped at step 32, saved in {tmp_path / '32'}."
    assert str(pickle.loads(pickle.dumps(stopped.value))) == str(stopped.value)
    assert isinstance(stopped.value, Exception)
    assert isinstance(stopped.value, KeyboardInterrupt)  # rl_zoo3 saves its model then
    restored = make_model("ppo")
    restored.set_env(model.get_env())
    saved = type(model).load(checkpoint.path / "model.zip", device="cpu")
    assert not changed(state_of(model), state_of(saved))
