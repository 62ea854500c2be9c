"""Whose a checkpoint is: `resume=True` takes up a killed training, and no other one's."""

import subprocess
import sys

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from fire_rl import RunCheckpointCallback, TrainingStopped
from fire_rl.checkpoints import ownership
from fire_rl.checkpoints.store import CheckpointError, check, checkpoints, latest
from tests.helpers.models import changed, make_model, state_of
from tests.helpers.runs import ENVIRONMENT, ROOT


@pytest.fixture
def new_process(monkeypatch):
    """Let this process forget, as a new one would, what it has written."""

    def forget():
        monkeypatch.setattr(ownership, "_WRITERS", set())
        ownership._TRAININGS.clear()

    return forget


def train(folder, total=64, seed=0, **options):
    model = make_model("ppo", seed=seed)
    saver = RunCheckpointCallback(16, folder, **options)
    return model.learn(total, callback=saver), saver


class Broken(BaseCallback):
    """An error of the user's, in the middle of a training."""

    def _on_step(self):
        assert self.num_timesteps < 40
        return True


def broken(folder, seed=0):
    saver = RunCheckpointCallback(16, folder)
    with pytest.raises(AssertionError):
        make_model("ppo", seed=seed).learn(64, callback=[Broken(), saver])


def stopped(folder, at=32, seed=0, **options):
    with pytest.raises(TrainingStopped):
        train(folder, seed=seed, stop_at=at, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name[0].isdigit())


@pytest.mark.parametrize("seeds", [(0, 1), (0, 0), (None, None)])
def test_seeds_that_share_a_folder_are_refused(seeds, tmp_path):
    """The one before has ended; and before its end, this process knows it as another model's."""
    train(tmp_path, seed=seeds[0])
    with pytest.raises(CheckpointError, match=r"has ended, at step 64 of 64.*a folder of its own"):
        train(tmp_path, seed=seeds[1], resume=True)
    broken(tmp_path / "cut", seed=seeds[0])
    before = names(tmp_path / "cut")
    with pytest.raises(CheckpointError, match="this process has written with another model"):
        train(tmp_path / "cut", seed=seeds[1], resume=True)
    assert names(tmp_path / "cut") == before


def test_a_training_that_was_stopped_for_it_is_handed_over(tmp_path):
    stopped(tmp_path)
    resumed, _ = train(tmp_path, resume=True)
    whole, _ = train(tmp_path / "whole")
    assert not changed(state_of(whole), state_of(resumed))


def test_a_finished_training_goes_on_by_its_path_and_is_killed_then(tmp_path, new_process):
    train(tmp_path)
    new_process()
    with pytest.raises(CheckpointError, match="has ended"):
        train(tmp_path, 96, resume=True)
    with pytest.raises(CheckpointError, match=r"at step 48 and this training ends at 32"):
        train(tmp_path, 32, resume=tmp_path / "48")
    stopped(tmp_path, 80, total=96, resume=latest(tmp_path))
    new_process()
    resumed, _ = train(tmp_path, 96, resume=True)
    whole, _ = train(tmp_path / "whole", 96)
    assert not changed(state_of(whole), state_of(resumed))


@pytest.mark.full
def test_a_new_process_takes_up_what_was_killed(tmp_path):
    script = (
        "import sys, torch\n"
        "from tests.helpers.models import make_model, state_of\n"
        "from fire_rl import RunCheckpointCallback, TrainingStopped\n"
        "stop = int(sys.argv[2]) or None\n"
        "saver = RunCheckpointCallback(16, sys.argv[1], resume=True, stop_at=stop)\n"
        "model = make_model('ppo')\n"
        "try: model.learn(64, callback=saver)\n"
        "except TrainingStopped: pass\n"
        "torch.save(state_of(model), sys.argv[1] + '/weights.pt')\n"
    )
    for stop in ("32", "0"):
        command = [sys.executable, "-c", script, str(tmp_path), stop]
        subprocess.run(command, check=True, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, cwd=ROOT)
    whole, _ = train(tmp_path / "whole")
    assert not changed(state_of(whole), torch.load(tmp_path / "weights.pt"))


def test_a_damaged_note_of_the_end_is_said(tmp_path, new_process, caplog):
    train(tmp_path)
    (tmp_path / "finished.json").write_text("[")
    new_process()
    train(tmp_path, resume=True)
    assert "finished.json is damaged" in caplog.text


def test_a_note_that_cannot_be_written_does_not_lose_the_training(tmp_path, caplog):
    (tmp_path / "finished.json").mkdir(parents=True)
    (tmp_path / "finished.json" / "taken").touch()
    model, _ = train(tmp_path)
    assert model.num_timesteps == 64
    assert "finished.json could not be written" in caplog.text


def test_a_model_that_learns_on_in_chunks_is_where_it_is(tmp_path):
    def chunks(*callbacks):
        model = make_model("ppo")
        for _ in range(3):
            listed = [RunCheckpointCallback(16, tmp_path, resume=True) for _ in callbacks]
            model.learn(32, callback=listed, reset_num_timesteps=False)
        return model

    one, two = chunks(RunCheckpointCallback), chunks()
    assert one.num_timesteps == 96
    assert not changed(state_of(one), state_of(two))
    assert len({check(path).manifest["run"] for path in checkpoints(tmp_path)}) == 1


def test_what_was_written_stays_beside_older_higher_steps(tmp_path):
    _, first = train(tmp_path, 96)
    _, second = train(tmp_path, seed=1, keep_last=1)
    assert second.saved[-1].path.exists()
    assert all(saved.path.exists() for saved in first.saved[-2:])  # another training's
    assert latest(tmp_path).path == second.saved[-1].path  # the newest, not the highest
    _, third = train(tmp_path, seed=1, keep_last=2)
    assert [saved.path.exists() for saved in third.saved] == [False, True, True]


def test_going_back_to_an_earlier_checkpoint_keeps_the_later_ones(tmp_path):
    train(tmp_path, 96, keep_last=None)
    before = names(tmp_path)
    _, again = train(tmp_path, 80, keep_last=1, resume=tmp_path / "16")
    assert again.saved[-1].path.exists()
    assert set(before) <= set(names(tmp_path))


def test_nothing_that_is_whole_is_said_and_nothing_begins_anew(tmp_path, new_process):
    stopped(tmp_path)
    for path in checkpoints(tmp_path):
        (path / "model.zip").write_bytes(b"")
    new_process()
    before = names(tmp_path)
    with pytest.raises(CheckpointError, match=r"None of the 2 .*model\.zip is damaged.* anew"):
        train(tmp_path, resume=True)
    assert names(tmp_path) == before


def test_the_lock_is_free_after_a_refusal(tmp_path):
    train(tmp_path)
    model = make_model("ppo")
    saver = RunCheckpointCallback(16, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="has ended"):
        model.learn(64, callback=saver)
    hold = "import filelock, sys\nfilelock.FileLock(sys.argv[1]).acquire(timeout=0)"
    subprocess.run([sys.executable, "-c", hold, str(tmp_path / ".lock")], check=True)
