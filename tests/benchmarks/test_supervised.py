"""The demonstration on plain torch models runs; its figures are made by the benchmark itself."""

import math

import pytest
import torch

from benchmarks.learning.supervised import (
    GPT,
    SHRINK,
    ViT,
    continued_pretraining,
    make_cnn,
    warm_start,
)
from fire_rl import FIRE, fire_


def test_the_presets_fit_the_models():
    actions = {
        change.name: change.action for change in fire_(ViT(), preset="paper_vit")
    }  # fmt: skip
    touched = {name for name, action in actions.items() if action == "project"}
    assert touched == {f"layers.{i}.attn.to_{part}" for i in range(2) for part in "qk"}
    gpt = GPT(30)
    changes = fire_(gpt, preset="paper_gpt")
    assert all(change.action == "project" for change in changes)
    assert sum(change.blocks == ("project",) * 3 for change in changes) == 2
    assert gpt.lm_head.weight is gpt.wte.weight
    assert make_cnn()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_continued_pretraining_runs():
    arms = {"fire": FIRE.paper_gpt(), "shrink_and_perturb": SHRINK, "reset": "reset"}
    results = continued_pretraining(arms, steps=4, seed=0)
    assert set(results) == {*arms, "cold"}
    assert all(math.isfinite(loss) for row in results.values() for loss in row.values())
    # A drawn model knows nothing of the text: as bad as one that never saw any.
    assert results["reset"]["just_after"] == pytest.approx(results["cold"]["just_after"], rel=0.1)


@pytest.mark.full
def test_warm_start_runs():
    pytest.importorskip("sklearn", reason="the extra `bench`")
    results = warm_start(make_cnn, {"none": "none", "fire": FIRE.paper_vision()}, seed=0)
    assert results["none"]["epoch_20"] > 90
