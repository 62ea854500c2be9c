"""Any SB3 algorithm: sb3-contrib's by name, others by what is registered; clear refusals."""

import re
from pathlib import Path

import pytest
import torch
from sb3_contrib import ARS, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvMultiDiscrete
from sb3_contrib.common.torch_layers import BatchRenorm1d
from sb3_contrib.ppo_mask import MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from fire_rl import (
    FIRE,
    Anatomy,
    FireCallback,
    PlasticityMetricsCallback,
    PolicyOutputs,
    ReDo,
    apply_intervention,
    register_anatomy,
)
from fire_rl.sb3 import anatomy as registry
from fire_rl.sb3.measurement import observe
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.probe import ProbeSource
from tests.helpers.models import EVERY_ALGORITHM, IGNORE_LSTM, changed, make_model, state_of
from tests.helpers.own_policies import DuelingPolicy

pytestmark = pytest.mark.filterwarnings(IGNORE_LSTM)


def groups_of(model):
    return {group.role: group for group in ModelView(model).groups}


def layers_of(model):
    return {role: [layer.name for layer in g.online.layers] for role, g in groups_of(model).items()}


def outputs(model, probe):
    (found,) = observe(ModelView(model), probe).outputs
    return found


# -------------------------------------------------------------------------------- sb3-contrib's


def test_roles_heads_and_targets_of_contrib_algorithms():
    groups = groups_of(make_model("qrdqn"))
    assert set(groups) == {"critic"}
    assert groups["critic"].online.heads == ("quantile_net.quantile_net.4",)
    assert set(groups["critic"].target.modules) == set(groups["critic"].online.modules)
    for algo in ("tqc", "crossq"):
        groups = groups_of(make_model(algo))
        assert set(groups) == {"actor", "critic"}
        assert set(groups["actor"].online.heads) == {"actor.mu", "actor.log_std"}
        assert len(groups["critic"].online.heads) == 2
        assert (groups["critic"].target is None) == (algo == "crossq")
    for algo in ("trpo", "recurrent_ppo", "maskable_ppo"):
        groups = groups_of(make_model(algo, "cnn"))
        assert set(groups) == {"actor", "critic", "shared"}
        assert groups["actor"].online.heads == ("action_net",)
        assert groups["critic"].online.heads == ("value_net",)


@pytest.mark.compat(
    section="What is particular to an algorithm",
    setting="answers on the probe",
    checked="Equal to what the model itself predicts.",
)
@pytest.mark.parametrize("algo", ["qrdqn", "tqc", "crossq", "maskable_ppo", "recurrent_ppo"])
def test_what_a_probe_is_answered_is_what_the_model_predicts(algo):
    model = make_model(algo).learn(40)
    probe = ProbeSource(8, 0).live(model)
    found = outputs(model, probe)
    starts = {"episode_start": [True] * len(probe)} if algo == "recurrent_ppo" else {}
    predicted, _ = model.predict(probe.observations.numpy(), deterministic=True, **starts)
    actions = found.action.numpy()
    if algo == "recurrent_ppo":
        actions = actions.clip(-1, 1)  # as SB3 does
    torch.testing.assert_close(torch.as_tensor(predicted), torch.as_tensor(actions))
    if algo == "qrdqn":
        quantiles = model.quantile_net(probe.observations)
        assert quantiles.shape == (8, 5, 3)
        torch.testing.assert_close(found.values, quantiles.mean(1))
    elif algo == "tqc":
        assert found.values.shape == (8, 2)
        quantiles = model.critic.qf1(torch.cat([probe.observations, probe.actions], 1))
        torch.testing.assert_close(found.values[:, 1], quantiles.mean(1))


