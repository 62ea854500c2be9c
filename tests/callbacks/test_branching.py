"""Branching: the control is the uninterrupted run, and arms differ by their weights alone."""

import json

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from fire_rl import (
    InterventionCallback,
    PlasticityMetricsCallback,
    RunCheckpointCallback,
    Threshold,
    TrainingStopped,
)
from fire_rl.checkpoints.store import CheckpointError
from fire_rl.interventions.base import named_tensors
from tests.helpers.models import changed, make_model, state_of

HALF, TOTAL = 64, 128


class Draws(BaseCallback):
    """What the training draws: random states before each step, observations, minibatches."""

    def __init__(self):
        super().__init__()
        self.random = []
        self.observations = []

    def _on_rollout_start(self):
        state = np.random.get_state()  # noqa: NPY002
        self.random.append((self.num_timesteps, hash(state[1].tobytes()), state[2]))

    def _on_step(self):
        self.observations.append(np.array(self.locals["new_obs"]))
        return True


def callbacks(folder, intervention=None, schedule=None, **options):
    """As train.py has them: metrics, interventions, draws, checkpoints last."""
    own = [InterventionCallback(intervention or "none", schedule)]
    saver = RunCheckpointCallback(HALF, folder, keep_last=None, **options)
    return [PlasticityMetricsCallback(32, probe_size=16), *own, Draws(), saver]


def make(algo, normalize=False):
    options = {"n_steps": 8} if algo == "a2c" else {}  # rollouts end at HALF
    model = make_model(algo, **options)
    if normalize:
        model.set_env(VecNormalize(make_model(algo).get_env()))
    return model


def branching(folder):
    return RunCheckpointCallback(1000, folder / "arm", branch_from=folder / "whole" / str(HALF))


def whole_run(algo, folder, normalize=False):
    listed = callbacks(folder)
    return make(algo, normalize).learn(TOTAL, callback=listed), listed


@pytest.mark.parametrize(
    ("algo", "normalize"),
    [("dqn", False), ("sac", True), ("ppo", True), ("td3", False), ("a2c", False), ("ddpg", True)],
)
def test_the_control_arm_equals_the_uninterrupted_run(algo, normalize, tmp_path):
    whole, one = whole_run(algo, tmp_path / "whole", normalize)
    listed = callbacks(
        tmp_path / "arm", "none", {"at": [HALF]}, branch_from=tmp_path / "whole" / str(HALF)
    )
    arm = make(algo, normalize).learn(TOTAL, callback=listed)
    assert not changed(state_of(whole), state_of(arm))
    assert whole.num_timesteps == arm.num_timesteps
    for a, b in zip(one[2].observations[-16:], listed[2].observations[-16:], strict=True):
        assert np.array_equal(a, b)
    assert listed[1].reports[0].num_timesteps == HALF
    assert listed[1].episodes.episodes == one[1].episodes.episodes  # with those of the trunk
    assert listed[0].history == one[0].history
    if algo in ("dqn", "sac", "td3"):
        assert np.array_equal(whole.replay_buffer.observations, arm.replay_buffer.observations)
    if algo == "dqn":
        assert whole.exploration_rate == arm.exploration_rate
    if normalize:
        one_rms, arm_rms = (
            whole.get_vec_normalize_env().obs_rms,
            arm.get_vec_normalize_env().obs_rms,
        )
        assert np.array_equal(one_rms.mean, arm_rms.mean)
        assert one_rms.count == arm_rms.count


@pytest.mark.parametrize("algo", ["dqn", "ppo", "sac"])
def test_arms_differ_by_their_weights_alone(algo, tmp_path):
    """The same random numbers and environment until different weights choose differently."""
    whole_run(algo, tmp_path / "whole")
    arms = {}
    for name in ("none", "fire", "reset", "optimizer_reset"):
        listed = callbacks(
            tmp_path / name, name, {"at": [HALF]}, branch_from=tmp_path / "whole" / str(HALF)
        )
        model = make(algo).learn(HALF + 24, callback=listed)
        draws = listed[2]
        start = next(k for k, (step, *_) in enumerate(draws.random) if step >= HALF)
        arms[name] = (draws, start, state_of(model))
    none, first, _ = arms["none"]
    for name, (draws, start, _) in arms.items():
        # numpy draws the minibatches: as many, from the same state, in every arm
        assert draws.random[start:] == none.random[first:], name
        # RandomEnv's observations do not depend on the actions
        seen = zip(draws.observations[-8:], none.observations[-8:], strict=True)
        assert all(np.array_equal(a, b) for a, b in seen), name
    for name in ("fire", "reset", "optimizer_reset"):
        assert changed(arms["none"][2], arms[name][2]), name


