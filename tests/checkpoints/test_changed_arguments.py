"""Arguments that a training changes are state: of callbacks and of the model."""

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from fire_rl import RunCheckpointCallback
from fire_rl.callbacks.checkpoint import TrainingStopped
from tests.helpers.models import RandomEnv, changed, state_of


class Acting(BaseCallback):
    """Counts in arguments of its own, and may change the model after each rollout."""

    def __init__(self, change=None, level=0, seen=()):
        super().__init__()
        self.change, self.level, self.seen = change, level, list(seen)

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.level += 1
        self.seen.append(self.level)
        if self.change is not None:
            self.change(self.model, self.level)


def entropy(model, _):
    model.ent_coef = 2 * (model.ent_coef + 0.01)


def rate(model, _):
    model.learning_rate *= 0.5
    model._setup_lr_schedule()


def schedule(model, level):
    model.lr_schedule = lambda _: 1e-3 / (1 + level)


def clip(model, level):
    model.clip_range = lambda _: 0.2 / level


def epochs(model, level):
    model.n_epochs = 1 + level % 2


def fading_clip(model, level):
    model.clip_range = lambda remaining: 0.2 * remaining / level


def train(change, **options):
    values = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu", **options}
    model = PPO("MlpPolicy", RandomEnv(discrete=True), policy_kwargs={"net_arch": [4]}, **values)
    return model, Acting(change)


def resumed(change, folder, **options):
    """Train straight, and with a stop; return both models and callbacks."""
    one = train(change, **options)
    one[0].learn(48, callback=one[1])
    two = train(change, **options)
    with pytest.raises(TrainingStopped):
        two[0].learn(48, callback=[two[1], RunCheckpointCallback(8, folder, stop_at=24)])
    two = train(change, **options)
    two[0].learn(48, callback=[two[1], RunCheckpointCallback(8, folder, resume=True)])
    return one, two


@pytest.mark.parametrize("change", [None, entropy, rate, schedule, clip, epochs])
def test_an_argument_that_is_changed_goes_on(change, tmp_path, caplog):
    one, two = resumed(change, tmp_path)
    assert (one[1].level, one[1].seen) == (two[1].level, two[1].seen) == (6, [1, 2, 3, 4, 5, 6])
    assert not changed(state_of(one[0]), state_of(two[0]))
    assert not caplog.text


def test_what_cannot_be_saved_is_named(tmp_path, caplog):
    resumed(fading_clip, tmp_path)
    assert "`clip_range` of PPO was changed in training" in caplog.text


def unable(remaining):
    return 1e-3 / remaining if remaining else np.float64(1e-6)


@pytest.mark.parametrize("value", [1e-3, unable, LinearSchedule(1, 0, 1)])
def test_a_schedule_that_nobody_changes_is_none(value, tmp_path, caplog):
    resumed(None, tmp_path, learning_rate=value)
    assert not caplog.text
