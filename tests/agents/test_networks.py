"""Networks of the papers: shapes, initial weights, and that fire_rl sees every part of them."""

import math

import pytest
import torch
from stable_baselines3 import DQN, SAC
from torch import nn

from agents import load_agent, make_agent
from agents.algorithms import check_agent
from agents.networks import MinAtarCNN, ResidualBlock, SimBaPolicy, XavierCnnPolicy
from envs import make_vec_env
from fire_rl import FIRE, apply_intervention
from fire_rl.metrics.activations import capture_activations
from fire_rl.sb3.model_view import ModelView
from tests.helpers.models import changed, state_of

SMALL = {"actor_width": 32, "critic_width": 48}
MINATAR = {"features_extractor_class": "MinAtarCNN", "net_arch": []}


def simba(policy_kwargs=SMALL, **options):
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    agent = {"policy": "SimBaPolicy", "buffer_size": 400, "learning_starts": 8, "batch_size": 8}
    return make_agent("sac", env, {**agent, "policy_kwargs": policy_kwargs, **options}, seed=0)


def minatar(policy="XavierCnnPolicy", policy_kwargs=MINATAR, env_id="MinAtar/Breakout-v1"):
    env = make_vec_env(env_id, n_envs=2, seed=0)
    agent = {"policy": policy, "policy_kwargs": policy_kwargs, "buffer_size": 400}
    return make_agent("dqn", env, {**agent, "learning_starts": 8, "batch_size": 8}, seed=0)


MODELS = {"simba": simba, "minatar": minatar}


def linears(module):
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def bound(weight):
    """Xavier's: sqrt(6 / (fan_in + fan_out)), with a kernel's taps in both fans."""
    taps = math.prod(weight.shape[2:])
    return math.sqrt(6 / (taps * (weight.shape[0] + weight.shape[1])))


# --------------------------------------------------------------------------------------- SimBa


def test_simba_is_built_as_published():
    model = simba({})
    actor, critics = model.actor.latent_pi, model.critic.q_networks
    assert [type(m) for m in actor] == [nn.Linear, ResidualBlock, nn.LayerNorm]
    assert len(critics) == 2
    for critic, target in zip(critics, model.critic_target.q_networks, strict=True):
        assert [type(m) for m in critic] == [
            nn.Linear, ResidualBlock, ResidualBlock, nn.LayerNorm, nn.Linear,
        ]  # fmt: skip
        shapes = [tuple(m.weight.shape) for m in linears(critic)]
        assert shapes == [(512, 4), (2048, 512), (512, 2048), (2048, 512), (512, 2048), (1, 512)]
        assert all(
            p.equal(q) for p, q in zip(critic.parameters(), target.parameters(), strict=True)
        )
    assert [tuple(m.weight.shape) for m in linears(actor)] == [(128, 3), (512, 128), (128, 512)]
    assert model.actor.mu.weight.shape == model.actor.log_std.weight.shape == (1, 128)
    assert critics[0] is model.critic.qf0
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        assert type(optimizer) is torch.optim.AdamW
        assert optimizer.param_groups[0]["weight_decay"] == 0.01
    held = {id(p) for group in model.critic.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.critic.parameters()}


def test_residual_block_is_its_formula():
    torch.manual_seed(0)
    block, x = ResidualBlock(5), torch.randn(7, 5)
    _, first, _, second = block.residual
    z = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    expected = x + (z @ first.weight.T).clamp(min=0) @ second.weight.T
    torch.testing.assert_close(block(x), expected)


def test_simba_begins_orthogonal_and_he_normal_with_biases_zero():
    model = simba({"actor_width": 256, "actor_blocks": 2})
    for network in (model.actor, *model.critic.q_networks):
        for layer in linears(network):
            assert layer.bias.abs().max() == 0
    first, *hidden = linears(model.actor.latent_pi)
    for layer in (first, model.actor.mu, model.actor.log_std, model.critic.qf0[-1]):
        matrix = layer.weight if layer.out_features < layer.in_features else layer.weight.T
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5, rtol=0)
    for layer in hidden:
        assert layer.weight.std().item() == pytest.approx(
            math.sqrt(2 / layer.in_features), rel=0.02
        )
        assert layer.weight.abs().max() > 3 * layer.weight.std()  # normal, not uniform


