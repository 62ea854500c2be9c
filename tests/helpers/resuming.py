"""A training with every callback, and what must be equal when it is cut and resumed."""

import hashlib
import warnings

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.her import HerReplayBuffer

from fire_rl import FireCallback, PlasticityMetricsCallback
from fire_rl.callbacks.checkpoint import RunCheckpointCallback
from fire_rl.checkpoints.store import latest


class Hashes(BaseCallback):
    """What the agent did and saw, step by step. Equal weights alone once hid a divergence."""

    def __init__(self, stop=None):
        super().__init__()
        self.by_step, self.stop = {}, stop

    def get_state(self):
        return {}

    def set_state(self, state):
        pass

    def _on_step(self):
        digest = hashlib.sha256()
        for name in ("actions", "new_obs", "rewards", "dones"):
            value = self.locals[name]
            for array in value.values() if isinstance(value, dict) else [value]:
                digest.update(np.ascontiguousarray(array).tobytes())
        self.by_step[self.num_timesteps] = digest.hexdigest()
        return self.stop is None or self.num_timesteps < self.stop


def train(make, folder, total, every, resume=False, stop=None):
    """Train with every callback that there is; return the model, what it did and what it logged."""
    newest = latest(folder / "checkpoints") if resume else False  # another model's, of this process
    model = make()
    model.set_logger(configure(str(folder), ["tensorboard"]))
    evaluation = EvalCallback(make().get_env(), eval_freq=every // 2, n_eval_episodes=1, verbose=0)
    hashes = Hashes(stop)
    callbacks = [
        hashes,
        FireCallback(every=every + every // 2, stop=1.0, probe_size=64),
        PlasticityMetricsCallback(every=every // 2, probe_size=64),
        evaluation,
        RunCheckpointCallback(every, folder / "checkpoints", resume=newest),
    ]
    with warnings.catch_warnings():
        # Few observations for ranks, and an LSTM that is left alone: not our subject.
        warnings.simplefilter("ignore", UserWarning)
        model.learn(total, callback=callbacks, log_interval=1)
    model.logger.close()
    model.get_env().close()
    evaluation.eval_env.close()
    return model, hashes.by_step, callbacks


def assert_same_buffer(one, two):
    assert (one.pos, one.full) == (two.pos, two.full)
    rows, columns = (grid.ravel() for grid in np.mgrid[: one.size(), : one.n_envs])
    names = ["observations", "next_observations", "actions", "rewards", "dones", "timeouts"]
    if isinstance(one, HerReplayBuffer):
        names += ["ep_start", "ep_length"]
        assert np.array_equal(one._current_ep_start, two._current_ep_start)
        for infos in zip(one.infos[rows, columns], two.infos[rows, columns], strict=True):
            mine, other = ({k: v for k, v in info.items() if k != "episode"} for info in infos)
            assert str(mine) == str(other)  # "episode" has the time of the clock
            assert (mine != {}) == one.copy_info_dict
    for name in names:
        mine, other = getattr(one, name), getattr(two, name)
        mine, other = (each if isinstance(each, dict) else {"": each} for each in (mine, other))
        for key, array in mine.items():
            assert np.array_equal(array[rows, columns], other[key][rows, columns]), (name, key)
