"""Surgery on real SB3 models: what changes, what does not, and what is in line afterwards."""

import copy
import itertools
import json
import math
import random

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from fire_rl import FIRE, NoIntervention, apply_intervention, isometry_scale, polar_factor
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.probe import ProbeSource
from tests.helpers.models import (
    EVERY_ALGORITHM,
    IGNORE_LSTM,
    Q_NETWORKS,
    STOCHASTIC,
    changed,
    make_model,
    state_of,
)

pytestmark = pytest.mark.filterwarnings(IGNORE_LSTM)

# Every algorithm with every kind of policy; the complete table runs in `make test-all`.
TABLE = [
    pytest.param(
        algo,
        observation,
        marks=[] if (a + o) % 3 == 0 or observation == "mlp" else pytest.mark.full,
    )
    for (a, algo), (o, observation) in itertools.product(
        enumerate(EVERY_ALGORITHM), enumerate(["mlp", "cnn", "dict"])
    )
    if (algo, observation) != ("crossq", "dict")  # which it has no policy for
]


def optimizers_of(model):
    found = {id(group.optimizer): group.optimizer for group in ModelView(model).groups}
    return list(found.values())


def buffers_are_empty(model):
    return all(not optimizer.state for optimizer in optimizers_of(model))


@pytest.mark.compat(
    section="Algorithms and policies",
    policy="{observation}",
    setting="apply_intervention",
    checked="Weights isometric, moments forgotten, targets full copies; it trains on.",
)
@pytest.mark.parametrize(("algo", "observation"), TABLE)
def test_fire_on_every_algorithm_and_policy(algo, observation):
    model = make_model(algo, observation).learn(24)
    groups = ModelView(model).groups
    before = state_of(model)
    parameters = list(model.policy.parameters())
    layers = [layer for group in groups for layer in group.online.layers]
    # TRPO's optimizer holds the actor, too, but steps the critic only
    remembered = sum(layer.weight in g.optimizer.state for g in groups for layer in g.online.layers)
    report = apply_intervention(model, FIRE(method="exact"))
    after = state_of(model)

    # only weights, each named in the report, and all of them isometric now
    assert [change.name for change in report.layers] == [layer.name for layer in layers]
    assert all(c.dfi_after / c.num_singular_values < 1e-8 for c in report.layers)
    weights = {layer.weight.data_ptr() for layer in layers}
    targets = {t.data_ptr() for g in groups if g.target for t in g.target.tensors.values()}
    live = model.policy.state_dict()
    for name in changed(before, after):
        assert live[name].data_ptr() in weights | targets, name

    # the same Parameter objects, still in their optimizers, whose memory of weights is gone
    assert all(a is b for a, b in zip(parameters, model.policy.parameters(), strict=True))
    for group in groups:
        held = {id(p) for g in group.optimizer.param_groups for p in g["params"]}
        for layer in group.online.layers:
            assert id(layer.weight) in held
            assert layer.weight not in group.optimizer.state
    assert report.optimizer_entries_forgotten == remembered
    assert remembered == len(layers) or algo == "trpo"

    # targets are full copies, biases included
    for group in groups:
        for name, tensor in (group.target.tensors if group.target else {}).items():
            assert torch.equal(tensor, group.online.tensors[name]), name

    # it trains on, and really
    model.learn(24, reset_num_timesteps=False)
    moved = changed(after, state_of(model))
    live = model.policy.state_dict()  # TRPO puts its actor into new storage
    for layer in layers:
        assert any(live[name].data_ptr() == layer.weight.data_ptr() for name in moved), layer.name