def test_simba_with_gsde_and_a_policy_file_of_its_own(tmp_path):
    model = simba(use_sde=True).learn(24)
    model.policy.save(tmp_path / "policy.pt")
    loaded = SimBaPolicy.load(tmp_path / "policy.pt")
    for name, tensor in model.policy.state_dict().items():
        assert tensor.equal(loaded.state_dict()[name]), name


@pytest.mark.parametrize("name", ["actor_width", "critic_blocks"])
def test_simba_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"policy_kwargs.{name}` must be at least 1, got 0"):
        simba({name: 0})


# --------------------------------------------------------------------------- Xavier and MinAtar


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "MinAtar/Breakout-v1"])
def test_xavier_bounds_every_weight_and_the_target_is_a_copy(env_id):
    model = minatar(policy_kwargs=MINATAR if "MinAtar" in env_id else {}, env_id=env_id)
    layers = [m for m in model.q_net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == (3 if "MinAtar" in env_id else 5)
    for layer in layers:
        limit = bound(layer.weight)
        assert layer.weight.abs().max() <= limit
        assert layer.weight.abs().max() > 0.97 * limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)
        assert layer.bias.abs().max() > 0  # as torch draws them
    for one, two in zip(model.q_net.parameters(), model.q_net_target.parameters(), strict=True):
        assert one.equal(two)
        assert one.data_ptr() != two.data_ptr()
    held = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.q_net.parameters()}


def test_minatar_network_is_that_of_the_paper():
    shapes = [tuple(p.shape) for p in minatar("CnnPolicy").q_net.parameters() if p.ndim > 1]
    assert shapes == [(16, 4, 3, 3), (128, 1024), (3, 128)]


def test_minatar_network_wants_images():
    with pytest.raises(ValueError, match=r"MinAtarCNN needs images \(C×H×W\), got Box"):
        MinAtarCNN(make_vec_env("CartPole-v1").observation_space)


# --------------------------------------------------------------------------------- with fire_rl