def test_the_intervention_acts_before_the_first_step_of_the_branch(tmp_path):
    whole_run("ppo", tmp_path / "whole")
    listed = callbacks(
        tmp_path / "arm", "fire", {"at": [HALF]}, branch_from=tmp_path / "whole" / str(HALF)
    )
    make("ppo").learn(TOTAL, callback=listed)
    (report,) = listed[1].reports
    assert report.num_timesteps == HALF
    assert report.probe_observations == 16  # on-policy, the probe comes from the trunk
    assert report.policy_change["policy_kl"] > 0


def test_a_periodic_schedule_goes_on_from_the_branch(tmp_path):
    whole_run("dqn", tmp_path / "whole")
    listed = callbacks(
        tmp_path / "arm", {"name": "redo", "tau": 0.1}, {"every": 16, "stop": 1.0},
        branch_from=tmp_path / "whole" / str(HALF),
    )  # fmt: skip
    make("dqn").learn(TOTAL, callback=listed)
    assert [report.num_timesteps for report in listed[1].reports] == [64, 80, 96, 112]


def test_initial_weights_are_those_of_the_run_and_not_of_the_branch(tmp_path):
    model = make("dqn")
    initial = {name: t.clone() for name, t in named_tensors(model.policy).items()}
    model.learn(TOTAL, callback=callbacks(tmp_path / "whole"))
    other = make_model("dqn", seed=5)
    listed = callbacks(
        tmp_path / "arm", {"name": "reset", "source": "initial"}, {"at": [HALF]},
        branch_from=tmp_path / "whole" / str(HALF),
    )  # fmt: skip

    class Look(BaseCallback):
        def _on_step(self):
            self.tensors = state_of(self.model)
            return False

    look = Look()
    other.learn(TOTAL, callback=[*listed[:-1], listed[-1], look])
    assert not changed(initial, look.tensors)


def test_initial_weights_that_nobody_kept_are_not_made_up(tmp_path):
    saver = RunCheckpointCallback(HALF, tmp_path / "whole", keep_last=None)
    make("dqn").learn(TOTAL, callback=saver)
    listed = callbacks(
        tmp_path / "arm", {"name": "reset", "source": "initial"}, {"at": [HALF]},
        branch_from=tmp_path / "whole" / str(HALF),
    )  # fmt: skip
    with pytest.raises(ValueError, match="they were not recorded"):
        make_model("dqn", seed=5).learn(TOTAL, callback=listed)


def test_gradient_updates_are_counted_from_the_branch(tmp_path):
    whole_run("dqn", tmp_path / "whole")
    own = InterventionCallback("fire", {"every": 40, "stop": 1.0}, unit="gradient_updates")
    saver = RunCheckpointCallback(
        1000, tmp_path / "arm", branch_from=tmp_path / "whole" / str(HALF)
    )
    make("dqn").learn(TOTAL, callback=[own, saver])
    # one update in a rollout of 2 steps; not at once
    assert [report.num_timesteps for report in own.reports] == []
    own = InterventionCallback("fire", {"every": 10, "stop": 1.0}, unit="gradient_updates")
    saver = RunCheckpointCallback(
        1000, tmp_path / "arm", branch_from=tmp_path / "whole" / str(HALF)
    )
    make("dqn").learn(TOTAL, callback=[own, saver])
    assert [report.num_timesteps for report in own.reports] == [84, 104, 124]


def test_a_restarted_exploration_goes_on_in_the_branch(tmp_path):
    fire = InterventionCallback("fire", {"at": [40]}, restart_exploration=60)
    saver = RunCheckpointCallback(HALF, tmp_path / "whole", keep_last=None)
    whole = make("dqn").learn(TOTAL, callback=[fire, saver])
    own = InterventionCallback("none", {"at": [HALF]})
    saver = RunCheckpointCallback(
        1000, tmp_path / "arm", branch_from=tmp_path / "whole" / str(HALF)
    )
    arm = make("dqn").learn(TOTAL, callback=[own, saver])
    assert not changed(state_of(whole), state_of(arm))