@pytest.mark.compat(
    section="Algorithms and policies",
    setting="report",
    checked="Dormant ratio and rank of every role, before and after; what the policy changed.",
)
@pytest.mark.parametrize("algo", EVERY_ALGORITHM)
def test_report_is_complete_and_plain(algo):
    model = make_model(algo).learn(64)
    report = apply_intervention(model, "fire")
    assert report.num_timesteps == model.num_timesteps
    assert report.probe_observations >= 10
    for role in ["critic"] if algo in Q_NETWORKS else ["actor", "critic"]:
        assert set(report.before[role]) == set(report.after[role]) == {
            "dormant_ratio", "effective_rank",
        }  # fmt: skip
        assert 0 <= report.after[role]["dormant_ratio"] <= 1
    expected = {"action_difference", "value_shift"}
    expected |= {"policy_kl"} if algo in STOCHASTIC else set()
    assert set(report.policy_change) == expected
    assert all(value > 0 for value in report.policy_change.values())
    assert all(len(key) <= 36 for key in report.scalars())
    assert json.loads(json.dumps(report.to_dict()))["options"]["num_steps"] == 10
    assert f"fire at step {model.num_timesteps:,}; " in report.summary()


def test_report_against_definitions():
    """Q-value shift and greedy-action change of a DQN, computed here anew."""
    model = make_model("dqn").learn(64)
    probe = ProbeSource(1024, seed=1).live(model)
    with torch.no_grad():
        old = model.q_net(probe.observations).clone()
        report = apply_intervention(model, FIRE(), probe=probe)
        new = model.q_net(probe.observations)
    assert report.policy_change["value_shift"] == pytest.approx(float((new - old).abs().mean()))
    differs = (new.argmax(1) != old.argmax(1)).float().mean()
    assert report.policy_change["action_difference"] == pytest.approx(float(differs))


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_policy_kl_against_log_probabilities(algo):
    """Monte Carlo: the mean log-ratio over actions drawn from the old policy."""
    model = make_model(algo).learn(40)
    source = ProbeSource(16, seed=1)
    probe = source.live(model)
    old = make_model(algo).policy
    old.load_state_dict(model.policy.state_dict())
    report = apply_intervention(model, FIRE(strength=0.3), probe=probe)
    many = probe.observations.repeat(4000, 1)
    with torch.no_grad():
        if algo == "ppo":
            actions, _, old_log_prob = old(many)
            _, new_log_prob, _ = model.policy.evaluate_actions(many, actions)
        else:
            actions, old_log_prob = old.actor.action_log_prob(many)
            mean, log_std, _ = model.actor.get_action_dist_params(many)
            distribution = model.actor.action_dist.proba_distribution(mean, log_std)
            new_log_prob = distribution.log_prob(actions)
    estimate = float((old_log_prob - new_log_prob).mean())
    assert report.policy_change["policy_kl"] == pytest.approx(estimate, rel=0.1, abs=0.01)


def test_policy_kl_adds_up_over_the_components_of_an_action():
    model = make_model("ppo", n_envs=2)  # two components
    model.learn(16)
    report = apply_intervention(model, FIRE(networks=["actor"]), dry_run=True)
    probe = model.rollout_buffer.observations.reshape(-1, 5)[:16]
    observations = torch.as_tensor(probe)
    before = model.policy.get_distribution(observations).distribution
    mean, std = before.mean.detach().clone(), before.stddev.detach().clone()
    apply_intervention(model, FIRE(networks=["actor"]))
    after = model.policy.get_distribution(observations).distribution
    old = torch.distributions.Normal(mean, std)
    expected = torch.distributions.kl_divergence(old, after).sum(1).mean()
    assert report.policy_change["policy_kl"] == pytest.approx(float(expected.detach()), rel=1e-3)


@pytest.mark.parametrize("algo", EVERY_ALGORITHM)
def test_random_states_outside_are_untouched(algo):
    model = make_model(algo, n_envs=1).learn(24)
    # numpy's legacy generator is what SB3 draws from
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    space = copy.deepcopy(model.action_space.np_random.bit_generator.state)
    apply_intervention(model, FIRE(hidden="reset", log_std="reset"))
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert model.action_space.np_random.bit_generator.state == space


@pytest.mark.parametrize("algo", EVERY_ALGORITHM)
def test_dry_run_reports_and_changes_nothing(algo):
    model = make_model(algo).learn(32)
    before, memory = state_of(model), [copy.deepcopy(o.state_dict()) for o in optimizers_of(model)]
    dry = apply_intervention(model, FIRE(target="same"), dry_run=True)
    assert not changed(before, state_of(model))
    for optimizer, saved in zip(optimizers_of(model), memory, strict=True):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                assert torch.equal(value, saved["state"][index][key])
    real = apply_intervention(model, FIRE(target="same"))
    assert dry.networks == real.networks
    assert dry.policy_change == real.policy_change
    assert (dry.dry_run, real.dry_run) == (True, False)


