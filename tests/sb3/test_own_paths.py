"""Policies that override how they answer are measured along their own way."""

import warnings

import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.sac.policies import Actor, SACPolicy

from fire_rl import PlasticityMetricsCallback
from fire_rl.sb3.measurement import observe
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.own_paths import overridden
from fire_rl.sb3.probe import ProbeSource
from tests.helpers.models import EVERY_ALGORITHM, make_model, state_of
from tests.helpers.unknown_parts import NoisyLinear, SecondExtractorPolicy, Unsteady, q_policy

NAMES = ("evaluate_actions", "forward", "get_distribution", "predict_values")
pytestmark = pytest.mark.filterwarnings("ignore:.*trains `second.0`, which belongs to none:")


def of(algo, policy):
    model = make_model(algo, policy=policy).learn(16)
    return model, ProbeSource(32, 0).live(model)


class OnlyValues(SecondExtractorPolicy):
    """Overrides what TRPO trains by."""

    forward = ActorCriticPolicy.forward
    evaluate_actions = ActorCriticPolicy.evaluate_actions


class OnlyForward(SecondExtractorPolicy):
    predict_values = ActorCriticPolicy.predict_values
    evaluate_actions = ActorCriticPolicy.evaluate_actions

    def forward(self, obs, deterministic=False):
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        values = self.value_net(self.latent_of_critic(obs))
        return actions, values, distribution.log_prob(actions)


@pytest.mark.parametrize(
    ("algo", "policy"),
    [("ppo", SecondExtractorPolicy), ("a2c", OnlyForward), ("trpo", OnlyValues)],
)
def test_the_critics_features_are_those_that_it_sees(algo, policy):
    model, probe = of(algo, policy)
    found = observe(ModelView(model), probe)
    with torch.no_grad():
        expected = model.policy.latent_of_critic(probe.observations)
        values = model.policy.value_net(expected)
        distribution = model.policy.get_distribution(probe.observations)
    torch.testing.assert_close(found.activations.inputs["value_net"], expected)
    torch.testing.assert_close(found.outputs[0].values, values)
    torch.testing.assert_close(found.outputs[0].action, distribution.mode())


@pytest.mark.parametrize("algo", EVERY_ALGORITHM)
def test_nothing_of_sb3s_own_is_overridden(algo):
    policy = make_model(algo).policy
    assert overridden(policy, NAMES) == overridden(type(policy), NAMES) == ()


def test_what_cannot_be_run_is_named_once():
    class Broken(SecondExtractorPolicy):
        def evaluate_actions(self, obs, actions):
            raise IndexError("no such cost")

    model, probe = of("trpo", Broken)
    with pytest.warns(UserWarning, match=r"Broken overrides .*\(IndexError: no such cost\)"):
        observe(ModelView(model), probe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert observe(ModelView(model), probe).outputs[0].values is not None


def test_an_actor_of_sac_that_overrides_its_log_probability():
    class Doubled(Actor):
        def action_log_prob(self, obs):
            features = self.extract_features(obs, self.features_extractor)
            latent = self.latent_pi(2 * features)
            return self.action_dist.log_prob_from_params(self.mu(latent), self.log_std(latent))

    class Policy(SACPolicy):
        def make_actor(self, features_extractor=None):
            options = self._update_features_extractor(self.actor_kwargs, features_extractor)
            return Doubled(**options).to(self.device)

    model, probe = of("sac", Policy)
    found = observe(ModelView(model), probe)
    with torch.no_grad():
        latent = model.actor.latent_pi(2 * probe.observations)
    torch.testing.assert_close(found.activations.inputs["actor.mu"], latent)
    torch.testing.assert_close(found.outputs[0].action, model.actor.mu(latent).tanh().detach())


def always_noisy(inputs, outputs):
    return NoisyLinear(inputs, outputs, always=True)


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("ppo", {"policy": SecondExtractorPolicy}),
        ("ppo", {"policy_kwargs": {"features_extractor_class": Unsteady}}),
        ("dqn", {"policy": q_policy(always_noisy), "policy_kwargs": {}}),
    ],
)
def test_measuring_never_changes_training(algo, options):
    states = []
    for callbacks in ([], [PlasticityMetricsCallback(every=16, probe_size=32)]):
        model = make_model(algo, **options).learn(64, callback=callbacks)
        states.append(state_of(model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
