"""Rollouts are counted from the step 0 of a run, however often it is resumed."""

import pytest

from experiments.training import LogInterval
from tests.helpers.models import make_model


@pytest.mark.parametrize("rollouts", [1, 2, 3, 9])
def test_on_policy_rollouts_are_those_of_the_whole_run(rollouts):
    model = make_model("ppo")
    model.num_timesteps = rollouts * model.n_steps * model.n_envs
    assert 1 % LogInterval(3, model) == rollouts % 3
    assert LogInterval(3, model) == 3


def test_episodes_are_counted_as_they_are():
    assert 7 % LogInterval(4, make_model("dqn")) == 3
