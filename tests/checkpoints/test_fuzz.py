"""Mutations of checkpoints by a seed, some sealed again: restored or refused, no code run."""

import random
import shutil
import warnings

import pytest

from benchmarks.reliability import mutations
from fire_rl.checkpoints.store import CheckpointError, check, restore, save
from tests.helpers.models import make_model


def check_checkpoints(seeds, root):
    model = make_model("dqn")
    model.learn(24)
    saved, trap, faults = save(model, root / "good").path, root / "trap", []
    for seed in seeds:
        rng = random.Random(seed)
        shutil.copytree(root / "good", root / "work", ignore=shutil.ignore_patterns(".lock"))
        path = root / "work" / saved.name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about old and complex numbers
                what, sealed = mutations.mutate_checkpoint(path, rng, trap)
                if sealed:
                    restore(model, path)
                else:
                    check(path)
        except CheckpointError as error:
            if str(path) not in str(error):
                faults.append((seed, what, str(error)))
        except Exception as error:
            faults.append((seed, what, repr(error)[:200]))
        if trap.exists():
            faults.append((seed, what, "ran code"))
        shutil.rmtree(root / "work")
    assert faults == []


def test_a_few_mutations_of_checkpoints(tmp_path):
    check_checkpoints(range(15), tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("first", range(100, 300, 50))
def test_many_mutations_of_checkpoints(first, tmp_path):
    check_checkpoints(range(first, first + 50), tmp_path)