@pytest.mark.compat(
    section="What is particular to an algorithm",
    algorithm="trpo",
    setting="the actor has no optimizer",
    checked="Nothing is forgotten for the actor, the moments of the critic are; it trains on.",
)
def test_the_actor_of_trpo_leaves_nothing_to_forget():
    model = make_model("trpo").learn(32)
    report = apply_intervention(model, FIRE(networks=["actor"]))
    assert report.optimizer_entries_forgotten == 0
    report = apply_intervention(model, FIRE(networks=["critic"], optimizer_state="all"))
    assert report.optimizer_entries_forgotten == 6
    assert not model.policy.optimizer.state
    model.learn(32, reset_num_timesteps=False)


def renorms(model):
    return [m for m in model.policy.modules() if isinstance(m, BatchRenorm1d)]


@pytest.mark.compat(
    section="What is particular to an algorithm",
    algorithm="crossq",
    setting="BatchRenorm statistics",
    checked="Kept; renewed with scales, shifts and warm-up by norm_layers='reset'.",
)
def test_crossq_keeps_its_running_statistics_unless_told_otherwise():
    model = make_model("crossq").learn(64)
    before = state_of(model)
    assert renorms(model)
    assert all(layer.steps > 0 and layer.ra_mean.any() for layer in renorms(model))
    apply_intervention(model, FIRE())
    assert not [name for name in changed(before, state_of(model)) if "weight" not in name]
    report = apply_intervention(model, FIRE(norm_layers="reset"))
    for layer in renorms(model):
        assert layer.steps == 0
        assert not layer.ra_mean.any()
        assert (layer.ra_var == 1).all()
        assert (layer.scale == 1).all()
        assert not layer.bias.any()
    others = {name for changes in report.networks.values() for name in changes.others}
    assert len(others) == 5 * len(renorms(model))
    model.learn(32, reset_num_timesteps=False)


@pytest.mark.compat(
    section="What is particular to an algorithm",
    setting="entropy temperature",
    checked="Reset to its start value by FIRE.paper_sac.",
)
@pytest.mark.parametrize("algo", ["tqc", "crossq"])
def test_entropy_temperature_of_sac_like_algorithms(algo):
    model = make_model(algo, ent_coef="auto_0.3").learn(40)
    apply_intervention(model, FIRE.paper_sac())
    assert model.log_ent_coef.exp().item() == pytest.approx(0.3)
    assert not model.ent_coef_optimizer.state


@pytest.mark.compat(
    section="What is particular to an algorithm",
    algorithm="recurrent_ppo",
    policy="CnnPolicy",
    setting="LSTM kept: {options}",
    checked="Weights and states of the LSTM stay; each trained tensor has one role; it trains on.",
)
@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, {"actor": "lstm_actor", "critic": "lstm_critic"}),
        ({"enable_critic_lstm": False}, {"actor": "lstm_actor"}),
        ({"enable_critic_lstm": False, "shared_lstm": True}, {"actor": "lstm_actor"}),
        (
            {"share_features_extractor": False, "n_lstm_layers": 2},
            {"actor": "lstm_actor", "critic": "lstm_critic"},
        ),
    ],
)
def test_every_kind_of_recurrent_policy(options, roles):
    model = make_model("recurrent_ppo", "cnn", policy_kwargs=options).learn(32)
    groups = groups_of(model)
    for role, name in roles.items():
        assert isinstance(groups[role].online.modules[name], nn.LSTM)
    owned = [id(t) for group in groups.values() for t in group.online.tensors.values()]
    held = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert len(owned) == len(set(owned))
    assert held == set(owned)
    has_linear = options.get("enable_critic_lstm") is False and "shared_lstm" not in options
    assert ("critic" in layers_of(model)["critic"]) == has_linear
    states = [t.clone() for pair in model._last_lstm_states for t in pair]
    before = state_of(model)
    apply_intervention(model, FIRE())
    moved = changed(before, state_of(model))
    assert moved
    assert not [name for name in moved if "lstm" in name]
    for one, two in zip(states, [t for pair in model._last_lstm_states for t in pair], strict=True):
        assert torch.equal(one, two)
    model.learn(32, reset_num_timesteps=False)


