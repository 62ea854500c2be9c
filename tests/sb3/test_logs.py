"""What SB3's logger writes beside our callbacks, and what a resumed training makes of it."""

import csv
import errno
import json
import shutil

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    Figure,
    FormatUnsupportedError,
    Logger,
    configure,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fire_rl import (
    FireCallback,
    InterventionCallback,
    PlasticityMetricsCallback,
    RunCheckpointCallback,
)
from fire_rl.checkpoints.folder import locked
from fire_rl.checkpoints.store import CheckpointError, latest
from fire_rl.runs.event_lines import EventLines
from fire_rl.sb3.loggers import log_scalars
from fire_rl.sb3.progress_csv import WholeCSV
from fire_rl.utils import files

pytestmark = pytest.mark.filterwarnings(
    "ignore:(A rank needs at least as many|`fire` is planned at):UserWarning"
)
OURS = ("plasticity", "live", "intervention", "recovery", "trigger", "time/")
REPLAY = {"learning_starts": 30, "batch_size": 8, "buffer_size": 500}
MODELS = {
    "ppo": (PPO, "CartPole-v1", {"n_steps": 32, "batch_size": 16, "n_epochs": 1}),
    "sac": (
        SAC,
        "Pendulum-v1",
        {"learning_starts": 30, "batch_size": 8, "buffer_size": 500, "train_freq": 4},
    ),
    "dqn": (DQN, "CartPole-v1", {"learning_starts": 30, "batch_size": 8, "buffer_size": 500}),
}


