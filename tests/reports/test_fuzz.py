"""Mutations of real run folders by a seed: a report, or one line; nothing run, nothing hangs."""

import random
import shutil
import time

import pytest

from benchmarks.reliability import mutations
from fire_rl.reports.experiment import make_experiment
from fire_rl.reports.runs import read_runs
from fire_rl.reports.writing import make_tables
from fire_rl.utils.limits import Limits


def mutated(source, folder, seed, trap):
    """A copy of a run with up to three files changed, and what was changed."""
    rng = random.Random(seed)
    run = folder / "fire" / "s0"
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("model.zip"))
    return [mutations.mutate_folder(run, rng, trap) for _ in range(rng.choice((1, 1, 2, 3)))]


def check_tables(seeds, source, root):
    """Read mutated runs and make their tables: the pictures would take most of the time."""
    trap, faults = root / "trap", []
    for seed in seeds:
        what = mutated(source, root / "work", seed, trap)
        began = time.monotonic()
        try:
            experiment = make_experiment(read_runs([root / "work"], (), (), Limits()))
            for table in make_tables(experiment, "mean"):
                assert table.to_markdown().encode()
                assert table.to_csv().encode()
        except (ValueError, OSError) as error:
            if "s0" not in str(error) and str(root / "work") not in str(error):
                faults.append((seed, what, str(error)))
        except Exception as error:
            faults.append((seed, what, repr(error)))
        if trap.exists() or time.monotonic() - began > mutations.SECONDS:
            faults.append((seed, what, "ran code, or for long"))
        shutil.rmtree(root / "work")
    assert faults == []


def test_a_few_mutations_of_run_folders(real_runs, tmp_path):
    check_tables(range(12), real_runs / "fire" / "s0", tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("first", range(0, 360, 60))
def test_many_mutations_of_run_folders(first, real_runs, tmp_path):
    check_tables(range(first, first + 60), real_runs / "fire" / "s0", tmp_path)


@pytest.mark.full
def test_whole_reports_of_mutated_run_folders(real_runs, tmp_path):
    faults = []
    for seed in range(1000, 1020):
        folder, trap = tmp_path / "work", tmp_path / "trap"
        what = mutated(real_runs / "fire" / "s0", folder, seed, trap)
        words = ["report", folder, "--out", tmp_path / "out"]
        if fault := mutations.fault_of(words, trap, named=folder / "fire" / "s0"):
            faults.append((seed, what, fault))
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert faults == []
