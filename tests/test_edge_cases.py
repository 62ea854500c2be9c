"""What a hostile reader has found: each was wrong once."""

import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn

from fire_rl import (
    FIRE,
    AtFractions,
    Every,
    FireCallback,
    InterventionCallback,
    apply_intervention,
    dormant_ratio,
    fire_,
    newton_schulz,
    polar_factor,
    zero_activation_ratio,
)
from tests.helpers.models import make_model


@pytest.mark.parametrize("exponent", [-44, -40, -38, -30, 0, 30, 38])
@pytest.mark.parametrize("shape", [(6, 3), (4, 4), (3, 6), (16, 4)])
def test_extreme_entries_are_projected_as_any_others(exponent, shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape).clamp(-2, 2)
    tiny = (matrix.double() * 10.0**exponent).float()
    assert bool(torch.isfinite(tiny).all())
    rescaled = (tiny.double() * 10.0**-exponent).float()  # what is left of it below 1e-38
    for project in (polar_factor, newton_schulz):
        found = project(tiny)
        torch.testing.assert_close(found, project(rescaled), rtol=1e-4, atol=1e-4)
    values = torch.linalg.svdvals(polar_factor(tiny))
    torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-5, atol=1e-5)


def test_a_decayed_layer_blocks_nothing():
    model = make_model("ppo")
    with torch.no_grad():
        model.policy.action_net.weight.mul_(1e-40)
    report = apply_intervention(model, FIRE(method="exact"))
    assert all(math.isfinite(layer.sfe) for layer in report.layers)


def test_tied_weights_change_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.out = nn.Linear(4, 10, bias=False)
            self.out.weight = self.embedding.weight

    module = Tied()
    (change,) = fire_(module, method="exact")
    assert change.name == "out"
    assert change.dfi_after == pytest.approx(0, abs=1e-6)
    assert module.out.weight is module.embedding.weight
    (kept,) = fire_(module, exclude=["out"])
    assert kept.action == "keep"


def test_heads_are_checked():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"`heads` must be one of '0', '2', '4', got 'nope'"):
        fire_(module, heads=["nope"])
    with pytest.raises(ValueError, match="got '24'"):
        fire_(module, heads="24")
    actions = [change.action for change in fire_(module, heads="4", head="keep")]
    assert actions == ["project", "project", "keep"]


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_a_second_model_begins_with_a_fresh_clock(algo):
    callback = FireCallback(at=[64])
    make_model(algo).learn(64, callback)  # armed, and never acted
    make_model(algo).learn(64, callback)
    assert callback.reports == []
    counting = FireCallback(every=6, stop=1.0, unit="gradient_updates")
    make_model(algo).learn(96, counting)
    first = [report.num_timesteps for report in counting.reports]
    make_model(algo).learn(96, counting)
    assert [report.num_timesteps for report in counting.reports] == first * 2


def test_chunks_without_a_horizon_are_warned_about():
    model, callback = make_model("ppo"), FireCallback(every=16)
    model.learn(32, callback, reset_num_timesteps=False)
    with pytest.warns(UserWarning, match=r"`stop` refers to the total of each call.*`horizon=`"):
        model.learn(32, callback, reset_num_timesteps=False)


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


def test_diverged_units_are_not_reported_as_healthy():
    broken = {"a": torch.ones(10, 4), "b": torch.full((10, 4), math.nan)}
    assert math.isnan(dormant_ratio(broken, 0.1))
    assert math.isnan(zero_activation_ratio(broken))


def test_save_before_overwrites_nothing(tmp_path):
    model = make_model("ppo")
    callbacks = [
        FireCallback(at=[32], networks=[role], save_before=tmp_path) for role in ("actor", "critic")
    ]
    model.learn(48, callbacks)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["before_fire_32_steps.zip", "before_fire_32_steps_2.zip"]


