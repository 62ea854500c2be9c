"""Kinds of modules that people have, in agents: compiled networks, feature extractors."""

import pytest
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fire_rl import FIRE, FireCallback, PlasticityMetricsCallback, apply_intervention
from fire_rl.sb3.model_view import ModelView
from tests.helpers.extractors import Residual
from tests.helpers.models import changed, make_model, state_of


def compiled(module):
    return torch.compile(module, backend="eager")


@pytest.mark.compat(
    section="Compiled networks",
    setting="torch.compile of one network, beside a plain twin",
    checked="The reports of both are equal, names included; hooks see what runs.",
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
@pytest.mark.parametrize("algo", ["dqn", "ppo", "sac"])
def test_agents_with_compiled_networks(algo):
    model = make_model(algo)
    twin = make_model(algo)
    twin.policy.load_state_dict(model.policy.state_dict())
    if algo == "dqn":
        model.policy.q_net = model.q_net = compiled(model.policy.q_net)
    elif algo == "ppo":
        model.policy.mlp_extractor.policy_net = compiled(model.policy.mlp_extractor.policy_net)
    else:
        model.policy.critic = model.critic = compiled(model.policy.critic)
    for agent in (model, twin):
        agent.set_random_seed(0)
        agent.learn(32)
    reports = [apply_intervention(agent, FIRE(hidden="reset"), seed=1) for agent in (model, twin)]
    assert reports[0].networks == reports[1].networks  # names, too
    assert reports[0].before == reports[1].before  # hooks see what runs
    assert [g.role for g in ModelView(model).groups] == [g.role for g in ModelView(twin).groups]
    callbacks = [FireCallback(every=16), PlasticityMetricsCallback(every=16, probe_size=64)]
    model.learn(64, callback=callbacks)
    assert callbacks[0].reports


class Impala(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.MaxPool2d(3, 2), Residual(4),
            nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.ReLU(),
        )  # fmt: skip

    def forward(self, observations):
        return self.net(observations)


class Attentive(BaseFeaturesExtractor):
    """Each number is a token: embedding, self-attention, weight norm."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.places = nn.Embedding(5, 8)
        self.lift = weight_norm(nn.Linear(1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, observations):
        tokens = self.lift(observations[..., None]) + self.places.weight
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.out(self.norm(tokens + mixed).mean(1))


@pytest.mark.filterwarnings("ignore:No activation module follows:UserWarning")
@pytest.mark.parametrize("algo", ["dqn", "ppo", "sac"])
@pytest.mark.parametrize(("observation", "extractor"), [("cnn", Impala), ("mlp", Attentive)])
def test_custom_extractors(algo, observation, extractor):
    kwargs = {"features_extractor_class": extractor, "features_extractor_kwargs": {}}
    model = make_model(algo, observation, policy_kwargs=kwargs).learn(32)
    before = state_of(model)
    report = apply_intervention(model, FIRE(method="exact"))
    assert {change.action for change in report.layers} == {"project"}
    assert all(change.dfi_after / change.num_singular_values < 1e-8 for change in report.layers)
    touched = changed(before, state_of(model))
    online = {name for name in touched if "target" not in name}
    assert all("bias" not in name and "running" not in name for name in online)
    if extractor is Attentive:
        fused = [change for change in report.layers if change.name.endswith("attention.in_proj")]
        assert fused
        assert all(change.blocks == ("project",) * 3 for change in fused)
        kept = [changes.kept for changes in report.networks.values()]
        assert "embedding" in {reason for reasons in kept for reason in reasons.values()}
        assert any(name.endswith("lift.parametrizations.weight.original0") for name in online)
    for group in ModelView(model).groups:
        for name, tensor in (group.target.tensors if group.target else {}).items():
            assert torch.equal(tensor, group.online.tensors[name]), name
    for spec in ("reset", "shrink_and_perturb"):
        apply_intervention(model, spec)
    callback = PlasticityMetricsCallback(every=16, probe_size=64)
    model.learn(48, callback=[FireCallback(every=16), callback], reset_num_timesteps=False)


@pytest.mark.filterwarnings("ignore:ReDo leaves:UserWarning")
def test_redo_leaves_what_attention_reads_alone():
    kwargs = {"features_extractor_class": Attentive, "features_extractor_kwargs": {}}
    model = make_model("dqn", policy_kwargs=kwargs).learn(32)
    with pytest.raises(ValueError, match=r"lift` has a parametrized weight"):
        apply_intervention(model, "redo")
    apply_intervention(model, {"name": "redo", "exclude": ["*.lift"], "tau": 0.5})


def test_frozen_layers_of_an_agent_are_reported():
    model = make_model("ppo").learn(32)
    frozen = model.policy.mlp_extractor.policy_net[0].weight.requires_grad_(False)
    before = frozen.clone()
    report = apply_intervention(model, FIRE())
    assert torch.equal(frozen, before)
    assert report.networks["actor"].kept == {"mlp_extractor.policy_net.0.weight": "frozen"}
    assert "(1 frozen)" in report.summary()
