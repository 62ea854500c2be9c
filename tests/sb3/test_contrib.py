"""sb3-contrib's algorithms and hindsight replay under the callbacks: events, metrics, aids."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer

from fire_rl import (
    FIRE,
    FireCallback,
    InterventionCallback,
    PlasticityMetricsCallback,
    apply_intervention,
)
from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.probe import ProbeSource
from tests.helpers.models import (
    CONTRIB_OFF_POLICY,
    CONTRIB_ON_POLICY,
    IGNORE_LSTM,
    changed,
    make_model,
    state_of,
)

# Measured early on purpose, with fewer observations than features.
pytestmark = [
    pytest.mark.filterwarnings(IGNORE_LSTM),
    pytest.mark.filterwarnings("ignore:A rank needs at least as many"),
]
ALGORITHMS = [*CONTRIB_OFF_POLICY, *CONTRIB_ON_POLICY]


class FloatFlips(BitFlippingEnv):
    """Bits as real numbers, so that VecNormalize takes them."""

    def __init__(self):
        super().__init__(n_bits=6, continuous=True)
        boxes = dict.fromkeys(self.observation_space, spaces.Box(-2, 2, (6,), np.float32))
        self.observation_space = spaces.Dict(boxes)

    def _get_obs(self):
        return {key: np.asarray(value, np.float32) for key, value in super()._get_obs().items()}


def her(env=None):
    """Hindsight replay of flipping bits."""
    env = env or make_vec_env(BitFlippingEnv, 2, 0, env_kwargs={"n_bits": 6, "continuous": True})
    options = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 20, "buffer_size": 60}
    options |= {"policy_kwargs": {"net_arch": [16]}, "batch_size": 8, "device": "cpu"}
    return SAC("MultiInputPolicy", env, seed=0, **options)


def model_of(algo, observation="mlp"):
    return her() if algo == "her" else make_model(algo, observation)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_events_happen_at_the_rollout_after_the_crossing(algo):
    callback = FireCallback(every=30, stop=1.0)
    make_model(algo).learn(100, callback=callback)
    rollout = 16 if algo in CONTRIB_ON_POLICY else 2
    expected = [-(-step // rollout) * rollout for step in (30, 60, 90)]
    assert [report.num_timesteps for report in callback.reports] == expected


@pytest.mark.compat(
    section="Training loops",
    policy=lambda p: "dict" if p["algo"] == "her" else p["observation"],
    setting=lambda p: "metrics change nothing" + ", HerReplayBuffer" * (p["algo"] == "her"),
)
@pytest.mark.parametrize(
    ("algo", "observation"),
    [(algo, "mlp") for algo in [*ALGORITHMS, "her"]]
    + [
        pytest.param(algo, observation, marks=pytest.mark.full)
        for algo in ALGORITHMS
        for observation in ("cnn", "dict")
        if (algo, observation) != ("crossq", "dict")  # which it has no policy for
    ],
)
def test_training_is_bit_equal_with_and_without_metrics(algo, observation):
    """Weights are equal to the bit with metrics and the control intervention, and without."""
    metrics = PlasticityMetricsCallback(every=10, probe_size=24)
    control = InterventionCallback("none", {"every": 24})
    plain = state_of(model_of(algo, observation).learn(64))
    seen = state_of(model_of(algo, observation).learn(64, callback=[metrics, control]))
    assert not changed(plain, seen)
    assert len(metrics.history) >= 4
    assert len(control.reports) >= 2
    measured = {key.rpartition("/")[2] for key in metrics.history[-1][1]}
    assert {"dormant_ratio", "effective_rank", "dfi"} <= measured


class Ratios(BaseCallback):
    """The ratio of new to stored probabilities, when a rollout has just ended."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer, policy = self.model.rollout_buffer, self.model.policy
        self.ratios = []
        for step in range(buffer.buffer_size):
            options = {}
            if hasattr(buffer, "action_masks"):
                options["action_masks"] = buffer.action_masks[step]
            if hasattr(buffer, "hidden_states_pi"):
                pairs = [
                    tuple(torch.as_tensor(getattr(buffer, f"{kind}_states_{role}")[step])
                          for kind in ("hidden", "cell"))
                    for role in ("pi", "vf")
                ]  # fmt: skip
                starts = torch.as_tensor(buffer.episode_starts[step])
                options |= {"lstm_states": RNNStates(*pairs), "episode_starts": starts}
            seen, actions = (
                torch.as_tensor(x[step]) for x in (buffer.observations, buffer.actions)
            )
            actions = actions.flatten() if "action_masks" in options else actions
            _, log_prob, _ = policy.evaluate_actions(seen, actions, **options)
            self.ratios.append((log_prob - torch.as_tensor(buffer.log_probs[step])).exp())


