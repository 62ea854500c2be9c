"""Algorithms and policies of one's own: through their base class, by description, or refused."""

import re
from dataclasses import replace

import pytest
import torch

from fire_rl import (
    FIRE,
    FireCallback,
    PlasticityMetricsCallback,
    apply_intervention,
    register_anatomy,
)
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.networks import anatomy_of
from tests.helpers import own_policies
from tests.helpers.attached import attach
from tests.helpers.models import EVERY_ALGORITHM, IGNORE_LSTM, changed, make_model, state_of

pytestmark = pytest.mark.filterwarnings(IGNORE_LSTM)


def names_of(report):
    return {role: [c.name for c in changes.layers] for role, changes in report.networks.items()}


POLICIES = {
    "custom network of SB3's documentation": ("ppo", own_policies.DocumentedPolicy),
    "trunk of actor and critic in mlp_extractor": ("ppo", own_policies.TrunkPolicy),
    "value head of two layers": ("ppo", own_policies.DeepHeadPolicy),
    "custom network of SB3's documentation, A2C": ("a2c", own_policies.DocumentedPolicy),
    "trunk of actor and critic in mlp_extractor, TRPO": ("trpo", own_policies.TrunkPolicy),
    "actor with a mean of two layers": ("sac", own_policies.DeepMeanSacPolicy),
}


@pytest.mark.compat(
    section="Policies of your own",
    policy="subclass",
    setting=lambda p: p["kind"].partition(",")[0],
)
@pytest.mark.parametrize(
    ("algo", "kind"),
    [
        pytest.param(algo, kind, marks=[pytest.mark.full] * (algo not in ("ppo", "sac")))
        for kind, (algo, _) in POLICIES.items()
    ],
)
def test_policies_of_ones_own(algo, kind):
    """Attached; each layer has its role."""
    found = attach(make_model(algo, policy=POLICIES[kind][1]))
    names = names_of(found.reports[-1])
    if "trunk" in kind:
        assert names["shared"] == ["mlp_extractor.shared_net.0"]
        assert names["actor"] == ["mlp_extractor.policy_net.0", "action_net"]
        assert names["critic"] == ["mlp_extractor.value_net.0", "value_net"]
        assert found.metrics["plasticity/shared/effective_rank"] >= 1
    elif "head" in kind:
        heads = [h for g in ModelView(found.model).groups for h in g.online.heads]
        assert heads == ["action_net", "value_net.2"]


