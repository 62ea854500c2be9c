"""Measuring: parts of a probe add up to the whole."""

import pytest
import torch

import fire_rl.sb3.measurement
from fire_rl.sb3.measurement import activation_metrics, observe, policy_change
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.probe import ProbeSource
from tests.helpers.models import make_model


@pytest.mark.parametrize(
    ("algo", "observation"), [("dqn", "cnn"), ("ppo", "cnn"), ("ppo", "dict"), ("sac", "mlp")]
)
def test_a_probe_is_observed_in_parts_as_at_once(algo, observation, monkeypatch):
    model = make_model(algo, observation)
    model.learn(96)
    probe = ProbeSource(50, seed=0).live(model)
    groups = ModelView(model).groups
    assert [len(part) for part in probe.split(10**9)] == [len(probe)]
    numbers = sum(
        tensor.numel()
        for tensor in (
            probe.observations.values()
            if isinstance(probe.observations, dict)
            else [probe.observations]
        )
    )
    sizes = [len(part) for part in probe.split(numbers // 7)]
    assert sum(sizes) == len(probe)
    assert 7 <= len(sizes) <= 9
    assert [len(part) for part in probe.split(1)] == [1] * len(probe)

    whole = observe(ModelView(model), probe)
    monkeypatch.setattr(fire_rl.sb3.measurement, "_ELEMENTS_AT_ONCE", numbers // 7)
    parts = observe(ModelView(model), probe)
    assert (len(whole.outputs), len(parts.outputs)) == (1, len(sizes))
    for group in groups:
        expected = activation_metrics(group, whole.activations)
        found = activation_metrics(group, parts.activations)
        assert found.pooled == pytest.approx(expected.pooled, rel=1e-4, nan_ok=True)
        assert found.layers.keys() == expected.layers.keys()

    with torch.no_grad():
        for group in groups:
            for layer in group.online.layers:
                layer.weight.mul_(1.5)
    changed = policy_change(parts.outputs, observe(ModelView(model), probe).outputs)
    monkeypatch.undo()
    expected = policy_change(whole.outputs, observe(ModelView(model), probe).outputs)
    assert changed == pytest.approx(expected, rel=1e-4)
    assert changed