@pytest.mark.compat(
    section="What is particular to an algorithm",
    setting="stored probabilities",
    checked="After an event they are those of the new weights (masks, LSTM states included).",
)
@pytest.mark.parametrize(
    ("algo", "options"),
    [
        *((algo, {}) for algo in CONTRIB_ON_POLICY),
        ("recurrent_ppo", {"recurrent": "project"}),
        ("recurrent_ppo", {"recurrent": "project", "method": "exact", "biases": "zero"}),
    ],
)
def test_stored_probabilities_are_those_of_the_weights_after_surgery(algo, options):
    ratios, fire = Ratios(), FireCallback(every=16, horizon=48, stop=1.0, **options)
    model = make_model(algo)
    for _ in range(3):
        model.learn(16, callback=[fire, ratios], reset_num_timesteps=False)
        found = torch.stack(ratios.ratios).detach()
        torch.testing.assert_close(found, torch.ones(8, 2), atol=1e-6, rtol=0)
    assert len(fire.reports) == 2


@pytest.mark.compat(
    section="What is particular to an algorithm",
    setting="head_refit",
    checked="Answers change less than half as much as without.",
)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_refitted_head_answers_much_as_before(algo):
    model = make_model(algo, policy_kwargs={"net_arch": [32, 32]}).learn(160)
    probe = ProbeSource(1024, 0).live(model)
    plain = apply_intervention(model, FIRE(method="exact"), probe=probe, dry_run=True)
    refitted = apply_intervention(model, FIRE(method="exact"), probe=probe, head_refit=True)
    for name, value in refitted.policy_change.items():
        assert value < 0.5 * plain.policy_change[name], name
    heads = {name for group in ModelView(model).groups for name in group.online.heads}
    assert {change.name for change in refitted.layers if change.action == "refit"} == heads


@pytest.mark.compat(
    section="What is particular to an algorithm",
    setting="warmup_updates",
    checked="As many gradient steps more as asked for.",
)
@pytest.mark.parametrize("algo", CONTRIB_OFF_POLICY)
def test_warm_up_updates(algo):
    plain, warm = make_model(algo), make_model(algo)
    plain.learn(64, callback=FireCallback(at=[32]))
    warm.learn(64, callback=FireCallback(at=[32], warmup_updates=5))
    assert warm._n_updates == plain._n_updates + 5


@pytest.mark.compat(
    section="What is particular to an algorithm",
    algorithm="qrdqn",
    setting="restart_exploration",
    checked="ε rises to 1 at the event and comes back.",
)
def test_qrdqn_explores_again():
    model = make_model("qrdqn", exploration_fraction=0.01)
    rates = []
    callback = FireCallback(at=[40], restart_exploration=20)
    callback._on_step = lambda: rates.append(model.exploration_rate) or True
    model.learn(100, callback=callback)
    assert rates[15] == pytest.approx(model.exploration_final_eps, abs=0.01)
    assert max(rates[19:23]) > 0.8
    assert rates[-1] == pytest.approx(model.exploration_final_eps)


@pytest.mark.compat(
    section="Environments",
    algorithm="sac",
    policy="MultiInputPolicy",
    setting="HerReplayBuffer, VecNormalize of one key",
    checked="The probe holds normalised observations, with the goals that were asked for.",
)
def test_a_probe_from_hindsight_replay_shows_what_the_policy_sees():
    env = VecNormalize(make_vec_env(FloatFlips, 2, 0), norm_obs_keys=["observation"])
    model = her(env).learn(60)
    probe = ProbeSource(60, seed=0).live(model)
    assert set(probe.observations) == {"observation", "achieved_goal", "desired_goal"}
    assert (probe.observations["desired_goal"] == 1).all()  # as asked for, not as relabelled
    raw = {key: array[:30] for key, array in model.replay_buffer.observations.items()}
    expected = torch.as_tensor(env.normalize_obs(raw)["observation"]).reshape(60, -1)
    for row in probe.observations["observation"]:
        assert min((row - other).abs().max() for other in expected) < 1e-6
    report = apply_intervention(model, FIRE())
    assert report.probe_observations == 60
    assert set(report.policy_change) == {"policy_kl", "action_difference", "value_shift"}
    model.learn(30, reset_num_timesteps=False)
