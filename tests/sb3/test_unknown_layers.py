"""Whatever trains is projected, kept with a reason, or named; an event that does nothing fails."""

import math
import warnings

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from fire_rl import FIRE, FireCallback, PlasticityMetricsCallback, apply_intervention
from fire_rl.sb3.model_view import ModelView
from tests.helpers import unknown_parts as kinds
from tests.helpers.models import changed, make_model, state_of


def warned(act):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(warning.message) for warning in caught]


def test_noisy_layers_are_projected_and_their_noise_is_kept():
    model = make_model("dqn", policy=kinds.q_policy(kinds.NoisyLinear), policy_kwargs={}).learn(32)
    before = state_of(model)
    report = apply_intervention(model, FIRE(method="exact"))
    assert [(c.name, c.action) for c in report.layers] == [
        ("q_net.q_net.0", "project"), ("q_net.q_net.2", "project"),
    ]  # fmt: skip
    online = {n for n in changed(before, state_of(model)) if "target" not in n}
    assert online == {"q_net.q_net.0.weight_mu", "q_net.q_net.2.weight_mu"}
    for name in online:
        left, _, right = torch.linalg.svd(before[name].double(), full_matrices=False)
        rows, columns = before[name].shape
        expected = (left @ right * math.sqrt(rows / columns)).float()
        after = state_of(model)
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(after[name.replace("q_net", "q_net_target", 1)], after[name])
    assert report.networks["critic"].kept == {
        f"q_net.q_net.{place}.{noise}": "noise"
        for place in (0, 2)
        for noise in ("weight_sigma", "bias_sigma")
    }
    assert report.optimizer_entries_forgotten == 2
    assert ModelView(model).heads == ("q_net.q_net.2",)
    metrics = PlasticityMetricsCallback(every=24, probe_size=40)
    model.learn(24, callback=[FireCallback(every=16), metrics], reset_num_timesteps=False)
    assert 0 <= metrics.history[-1][1]["plasticity/critic/dormant_ratio"] <= 1


def test_a_noisy_subclass_of_linear_is_known():
    """Its own weight is the mean; the scales of the noise are kept, and nothing is warned of."""
    model = make_model("dqn", policy=kinds.q_policy(kinds.NoisySubclass), policy_kwargs={})
    report = apply_intervention(model, "fire")
    assert {change.action for change in report.layers} == {"project"}
    noise = [f"q_net.q_net.{place}.sigma_{of}" for place in (0, 2) for of in ("weight", "bias")]
    assert report.networks["critic"].kept == dict.fromkeys(noise, "noise")


@pytest.mark.parametrize("spec", ["reset", "random_orthogonal", "shrink_and_perturb", "redo"])
def test_other_interventions_on_noisy_layers(spec):
    model = make_model("dqn", policy=kinds.q_policy(kinds.NoisyLinear), policy_kwargs={}).learn(32)
    spec = {"name": "redo", "tau": 0.9} if spec == "redo" else spec
    before = state_of(model)
    report = apply_intervention(model, spec)
    assert "keep" not in {change.action for change in report.layers}
    assert "q_net.q_net.0.weight_mu" in changed(before, state_of(model))


def test_own_matrices_are_kept_with_a_reason_and_named_once_for_each_model():
    kwargs = {"features_extractor_class": kinds.ProductExtractor}
    model = make_model("ppo", policy_kwargs=kwargs)
    fire, metrics = FireCallback(every=16), PlasticityMetricsCallback(every=16, probe_size=40)
    said = warned(lambda: model.learn(64, callback=[fire, metrics]))
    (named,) = [text for text in said if "Product" in text]
    assert named.startswith("`features_extractor.product` (Product) holds weights that no")
    assert "(`matrix`, `gain`)" in named
    assert fire.reports[-1].networks["shared"].kept == {
        "features_extractor.product.matrix": "Product",
        "features_extractor.product.gain": "Product",
    }
    assert not warned(lambda: apply_intervention(model, "fire"))


def test_an_event_without_any_layer_fails_before_training():
    model = make_model("dqn", policy=kinds.q_policy(kinds.Product), policy_kwargs={})
    with (
        pytest.warns(UserWarning, match=r"`q_net\.q_net\.0`, `q_net\.q_net\.2` \(Product\)"),
        pytest.raises(ValueError, match=r"`fire` finds no linear.* `q_net\.q_net\.0` \(Product\)"),
    ):
        model.learn(64, callback=FireCallback(every=16))
    assert model.num_timesteps == 0
    assert {c.action for c in apply_intervention(model, "shrink_and_perturb").layers} == set()


def test_an_event_that_would_change_no_weight_is_an_error():
    model = make_model("dqn").learn(32)
    with pytest.raises(ValueError, match=r"`fire` would change no layer of critic: its options"):
        apply_intervention(model, FIRE(hidden="keep", head="keep", conv="keep"))
    model.q_net.requires_grad_(False)
    before = state_of(model)
    for spec in ("fire", "reset", "random_orthogonal", "shrink_and_perturb"):
        with pytest.raises(ValueError, match=r"`q_net\.q_net\.0\.weight` \(frozen\).*Unfreeze"):
            apply_intervention(model, spec)
    assert not changed(before, state_of(model))
    for spec in ("none", "optimizer_reset", {"name": "shrink_and_perturb", "keep": 1}, "redo"):
        apply_intervention(model, spec)