@pytest.mark.compat(
    section="Policies of your own",
    algorithm=lambda p: {"simba": "sac", "minatar": "dqn"}[p["name"]],
    policy=lambda p: {"simba": "SimBaPolicy", "minatar": "XavierCnnPolicy, MinAtarCNN"}[p["name"]],
    setting="as published",
    checked="Every matrix becomes isometric, no norm layer is touched; it trains on.",
)
@pytest.mark.parametrize("name", MODELS)
def test_fire_reaches_every_matrix_and_training_goes_on(name):
    model = MODELS[name]().learn(24)
    before = state_of(model)
    report = apply_intervention(model, FIRE(method="exact"))
    names = changed(before, state_of(model))
    weights = {n for n, m in model.policy.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert {n.removesuffix(".weight") for n in names} >= weights
    assert all("norm" not in n.lower() for n in names)
    assert all(c.dfi_after / c.num_singular_values < 1e-8 for c in report.layers)
    model.learn(24)
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


def test_roles_and_heads_of_simba():
    groups = {group.role: group for group in ModelView(simba()).groups}
    assert set(groups) == {"actor", "critic"}
    assert set(groups["actor"].online.heads) == {"actor.mu", "actor.log_std"}
    assert set(groups["critic"].online.heads) == {"critic.qf0.4", "critic.qf1.4"}
    assert len(groups["actor"].online.layers) == 1 + 2 + 2
    assert len(groups["critic"].online.layers) == 2 * (1 + 4 + 1)
    for layer in groups["critic"].online.layers:
        assert layer.name in groups["critic"].target.modules
    only = apply_intervention(simba(), FIRE(networks=["actor"]))
    assert {change.name.partition(".")[0] for change in only.layers} == {"actor"}


@pytest.mark.parametrize("name", MODELS)
def test_metrics_see_every_relu_unit(name):
    model = MODELS[name]()
    observations = torch.as_tensor(model.env.reset())
    for group in ModelView(model).groups:
        online = group.online
        layers = {layer.name: layer.module for layer in online.layers}
        relus = [n for n, m in online.modules.items() if isinstance(m, nn.ReLU)]
        seen = capture_activations(
            layers,
            [model.policy],
            lambda role=group.role: run(model, role, observations),
            online.heads,
        )
        assert len(seen.post) == len(relus) > 0
        assert set(seen.kinds.values()) == {"ReLU"}
        assert not seen.not_run
        assert set(seen.inputs) == set(online.heads)
        # What feeds a residual stream has no activation, and is not taken for a dead layer.
        assert bool(seen.unhooked) == (name == "simba")


def run(model, role, observations):
    if isinstance(model, DQN):
        return model.q_net(observations)
    if role == "actor":
        return model.actor(observations)
    return model.critic(observations, torch.zeros(len(observations), 1))


@pytest.mark.parametrize("name", MODELS)
def test_fresh_policy_is_initialised_in_the_same_way(name):
    model = MODELS[name]().learn(24)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, two, other = (ModelView(model).fresh_policy(seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(state)
    assert type(one) is {"simba": SimBaPolicy, "minatar": XavierCnnPolicy}[name]
    for key, tensor in one.state_dict().items():
        assert tensor.shape == model.policy.state_dict()[key].shape
        assert tensor.equal(two.state_dict()[key])
    if name == "minatar":
        weight = one.q_net.features_extractor.linear[0].weight
        assert 0.97 * bound(weight) < weight.abs().max() <= bound(weight)
    else:
        weight = one.actor.latent_pi[0].weight
        torch.testing.assert_close(weight.T @ weight, torch.eye(3), atol=1e-5, rtol=0)
    assert not weight.equal(dict(other.named_parameters())[name_of(one, weight)])


def name_of(policy, weight):
    return next(name for name, parameter in policy.named_parameters() if parameter is weight)


@pytest.mark.parametrize(("name", "kind"), [("simba", SAC), ("minatar", DQN)])
def test_a_model_comes_back_from_its_file(name, kind, tmp_path):
    model = MODELS[name]().learn(24)
    model.save(tmp_path / "model.zip")
    algo = kind.__name__.lower()
    for loaded in (kind.load(tmp_path / "model.zip"), load_agent(algo, tmp_path / "model.zip")):
        assert type(loaded.policy) is type(model.policy)
        for key, tensor in model.policy.state_dict().items():
            assert tensor.equal(loaded.policy.state_dict()[key]), key


# ------------------------------------------------------------------------------ in configurations


@pytest.mark.parametrize(
    ("algo", "agent", "message"),
    [
        ("sac", {"policy": "SimbaPolicy"}, "'SimBaPolicy', got 'SimbaPolicy'"),
        ("dqn", {"policy": "SimBaPolicy"}, "'XavierCnnPolicy', got 'SimBaPolicy'"),
        ("dqn", {"policy": ["CnnPolicy"]}, "`agent.policy` must be"),
        (
            "sac",
            {"policy": "SimBaPolicy", "policy_kwargs": {"actor_with": 3}},
            "is not an argument of SimBaPolicy. Did you mean 'actor_width'",
        ),
        (
            "sac",
            {"policy": "SimBaPolicy", "policy_kwargs": {"net_arch": [3]}},
            "`agent.policy_kwargs.net_arch` is not an argument of SimBaPolicy",
        ),
        (
            "sac",
            {"policy_kwargs": {"actor_width": 3}},
            "`agent.policy_kwargs.actor_width` is not an argument of SACPolicy",
        ),
        (
            "sac",
            {"policy": "SimBaPolicy", "policy_kwargs": {"actor_width": "wide"}},
            "must be a whole number, got 'wide'",
        ),
        (
            "dqn",
            {"policy_kwargs": {"features_extractor_class": "MinAtarCN"}},
            "Did you mean 'MinAtarCNN'",
        ),
    ],
)
def test_bad_choice_is_named(algo, agent, message):
    with pytest.raises(ValueError, match=message):
        check_agent(algo, agent)