def test_a_branch_that_is_stopped_goes_on_as_a_run_of_its_own(tmp_path):
    whole_run("sac", tmp_path / "whole")
    source = {"branch_from": tmp_path / "whole" / str(HALF)}
    straight = callbacks(tmp_path / "one", "fire", {"at": [HALF]}, **source)
    one = make("sac").learn(3 * HALF, callback=straight)
    stopped = callbacks(tmp_path / "two", "fire", {"at": [HALF]}, stop_at=100, **source)
    with pytest.raises(TrainingStopped):
        make("sac").learn(3 * HALF, callback=stopped)
    resumed = callbacks(tmp_path / "two", "fire", {"at": [HALF]}, resume=True, **source)
    two = make("sac").learn(3 * HALF, callback=resumed)
    assert not changed(state_of(one), state_of(two))
    assert len(resumed[1].reports) == 1


def test_a_threshold_may_rule_the_branch(tmp_path):
    whole_run("dqn", tmp_path / "whole")
    rule = Threshold("dfi_per_sv", above=1e-6, every=16, cooldown=40, stop=1.0)
    listed = callbacks(tmp_path / "arm", "fire", rule, branch_from=tmp_path / "whole" / str(HALF))
    make("dqn").learn(TOTAL, callback=listed)
    assert [report.num_timesteps for report in listed[1].reports] == [64, 112]


def test_logs_of_a_branch_are_its_own(tmp_path):
    whole = make("dqn")
    whole.set_logger(configure(str(tmp_path / "a"), ["csv", "tensorboard"]))
    whole.learn(TOTAL, callback=callbacks(tmp_path / "whole"))
    whole.logger.close()
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    arm = make("dqn")
    arm.set_logger(configure(str(tmp_path / "b"), ["csv", "tensorboard"]))
    source = tmp_path / "whole" / str(HALF)
    arm.learn(
        TOTAL, callback=callbacks(tmp_path / "arm", "fire", {"at": [HALF]}, branch_from=source)
    )
    arm.logger.close()
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    event = json.loads((tmp_path / "b" / "interventions.jsonl").read_text().splitlines()[0])
    assert event["num_timesteps"] == HALF
    assert (tmp_path / "b" / "episodes.csv").read_text().startswith("step,return,length\n24,")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: make_model("td3"), "the checkpoint is one of SAC, the model is a TD3"),
        (lambda: make_model("sac", "dict"), "another environment: its observation space is Box"),
        (lambda: make_model("sac", learning_rate=1e-2), "learning_rate is 0.01, was 0.0003"),
        (
            lambda: make_model("sac", policy_kwargs={"net_arch": [4]}),
            "size mismatch|does not fit",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(other, message, tmp_path):
    whole_run("sac", tmp_path / "whole")
    listed = callbacks(
        tmp_path / "arm", "fire", {"at": [HALF]}, branch_from=tmp_path / "whole" / str(HALF)
    )
    with pytest.raises(CheckpointError, match=message):
        other().learn(TOTAL, callback=listed)


def test_a_checkpoint_that_is_not_there(tmp_path):
    listed = callbacks(tmp_path / "arm", "fire", {"at": [HALF]}, branch_from=tmp_path / "none")
    with pytest.raises(CheckpointError, match="none is no usable checkpoint"):
        make("dqn").learn(TOTAL, callback=listed)


def test_stop_at_saves_there_and_stops(tmp_path):
    model = make("dqn")
    with pytest.raises(TrainingStopped):
        model.learn(TOTAL, callback=RunCheckpointCallback(1000, tmp_path, stop_at=50))
    assert [path.name for path in tmp_path.iterdir() if path.name.isdigit()] == ["50"]
    with pytest.raises(ValueError, match="`stop_at` must be a whole number of at least 1, got 0"):
        RunCheckpointCallback(stop_at=0)


def test_torch_draws_are_paired_too(tmp_path):
    """SAC samples its actions with torch: the noise of both arms is the same."""
    whole_run("sac", tmp_path / "whole")
    states = []
    for name in ("none", "fire"):
        listed = callbacks(
            tmp_path / name, name, {"at": [HALF]}, branch_from=tmp_path / "whole" / str(HALF)
        )
        make("sac").learn(HALF + 16, callback=listed)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
