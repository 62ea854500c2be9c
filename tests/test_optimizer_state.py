"""Forgetting moments and step counts, for any torch optimizer."""

import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from fire_rl.optimizer_state import forget

OPTIMIZERS = [
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"fused": True}),
    (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.RMSprop, {"momentum": 0.9}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.5}),
    (torch.optim.Adadelta, {}),
    (torch.optim.NAdam, {}),
    (RMSpropTFLike, {}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_a_forgotten_parameter_moves_as_under_a_new_optimizer(kind, options):
    def step(optimizer):
        optimizer.zero_grad()
        ((a * 3).sum() + (b * b).sum()).backward()
        optimizer.step()

    torch.manual_seed(0)
    a, b = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(4))
    optimizer = kind([{"params": [a]}, {"params": [b]}], **options)
    for _ in range(5):
        step(optimizer)
    assert forget(optimizer, [a]) == 1
    kept = {key: torch.as_tensor(value).clone() for key, value in optimizer.state[b].items()}
    start = a.detach().clone()
    step(optimizer)
    moved = a.detach().clone()
    with torch.no_grad():
        a.copy_(start)
    step(kind([a], **options))
    torch.testing.assert_close(moved, a.detach())
    if "step" in kept:
        assert optimizer.state[b]["step"] == kept["step"] + 1


def test_parameters_of_others_are_ignored():
    mine, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([mine])
    assert forget(optimizer, [other]) == 0
    assert forget(optimizer, [mine]) == 0  # no step has been taken
