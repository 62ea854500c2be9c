"""`fire_` on plain modules: every rule, in place, reported."""

import pytest
import torch
from torch import nn

from fire_rl import FIRE, deviation_from_isometry, fire_, isometry_scale, polar_factor


def make_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 12), nn.LayerNorm(12),
        nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip


def snapshot(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(module, before):
    return {n for n, tensor in module.state_dict().items() if not torch.equal(tensor, before[n])}


def test_defaults_change_weights_in_place_and_nothing_else():
    module = make_network()
    before, parameters = snapshot(module), list(module.parameters())
    pointers = [parameter.data_ptr() for parameter in parameters]
    changes = fire_(module)
    assert changed(module, before) == {"0.weight", "3.weight", "6.weight"}
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    assert pointers == [parameter.data_ptr() for parameter in module.parameters()]
    assert [change.name for change in changes] == ["0", "3", "6"]
    assert [change.action for change in changes] == ["project"] * 3
    for change in changes:
        old, new = before[f"{change.name}.weight"], module.state_dict()[f"{change.name}.weight"]
        assert change.sfe == pytest.approx(float((new - old).square().sum()), rel=1e-4)
        assert change.norm_before == pytest.approx(float(old.norm()), rel=1e-5)
        assert change.norm_after == pytest.approx(float(new.norm()), rel=1e-5)
        assert change.dfi_after < change.dfi_before


def test_rules_by_kind_of_layer():
    module = make_network()
    before = snapshot(module)
    changes = fire_(module, conv="keep", hidden="reset", head="project")
    assert [change.action for change in changes] == ["keep", "reset", "project"]
    assert changed(module, before) == {"3.weight", "3.bias", "6.weight"}


def test_reset_draws_the_modules_own_initialisation_and_is_seeded():
    one, two, three = make_network(), make_network(), make_network()
    state = torch.get_rng_state()
    for module, seed in ((one, 1), (two, 1), (three, 2)):
        fire_(module, hidden="reset", seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one[3].weight, two[3].weight)
    assert not torch.equal(one[3].weight, three[3].weight)
    assert one[3].weight.abs().max() <= (8 * 16) ** -0.5  # torch's uniform bound


@pytest.mark.parametrize("strength", [0.25, 1.0])
@pytest.mark.parametrize("scale", ["published", "frobenius_optimal", 0.7])
def test_strength_and_scale(strength, scale):
    layer = nn.Linear(20, 9)
    weight = layer.weight.detach().clone()
    factor = polar_factor(weight)
    if scale == "published":
        number = isometry_scale(weight.shape)
    else:
        number = float(torch.linalg.svdvals(weight).mean()) if isinstance(scale, str) else scale
    (change,) = fire_(layer, method="exact", strength=strength, scale=scale)
    expected = (1 - strength) * weight + strength * number * factor
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert change.dfi_after == pytest.approx(
        float(deviation_from_isometry(expected, number)), rel=1e-3, abs=1e-8
    )


def test_frobenius_optimal_is_the_nearest_scaled_isometry():
    errors = {}
    for scale in ("frobenius_optimal", "published", 0.3, 0.5):
        torch.manual_seed(0)
        errors[scale] = fire_(nn.Linear(20, 9), method="exact", scale=scale)[0].sfe
    assert min(errors, key=errors.get) == "frobenius_optimal"


def test_biases_and_norm_layers():
    module = make_network()
    with torch.no_grad():
        module[4].weight.fill_(3.0)
    fire_(module, biases="zero", norm_layers="reset")
    assert module[3].bias.count_nonzero() == 0
    assert torch.equal(module[4].weight, torch.ones(12))


def test_the_report_holds_the_spectrum_before_and_after():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 30), nn.Conv2d(2, 3, 2), nn.Linear(4, 4))
    scaled = module[0].weight.detach() / isometry_scale((30, 40))
    before = torch.linalg.svdvals(scaled).tolist()
    linear, conv, kept = fire_(module, method="exact", exclude=["2"])
    assert len(linear.spectrum_before) == 17
    picked = [before[round(29 * k / 16)] for k in (0, 4, 16)]
    assert [linear.spectrum_before[k] for k in (0, 4, 16)] == pytest.approx(picked, rel=1e-3)
    assert linear.spectrum_after == pytest.approx([1.0] * 17, rel=1e-3)
    assert len(conv.spectrum_after) == 8  # two for each of four taps: all of them
    assert kept.spectrum_before == kept.spectrum_after == ()


