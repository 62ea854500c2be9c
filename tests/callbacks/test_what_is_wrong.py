"""Messages that name the cause: weights that are NaN, an algorithm without rollout hooks."""

import warnings

import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from fire_rl import FireCallback, PlasticityMetricsCallback, apply_intervention
from tests.helpers.models import make_model


class Poison(BaseCallback):
    """From a step on, one number of one tensor is not finite."""

    def __init__(self, value, name="q_net.q_net.2.weight"):
        super().__init__()
        self.value, self.name = value, name

    def _on_step(self):
        if self.num_timesteps == 48:
            with torch.no_grad():
                self.model.policy.get_parameter(self.name).view(-1)[0] = self.value
        return True


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_called_nan_weights(value):
    metrics = PlasticityMetricsCallback(every=16, probe_size=32)
    model = make_model("dqn", learning_starts=1000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(96, callback=[Poison(value), metrics])
    (said,) = [str(warning.message) for warning in caught]
    assert said.startswith(
        "`q_net.q_net.2.weight` (critic) holds NaN or infinite values at step 48"
    )
    with pytest.raises(ValueError, match=r"`q_net\.q_net\.2\.weight` \(critic\) holds NaN"):
        apply_intervention(model, "fire")


def test_a_threshold_names_them_too():
    model = make_model("dqn")
    fire = FireCallback(threshold={"metric": "weight_norm", "above": 1e9, "every": 16})
    with pytest.warns(UserWarning, match=r"`q_net\.q_net\.\d\.weight` \(critic\) holds NaN .*not"):
        model.learn(96, callback=[Poison(float("nan")), fire])


def test_features_that_are_not_finite_are_not_blamed_on_few_observations():
    metrics = PlasticityMetricsCallback(every=16, probe_size=32)
    model = make_model("dqn", learning_starts=1000).learn(32)
    model.replay_buffer.observations[3] = float("inf")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(48, callback=metrics, reset_num_timesteps=False)
    (said,) = [str(warning.message) for warning in caught]
    assert said.startswith("All weights are finite, but ")


class Quiet(DQN):
    """Calls no `on_rollout_start`."""

    def collect_rollouts(self, env, callback, *args, **options):
        hook, callback.on_rollout_start = callback.on_rollout_start, lambda: None
        try:
            return super().collect_rollouts(env, callback, *args, **options)
        finally:
            callback.on_rollout_start = hook


@pytest.mark.parametrize("kind", [FireCallback, PlasticityMetricsCallback])
@pytest.mark.parametrize("around", [lambda c: c, lambda c: [c], lambda c: CallbackList([c])])
def test_an_algorithm_without_rollout_hooks_is_named(kind, around):
    env = make_model("dqn").get_env()
    model = Quiet("MlpPolicy", env, buffer_size=100, learning_starts=8)
    with pytest.raises(RuntimeError, match=r"^Quiet calls no `on_rollout_start`.*Quiet's `coll"):
        model.learn(32, callback=around(kind(every=16)))