def test_no_intervention_changes_nothing_but_reports():
    model = make_model("td3").learn(32)
    before = state_of(model)
    report = apply_intervention(model, NoIntervention())
    assert not changed(before, state_of(model))
    assert {change.action for change in report.layers} == {"keep"}
    assert set(report.policy_change.values()) == {0.0}
    assert report.optimizer_entries_forgotten == 0


def test_networks_choose_roles_and_a_shared_extractor_needs_both():
    model = make_model("ppo", "cnn")
    for networks, touched in (
        (["actor"], {"actor"}),
        (["actor", "critic"], {"actor", "critic", "shared"}),
        (["shared"], {"shared"}),
        (None, {"actor", "critic", "shared"}),
    ):
        before = state_of(model)
        report = apply_intervention(model, FIRE(networks=networks), dry_run=True)
        assert set(report.networks) == touched
        assert not changed(before, state_of(model))
    with pytest.raises(ValueError, match=r"`networks` must name roles .*actor, critic, shared.* got 'crtic'\. Did you mean 'critic'"):  # fmt: skip  # noqa: E501
        apply_intervention(model, FIRE(networks=["crtic"]))


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("sac", {"share_features_extractor": True}),
        ("td3", {"share_features_extractor": True}),
        ("ppo", {"share_features_extractor": False}),
        ("sac", {"n_critics": 3}),
        ("td3", {"n_critics": 1}),
        ("sac", {"net_arch": {"pi": [8], "qf": [6, 6]}, "activation_fn": torch.nn.Tanh}),
        ("ppo", {"net_arch": {"pi": [8], "vf": []}, "activation_fn": torch.nn.ELU}),
        ("dqn", {"net_arch": []}),
    ],
)
def test_unusual_architectures(algo, options):
    model = make_model(algo, "cnn", policy_kwargs=options).learn(24)
    groups = ModelView(model).groups
    owned = [id(tensor) for group in groups for tensor in group.online.tensors.values()]
    assert len(owned) == len(set(owned))
    trained = {id(p) for o in optimizers_of(model) for g in o.param_groups for p in g["params"]}
    assert trained <= set(owned), "a trained tensor belongs to no role"
    for head in (name for group in groups for name in group.online.heads):
        assert head.split(".")[-1].isdigit() or head in ("actor.mu", "actor.log_std", "action_net", "value_net")  # fmt: skip  # noqa: E501
    apply_intervention(model, FIRE())
    for group in groups:
        for name, tensor in (group.target.tensors if group.target else {}).items():
            assert torch.equal(tensor, group.online.tensors[name])
    model.learn(24, reset_num_timesteps=False)


@pytest.mark.compat(
    section="Policy settings",
    setting="gSDE, log_std=reset",
    checked="The noise matrix is drawn anew from the new log_std; without the option both stay.",
)
@pytest.mark.parametrize("algo", ["sac", "ppo", "a2c"])
def test_gsde_log_std_is_no_weight_and_its_noise_follows_a_reset(algo):
    model = make_model(algo, use_sde=True).learn(24)
    actor = getattr(model.policy, "actor", model.policy)
    with torch.no_grad():
        actor.log_std.add_(0.5)
    start = actor.log_std.detach().clone()
    noise = actor.action_dist.exploration_mat.clone()
    report = apply_intervention(model, FIRE())
    assert torch.equal(actor.log_std, start)
    assert torch.equal(actor.action_dist.exploration_mat, noise)
    assert not any("log_std" in change.name for change in report.layers)
    report = apply_intervention(model, FIRE(log_std="reset"))
    assert actor.log_std.unique().numel() == 1
    assert not torch.equal(actor.log_std, start)
    assert not torch.equal(actor.action_dist.exploration_mat, noise)
    assert list(report.networks["actor"].others.values()) == ["reset"]