@pytest.mark.compat(
    section="What is particular to an algorithm",
    algorithm="recurrent_ppo",
    setting="LSTM kept",
    checked="A warning names the LSTM.",
)
def test_an_lstm_that_is_left_alone_is_named():
    with pytest.warns(UserWarning, match=r"`lstm_actor` \(LSTM\) .* left as they are"):
        apply_intervention(make_model("recurrent_ppo"), FIRE())


@pytest.mark.compat(
    section="What is particular to an algorithm",
    algorithm="maskable_ppo",
    setting="masked MultiDiscrete actions of sizes {sizes}",
    checked="After learning under masks; the KL divergence adds up over the components.",
)
@pytest.mark.parametrize("sizes", [[2, 3], [3, 2, 2]])
def test_masked_multi_discrete_actions(sizes):
    env = InvalidActionEnvMultiDiscrete(dims=sizes, n_invalid_actions=1)
    model = MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16, seed=0, device="cpu").learn(16)
    report = apply_intervention(model, FIRE(strength=0.3))
    assert report.policy_change["policy_kl"] > 0
    assert ModelView(model).fresh_policy(1).action_net.out_features == sum(sizes)


def test_metrics_of_contrib_algorithms_see_every_hidden_unit():
    for algo in ("qrdqn", "tqc", "crossq", "trpo", "maskable_ppo"):
        model = make_model(algo).learn(40)
        seen = observe(ModelView(model), ProbeSource(32, 0).live(model)).activations
        assert not seen.unhooked, algo
        assert not seen.not_run, algo
        hidden = [
            layer.name
            for group in ModelView(model).groups
            for layer in group.online.layers
            if not layer.is_head
        ]
        assert set(seen.post) == set(hidden), algo


@pytest.mark.parametrize("algo", ["qrdqn", "tqc", "crossq", "maskable_ppo"])
def test_redo_finds_dead_units_through_batch_renorm_too(algo):
    model = make_model(algo, policy_kwargs={"activation_fn": nn.ReLU}).learn(40)
    layers = {layer.name: layer for g in ModelView(model).groups for layer in g.online.layers}
    name = next(iter(layers))
    with torch.no_grad():
        layers[name].weight[:3] = 0
        layers[name].bias[:3] = -1
    report = apply_intervention(model, ReDo(tau=0))
    recycled = {change.name: change.units for change in report.layers}
    assert recycled[name] >= 3


# --------------------------------------------------------------------------------- refusals


@pytest.mark.compat(
    section="Refused, with the reason",
    algorithm="ars",
    policy="LinearPolicy",
    setting="as it comes",
    checked="Before training, with the reason: no gradients, and weights of its own.",
)
def test_ars_is_refused_with_the_reason():
    model = ARS("LinearPolicy", "Pendulum-v1", n_delta=1, seed=0)
    with pytest.raises(ValueError, match=r"`model` is a ARS.* without gradients.*model\.weights"):
        apply_intervention(model, FIRE())
    for callback in (FireCallback(every=10), PlasticityMetricsCallback(every=10)):
        with pytest.raises(ValueError, match="without gradients"):
            model.learn(10, callback=callback)
        assert model.num_timesteps == 0


# ---------------------------------------------------------------------- algorithms of anybody's


class TinyPolicy(BasePolicy):
    """A policy that is built like none of SB3's: a torso, and a value beside it."""

    def __init__(self, observation_space, action_space, lr_schedule, width=6):
        super().__init__(observation_space, action_space)
        size = observation_space.shape[0]
        self.torso = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, 2))
        self.judge = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, 1))
        self.judge_optimizer = torch.optim.SGD(self.judge.parameters(), lr_schedule(1), 0.9)

    def _predict(self, observation, deterministic=False):
        return self.torso(observation)


