"""LSTMs, GRUs and RNNs gate by gate, plain and in RecurrentPPO."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fire_rl import FIRE, FireCallback, RandomOrthogonal, apply_intervention, fire_, intervene_
from fire_rl.interventions.base import Network
from fire_rl.weights.orthogonal import newton_schulz
from tests.helpers.models import IGNORE_LSTM, changed, make_model, state_of

pytestmark = pytest.mark.filterwarnings(
    IGNORE_LSTM, r"ignore:`.*` \(\w*(LSTM|GRU|RNN).* its own weights are left:UserWarning"
)
MODULES = {
    "lstm": (4, lambda: nn.LSTM(5, 6, num_layers=2, bidirectional=True)),
    "projected lstm": (4, lambda: nn.LSTM(5, 6, proj_size=3, bidirectional=True)),
    "wide lstm": (4, lambda: nn.LSTM(9, 4, bias=False)),
    "gru": (3, lambda: nn.GRU(5, 6, num_layers=2)),
    "rnn": (1, lambda: nn.RNN(5, 6, bidirectional=True)),
    "lstm cell": (4, lambda: nn.LSTMCell(5, 6)),
    "gru cell": (3, lambda: nn.GRUCell(5, 6)),
    "rnn cell": (1, lambda: nn.RNNCell(5, 6)),
}


def built(kind, dtype=torch.float64):
    torch.manual_seed(0)
    gates, make = MODULES[kind]
    return gates, nn.ModuleDict({"memory": make(), "head": nn.Linear(6, 2)}).to(dtype)


def weights_of(module):
    return {n: t.detach().clone() for n, t in module.named_parameters() if "weight_" in n}


def gates_of(name, weight, gates):
    return list(weight.chunk(1 if "_hr" in name else gates))


def polar(matrix):
    """The nearest matrix with orthonormal columns (or rows), by numpy."""
    u, _, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    return torch.from_numpy(u @ v)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(
    ("options", "factor", "tolerance"),
    [
        ({"method": "exact"}, polar, 1e-10),
        ({}, lambda matrix: newton_schulz(matrix, 10), 0),
        ({"strength": 0.5, "num_steps": 3}, lambda matrix: newton_schulz(matrix, 3), 0),
        ({"method": "exact", "scale": 0.7}, polar, 1e-10),
    ],
)
def test_each_gate_moves_to_its_own_scaled_isometry(kind, options, factor, tolerance):
    gates, module = built(kind)
    before = weights_of(module)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    changes = fire_(module, recurrent="project", **options)
    after, strength = weights_of(module), options.get("strength", 1.0)
    for name, old in before.items():
        for one, new in zip(
            gates_of(name, old, gates), gates_of(name, after[name], gates), strict=True
        ):
            scale = options.get("scale", (one.shape[0] / one.shape[1]) ** 0.5)
            expected = (1 - strength) * one + strength * scale * factor(one)
            torch.testing.assert_close(new, expected, atol=max(tolerance, 1e-12), rtol=0)
    moved = changed(state, module.state_dict())
    assert moved == {*before, "head.weight"}  # no bias
    by_name = {change.name: change for change in changes}
    assert set(by_name) == {*before, "head"}
    for name in before:
        change, blocks = by_name[name], 1 if "_hr" in name else gates
        assert (change.kind, change.action) == ("recurrent", "project")
        assert change.blocks == (("project",) * blocks if blocks > 1 else ())
        assert len(change.gates) == (blocks if blocks > 1 else 0)
        if options == {"method": "exact"}:
            assert change.dfi_after < 1e-18 < change.dfi_before
            assert change.spectrum_after == pytest.approx([1] * len(change.spectrum_after))


def test_gates_by_name_and_one_of_them_kept():
    _, module = built("lstm cell")
    before, rules = weights_of(module), ["project", "keep", "project", "project"]
    *_, ih, hh = fire_(module, recurrent="project", split={"memory.weight_ih": rules})
    assert ih.gates == hh.gates == ("input", "forget", "cell", "output")
    assert (ih.blocks, hh.blocks) == (tuple(rules), ("project",) * 4)
    after = weights_of(module)
    same = [
        torch.equal(one, two)
        for one, two in zip(
            before["memory.weight_ih"].chunk(4), after["memory.weight_ih"].chunk(4), strict=True
        )
    ]
    assert same == [False, True, False, False]
    _, module = built("gru")
    assert fire_(module, recurrent="project")[-1].gates == ("reset", "update", "new")


@pytest.mark.parametrize("kind", MODULES)
def test_kept_by_default_to_the_bit(kind):
    (_, one), (_, two) = built(kind), built(kind)
    before = weights_of(one)
    changes = intervene_(one, FIRE())
    fire_(two, recurrent="keep")
    assert not changed(before, weights_of(one))
    assert not changed(dict(one.named_parameters()), dict(two.named_parameters()))
    assert [change.name for change in changes.layers] == ["head"]
    assert set(changes.kept) == set(before)


def test_include_exclude_frozen_and_biases():
    def moved(freeze=(), **options):
        _, module = built("lstm")
        for name in freeze:
            module.get_parameter(name).requires_grad_(False)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        changes = intervene_(module, FIRE(recurrent="project", **options))
        return changed(before, module.state_dict()), changes, module

    names, _, _ = moved(include=["memory.weight_hh_*"], exclude=["*_reverse"])
    assert names == {"memory.weight_hh_l0", "memory.weight_hh_l1"}
    names, _, _ = moved(hidden="keep", head="keep")
    assert len(names) == 8
    names, changes, _ = moved(["memory.weight_ih_l0", "memory.bias_hh_l1"], biases="zero")
    assert "memory.weight_ih_l0" not in names
    assert changes.kept == {"memory.weight_ih_l0": "frozen"}
    assert "memory.bias_hh_l1" not in names
    assert {n for n in names if "bias" in n} == set(changes.others)
    names, _, module = moved(
        biases="zero", split={"memory.weight_hh_l0": ["project", "keep", "project", "project"]}
    )
    kept = [bool(part.any()) for part in module["memory"].bias_hh_l0.chunk(4)]
    assert kept == [False, True, False, False]
    names, _, _ = moved(only=None, num_steps=5, split="by_name")
    assert len(names) == 9
    with pytest.raises(ValueError, match=r"pattern 'memory\.weight_hh_l0' matches no layer"):
        FIRE(include=["memory.weight_hh_l0"]).check([Network.from_module(built("lstm")[1])])
    with pytest.raises(ValueError, match="`recurrent` must be one of 'keep', 'project'"):
        FIRE(recurrent="projekt")


def test_moments_of_the_changed_weights_only_are_forgotten():
    def trained(**options):
        _, module = built("lstm", torch.float32)
        optimizer = torch.optim.Adam(module.parameters())
        module["head"](module["memory"](torch.randn(3, 2, 5))[0][..., :6]).sum().backward()
        optimizer.step()
        fire_(module, optimizer=optimizer, **options)
        return {n for n, p in module.named_parameters() if p not in optimizer.state}

    assert trained() == {"head.weight"}
    forgotten = trained(recurrent="project")
    assert forgotten == {"head.weight", *weights_of(built("lstm")[1])}


def test_weight_norm_and_shared_weights():
    _, module = built("lstm cell")
    weight_norm(module["memory"], "weight_hh")
    fire_(module, recurrent="project", method="exact")
    for gate in module["memory"].weight_hh.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6).double(), atol=1e-10, rtol=0)
    _, module = built("gru cell")
    module["other"] = nn.GRUCell(5, 6).double()
    module["other"].weight_hh = module["memory"].weight_hh
    names = [c.name for c in fire_(module, recurrent="project") if c.name.endswith("weight_hh")]
    assert names == ["memory.weight_hh"]


@pytest.mark.parametrize("kind", MODULES)
def test_random_isometries_as_a_control(kind):
    gates, module = built(kind)
    kept, before = weights_of(module), {n: t.clone() for n, t in module.state_dict().items()}
    intervene_(module, RandomOrthogonal())
    assert changed(before, module.state_dict()) == {"head.weight"}
    changes = intervene_(module, RandomOrthogonal(recurrent="draw"))
    assert all(change.dfi_after < 1e-18 for change in changes.layers)
    for name, weight in weights_of(module).items():
        assert not torch.equal(weight, kept[name])
        for gate in gates_of(name, weight, gates):
            s = torch.linalg.svdvals(gate) / (gate.shape[0] / gate.shape[1]) ** 0.5
            torch.testing.assert_close(s, torch.ones_like(s), atol=1e-10, rtol=0)


@pytest.mark.compat(
    section="What is particular to an algorithm",
    algorithm="recurrent_ppo",
    setting="FIRE(recurrent='project')",
    checked="Each gate is moved to its own scaled isometry; training goes on.",
)
@pytest.mark.parametrize(
    ("options", "lstms"),
    [
        ({}, {"lstm_actor", "lstm_critic"}),
        ({"enable_critic_lstm": False, "shared_lstm": True}, {"lstm_actor"}),
        ({"n_lstm_layers": 2, "enable_critic_lstm": False}, {"lstm_actor"}),
    ],
)
def test_recurrent_ppo(options, lstms):
    model = make_model("recurrent_ppo", policy_kwargs=options).learn(32)
    states = [t.clone() for pair in model._last_lstm_states for t in pair]
    before = state_of(model)
    report = apply_intervention(model, FIRE(recurrent="project", method="exact"))
    moved = {name for name in changed(before, state_of(model)) if "lstm" in name}
    assert {name.partition(".")[0] for name in moved} == lstms
    assert moved == {name for name in before if "lstm" in name and "weight" in name}
    assert {change.name for change in report.layers if change.kind == "recurrent"} == moved
    for name in moved:
        assert model.policy.get_parameter(name) not in model.policy.optimizer.state
        for gate in model.policy.get_parameter(name).detach().double().chunk(4):
            s = torch.linalg.svdvals(gate) / (gate.shape[0] / gate.shape[1]) ** 0.5
            torch.testing.assert_close(s, torch.ones_like(s), atol=1e-5, rtol=0)
    kept = [t for pair in model._last_lstm_states for t in pair]
    assert all(torch.equal(one, two) for one, two in zip(states, kept, strict=True))
    model.learn(32, reset_num_timesteps=False)


def test_the_ratio_of_the_first_minibatch_after_surgery_is_one():
    """As RecurrentPPO itself computes it: on whole sequences, from their first states."""
    model = make_model("recurrent_ppo")
    model.learn(16)
    fire = FireCallback(at=[32], recurrent="project")
    firsts, fresh = [], []
    get, evaluate = model.rollout_buffer.get, model.policy.evaluate_actions

    def watched_get(*args):
        for number, batch in enumerate(get(*args)):
            fresh.append(batch if number == 0 else None)
            yield batch

    def watched_evaluate(*args):
        found = evaluate(*args)
        batch = fresh[-1] if fresh else None
        if batch is not None:
            ratio = (found[1].detach() - batch.old_log_prob).exp()
            firsts.append((model.num_timesteps, ratio[batch.mask > 1e-8]))
        return found

    model.rollout_buffer.get, model.policy.evaluate_actions = watched_get, watched_evaluate
    model.learn(32, callback=fire, reset_num_timesteps=False)
    assert [report.num_timesteps for report in fire.reports] == [32]
    ratio = next(ratio for step, ratio in firsts if step == 48)
    torch.testing.assert_close(ratio, torch.ones(8), atol=1e-6, rtol=0)
    trained = [ratio for step, ratio in firsts if step == 48][1]  # the second epoch
    assert (trained - 1).abs().max() > 1e-4