def make(algo, folder, formats=("csv", "json", "log", "tensorboard")):
    kind, env, options = MODELS[algo]
    model = kind("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [8]}, **options)
    model.set_logger(configure(str(folder), list(formats)))
    return model


class User(BaseCallback):
    """What a user logs: a value of each step, means, a table of its own, a word."""

    def __init__(self, stop=None):
        super().__init__()
        self.stop = stop

    def get_options(self):
        return {}  # where it is killed is no part of the training

    def _on_training_start(self):
        self.logger.record("custom/start", 1.0)

    def _on_step(self):
        self.logger.record("custom/step", self.num_timesteps)
        self.logger.record_mean("custom/mean", self.num_timesteps)
        if self.num_timesteps == 130:  # a column that appears late
            self.logger.record("custom/word", 'so, "late"\nas this')
        if self.num_timesteps == self.stop:
            raise Killed
        return True


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours handles it, and no file is closed."""


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {
        tag: [(event.step, repr(event.value)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("time/")
    }


def rows(folder):
    with (folder / "progress.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and not k.startswith("time/")} for row in found]


def json_rows(folder):
    lines = map(json.loads, (folder / "progress.json").read_text().splitlines())
    return [{k: repr(v) for k, v in x.items() if not k.startswith("time/")} for x in lines]


def others(found):
    if isinstance(found, list):
        return [others(row) for row in found]
    return {key: value for key, value in found.items() if not key.startswith(OURS)}


@pytest.mark.parametrize("name", ["none", "fire"])
@pytest.mark.parametrize("algo", MODELS)
def test_our_callbacks_move_and_cut_nothing_that_others_log(algo, name, tmp_path):
    """Value by value where the event changes no weight; step by step, row by row where it does."""
    threshold = {"metric": "weight_norm", "above": 1e9, "every": 40}
    ours = [
        InterventionCallback(name, {"at": [50, 170]}, probe_size=16),
        PlasticityMetricsCallback(every=45, probe_size=16),
        InterventionCallback("fire", threshold, probe_size=16),
        RunCheckpointCallback(60, tmp_path / "checkpoints"),
    ]
    for folder, callbacks in (("without", []), ("with", ours)):
        model = make(algo, tmp_path / folder)
        model.learn(420, callback=[User(), *callbacks], log_interval=1)
        model.logger.close()
    without, with_ours = tmp_path / "without", tmp_path / "with"
    assert len(ours[0].reports) == 2
    assert len(rows(without)) > 1
    if name == "none":
        assert others(scalars(with_ours)) == scalars(without)
        assert others(rows(with_ours)) == rows(without)
        assert others(json_rows(with_ours)) == json_rows(without)
    elif algo == "ppo":  # its rows do not depend on what the policy does
        assert steps_of(others(scalars(with_ours))) == steps_of(scalars(without))
        assert [set(row) for row in others(rows(with_ours))] == [set(row) for row in rows(without)]
    # ours: at their own steps, and in a row of the table
    measured = scalars(with_ours)
    [tag, *_] = [tag for tag in measured if tag.startswith("intervention/critic/")]
    events = steps_of(measured)[tag]
    assert events == [r.num_timesteps for r in ours[0].reports]
    steps = steps_of(measured)["plasticity/critic/dfi_per_sv"]
    assert steps == [step for step, _ in ours[1].history]
    assert any("plasticity/critic/dfi_per_sv" in row for row in rows(with_ours))
    assert any(tag.startswith("trigger/") for tag in measured)


def steps_of(found):
    return {tag: [step for step, _ in points] for tag, points in found.items()}


def test_what_is_logged_of_ours_waits_for_the_next_row_and_a_disabled_logger_for_nothing():
    logger = Logger(None, [])
    logger.record_mean("custom/mean", 1.0)
    log_scalars(logger, {"plasticity/a": 1.0}, 5)
    assert dict(logger.name_to_value) == {"custom/mean": 1.0, "plasticity/a": 1.0}
    assert logger.name_to_count == {"custom/mean": 1}
    logger.set_level(50)
    log_scalars(logger, {"plasticity/b": 1.0}, 5)
    assert "plasticity/b" not in logger.name_to_value


def train(folder, stop=None, resume=True, total=256, log_dir=None, algo="ppo", strict=True):
    """One process of a training that logs everywhere and is killed at a step."""
    model = make(algo, folder)
    if resume is True:  # in one process: the killed one had another model
        resume = latest(folder / "checkpoints") or False
    callbacks = [
        User(stop),
        FireCallback(every=70, stop=1.0, probe_size=16, log_dir=log_dir),
        PlasticityMetricsCallback(every=45, probe_size=16),
        RunCheckpointCallback(90, folder / "checkpoints", resume=resume, strict=strict),
    ]
    try:
        model.learn(total, callback=callbacks, log_interval=1)
    except Killed:
        callbacks[-1]._lock.close()
    model.logger.close()
    return model


def lines(path):
    return [line.partition('"seconds"')[0] for line in path.read_text().splitlines()]


def log_text(folder):
    """`log.txt` without the clock's lines."""
    words = ("fps", "time_elapsed", "iterations", "Logging to", "---")
    text = (folder / "log.txt").read_text().splitlines()
    return [line.split() for line in text if not any(word in line for word in words)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder)
    return folder


def assert_same_logs(folder, whole, log_dir=None):
    assert scalars(folder) == scalars(whole)
    assert rows(folder) == rows(whole)
    assert json_rows(folder) == json_rows(whole)
    assert log_text(folder) == log_text(whole)
    assert lines((log_dir or folder) / "interventions.jsonl") == lines(
        whole / "interventions.jsonl"
    )


def test_a_training_killed_again_and_again_logs_everything_once(undisturbed, tmp_path):
    """Own code: `configure()` empties progress.csv, progress.json and log.txt each time."""
    for stop in (120, 130, 170, 180, 250):  # after a late column, too; some without a new save
        train(tmp_path, stop)
    train(tmp_path)
    assert_same_logs(tmp_path, undisturbed)
    train(tmp_path)  # the end of a finished one once more
    assert_same_logs(tmp_path, undisturbed)


def test_events_in_a_log_dir_elsewhere_and_lines_of_others_in_it(undisturbed, tmp_path):
    run, logs = tmp_path / "run", tmp_path / "logs"
    train(run, 180, log_dir=logs)
    path = logs / "interventions.jsonl"
    theirs = json.dumps({"networks": {}, "num_timesteps": 9, "training": "another"})
    with path.open("a") as file:
        file.write(theirs + "\n[1, 2]\nno json\n")
    mine = path.read_text().splitlines()
    assert len(mine) == 5  # one of mine before the checkpoint at 96, one behind it
    path.write_text("\n".join(mine) + '\n{"half": ')
    train(run, log_dir=logs)
    left = path.read_text().splitlines()
    assert [line for line in left if line in (theirs, "[1, 2]", "no json")] == [
        theirs, "[1, 2]", "no json",
    ]  # fmt: skip
    assert not any("half" in line for line in left)
    events = [line for line in lines(path) if '"intervention"' in line]
    assert events == [
        line for line in lines(undisturbed / "interventions.jsonl") if '"intervention"' in line
    ]


def test_event_files_of_other_trainings_stay(undisturbed, tmp_path):
    train(tmp_path, 120)
    other = configure(str(tmp_path), ["tensorboard"])
    other.record("theirs/value", 3.0)
    other.dump(7)
    other.close()
    names = {path.name for path in tmp_path.glob("events*")}
    train(tmp_path, 180)  # resumed at 96, stopped before the next save was needed again
    train(tmp_path)
    assert names <= {path.name for path in tmp_path.glob("events*")}
    found = scalars(tmp_path)
    assert found.pop("theirs/value") == [(7, "3.0")]
    assert found == scalars(undisturbed)


@pytest.mark.parametrize("lost", ["progress.csv", "interventions.jsonl", "events*", "everything"])
def test_a_lost_log_does_not_refuse_a_resume(lost, undisturbed, tmp_path):
    train(tmp_path, 180)
    names = ["progress.*", "events*", "*.jsonl", "log.txt", "checkpoints/event_files.json"]
    for name in names if lost == "everything" else [lost]:
        for path in tmp_path.glob(name):
            path.unlink()
    model = train(tmp_path)
    assert model.num_timesteps == 256
    assert rows(tmp_path) == rows(undisturbed)
    assert json_rows(tmp_path) == json_rows(undisturbed)


@pytest.mark.parametrize("damage", ["[1", "{}", '["../../x", 3]', ""])
def test_a_damaged_list_of_event_files_is_none(damage, undisturbed, tmp_path):
    train(tmp_path, 120)
    (tmp_path / "checkpoints" / "event_files.json").write_text(damage)
    (tmp_path.parent / "x").write_text("stays")
    train(tmp_path)
    assert (tmp_path.parent / "x").exists()
    assert scalars(tmp_path) == scalars(undisturbed)


def test_a_process_that_is_refused_costs_the_running_one_nothing(undisturbed, tmp_path):
    """In own code the second one has emptied progress.csv by then."""

    class Second(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 150:
                configure(str(tmp_path), ["csv"]).close()
            return True

    model = make("ppo", tmp_path)
    callbacks = [
        User(), FireCallback(every=70, stop=1.0, probe_size=16), Second(),
        PlasticityMetricsCallback(every=45, probe_size=16),
        RunCheckpointCallback(90, tmp_path / "checkpoints"),
    ]  # fmt: skip
    model.learn(256, callback=callbacks, log_interval=1)
    model.logger.close()
    assert rows(tmp_path) == rows(undisturbed)


def test_a_refused_process_with_our_output_touches_nothing(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("a,b\n1,2\n")
    model = make("ppo", tmp_path, ["tensorboard"])
    model.logger.output_formats.append(WholeCSV(path))
    with locked(tmp_path / "elsewhere"):
        pass
    saver = RunCheckpointCallback(64, tmp_path / "checkpoints")
    lock = files_lock(tmp_path / "checkpoints")
    with lock, pytest.raises(CheckpointError, match="Another process"):
        model.learn(64, callback=saver)
    model.logger.close()
    assert path.read_text() == "a,b\n1,2\n"


def files_lock(folder):
    """The lock as another process holds it."""
    from filelock import FileLock

    folder.mkdir()
    return FileLock(folder / ".lock", is_singleton=False)


def table(path):
    output = WholeCSV(path)

    def write(**values):
        output.write(values, dict.fromkeys(values, ("",)))

    return output, write


def test_a_row_a_new_column_and_what_sb3_writes_are_the_same(tmp_path):
    theirs = CSVOutputFormat(str(tmp_path / "theirs.csv"))
    ours, _ = table(tmp_path / "ours.csv")
    for values in (
        {"a": 1, "b": 2.5},
        {"b": np.float32(0.1)},
        {"a": 'say "x, y"', "c": None},
        {},
        {"d": 4},
    ):
        for output in (theirs, ours):
            output.write(values, {**dict.fromkeys(values, ("",)), "b": ("csv",)})
    theirs.close()

    def read(path):
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    assert read(tmp_path / "ours.csv") == read(tmp_path / "theirs.csv")
    assert len(ours.rows) == 5


def test_a_value_that_no_table_holds_is_refused_and_costs_nothing(tmp_path):
    output, write = table(tmp_path / "progress.csv")
    write(a=1)
    with pytest.raises(FormatUnsupportedError):
        write(figure=Figure(None, close=False))
    write(a=2)
    assert (tmp_path / "progress.csv").read_text() == "a\n1\n2\n"
    assert output.keys == ["a"]


@pytest.mark.parametrize("what", ["row", "column"])
def test_a_full_disk_keeps_the_rows_before_and_names_the_file(what, tmp_path, monkeypatch):
    path = tmp_path / "progress.csv"
    _, write = table(path)
    write(a=1)
    write(a=2)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        if what == "row":
            patch.setattr(files, "_write", full)
        with pytest.raises(OSError, match=r"No space left on device: .*progress\.csv"):
            write(a=3, **({"b": 4} if what == "column" else {}))
        assert path.read_text() == "a\n1\n2\n"
    write(a=5)
    assert path.read_text().splitlines()[1:3] in (["1", "2"], ["1,", "2,"])
    assert len(path.read_text().splitlines()) == 5
    assert list(tmp_path.iterdir()) == [path]


def test_lost_lines_are_named_and_later_ones_are_still_told_apart(tmp_path, caplog):
    path, log = tmp_path / "interventions.jsonl", EventLines("me")
    for number in range(3):
        log.append(tmp_path, {"number": number})
    path.write_text(path.read_text().split("\n", 2)[2])  # the first two are lost
    log.take_back(tmp_path)
    assert "interventions.jsonl has 2 lines of this training less" in caplog.text
    state = log.get_state()
    log.append(tmp_path, {"number": 3})
    again = EventLines()
    again.set_state(state)
    again.take_back(tmp_path)
    assert path.read_text().count("number") == 1
    caplog.clear()
    again.take_back(tmp_path / "new")
    assert (caplog.text, again.written) == ("", 0)


def test_lines_go_to_the_end_behind_one_that_a_kill_has_cut_off(tmp_path):
    path = tmp_path / "interventions.jsonl"
    path.write_text('{"a": 1}\n{"b": ')
    EventLines("me").append(tmp_path, {"c": 2})
    assert path.read_text() == '{"a": 1}\n{"b": \n{"c": 2, "training": "me"}\n'


def test_the_run_folder_may_move(undisturbed, tmp_path):
    train(tmp_path / "old", 180)
    shutil.move(tmp_path / "old", tmp_path / "new")
    train(tmp_path / "new")
    assert_same_logs(tmp_path / "new", undisturbed)