class Searcher(BaseAlgorithm):
    """A made-up algorithm: its critic has an optimizer, its actor has none."""

    def __init__(self, env):
        options = {"learning_rate": 0.1, "support_multi_env": True, "seed": 0, "device": "cpu"}
        super().__init__(TinyPolicy, env, **options)
        self._setup_model()

    def _setup_model(self):
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        )

    def learn(self, total_timesteps, callback=None, **options):
        total, callback = self._setup_learn(total_timesteps, callback)
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total:
            callback.on_rollout_start()
            for _ in range(4):
                actions, _ = self.policy.predict(self._last_obs)
                self._last_obs, rewards, _, infos = self.env.step(actions)
                self.num_timesteps += self.env.num_envs
                callback.update_locals({"infos": infos})
                callback.on_step()
            callback.on_rollout_end()
            loss = self.policy.judge(torch.as_tensor(self._last_obs)).mean() - rewards.mean()
            self.policy.judge_optimizer.zero_grad()
            loss.square().backward()
            self.policy.judge_optimizer.step()
        callback.on_training_end()
        return self


def tiny_forward(policy, observations, actions):
    return PolicyOutputs(policy.torso(observations), policy.judge(observations))


TINY = Anatomy(
    parts={"actor": ("torso",), "critic": ("judge",)},
    heads=("torso", "judge"),
    optimizers={"critic": "judge_optimizer"},
    forward=tiny_forward,
)


@pytest.mark.compat(
    section="Algorithms of your own",
    algorithm="derived from BaseAlgorithm only",
    policy="of its own",
    setting="not registered",
    checked="An error names the algorithm and says how to describe its networks.",
)
def test_an_unknown_algorithm_is_told_how_to_register(registered):
    model = Searcher(make_model("sac").get_env())
    message = r"is a Searcher, .*known are DQN.*fire_rl\.register_anatomy\(YourAlgorithm, fire_rl"
    with pytest.raises(ValueError, match=message):
        apply_intervention(model, FIRE())


@pytest.mark.compat(
    section="Algorithms of your own",
    algorithm="derived from BaseAlgorithm only",
    policy="of its own",
    setting="register_anatomy",
    checked="Events, metrics, forgotten moments, resets; for its subclasses too.",
)
def test_a_registered_algorithm_has_all_that_there_is(registered):
    register_anatomy(Searcher, TINY)

    class Heir(Searcher):
        pass

    model = Heir(make_model("sac").get_env())
    assert groups_of(model)["actor"].optimizer is None
    assert layers_of(model) == {"actor": ["torso.0", "torso.2"], "critic": ["judge.0", "judge.2"]}
    fire = FireCallback(every=16, stop=1.0, method="exact", hidden="reset")
    metrics = PlasticityMetricsCallback(every=16)
    model.learn(64, callback=[fire, metrics])
    assert [report.num_timesteps for report in fire.reports] == [16, 32, 48]
    assert fire.reports[0].optimizer_entries_forgotten == 3  # two weights and a bias of the critic
    assert any("dfi" in key for _, row in metrics.history for key in row)
    updates = FireCallback(every=3, stop=1.0, unit="gradient_updates")
    model.learn(64, callback=updates)
    assert len(updates.reports) == 2
    one = ModelView(model).fresh_policy(1)
    assert type(one) is TinyPolicy
    assert not one.torso[0].weight.equal(model.policy.torso[0].weight)