def test_numbers_of_numpy_are_numbers():
    assert Every(np.int64(1000)).steps == 1000
    callback = FireCallback(at=np.linspace(100, 1000, 4).astype(int))
    assert callback.clock.schedule.steps == (100, 400, 700, 1000)
    fractions = AtFractions(np.array([0.25, 0.5], dtype=np.float32))
    assert fractions.planned(100) == (25, 50)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FIRE(networks=[]), "`networks` must name a role"),
        (lambda: AtFractions([1.0]), r"in \(0, 1\)"),
        (lambda: FireCallback(at=[1], seed="a"), "`seed` must be a whole number"),
        (lambda: FireCallback(at="soon"), "got 'soon'"),
        (lambda: InterventionCallback("fire", Every), "`schedule` must be a mapping"),
        (lambda: InterventionCallback({"strength": 0.5}), "needs a `name`"),
        (lambda: newton_schulz(torch.eye(2), 2.5), "`num_steps` must be a whole number"),
        (lambda: apply_intervention(nn.Linear(3, 3), "fire"), "whose networks are not known"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_frozen_bias_is_kept():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    module[2].bias.requires_grad_(False)
    before = module[2].bias.clone()
    fire_(module, biases="zero")
    assert torch.equal(module[2].bias, before)
    assert not module[0].bias.any()


def test_a_broken_target_is_named():
    model = make_model("dqn", replay_buffer_class=ReplayBuffer)
    with torch.no_grad():
        model.policy.q_net_target.q_net[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"`q_net\.q_net\.0\.weight` \(critic\) holds NaN"):
        apply_intervention(model, FIRE(target="same"))


CARTPOLE = ["--algo", "ppo", "--env", "CartPole-v1", "-n", "64", "--set", "eval=null"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["agent.policy_kwargs.optimizer_kwargs.foo=1"], "unexpected keyword argument 'foo'"),
        (["agent.policy_kwargs.features_extractor_kwargs.foo=1"], "unexpected keyword"),
        (["agent.policy=MultiInputPolicy"], "AttributeError"),
        (["device=mps"], "`device` must be 'auto', 'cpu' or 'cuda'"),
        (["agent.stats_window_size=-1"], "maxlen must be non-negative"),
        (["normalize.gamma=abc"], "`normalize.gamma` must be a number, got 'abc'"),
        (["normalize.nrom=1", "normalize.foo=2"], "found 2 faults"),
        (["agent.batch_size=true"], "`agent.batch_size` must be a whole number, got True"),
        (["agent.gamma=.nan"], "`agent.gamma` must be a number, got nan"),
        (["total_timesteps=true"], "`total_timesteps` must be a whole number, got True"),
        (["metrics=5"], "`metrics` must be a mapping"),
        (["learning_rate=3"], "stand under `agent`: `agent.learning_rate`"),
        (["intervention.strength=0.5"], "needs a `name`"),
        (["agent.gama=1", "--seeds", "0"], "found 2 faults"),
        (["--algo", "dqn", "--env", "ALE/Pong-v5", "--set", "agent.buffer_size=1e8"],
         "`agent.buffer_size` 100,000,000 needs 706 GB"),
        (["--env", "Blackjack-v1"], "observation space is not supported"),
        (["--algo", "td3", "--env", "Pendulum-v1", "--set", "agent.noise_type=normal",
          "agent.noise_std=-1"], "`agent.noise_std` must be at least 0"),
        (["--env", "ALE/Pong-v5", "--set", "env_options.sticky_actions=5"], "from 0 to 1, got 5"),
    ],
)  # fmt: skip
def test_bad_values_get_a_message_and_leave_nothing_behind(flags, message, main, tmp_path):
    code, _, err = main(*CARTPOLE, *flags, "--log-dir", tmp_path / "run")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_key_that_stands_there_twice_is_refused(main, tmp_path):
    (tmp_path / "twice.yaml").write_text("algo: ppo\nenv: CartPole-v1\nalgo: dqn\n")
    code, _, err = main("--config", tmp_path / "twice.yaml")
    assert code == 2
    assert "the key 'algo' stands there twice" in err
