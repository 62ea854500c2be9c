"""Kinds of modules that people have, in plain torch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fire_rl import (
    fire_,
    intervene_,
    isometry_scale,
    polar_factor,
)
from fire_rl.weights.layers import weight_layers

INTERVENTIONS = [
    {"name": "fire", "method": "exact"},
    {"name": "random_orthogonal"},
    {"name": "reset"},
    {"name": "shrink_and_perturb", "keep": 0.5},
]


def isometric(layer):
    values = torch.linalg.svdvals(layer.matrices() / layer.scale)
    torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-4, atol=1e-4)


def snapshot(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def differing(module, before):
    return {n for n, tensor in module.state_dict().items() if not torch.equal(tensor, before[n])}


# --- weight norm


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(3, 4, 2)])
def test_under_weight_norm_the_effective_weight_becomes_isometric(make, dim):
    torch.manual_seed(0)
    module = nn.Sequential(weight_norm(make(), dim=dim))
    with torch.no_grad():
        module[0].parametrizations.weight.original0.mul_(1.7)
    old = module[0].weight.detach().clone()
    optimizer = torch.optim.Adam(module.parameters())
    module[0].weight.square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        module[0].weight = old.clone()
    pointers = [parameter.data_ptr() for parameter in module.parameters()]
    (change,) = fire_(module, method="exact", optimizer=optimizer)
    (layer,) = weight_layers(module)
    isometric(layer)
    plain = copy.deepcopy(layer)
    expected = plain.from_matrices(polar_factor(plain.matrices(old)) * layer.scale)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-4, atol=1e-6)
    assert pointers == [parameter.data_ptr() for parameter in module.parameters()]
    assert change.action == "project"
    assert change.sfe == pytest.approx(float((expected - old).square().sum()), rel=1e-3)
    assert change.dfi_after < 1e-8
    assert not optimizer.state


def test_weight_norm_survives_zero_rows_and_later_training():
    module = nn.Sequential(weight_norm(nn.Linear(5, 4)))
    with torch.no_grad():
        module[0].parametrizations.weight.original0[1] = 0
    fire_(module, method="exact")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values())
    assert module[0].weight[1].abs().max() < 1e-12
    module(torch.ones(2, 5)).sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    assert bool(torch.isfinite(module[0].weight).all())


@pytest.mark.parametrize("spec", INTERVENTIONS, ids=lambda spec: spec["name"])
def test_every_intervention_on_effective_weights(spec):
    torch.manual_seed(0)
    module = nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3))
    old, beginning = module[0].weight.detach().clone(), snapshot(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    now = module[0].weight.detach().clone()
    begins = "reset" in spec["name"] or "shrink" in spec["name"]
    source = {"source": "initial"} if begins else {}
    changes = intervene_(module, {**spec, **source}, initial=beginning)
    weight = module[0].weight.detach()
    assert changes.layers[0].action in ("project", "draw", "reset", "shrink_and_perturb")
    assert changes.layers[0].norm_after == pytest.approx(float(weight.norm()), rel=1e-4)
    if spec["name"] == "reset":
        torch.testing.assert_close(weight, old)
    elif spec["name"] == "shrink_and_perturb":
        torch.testing.assert_close(weight, (old + now) / 2)
    else:
        isometric(weight_layers(module)[0])


def test_fresh_weights_under_weight_norm_are_drawn_anew():
    torch.manual_seed(0)
    module = nn.Sequential(weight_norm(nn.Linear(40, 5)))
    with torch.no_grad():
        module[0].parametrizations.weight.original0.mul_(100)
    before = module[0].weight.detach().clone()
    intervene_(module, "reset", seed=3)
    assert module[0].weight.abs().max() <= 40**-0.5 + 1e-6
    assert not torch.equal(module[0].weight, before)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(3, 4, 2)])
def test_the_old_weight_norm_is_as_the_new_one(make, dim):
    torch.manual_seed(0)
    new = nn.Sequential(weight_norm(make(), dim=dim))
    old = nn.Sequential(nn.utils.weight_norm(make(), dim=dim))
    halves = new[0].parametrizations.weight
    with torch.no_grad():
        halves.original0.mul_(1.7)
        old[0].weight_g.copy_(halves.original0)  # the hook has not run since
        old[0].weight_v.copy_(halves.original1)
        old[0].bias.copy_(new[0].bias)
    optimizer = torch.optim.Adam(old.parameters())
    for parameter in old.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    beginning = snapshot(old)
    one, two = fire_(new, method="exact"), fire_(old, method="exact", optimizer=optimizer)
    assert one == two
    assert set(optimizer.state) == {old[0].bias}
    assert torch.equal(old[0].weight_g, halves.original0)
    x = torch.randn(3, 6) if isinstance(new[0], nn.Linear) else torch.randn(3, 3, 5, 5)
    torch.testing.assert_close(old(x), new(x))
    with pytest.raises(ValueError, match=r"`0` has the old .*weight_norm .* pass `fresh=`"):
        intervene_(old, "reset")
    intervene_(old, {"name": "reset", "source": "initial"}, initial=beginning)
    assert not differing(old, beginning)
    old[0].weight_v.requires_grad_(False)
    (kept,) = fire_(old)
    assert kept.frozen


# --- interventions on plain modules


class WithPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(3, 4))
        self.linear = nn.Linear(4, 2)
        self.register_buffer("mask", torch.ones(3))


def test_reset_of_a_plain_module():
    torch.manual_seed(0)
    module = WithPositions()
    beginning = snapshot(module)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    with pytest.raises(ValueError, match=r"`positions` cannot be drawn anew: .*`fresh=`"):
        intervene_(module, "reset")
    changes = intervene_(module, "reset", fresh=WithPositions, seed=1)
    assert module.positions.abs().max() == 0
    assert module.linear.weight.abs().max() <= 0.5
    assert changes.others["positions"] == "reset"
    intervene_(module, {"name": "reset", "source": "initial"}, initial=beginning)
    assert not differing(module, beginning)
    with pytest.raises(ValueError, match="`source='initial'` needs the weights"):
        intervene_(module, {"name": "reset", "source": "initial"})


def test_shrink_and_perturb_of_a_plain_module():
    module = WithPositions()
    beginning = snapshot(module)
    with torch.no_grad():
        module.positions.add_(1)
        module.linear.weight.add_(1)
    spec = {"name": "shrink_and_perturb", "keep": 0.75, "source": "initial"}
    intervene_(module, spec, initial=beginning)
    torch.testing.assert_close(module.positions.detach(), torch.full((3, 4), 0.75))
    torch.testing.assert_close(module.linear.weight.detach(), beginning["linear.weight"] + 0.75)


@pytest.mark.parametrize("name", ["redo", "entropy_temperature_reset"])
def test_what_concerns_agents_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` concerns agents"):
        intervene_(nn.Linear(2, 2), name)


def test_only_the_optimizer_is_reset():
    module = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = snapshot(module)
    intervene_(module, "optimizer_reset", optimizer=optimizer)
    assert not optimizer.state
    assert not differing(module, before)


# --- kept and reported


def test_embeddings_frozen_and_recurrent_weights_are_kept_and_named():
    module = nn.ModuleDict(
        {
            "embed": nn.Embedding(7, 4), "frozen": nn.Linear(4, 4), "rnn": nn.GRU(4, 4),
            "head": nn.Linear(4, 2),
        }
    )  # fmt: skip
    module["frozen"].weight.requires_grad_(False)
    before = snapshot(module)
    with pytest.warns(UserWarning, match=r"`rnn` \(GRU\)"):
        changes = intervene_(module, "fire")
    assert differing(module, before) == {"head.weight"}
    assert changes.kept["embed.weight"] == "embedding"
    assert changes.kept["frozen.weight"] == "frozen"
    assert changes.kept["rnn.weight_ih_l0"] == "GRU"
    assert [(c.name, c.action, c.frozen) for c in changes.layers] == [
        ("frozen", "keep", True), ("head", "project", False),
    ]  # fmt: skip


def test_batch_norm_statistics_and_layer_norm_are_kept_or_reset():
    module = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.LayerNorm(12))
    module(torch.randn(4, 1, 3, 3) + 5)
    before = snapshot(module)
    fire_(module)
    assert differing(module, before) == {"0.weight"}
    fire_(module, norm_layers="reset")
    assert torch.equal(module[1].running_mean, torch.zeros(3))


# --- torch.compile


def compiled(module):
    return torch.compile(module, backend="eager")


def test_a_compiled_module_goes_on_with_the_new_weights():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    module, x = compiled(plain), torch.randn(3, 4)
    before = module(x)
    beginning = snapshot(module)  # names of the compiled module
    (_, head) = fire_(module, exclude=["0"], method="exact")
    assert (head.name, head.action) == ("2", "project")
    assert not torch.equal(module(x), before)
    torch.testing.assert_close(module(x), plain(x))
    values = torch.linalg.svdvals(plain[2].weight)
    torch.testing.assert_close(values, torch.full_like(values, isometry_scale((2, 8))))
    intervene_(module, {"name": "reset", "source": "initial"}, initial=beginning)
    torch.testing.assert_close(module(x), before)
    intervene_(module, "reset", fresh=lambda: copy.deepcopy(plain))