def test_target_choices():
    for choice in ("copy", "keep", "same"):
        model = make_model("dqn").learn(70)  # online and target differ by now
        target = {n: t.clone() for n, t in model.q_net_target.state_dict().items()}
        assert changed(target, model.q_net.state_dict())
        apply_intervention(model, FIRE(method="exact", target=choice))
        after = model.q_net_target.state_dict()
        if choice == "keep":
            assert not changed(target, after)
        elif choice == "copy":
            assert not changed(model.q_net.state_dict(), after)
        else:
            for name, old in target.items():
                expected = old
                if name.endswith("weight"):
                    expected = polar_factor(old) * isometry_scale(old.shape)
                torch.testing.assert_close(after[name], expected)


@pytest.mark.parametrize("choice", ["changed", "all", "keep"])
def test_optimizer_state_choices(choice):
    model = make_model("ppo").learn(16)
    held = len(model.policy.optimizer.state)
    report = apply_intervention(model, FIRE(networks=["critic"], optimizer_state=choice))
    weights = len(report.layers)
    expected = {"changed": weights, "all": 2 * weights, "keep": 0}[choice]
    assert report.optimizer_entries_forgotten == expected
    assert len(model.policy.optimizer.state) == held - expected


@pytest.mark.compat(
    section="What is particular to an algorithm",
    algorithm="sac",
    setting="entropy temperature",
    checked="Kept; reset to its start value on request; a fixed one is never touched.",
)
def test_entropy_temperature_reset():
    model = make_model("sac", ent_coef="auto_0.3").learn(40)
    temperature = model.log_ent_coef.exp().item()
    apply_intervention(model, FIRE())
    assert model.log_ent_coef.exp().item() == temperature != pytest.approx(0.3)
    apply_intervention(model, FIRE.paper_sac())
    assert model.log_ent_coef.exp().item() == pytest.approx(0.3)
    assert not model.ent_coef_optimizer.state
    assert buffers_are_empty(model)
    fixed = make_model("sac", ent_coef=0.2).learn(24)
    apply_intervention(fixed, FIRE.paper_sac())
    assert fixed.ent_coef_tensor.item() == pytest.approx(0.2)


@pytest.mark.compat(
    section="What is particular to an algorithm",
    algorithm="sac",
    setting="VecNormalize statistics and replay buffer",
    checked="Kept; reset and cleared on request.",
)
def test_surroundings_reset_on_request():
    model = make_model("sac")
    env = VecNormalize(model.get_env())
    model = SAC("MlpPolicy", env, seed=0, buffer_size=100, learning_starts=8, batch_size=8)
    model.learn(40)
    apply_intervention(model, FIRE())
    assert env.obs_rms.count > 40
    assert model.replay_buffer.size() == 20
    apply_intervention(model, FIRE(vecnormalize="reset", replay_buffer="clear"))
    assert env.obs_rms.count < 1
    assert (env.obs_rms.mean == 0).all()
    assert model.replay_buffer.size() == 0
    model.learn(40, reset_num_timesteps=False)


def test_paper_dqn_returns_linear_layers_to_the_beginning():
    model = make_model("dqn", "cnn")
    initial = {n: t.detach().clone() for n, t in model.policy.named_parameters()}
    model.learn(60)
    trained = state_of(model)
    report = apply_intervention(model, FIRE.paper_dqn(), initial=initial)
    for name, tensor in model.q_net.named_parameters():
        kind = "conv" if tensor.ndim == 4 else "linear"
        if kind == "conv" or name == "features_extractor.net.0.bias":
            assert torch.equal(tensor, trained[f"q_net.{name}"]) == name.endswith("bias")
        else:
            assert torch.equal(tensor, initial[f"q_net.{name}"])
    assert len(model.policy.optimizer.state) == len(list(model.q_net.parameters()))
    assert {c.kind: c.action for c in report.layers} == {"conv": "project", "linear": "reset"}
    with pytest.raises(ValueError, match="they were not recorded"):
        apply_intervention(model, FIRE.paper_dqn())


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_fresh_weights_are_sb3s_own_initialisation(algo):
    """PPO: orthogonal, gain √2 in hidden layers and 0.01 in the action head; SAC: torch default."""
    model = make_model(algo, policy_kwargs={"net_arch": [32, 32]})
    apply_intervention(model, FIRE(hidden="reset", head="reset"), seed=5)
    one = state_of(model)
    if algo == "ppo":
        hidden = torch.linalg.svdvals(model.policy.mlp_extractor.policy_net[0].weight)
        torch.testing.assert_close(hidden, torch.full_like(hidden, 2**0.5))
        head = torch.linalg.svdvals(model.policy.action_net.weight)
        torch.testing.assert_close(head, torch.full_like(head, 0.01))
    else:
        assert model.actor.latent_pi[2].weight.abs().max() <= 32**-0.5
    apply_intervention(model, FIRE(hidden="reset", head="reset"), seed=5)
    assert not changed(one, state_of(model))
    apply_intervention(model, FIRE(hidden="reset", head="reset"), seed=6)
    assert changed(one, state_of(model))


