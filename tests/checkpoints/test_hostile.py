"""A stranger's checkpoint, its checksums computed anew, sets state and nothing else."""

import hashlib
import json
import shutil
from typing import ClassVar

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from fire_rl import RunCheckpointCallback
from fire_rl.checkpoints.attributes import check_attribute
from fire_rl.checkpoints.manifest import sealed
from fire_rl.checkpoints.safe_tree import read_tree, write_tree
from fire_rl.checkpoints.store import CheckpointError, latest
from tests.helpers.models import RandomEnv, make_model

ELSEWHERE = "/tmp/elsewhere"


class Board(RandomEnv):
    """Its state is a word, and it has a folder that may move."""

    def __init__(self, video_folder="videos"):
        super().__init__()
        self.video_folder, self.board = video_folder, "8/8 w"

    def step(self, action):
        self.board = f"8/{self._steps} b"
        return super().step(action)


class Keeper(BaseCallback):
    """A user's callback that has made a path of its own from its argument."""

    def __init__(self, log_dir):
        super().__init__()
        self.log_dir, self.save_path = log_dir, f"{log_dir}/best"
        self.count, self.phase = 0, "early"

    def _on_step(self):
        self.count += 1
        return True


def build(folder):
    model = make_model("ppo", env=make_vec_env(Board, 2, env_kwargs={"video_folder": str(folder)}))
    evaluation = EvalCallback(
        make_vec_env(Board), eval_freq=8, n_eval_episodes=1, verbose=0,
        best_model_save_path=str(folder / "best"), log_path=str(folder),
    )  # fmt: skip
    return model, [evaluation, Keeper(str(folder)), RunCheckpointCallback(16, folder / "saved")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    model, callbacks = build(folder)
    model.learn(32, callback=callbacks)
    return latest(folder / "saved").path


def resealed(source, target, edit):
    """A copy of a checkpoint with another state and with the checksums of that."""
    path = target / source.name
    shutil.copytree(source.parent, target)
    tree = read_tree(path / "state")
    edit(tree["training"])
    write_tree(path / "state", tree)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["checksum"]
    for item in manifest["files"]:
        file = path / item["folder"] / item["file"]
        item["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (path / "manifest.json").write_text(sealed(manifest))
    return path


def resume(path, folder):
    model, callbacks = build(folder)
    callbacks[2].resume = path
    try:
        model.learn(48, callback=callbacks)
    finally:
        evaluation, keeper, _ = callbacks
        assert evaluation.best_model_save_path == str(folder / "best")
        assert evaluation.log_path == str(folder / "evaluations")
        assert (keeper.log_dir, keeper.save_path) == (str(folder), f"{folder}/best")
        assert model.env.envs[0].unwrapped.video_folder == str(folder)
    return model, callbacks


def of_callback(index, name, value=ELSEWHERE):
    return lambda state: state["callbacks"][index]["attributes"].update({name: value})


def of_model(name, value=ELSEWHERE):
    return lambda state: state["attributes"].update({name: value})


REFUSED = {
    "best_model_save_path": of_callback(0, "best_model_save_path"),
    "log_path": of_callback(0, "log_path"),
    "a method": of_callback(0, "on_step"),
    "a class": of_callback(1, "__class__"),
    "a word for a number": of_callback(1, "count"),
    "an object": of_callback(0, "model"),
    "no name": of_callback(1, "a b", 1),
    "an argument": of_callback(1, "log_dir"),
    "the policy": of_model("policy"),
    "the logger": of_model("_logger"),
    "an argument of the model": of_model("tensorboard_log"),
    "a word for nothing": of_model("_vec_normalize_env", "a word"),
    "the seed": of_model("seed", 3),
    "other parameters": lambda state: state["parameters"].update({"env": {}}),
    "other variables": lambda state: state["variables"].update({"seed": torch.zeros(1)}),
    "no callbacks": lambda state: state.update(callbacks=[]),
    "nothing": lambda state: state.clear(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_capture_would_not_write_is_refused(name, written, tmp_path):
    path = resealed(written, tmp_path / "hostile", REFUSED[name])
    with pytest.raises(CheckpointError, match="does not fit"):
        resume(path, tmp_path / "mine")


PASSED_OVER = {
    "nothing": lambda state: None,
    "a path made of an argument": of_callback(1, "save_path"),
    "a path beside": of_callback(1, "save_path", "../elsewhere"),
    "a new path": of_callback(1, "output", "../elsewhere"),
    "the logger's own attributes": lambda state: state["logger"].update(__dict__={"dir": "x"}),
    "of a distribution": lambda state: state["gsde"][0].update(__class__=torch.zeros(1)),
}


@pytest.mark.parametrize("name", PASSED_OVER)
def test_where_files_are_is_not_restored_and_state_is(name, written, tmp_path):
    path = resealed(written, tmp_path / "hostile", PASSED_OVER[name])
    model, callbacks = resume(path, tmp_path / "mine")
    assert model.num_timesteps == 48
    assert callbacks[1].count == 24
    assert getattr(callbacks[1], "output", None) is None
    assert model.env.envs[0].unwrapped.board.startswith("8/")


def test_a_word_that_is_state_is_said(written, tmp_path, caplog):
    path = resealed(written, tmp_path / "hostile", of_callback(1, "phase", "late"))
    resume(path, tmp_path / "mine")
    assert "`phase` of Keeper was 'late' and is 'early'" in caplog.text


class Thing:
    kinds: ClassVar = {int: "a class"}
    level = 0

    def __init__(self):
        self.total, self.word, self.made = 0, "a", None
        self.engine = object()

    @property
    def size(self):
        return 1


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("total", 3, True), ("total", [1.0, 2.0], True), ("total", "x", False),
        ("word", "b", True), ("made", "black", True), ("made", (1, 2), True), ("level", 2, True),
        ("later", 5, True), ("engine", None, True), ("engine", 1, False), ("size", 2, False),
        ("kinds", {}, False), ("__init__", 1, False), ("__dict__", {}, False), (3, 3, False),
        ("total", object(), False),
    ],
)  # fmt: skip
def test_which_attributes_may_be_set(name, value, fits):
    if fits:
        check_attribute(Thing(), name, value)
    else:
        with pytest.raises(ValueError, match="it would set"):
            check_attribute(Thing(), name, value)