def test_a_cost_critic_in_the_policy_is_named():
    model = make_model("ppo", policy=kinds.CostCriticPolicy)
    (said,) = warned(lambda: model.learn(48, callback=FireCallback(every=16)))
    assert "CostCriticPolicy trains `cost_net.0`, `cost_net.2`, which belongs to none of" in said


def test_networks_outside_of_the_policy_are_named():
    class Constrained(PPO):
        def _setup_model(self):
            super()._setup_model()
            self.cost = nn.Linear(5, 1)
            self.members = [nn.Linear(5, 3), nn.Linear(5, 3)]
            self.multiplier = torch.zeros(1, requires_grad=True)
            self.optimizers = {"cost": torch.optim.Adam(self.cost.parameters())}
            self.more = [torch.optim.SGD(member.parameters(), 0.1) for member in self.members]
            self.dual = torch.optim.Adam([self.multiplier])

    model = Constrained("MlpPolicy", make_model("ppo").get_env(), n_steps=8, batch_size=8)
    (said,) = warned(lambda: apply_intervention(model, "fire"))
    assert "Constrained trains `cost`, `members[0]`, `members[1]` outside of its policy" in said
    assert "fire_rl.fire_(module)" in said


@pytest.mark.parametrize("place", ["model", "policy", "part", "inside an object"])
def test_every_optimizer_forgets_what_has_changed(place):
    model = make_model("ppo").learn(16)
    second = torch.optim.Adam(model.policy.mlp_extractor.parameters())
    for parameter in model.policy.mlp_extractor.parameters():
        parameter.grad = torch.ones_like(parameter)
    second.step()
    if place == "inside an object":
        model.trainer = type("Trainer", (), {})()
        model.trainer.optimizer = second
    else:
        owner = {"model": model, "policy": model.policy, "part": model.policy.mlp_extractor}[place]
        owner.auxiliary_optimizer = second
    assert len(second.state) == 8
    apply_intervention(model, "fire")
    biases = {p for n, p in model.policy.mlp_extractor.named_parameters() if n.endswith("bias")}
    assert set(second.state) == biases


def test_an_optimizer_of_another_callback_forgets_what_has_changed():
    class Auxiliary(BaseCallback):
        def _init_callback(self):
            self.optimizers = {"aux": torch.optim.Adam(self.model.policy.parameters())}

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            loss = sum((parameter**2).sum() for parameter in self.model.policy.parameters())
            loss.backward()
            self.optimizers["aux"].step()

    model, auxiliary = make_model("ppo"), Auxiliary()
    model.learn(40, callback=[FireCallback(at=24), auxiliary])
    state = auxiliary.optimizers["aux"].state
    assert [
        int(state[getattr(model.policy.action_net, of)]["step"]) for of in ("weight", "bias")
    ] == [1, 3]  # two before the event, one after it


def test_an_optimizer_that_holds_targets_is_no_stranger():
    """SB3 up to 2.3.2 gave DQN's optimizer every parameter of the policy."""
    model = make_model("dqn")
    model.policy.optimizer = torch.optim.Adam(model.policy.parameters())
    apply_intervention(model, "fire")


def test_zero_width_layers_are_kept_with_a_reason():
    class Narrow(kinds.ProductExtractor):
        def __init__(self, space):
            super().__init__(space)
            self.product = nn.Linear(space.shape[0], 8)
            self.none, self.from_none = nn.Linear(space.shape[0], 0), nn.Linear(0, 8)

        def forward(self, observations):
            return super().forward(observations) + self.from_none(self.none(observations))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        model = make_model("dqn", policy_kwargs={"features_extractor_class": Narrow})
        metrics = PlasticityMetricsCallback(every=16, probe_size=40)
        fire = FireCallback(every=16)
        model.learn(64, callback=[fire, metrics])
    assert fire.reports[-1].networks["critic"].kept == {
        "q_net.features_extractor.none.weight": "empty",
        "q_net.features_extractor.from_none.weight": "empty",
    }


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
@pytest.mark.parametrize(
    "part",
    [
        "mlp_extractor",
        pytest.param("pi_features_extractor", marks=pytest.mark.full),
        pytest.param("value_net", marks=pytest.mark.full),
    ],
)
def test_a_compiled_part_is_read_as_the_uncompiled(part):
    reports = []
    for compile_it in (False, True):
        kwargs = {"features_extractor_class": kinds.Unsteady, "share_features_extractor": False}
        model = make_model("ppo", policy_kwargs=kwargs)
        if compile_it:
            compiled = torch.compile(getattr(model.policy, part), backend="eager")
            setattr(model.policy, part, compiled)
        reports.append(apply_intervention(model.learn(16), FIRE(method="exact")))
    assert reports[0].networks == reports[1].networks
    assert reports[0].before == reports[1].before