def test_include_and_exclude():
    module = make_network()
    assert [c.action for c in fire_(module, include=["3", "6"], exclude="6")] == [
        "keep", "project", "keep",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"`exclude` pattern 'heads' matches no layer; .* 0, 3, 6"):
        fire_(module, exclude=["heads"])


def test_tied_weights_change_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.out = nn.Linear(4, 10, bias=False)
            self.out.weight = self.embedding.weight

    module = Tied()
    (change,) = fire_(module, method="exact")
    assert change.name == "out"
    assert change.dfi_after == pytest.approx(0, abs=1e-6)
    assert module.out.weight is module.embedding.weight
    (kept,) = fire_(module, exclude=["out"])
    assert kept.action == "keep"


def test_heads_are_checked():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"`heads` must be one of '0', '2', '4', got 'nope'"):
        fire_(module, heads=["nope"])
    with pytest.raises(ValueError, match="got '24'"):
        fire_(module, heads="24")
    actions = [change.action for change in fire_(module, heads="4", head="keep")]
    assert actions == ["project", "project", "keep"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["newton_schulz", "exact"])
def test_other_precisions(dtype, method):
    module = make_network().to(dtype)
    changes = fire_(module, method=method)
    assert module[0].weight.dtype == dtype
    if method == "exact":  # rounding leaves what the dtype cannot hold
        epsilon = torch.finfo(dtype).eps
        assert all(c.dfi_after / c.num_singular_values < 10 * epsilon for c in changes)


def test_frozen_weights_are_kept_and_reported():
    module = make_network()
    module[3].weight.requires_grad_(False)
    before = snapshot(module)
    assert [change.action for change in fire_(module)] == ["project", "keep", "project"]
    assert "3.weight" not in changed(module, before)


def test_a_frozen_bias_is_kept():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    module[2].bias.requires_grad_(False)
    before = module[2].bias.clone()
    fire_(module, biases="zero")
    assert torch.equal(module[2].bias, before)
    assert not module[0].bias.any()


def test_zero_weights_survive():
    module = nn.Linear(5, 3)
    nn.init.zeros_(module.weight)
    for method in ("newton_schulz", "exact"):
        for scale in ("published", "frobenius_optimal"):
            (change,) = fire_(module, method=method, scale=scale)
            assert change.norm_after == 0
    (change,) = fire_(module, method="exact", null_directions="complete")
    assert change.dfi_after < 1e-10


def test_non_finite_weights_are_named_and_nothing_changes():
    module = make_network()
    with torch.no_grad():
        module[3].bias[2] = float("nan")
    before = snapshot(module)
    with pytest.raises(ValueError, match=r"`3\.bias` .* holds NaN or infinite"):
        fire_(module)
    assert torch.equal(module[0].weight, before["0.weight"])


def test_an_optimizer_forgets_what_changed():
    module = make_network()
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(2, 3, 6, 6)).sum().backward()
    optimizer.step()
    fire_(module, optimizer=optimizer, head="keep")
    assert module[0].weight not in optimizer.state
    assert module[0].bias in optimizer.state
    assert module[6].weight in optimizer.state
    fire_(module, optimizer=optimizer, optimizer_state="all")
    assert not optimizer.state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methd": "exact"}, r"no option 'methd'; .* Did you mean 'method'\?"),
        ({"method": "exakt"}, r"`method` must be one of .*, got 'exakt'\. Did you mean 'exact'\?"),
        ({"num_steps": 0}, "`num_steps` must be a whole number of at least 1, got 0"),
        ({"scale": -1.0}, "`scale` must be a number above 0"),
        ({"scale": "publisched"}, "Did you mean 'published'"),
        ({"strength": 1.5}, "`strength` must be a number above 0 and at most 1, got 1.5"),
        ({"hidden": "skip"}, "`hidden` must be one of 'project', 'reset', 'keep'"),
        ({"target": "keep"}, "`target` concerns agents"),
        ({"hidden": "reset", "source": "initial"}, "`source='initial'` needs the weights"),
        ({"include": 3}, "`include` must be a name or a list of names, got 3"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fire_(make_network(), **options)


def test_presets():
    dqn, sac = FIRE.paper_dqn(), FIRE.paper_sac(num_steps=5)
    assert (dqn.conv, dqn.hidden, dqn.head, dqn.source) == ("project", "reset", "reset", "initial")
    assert dqn.optimizer_state == "keep"
    assert (sac.optimizer_state, sac.entropy_temperature, sac.num_steps) == ("all", "reset", 5)
