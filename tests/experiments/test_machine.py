"""The description of the machine, which runs and benchmarks share."""

import os
import subprocess
from importlib.metadata import version

from benchmarks.common import machine
from experiments import machine as described
from experiments.machine import describe_machine


def test_what_a_run_notes_of_its_machine():
    here = describe_machine("cpu")
    assert list(here) == ["git", "python", "platform", "packages", "device", "cpu", "num_threads"]
    assert here["device"] == "cpu"
    assert here["cpu"]["count"] == os.cpu_count()
    assert here["packages"]["torch"] == version("torch")


def test_benchmarks_note_the_same():
    here, noted = describe_machine(), machine()
    assert list(noted) == [
        "cpu", "cores", "torch_threads", "cuda", "python", "versions", "commit", "date",
    ]  # fmt: skip
    assert noted["cpu"] == here["cpu"]["name"]
    assert noted["versions"].items() <= here["packages"].items()
    if here["git"] is not None:
        assert noted["commit"].startswith(here["git"]["commit"][:7])
        assert noted["commit"].endswith("-dirty") == here["git"]["modified"]


def test_a_change_anywhere_in_the_checkout_counts_but_for_results(tmp_path, monkeypatch):
    def git(*args):
        subprocess.run(["git", "-C", str(tmp_path), *args], check=True, capture_output=True)

    files = [tmp_path / name for name in ("experiments/machine.py", "fire_rl/a.py", "train.py")]
    result = tmp_path / "benchmarks/results/a.json"
    for file in (*files, result):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    monkeypatch.setattr(described, "__file__", str(files[0]))
    result.write_text("2")
    assert describe_machine()["git"]["modified"] is False
    for file in files:
        file.write_text("2")
        assert describe_machine()["git"]["modified"] is True
        file.write_text("1")
    assert describe_machine()["git"]["modified"] is False