OWN_HEADS = {
    "dueling Q-network": ("dqn", own_policies.DuelingPolicy, ("q_net.value", "q_net.advantage")),
    "critics by other names": (
        "sac", own_policies.TwinCriticSacPolicy, ("critic.first", "critic.second"),
    ),
    "critics by other names, TD3": (
        "td3", own_policies.TwinCriticTd3Policy, ("critic.first", "critic.second"),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:No activation module follows")
@pytest.mark.compat(
    section="Policies of your own",
    policy="subclass",
    setting=lambda p: p["kind"].partition(",")[0],
)
@pytest.mark.parametrize(
    ("algo", "kind"),
    [
        pytest.param(algo, kind, marks=[pytest.mark.full] * (algo == "td3"))
        for kind, (algo, *_) in OWN_HEADS.items()
    ],
)
def test_output_layers_by_other_names(algo, kind, registered):
    """Attached, with a warning that heads are unknown; without one once they are registered."""
    _, policy, heads = OWN_HEADS[kind]
    model = make_model(algo, policy=policy)
    with pytest.warns(UserWarning, match=r"the output layers of its critic are not known"):
        attach(model)
    known = anatomy_of(model)
    rest = tuple(head for head in known.heads if head.startswith("actor"))
    register_anatomy(policy, replace(known, heads=(*rest, *heads)))
    attach(model)
    found = {h for group in ModelView(model).groups for h in group.online.heads}
    assert {f"{head}.2" for head in heads} <= found
    before = state_of(model)
    apply_intervention(model, FIRE(head="keep", target="keep"))
    moved = changed(before, state_of(model))
    assert f"{heads[0]}.0.weight" in moved
    assert not [n for n in moved if any(n.startswith(f"{head}.2") for head in heads)]


@pytest.mark.compat(section="Policies of your own", policy="subclass", setting="auxiliary layer")
@pytest.mark.parametrize("algo", ["ppo"])
@pytest.mark.parametrize("kind", [FireCallback, PlasticityMetricsCallback])
def test_a_layer_of_no_role_is_named(algo, kind):
    """A layer that belongs to no role is left as it is, and a warning names it."""
    model = make_model(algo, policy=own_policies.AuxiliaryPolicy)
    message = (
        r"AuxiliaryPolicy trains `auxiliary`, which belongs to none of the roles actor, critic"
    )
    with pytest.warns(UserWarning, match=message):
        model.learn(48, callback=kind(every=16))
    report = apply_intervention(model, FIRE())  # said once for each model
    model = make_model(algo, policy=own_policies.AuxiliaryPolicy)
    before = model.policy.auxiliary.weight.clone()
    with pytest.warns(UserWarning, match=message):
        report = apply_intervention(model, FIRE())
    assert torch.equal(before, model.policy.auxiliary.weight)
    assert len(report.layers) == 6


@pytest.mark.compat(
    section="Policies of your own", policy="subclass", setting="networks by other names"
)
@pytest.mark.parametrize("algo", ["ppo"])
def test_networks_by_other_names(algo, registered):
    """Refused before training with what to register; attached once that is done."""
    model = make_model(algo, policy=own_policies.OtherNamesPolicy)
    message = (
        r"The policy OtherNamesPolicy of PPO has no `mlp_extractor\.policy_net`.*"
        r"register_anatomy\(YourAlgorithm, .*or for the class of your policy"
    )
    for callback in (FireCallback(every=16), PlasticityMetricsCallback(every=16)):
        with pytest.raises(ValueError, match=message):
            model.learn(48, callback=callback)
    assert model.num_timesteps == 0
    parts = {
        "actor": ("pi_features_extractor", "mlp_extractor.pi", "action_net", "log_std"),
        "critic": ("vf_features_extractor", "mlp_extractor.vf", "value_net"),
    }
    register_anatomy(
        own_policies.OtherNamesPolicy, replace(anatomy_of(make_model(algo)), parts=parts)
    )
    found = attach(model)
    assert names_of(found.reports[-1])["critic"] == ["mlp_extractor.vf.0", "value_net"]
    attach(make_model(algo))  # others go on as they were


@pytest.mark.compat(section="Algorithms of your own", setting="subclass of the algorithm")
@pytest.mark.parametrize(
    "algo", [pytest.param(a, marks=[pytest.mark.full] * (a != "sac")) for a in EVERY_ALGORITHM]
)
def test_subclasses_of_algorithms(algo, monkeypatch):
    """Attached, through the base class."""
    base = EVERY_ALGORITHM[algo]

    class Mine(type(f"Heir{base.__name__}", (base,), {})):
        def train(self, *args, **options):
            self.trainings = getattr(self, "trainings", 0) + 1
            super().train(*args, **options)

    monkeypatch.setitem(EVERY_ALGORITHM, algo, Mine)
    assert attach(make_model(algo)).model.trainings > 2


def test_a_registered_policy_goes_before_a_registered_algorithm(registered):
    model = make_model("ppo", policy=own_policies.DocumentedPolicy)
    plain = anatomy_of(model)
    register_anatomy(type(model), replace(plain, heads=("action_net",)))
    assert anatomy_of(model).heads == ("action_net",)
    register_anatomy(own_policies.DocumentedPolicy, plain)
    assert anatomy_of(model) is plain
    model.policy = torch.compile(model.policy, backend="eager")
    assert anatomy_of(model) is plain
    assert anatomy_of(make_model("ppo")).heads == ("action_net",)


def test_shared_parts_are_paths():
    with pytest.raises(ValueError, match=re.escape("`shared` must be a sequence of paths")):
        replace(anatomy_of(make_model("ppo")), shared="mlp_extractor")