def test_load_a_zip_apply_and_go_on(tmp_path):
    make_model("ppo").learn(32).save(tmp_path / "model")
    env = make_model("ppo").get_env()
    model = PPO.load(tmp_path / "model", env=env)
    before = state_of(model)
    report = apply_intervention(model, FIRE(), save_before=tmp_path / "kept")
    assert report.probe_observations == 0  # an empty buffer: nothing to measure on
    assert report.policy_change == {}
    kept = PPO.load(tmp_path / "kept" / "before_fire_32_steps")
    assert not changed(before, state_of(kept))
    assert changed(before, state_of(model))
    model.learn(32, reset_num_timesteps=False)


def test_non_finite_weights_are_named_and_nothing_changes():
    model = make_model("td3").learn(24)
    with torch.no_grad():
        model.critic.qf1[2].weight[0, 0] = float("inf")
    before = state_of(model)
    with pytest.raises(ValueError, match=r"`critic\.qf1\.2\.weight` \(critic\) holds NaN or inf"):
        apply_intervention(model, FIRE())
    assert not changed(before, state_of(model))


def test_a_decayed_layer_blocks_nothing():
    model = make_model("ppo")
    with torch.no_grad():
        model.policy.action_net.weight.mul_(1e-40)
    report = apply_intervention(model, FIRE(method="exact"))
    assert all(math.isfinite(layer.sfe) for layer in report.layers)


def test_a_broken_target_is_named():
    model = make_model("dqn", replay_buffer_class=ReplayBuffer)
    with torch.no_grad():
        model.policy.q_net_target.q_net[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"`q_net\.q_net\.0\.weight` \(critic\) holds NaN"):
        apply_intervention(model, FIRE(target="same"))


def test_unknown_algorithms_and_layers_are_named():
    class Unknown(BaseAlgorithm):
        def __init__(self):
            pass

        seed = None
        num_timesteps = 0
        _setup_model = learn = None

    Unknown.__abstractmethods__ = frozenset()
    with pytest.raises(ValueError, match="`model` is a Unknown, whose networks are not known"):
        apply_intervention(Unknown(), FIRE())
    with pytest.raises(TypeError, match=r"`model` must be a model .*, got a torch module \(Lin"):
        apply_intervention(nn.Linear(3, 3), "fire")
    with pytest.raises(ValueError, match=r"`exclude` pattern 'q_net.q_nt.0' matches no layer.*Did"):
        apply_intervention(make_model("dqn"), FIRE(exclude="q_net.q_nt.0"))


def test_subclasses_work_through_their_base():
    class MyDQN(DQN):
        pass

    model = MyDQN("MlpPolicy", make_model("dqn").get_env(), seed=0, buffer_size=100)
    assert len(apply_intervention(model, "fire").layers) == 3


@pytest.mark.compat(
    section="Devices",
    algorithm="sac",
    policy="CnnPolicy",
    setting="device='cuda', resets",
    checked="Fresh weights are put in on the device, and it trains on.",
)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none here")
def test_cuda():
    model = make_model("sac", "cnn", device="cuda").learn(24)
    apply_intervention(model, FIRE(hidden="reset"))
    model.learn(24, reset_num_timesteps=False)
