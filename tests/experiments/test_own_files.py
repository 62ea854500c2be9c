"""A run is locked before anything in it is removed, and only train.py's own files ever are."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

from agents import ALGORITHMS
from experiments import own_files
from experiments.folder import RunFolder, save_model
from fire_rl.checkpoints.store import CheckpointError, checkpoints
from fire_rl.runs import layout
from tests.conftest import SHORT

HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]).acquire(timeout=0):
    print("held", flush=True)
    sys.stdin.read()
"""
ARMS = ("--arms", "none,fire", *SHORT)


@contextlib.contextmanager
def held(folder):
    """Another process trains into a run folder."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(folder / "checkpoints" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield
        process.communicate()


def listed(folder):
    """Every file in a folder with what it holds; links as what they point to."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file()) and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """The trunk of ``ARMS``, stopped by a kill before its first checkpoint."""
    folder = tmp_path_factory.mktemp("arms") / "s0" / "trunk"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.training.learn", lambda run, _: run.model.logger.close() or 130)
        patch.setattr(sys, "argv", ["train.py", *map(str, (*ARMS, "--log-dir", folder.parents[1]))])
        import train

        assert train.main() == 130
    return folder


@pytest.fixture
def root(trunk, tmp_path):
    return shutil.copytree(trunk.parents[1], tmp_path / "arms")


# ------------------------------------------------------------------------------- experiments


def test_a_trunk_in_training_is_left_alone(main, root):
    before = listed(root)
    with held(root / "s0" / "trunk"):
        code, out, err = main(*ARMS, "--log-dir", root)
    assert (code, "Another process trains into" in err) == (2, True), err
    assert "begins anew" not in out
    assert listed(root) == before


def test_a_stopped_trunk_begins_anew_beside_foreign_files(main, root):
    trunk = root / "s0" / "trunk"
    (trunk / "notes.txt").write_text("mine")
    (trunk / ".work.tmp").write_text("mine")
    (trunk / "events.out.tfevents.mine").write_text("")
    (trunk / "papers").mkdir()
    (trunk / "checkpoints" / "empty").mkdir()
    (trunk / "papers" / "model.zip").write_text("mine")
    (trunk / "link.txt").symlink_to(trunk / "notes.txt")
    (trunk / "episodes.csv").write_text("step,return,length\n1")
    (trunk / "checkpoints" / "5" / "state").mkdir(parents=True)  # without a manifest
    (trunk / "checkpoints" / "5" / "state" / "tree.json").write_text("{")
    code, out, err = main(*ARMS, "--log-dir", root)
    assert (code, err) == (0, "")
    assert "begins anew. It keeps .work.tmp, events.out.tfevents.mine, link.txt, note" in out
    assert (trunk / "notes.txt").read_text() == "mine"
    assert (trunk / "papers" / "model.zip").read_text() == "mine"
    assert (trunk / "checkpoints" / "empty").is_dir()
    assert not (trunk / "checkpoints" / "5").exists()
    assert (trunk / "link.txt").is_symlink()
    assert (root / "recovery.md").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda trunk: (trunk / "checkpoints" / "notes").mkdir() or
            (trunk / "checkpoints" / "notes" / "a.txt").touch(), "a.txt is not of train.py"),
        (lambda trunk: (trunk / "config.yaml").write_text(
            "\n".join((trunk / "config.yaml").read_text().splitlines()[1:])), "nothing in it is"),
        (lambda trunk: (trunk / "config.yaml").unlink(), "has no config.yaml: train.py has not"),
        (lambda trunk: (trunk / "config.yaml").write_text(""), "config.yaml must hold a run's"),
        (lambda trunk: (trunk / "config.yaml").write_text(
            (trunk / "config.yaml").read_text()[:99]), "config.yaml is half-written"),
        (lambda trunk: (trunk / "config.yaml").write_text(
            (trunk / "config.yaml").read_text().replace("imports: []", "imports: [evil]")),
            "holds another run: `imports` was ['evil'], is []"),
        (lambda trunk: (trunk / "model.zip").symlink_to(trunk.parent / "x"), "is a symbolic link"),
        (lambda trunk: (trunk / "model.zip").mkdir(), "model.zip is no file, and train.py writes"),
        (lambda trunk: os.mkfifo(trunk / "interventions.jsonl"), "interventions.jsonl is no file"),
        (lambda trunk: (trunk / "checkpoints" / "replay").symlink_to(trunk), "is a symbolic link"),
        (lambda trunk: [(trunk / "checkpoints" / "5").mkdir(),
            (trunk / "checkpoints" / "5" / "manifest.json").write_text("{")],
            "None of the 1 checkpoints in"),
        (lambda trunk: [shutil.rmtree(trunk), trunk.write_text("a file")], "is not empty and has"),
        (lambda trunk: [(trunk.parent / "fire").mkdir(),
            (trunk.parent / "fire" / "notes.txt").touch()], "s0/fire is not empty and has no conf"),
    ],
)  # fmt: skip
def test_what_is_not_of_this_experiment_stays_as_it_is(main, root, spoil, message):
    spoil(root / "s0" / "trunk")
    before = listed(root)
    code, _, err = main(*ARMS, "--log-dir", root)
    assert (code, message in err) == (2, True), err
    assert listed(root) == before


def test_half_written_files_of_a_finished_experiment(main, root, tmp_path):
    code, table, err = main(*ARMS, "--log-dir", root)
    assert (code, err) == (0, "")
    table = table.partition("Recovery from")[2]
    arm = root / "s0" / "fire"
    (arm / "result.json").write_text('{"num_ti')
    code, out, err = main(*ARMS, "--log-dir", root)
    assert (code, err) == (0, "")
    assert f"{arm / 'result.json'} is damaged" in out
    assert out.endswith(table)
    for text in ("", "step,return,length\n10,9.0,9\n2", "step,return,length\na,b,c\n"):
        (arm / "episodes.csv").write_text(text)
        code, out, err = main(*ARMS, "--log-dir", root)
        assert (code, err) == (0, "")
        assert f"{arm / 'episodes.csv'} is damaged" in out
        assert out.endswith(table)
    lines = (arm / "interventions.jsonl").read_text().splitlines()
    kept = [line for line in lines if "recovery_against" not in line]
    (arm / "interventions.jsonl").write_text("\n".join(kept)[:-5])
    code, out, err = main(*ARMS, "--log-dir", root)
    assert (code, err, out.count("Training")) == (0, "", 0)
    last = (arm / "interventions.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["recovery_against"] == "none"
    (arm / "interventions.jsonl").write_bytes(b"\xff\n")
    code, _, err = main(*ARMS, "--log-dir", root)
    assert code in (0, 2)
    assert code == 0 or f"{arm / 'interventions.jsonl'} is damaged" in err
    (arm / "config.yaml").write_text("")
    code, _, err = main(*ARMS, "--log-dir", root)
    assert (code, f"{arm / 'config.yaml'} must hold" in err) == (2, True), err


def test_a_damaged_branch_point_is_trained_again(main, root):
    assert main(*ARMS, "--log-dir", root)[0] == 0
    table = (root / "recovery.md").read_text()
    trunk = root / "s0" / "trunk" / "checkpoints"
    (checkpoints(trunk)[-1] / "model.zip").write_bytes(b"damaged")
    shutil.rmtree(root / "s0" / "fire")
    code, out, _ = main(*ARMS, "--log-dir", root)
    assert code == 0
    assert "It is passed over" in out
    assert (root / "recovery.md").read_text() == table
    shutil.rmtree(root / "s0" / "trunk")  # to save disk: all is done
    code, out, _ = main(*ARMS, "--log-dir", root)
    assert (code, "Training" in out) == (0, False)


# ------------------------------------------------------------------------------- single runs


def test_a_finished_run_is_not_touched(main, run):
    before = listed(run)
    code, out, err = main("--resume", run)
    assert (code, err) == (0, "")
    assert f"{run} has come to its end, after 700 steps" in out
    assert listed(run) == before
    (run / "result.json").write_text("{")
    code, out, err = main("--resume", run)
    assert (code, err) == (0, "")
    assert "result.json is damaged" in out
    assert json.loads((run / "result.json").read_text())["num_timesteps"] == 700


def test_a_second_resume_changes_nothing(main, run):
    (run / "result.json").unlink()
    before = listed(run)
    with held(run):
        code, _, err = main("--resume", run)
    assert (code, "Another process trains into" in err) == (2, True), err
    assert listed(run) == before


@pytest.mark.parametrize("name", ["interventions.jsonl", "model.zip", "events.out.tfevents.x",
                                  "checkpoints/replay", "checkpoints/.lock"])  # fmt: skip
def test_nothing_is_written_through_a_link_inside_a_run(main, run, tmp_path, name):
    (run / "result.json").unlink()
    target = tmp_path / "precious"
    with contextlib.suppress(FileNotFoundError):
        (run / name).rename(target)
    if not target.exists():
        target.write_text("years of work")
    (run / name).symlink_to(target)
    before = listed(tmp_path)
    code, _, err = main("--resume", run)
    assert (code, f"{run / name} is a symbolic link" in err) == (2, True), err
    assert listed(tmp_path) == before


def test_linked_folders_are_fine(main, run, tmp_path):
    (run / "result.json").unlink()
    (run / "checkpoints").rename(tmp_path / "scratch")
    (run / "checkpoints").symlink_to(tmp_path / "scratch")
    (run / "my_notes").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(run)
    code, _, err = main("--resume", tmp_path / "linked")
    assert (code, err) == (0, "")
    assert (run / "checkpoints").is_symlink()
    assert (run / "result.json").exists()
    (run / "result.json").unlink()
    with (run / "config.yaml").open("a") as file:
        file.write("# not as train.py wrote it\n")
    before = listed(tmp_path)
    code, _, err = main("--resume", run)  # of somebody else, into whose scratch?
    assert (code, f"{run / 'checkpoints'} is a symbolic link" in err) == (2, True)
    assert listed(tmp_path) == before
    assert main("--resume", run, "--trust")[0] == 0


def test_a_run_of_no_step_takes_only_its_own_files_with_it(main, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def broken(run, args):
        (run.folder.path / "notes.txt").write_text("mine")
        run.model.logger.close()
        raise RuntimeError("no first step")

    monkeypatch.setattr("experiments.training.learn", broken)
    code, _, err = main(*SHORT, "--log-dir", folder)
    assert (code, "no first step" in err) == (2, True)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_what_a_killed_start_leaves_does_not_count(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    (tmp_path / "run" / ".config.yaml.tmp").write_text("algo")
    folder.release()
    own_files.check_free(tmp_path / "run")
    with held(tmp_path / "run"), pytest.raises(CheckpointError, match="Another process"):
        RunFolder(tmp_path / "run").create()
    for name in ("checkpoints/5", "model.zip", "notes", ".other.tmp"):
        (tmp_path / "run" / name).mkdir()
        with pytest.raises(FileExistsError, match="is not empty"):
            own_files.check_free(tmp_path / "run")
        (tmp_path / "run" / name).rmdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        own_files.check_free(tmp_path / "dangling")


def test_the_first_error_is_shown(main, tmp_path, monkeypatch, capfd):
    """A full disk at the end of a failed training does not hide why it failed."""
    from fire_rl.callbacks.intervention import InterventionCallback

    def broken(self):
        if self.num_timesteps > 100:
            raise RuntimeError("the simulator broke")
        return True

    monkeypatch.setattr(InterventionCallback, "_on_step", broken)
    monkeypatch.setattr(RunFolder, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(RuntimeError, match="the simulator broke"):
        main(*SHORT, "--log-dir", tmp_path / "run")
    assert "What was learned could not be saved, either: disk full" in capfd.readouterr().err


def test_every_file_of_a_run_is_known_as_written(finished_run, trunk):
    names = {
        str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()
    }
    assert {name for name in names if not layout.is_written(name)} == set()
    assert not layout.is_written("papers/model.zip")
    assert not layout.is_written("checkpoints/notes.txt")
    assert layout.is_written(f"checkpoints/.600.tmp/{layout.MODEL}")


def test_a_model_is_written_whole_or_not_at_all(finished_run, tmp_path, monkeypatch):
    model = ALGORITHMS["dqn"].load(finished_run / "model.zip")
    save_model(model, tmp_path / "model.zip")
    before = (tmp_path / "model.zip").read_bytes()

    def half(file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, tmp_path / "model.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert (tmp_path / "model.zip").read_bytes() == before
    assert zipfile.is_zipfile(tmp_path / "model.zip")


# ------------------------------------------------------------------------------- which model


def test_play_takes_the_newest_whole_model(main, run):
    (run / "result.json").unlink()
    (run / "model.zip").unlink()
    newest, older = (run / "checkpoints" / step / "model.zip" for step in ("600", "400"))
    older.touch()  # copies and backups change times
    temporary = run / "checkpoints" / ".800.tmp"
    shutil.copytree(newest.parent, temporary)

    def played():
        code, out, err = main("--play", run, "--episodes", 1)
        assert (code, err) == (0, "")
        return out

    assert played().startswith(f"{newest}: dqn on CartPole-v1, 600 steps")
    shutil.copy(older, run / "model.zip")  # stopped at 400, gone on with, and killed
    assert f"{newest}: dqn" in played()
    newest.write_bytes(newest.read_bytes()[:5_000])
    out = played()
    assert f"{run / 'model.zip'}: dqn on CartPole-v1, 400 steps" in out
    assert f"Passed over: `{newest}` is" in out
    code, out, err = main("--play", older.parent, "--episodes", 1)
    assert (code, f"{older}: dqn" in out) == (0, True)
    (run / "model.zip").write_bytes(b"")
    older.write_bytes(b"PK")
    code, _, err = main("--play", run)
    assert (code, err.count("is no zip")) == (2, 3), err


def test_play_of_other_networks_is_refused_by_name(main, run):
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["agent"]["policy_kwargs"]["net_arch"] = [9]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    code, _, err = main("--play", run / "model.zip")
    assert (code, "model.zip holds other networks than the run's" in err) == (2, True)
