"""Forgetting moments and step counts, for any torch optimizer."""

import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from fire_rl.interventions.optimizer_state import forget, forget_entries

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


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_forgotten_entries_move_as_under_a_new_optimizer_and_others_remember(kind, options):
    def step(optimizer, parameter):
        optimizer.zero_grad()
        (3 * parameter.sum() + (parameter * parameter).sum()).backward()
        optimizer.step()

    torch.manual_seed(0)
    a, b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))
    optimizer = kind([a, b], **options)
    for _ in range(5):
        step(optimizer, a)
        step(optimizer, b)
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    live = optimizer.state[a]
    kept = {key: torch.as_tensor(value).clone() for key, value in live.items()}
    other = {key: torch.as_tensor(value).clone() for key, value in optimizer.state[b].items()}
    assert forget_entries(optimizer, [(a, mask)]) == 1
    assert optimizer.state[a] is live
    assert list(live) == list(kept)
    for key, value in live.items():
        after = torch.as_tensor(value)
        assert (after.dtype, after.device) == (kept[key].dtype, kept[key].device)
        if after.shape == a.shape:
            assert torch.equal(after[~mask], kept[key][~mask])
            assert not torch.equal(after[mask], kept[key][mask])
            if kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
                assert not after[mask].any()
        elif key == "step":
            assert after == 0
        assert torch.equal(torch.as_tensor(optimizer.state[b].get(key)), other[key])
    start = a.detach().clone()
    step(optimizer, a)
    moved = a.detach().clone()
    with torch.no_grad():
        a.copy_(start)
    step(kind([a], **options), a)
    torch.testing.assert_close(moved[mask], a.detach()[mask])


def test_what_the_step_count_costs_the_other_entries():
    """As the docstring says: 0.32 of a normal step at first, no less than 0.15."""
    a = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([a], lr=1.0, eps=0.0)

    def step():
        start = a.detach().clone()
        a.grad = torch.ones(2)
        optimizer.step()
        return (start - a.detach())[1].item()

    for _ in range(20_000):
        normal = step()
    assert normal == pytest.approx(1, rel=1e-3)
    forget_entries(optimizer, [(a, torch.tensor([True, False]))])
    steps = [step() for _ in range(1000)]
    assert steps[0] == pytest.approx(0.316, abs=2e-3)
    assert min(steps) == pytest.approx(0.15, abs=5e-3)
    assert (steps[99], steps[999]) == pytest.approx((0.31, 0.80), abs=0.01)


def test_entries_of_others_or_before_the_first_step_are_ignored():
    mine, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([mine])
    everything = torch.tensor([True])
    assert forget_entries(optimizer, [(other, everything), (mine, everything)]) == 0
    assert not optimizer.state
