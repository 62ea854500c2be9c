"""Mutations of real files by a seed: a result, or one line; no code run, nothing left behind."""

import os
import random
import shutil
import warnings

import pytest
import torch
from torch import nn

from benchmarks.reliability import mutations
from tests.files.test_cli import saved

KINDS = (("dqn", "mlp"), ("ppo", "dict"), ("sac", "mlp"))


def state_dict():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Linear(16, 8), nn.LayerNorm(8), nn.MultiheadAttention(8, 2),
        nn.LSTM(4, 4), nn.Linear(8, 3),
    )  # fmt: skip
    return mutations.packed({"epoch": 1, "model": module.state_dict()})


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    found = {}
    for algo, observation in KINDS:
        folder = tmp_path_factory.mktemp(algo)
        found[algo] = saved(folder, algo, observation)[1].read_bytes()
    return found


def check_files(seeds, originals, root):
    trap, bare, faults = root / "trap", state_dict(), []
    for seed in seeds:
        rng, folder = random.Random(seed), root / "work"
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about what is deprecated
            if rng.random() < 0.6:
                path, source = folder / "model.zip", originals[rng.choice(list(originals))]
                what, raw = mutations.mutated_zip(source, rng, trap)
            else:
                path = folder / "model.pt"
                what, raw = mutations.mutated_state_dict(bare, rng, trap)
        path.write_bytes(raw)
        out = folder / f"new{path.suffix}"
        for words in (["inspect", path], ["apply", path, "--out", out]):
            if fault := mutations.fault_of(words, trap, named=path):
                faults.append((seed, what, words[0], fault))
        if not {*os.listdir(folder)} <= {path.name, out.name} or path.read_bytes() != raw:
            faults.append((seed, what, os.listdir(folder)))
        shutil.rmtree(folder)
    assert faults == []
    assert [*root.iterdir()] == []


def test_a_few_mutations_of_files(originals, tmp_path):
    check_files(range(10), originals, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("first", range(0, 600, 100))
def test_many_mutations_of_files(first, originals, tmp_path):
    check_files(range(first, first + 100), originals, tmp_path)
