"""Buffers of other classes: asked for what SB3's have, or what is missing is named once."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from stable_baselines3.common import buffers
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer

from fire_rl import FireCallback, PlasticityMetricsCallback, apply_intervention
from fire_rl.sb3.probe import ProbeSource
from fire_rl.sb3.stored import UnreadableBuffer, filled_rows, stored_observations
from tests.helpers.models import make_model
from tests.helpers.unknown_parts import CountedReplay, HiddenReplay


def measured(algo, steps=64, **options):
    metrics = PlasticityMetricsCallback(every=16, probe_size=32)
    model = make_model(algo, **options).learn(steps, callback=[FireCallback(every=24), metrics])
    return metrics.history[-1][1], model


def own_rollout_buffer():
    """SB3's rollout buffer, written again on BaseBuffer."""
    source = inspect.getsource(RolloutBuffer).replace("class RolloutBuffer", "class Own")
    names = dict(vars(buffers))
    exec(source, names)
    assert not issubclass(names["Own"], RolloutBuffer)
    return names["Own"]


def test_a_rollout_buffer_of_another_class_is_read_as_sb3s():
    expected, _ = measured("ppo")
    found, _ = measured("ppo", rollout_buffer_class=own_rollout_buffer())
    assert found == expected
    assert "plasticity/actor/effective_rank" in found


def test_a_replay_buffer_whose_size_is_a_number():
    found, model = measured("dqn", replay_buffer_class=CountedReplay)
    assert 0 <= found["plasticity/critic/dormant_ratio"] <= 1
    assert len(ProbeSource(1000, 0).live(model)) == model.num_timesteps


@pytest.mark.parametrize("algo", ["dqn", "sac"])
def test_what_is_missing_without_observations_is_named_once(algo):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, model = measured(algo, replay_buffer_class=HiddenReplay)
        report = apply_intervention(model, "fire")
    (said,) = [str(w.message) for w in caught]
    assert "HiddenReplay is not built like SB3's buffers, it has no `observations`" in said
    assert "dormant_ratio, " in said
    assert {key.split("/")[2] for key in found} == {
        "dfi", "dfi_per_sv", "weight_norm", "spectral_norm",
    }  # fmt: skip
    assert {change.action for change in report.layers} == {"project"}
    assert report.probe_observations == 0


class Plain:
    """Whatever a test puts into it."""

    def __init__(self, **parts):
        vars(self).update(parts)


def seen(rows, *middle):
    return np.arange(rows * 5, dtype=np.float32).reshape(rows, *middle, 5)


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        ({"observations": seen(40), "size": 7}, 7),
        ({"observations": torch.as_tensor(seen(40)), "size": lambda: 7}, 7),
        ({"observations": seen(40, 1), "pos": np.int64(7), "full": False}, 7),
        ({"observations": seen(40, 1), "pos": 7, "full": True, "size": 9}, 40),
        ({"obs": seen(40), "size": np.int32(100)}, 40),
    ],
)
def test_other_layouts(parts, rows):
    model = make_model("dqn")
    model.replay_buffer = Plain(**parts)
    probe = ProbeSource(1000, 0).live(model)
    held = parts.get("observations", parts.get("obs"))
    expected = torch.as_tensor(held).reshape(-1, 5)[:rows]
    assert torch.equal(probe.observations[probe.observations[:, 0].argsort()], expected)
    assert probe.actions is None


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({}, "it has no `observations`"),
        ({"observations": [1, 2], "size": 2}, "list of shape \\(\\)"),
        ({"observations": np.zeros((40, 7)), "size": 2}, "ndarray of shape \\(40, 7\\)"),
        ({"observations": {"a": seen(4)}, "size": 2}, "not built like the observation space"),
        ({"observations": seen(40)}, "does not say how much it holds"),
        ({"observations": seen(40), "size": "many"}, "does not say how much it holds"),
        ({"observations": seen(40), "size": lambda wrong: 3}, "reading it fails \\(TypeError"),
    ],
)
def test_what_cannot_be_read_is_said(parts, why):
    model = make_model("dqn")
    model.replay_buffer = Plain(**parts)
    with pytest.warns(UserWarning, match=f"Plain is not built like SB3's buffers, .*{why}"):
        assert ProbeSource(1000, 0).live(model) is None
    assert ProbeSource(1000, 0).live(model) is None  # silent
    apply_intervention(model, "fire")


def test_critics_of_actions_need_them():
    model = make_model("sac")
    model.replay_buffer = Plain(observations=seen(40), size=7)
    with pytest.warns(UserWarning, match="no `actions` beside its observations"):
        assert ProbeSource(1000, 0).live(model) is None
    model.replay_buffer.actions = np.zeros((40, 2), np.float32)
    assert ProbeSource(1000, 0).live(model).actions.shape == (7, 2)


def test_mappings_of_observations():
    model = make_model("dqn", "dict")
    held = model.replay_buffer.observations
    found = stored_observations(model, model.replay_buffer)
    assert (set(found.parts), found.envs) == ({"image", "state"}, 2)
    with pytest.raises(UnreadableBuffer, match="lack 'state'"):
        stored_observations(model, Plain(observations={"image": held["image"]}))
    assert filled_rows(model.replay_buffer, len(found)) == 0


def test_a_rollout_buffer_that_never_calls_itself_full():
    model = make_model("ppo")
    model.rollout_buffer = Plain(observations=seen(8, 1), full=False, pos=6)
    source = ProbeSource(1000, 0)
    source.after_rollout(model)
    assert len(source.live(model)) == 6
    model.rollout_buffer = Plain(observations=seen(8, 1), full=False)
    with pytest.warns(UserWarning, match=r"it says that it is empty when a rollout has ended"):
        ProbeSource(1000, 0).after_rollout(model)


def test_an_algorithm_without_buffers_is_named(caplog):
    model = make_model("ppo")
    model.rollout_buffer = None
    for _ in range(2):
        ProbeSource(10, 0).after_rollout(model)
    (record,) = caplog.records
    assert "PPO has neither `replay_buffer` nor `rollout_buffer`: dormant_" in record.getMessage()


def test_a_failure_in_sb3s_own_buffers_is_not_hidden():
    model = make_model("dqn").learn(16)
    assert type(model.replay_buffer) is ReplayBuffer
    model.get_vec_normalize_env = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        ProbeSource(10, 0).live(model)