@pytest.mark.compat(
    section="Algorithms of your own",
    algorithm="subclass of DQN",
    setting="register_anatomy",
    checked="Goes before what is built in, for its subclasses too, and for no others.",
)
def test_the_nearest_base_class_counts_and_registered_goes_before_built_in(registered):
    class Mine(DQN):
        pass

    class Heir(Mine):
        pass

    env = make_model("dqn").get_env()
    options = {"seed": 0, "buffer_size": 100}
    half = Anatomy(
        parts={"critic": ("q_net.q_net",)},
        heads=("q_net.q_net",),
        optimizers={"critic": "optimizer"},
        forward=lambda policy, observations, actions: PolicyOutputs(),
        fresh=lambda model: make_model("dqn").policy,
    )
    for kind in (Mine, Heir):
        assert groups_of(kind("MlpPolicy", env, **options))["critic"].target is not None
    register_anatomy(Mine, half)
    for kind in (Mine, Heir):
        model = kind("MlpPolicy", env, **options)
        assert groups_of(model)["critic"].target is None
        assert ModelView(model).fresh_policy(0).q_net.q_net[0].out_features == 16
    assert groups_of(DQN("MlpPolicy", env, **options))["critic"].target is not None


def test_a_policy_that_lacks_a_part_is_named(registered):
    class Mine(PPO):
        pass

    register_anatomy(Mine, TINY)
    model = Mine("MlpPolicy", make_model("ppo").get_env(), n_steps=8, batch_size=8)
    message = (
        r"policy ActorCriticPolicy of Mine has no `torso`: .* like that of Mine.*register_anat"
    )
    with pytest.raises(ValueError, match=message):
        apply_intervention(model, FIRE())
    del model.policy.value_net
    registry._REGISTERED.clear()
    with pytest.raises(ValueError, match=r"has no `value_net`: .* like that of OnPolicyAlgorithm"):
        apply_intervention(model, FIRE())


def test_subclasses_of_contrib_algorithms_work_through_their_base():
    class Mine(RecurrentPPO):
        pass

    env = make_model("recurrent_ppo").get_env()
    model = Mine("MlpLstmPolicy", env, n_steps=8, batch_size=8, policy_kwargs={"net_arch": [4]})
    assert len(apply_intervention(model, "fire").layers) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": {}}, "`parts` must name the modules of at least one role"),
        ({"parts": {"aktor": ("torso",)}}, r"`parts` must be one of 'actor', 'critic'.*'aktor'"),
        ({"optimizers": {"actr": "x"}}, r"`optimizers` must be one of 'actor', 'critic'"),
        ({"heads": "torso"}, r"`heads` must be a sequence of paths, got the text 'torso'"),
        ({"heads": ("head",)}, r"`heads` has 'head', which lies in none of `parts`"),
        ({"targets": {"tors": "t"}}, r"`targets` must be one of 'torso', 'judge'.*mean 'torso'"),
    ],
)
def test_an_anatomy_that_contradicts_itself_is_refused(options, message):
    values = {name: getattr(TINY, name) for name in ("parts", "heads", "optimizers", "forward")}
    with pytest.raises(ValueError, match=message):
        Anatomy(**{**values, **options})


def test_register_wants_a_class_and_an_anatomy(registered):
    with pytest.raises(TypeError, match=r"`algorithm` must be a subclass .*the class, no model"):
        register_anatomy(make_model("dqn"), TINY)
    with pytest.raises(TypeError, match="`anatomy` must be an Anatomy, got 'q_net'"):
        register_anatomy(DQN, "q_net")


@pytest.mark.compat(
    section="Algorithms of your own",
    algorithm="derived from BaseAlgorithm only",
    policy="of its own",
    setting="register_anatomy, as in docs/algorithms.md",
    checked="The example of the page is run.",
)
def test_the_page_on_algorithms_names_every_one_and_its_example_builds(registered):
    page = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    table = page.partition("\n\n## ")[0]
    for kind in EVERY_ALGORITHM.values():
        assert {"QRDQN": "QR-DQN"}.get(kind.__name__, kind.__name__) in table
    of_policy, example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {"MyAlgorithm": Searcher})
    assert registry.known_anatomy(Searcher).parts == TINY.parts
    exec(of_policy, {"DQN": DQN, "DuelingPolicy": DuelingPolicy})
    model = make_model("dqn", policy=DuelingPolicy)
    assert set(groups_of(model)["critic"].online.heads) == {"q_net.value.2", "q_net.advantage.2"}
