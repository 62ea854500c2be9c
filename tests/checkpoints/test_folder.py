"""Damaged and foreign entries in a folder of checkpoints, links, and which old ones go."""

import os
import shutil

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from fire_rl import RunCheckpointCallback
from fire_rl.checkpoints.manifest import segment_names
from fire_rl.checkpoints.store import CheckpointError, check, checkpoints, latest
from tests.helpers.models import make_model


class At(BaseCallback):
    """Does something once, in the middle of a training."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action, self.done = step, action, False

    def _on_step(self):
        if self.num_timesteps >= self.step and not self.done:
            self.done = True
            self.action()
        return True


def train(folder, at=None, action=None, total=120, every=32, **options):
    model = make_model("dqn")
    saver = RunCheckpointCallback(every, folder, **options)
    model.learn(total, callback=[*([At(at, action)] if at else []), saver])
    assert check(saver.saved[-1].path).path.exists()  # verified anew, and still there
    return model, saver


def manifest_of(folder, step):
    return folder / str(step) / "manifest.json"


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "cut": lambda path: path.write_text("{"),
    "a list": lambda path: path.write_text("[]"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "missing": lambda path: path.unlink(),
    "a folder": as_folder,
    "a pipe": as_pipe,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_ends_no_training(name, tmp_path):
    damage = DAMAGES[name]
    train(tmp_path, 40, lambda: damage(manifest_of(tmp_path, 32)), keep_last=1)
    assert (tmp_path / "32").exists()  # what cannot be read is not deleted
    assert checkpoints(tmp_path)[-1].name == "96"


DISAPPEARED = {
    "a checkpoint": lambda folder: shutil.rmtree(folder / "64"),
    "a segment": lambda folder: next((folder / "replay").iterdir()).unlink(),
    "half a segment": lambda folder: next((folder / "replay").iterdir()).write_bytes(b"1"),
    "the segments": lambda folder: shutil.rmtree(folder / "replay"),
    "the folder": shutil.rmtree,
}


@pytest.mark.parametrize("name", DISAPPEARED)
def test_what_disappears_ends_no_training(name, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    train(folder, 70, lambda: DISAPPEARED[name](folder))
    assert ("written anew" in caplog.text) == ("segment" in name)


def test_foreign_entries_and_links_stay_as_they_are(tmp_path):
    folder, outside = tmp_path / "checkpoints", tmp_path / "outside"
    outside.mkdir()
    folder.mkdir()
    (outside / "precious").write_text("x")
    (folder / "32").write_text("a file")
    (folder / "64").symlink_to(outside)
    (folder / "96").symlink_to(outside / "nowhere")
    (folder / "abc").mkdir()
    (folder / "7").mkdir()
    (folder / "7" / "notes").write_text("x")
    (folder / ".32.tmp").symlink_to(outside)
    _, saver = train(folder, keep_last=1)
    assert saver.saved[-1].path.name == "96.1"
    assert (outside / "precious").read_text() == "x"
    assert (folder / "32").read_text() == "a file"
    assert all((folder / name).is_symlink() for name in ("64", "96", ".32.tmp"))
    assert (folder / "7" / "notes").exists()
    assert latest(folder).path == saver.saved[-1].path
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "scratch")
    (tmp_path / "scratch").mkdir()
    train(linked, total=40)  # the folder itself may be a link


def test_nothing_is_deleted_through_a_link(tmp_path):
    folder, outside = tmp_path / "checkpoints", tmp_path / "outside"
    outside.mkdir()

    def move():
        for path in (folder / "32", next((folder / "replay").iterdir())):
            shutil.move(path, outside / path.name)
            path.symlink_to(outside / path.name)

    train(folder, 40, move, keep_last=1)
    assert (outside / "32" / "model.zip").exists()
    assert len(list(outside.iterdir())) == 2


@pytest.mark.parametrize("name", ["replay", ".lock"])
def test_nothing_is_written_through_a_link(name, tmp_path):
    folder, outside = tmp_path / "checkpoints", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir() if name == "replay" else outside.write_text("x")
    (folder / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match="is a symbolic link, and nothing is written through"):
        train(folder)
    assert not list(outside.iterdir()) if name == "replay" else outside.read_text() == "x"


def test_a_second_copy_of_the_replay_buffer(tmp_path):
    """With two, any one damaged segment leaves a checkpoint that can be used."""
    _, saver = train(tmp_path, total=140, replay_copies=2)
    one, two = (segment_names(saved.manifest) for saved in saver.saved[-2:])
    assert one
    assert two
    assert not one & two
    for path in (tmp_path / "replay").iterdir():
        good = path.read_bytes()
        path.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
        assert latest(tmp_path) is not None
        path.write_bytes(good)
    with pytest.raises(ValueError, match="`replay_copies` must not exceed `keep_last`"):
        RunCheckpointCallback(keep_last=2, replay_copies=3)


class Breaks(BaseCallback):
    """Writes NaN into a weight, as a training that diverges does; DQN goes on with it."""

    def _on_rollout_start(self):
        if self.num_timesteps >= 40:
            with torch.no_grad():
                next(self.model.policy.parameters()).fill_(float("nan"))

    def _on_step(self):
        return True


def test_weights_that_are_not_finite_leave_the_last_finite_checkpoint(tmp_path, caplog):
    model = make_model("dqn")
    saver = RunCheckpointCallback(32, tmp_path, keep_last=1)
    model.learn(140, callback=[Breaks(), saver])
    finite = {path.name: check(path).manifest["finite"] for path in checkpoints(tmp_path)}
    assert finite == {"32": True, "128": False}
    assert caplog.text.count("holds weights that are NaN or infinite") == 1


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    _, saver = train(tmp_path, total=70)

    def full(*args):
        raise OSError(28, "No space left on device")

    for name, file in (("write_tree", "state"), ("replay_segments.write_replay", "replay")):
        monkeypatch.setattr(f"fire_rl.checkpoints.store.{name}", full)
        with pytest.raises(CheckpointError, match=rf"No space left on device: .*{file}'") as error:
            train(tmp_path)
        assert f"the last good one is {saver.saved[-1].path}" in str(error.value)
        assert not list(tmp_path.glob(".*.tmp"))
        monkeypatch.undo()
