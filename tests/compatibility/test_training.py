"""Both callbacks attached to what people train with: spaces, environments, loops, files."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from fire_rl import FIRE, FireCallback, PlasticityMetricsCallback, apply_intervention
from tests.helpers import extractors
from tests.helpers.attached import attach
from tests.helpers.models import (
    EVERY_ALGORITHM,
    IGNORE_LSTM,
    ON_POLICY,
    RandomEnv,
    TinyExtractor,
    changed,
    make_model,
    state_of,
)
from tests.helpers.rows import rows
from tests.helpers.runs import ENVIRONMENT

pytestmark = pytest.mark.filterwarnings(IGNORE_LSTM)
OFF_POLICY = [algo for algo in EVERY_ALGORITHM if algo not in ON_POLICY]
DISCRETE = ("dqn", "qrdqn", "maskable_ppo")
CONTINUOUS = [algo for algo in EVERY_ALGORITHM if algo not in DISCRETE]


# ------------------------------------------------------------------------------------------ spaces

ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "Discrete from 2": spaces.Discrete(3, start=2),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box of two dimensions": spaces.Box(-1, 1, (2, 2), np.float32),
    "Box of other bounds": spaces.Box(
        np.array([-2, 0], np.float32), np.array([3, 1], np.float32)
    ),
}  # fmt: skip


def takes(algo, kind):
    if kind.startswith("Box"):
        return algo in CONTINUOUS
    if kind == "Discrete":
        return algo in (*DISCRETE, *ON_POLICY)
    # Those that index values by action take them from 0; see test_sb3_itself_cannot.
    return algo in ON_POLICY and (algo, kind) != ("recurrent_ppo", "MultiBinary")


@pytest.mark.compat(section="Spaces", setting="actions: {kind}")
@pytest.mark.parametrize(
    ("algo", "kind"),
    rows(
        [
            ("ppo", "MultiDiscrete"),
            ("maskable_ppo", "MultiBinary"),
            ("sac", "Box of two dimensions"),
        ],
        EVERY_ALGORITHM,
        ACTIONS,
        missing=[(a, k) for a in EVERY_ALGORITHM for k in ACTIONS if not takes(a, k)],
    ),
)  # fmt: skip
def test_actions(algo, kind):
    """Attached."""
    attach(make_model(algo, action=ACTIONS[kind]))


OBSERVATIONS = {
    "Box of two dimensions": spaces.Box(-1, 1, (3, 2), np.float32),
    "Box of float64": spaces.Box(-1, 1, (5,), np.float64),
    "Box of int8": spaces.Box(-5, 5, (5,), np.int8),
    "Discrete": spaces.Discrete(6),
    "MultiDiscrete": spaces.MultiDiscrete([3, 4]),
    "MultiBinary": spaces.MultiBinary(5),
}


@pytest.mark.compat(section="Spaces", setting="observations: {kind}")
@pytest.mark.parametrize(
    ("algo", "kind"),
    rows(
        [("dqn", "Discrete"), ("ppo", "MultiDiscrete"), ("td3", "MultiBinary")],
        EVERY_ALGORITHM,
        OBSERVATIONS,
        missing=[("recurrent_ppo", "MultiDiscrete")],  # see test_sb3_itself_cannot
    ),
)
def test_observations(algo, kind):
    """Attached."""
    attach(make_model(algo, OBSERVATIONS[kind]))


@pytest.mark.compat(
    section="Spaces",
    policy="custom extractor",
    setting="observations: {kind}, through nn.Embedding",
)
@pytest.mark.parametrize(
    ("algo", "kind"),
    rows(
        [("dqn", "Discrete")],
        ["ppo", "dqn", "sac", "recurrent_ppo"],
        ["Discrete", "MultiDiscrete"],
    ),
)  # fmt: skip
def test_embedded_observations(algo, kind):
    """Attached; the embedding is kept, reported as such, and trained."""
    kwargs = {"features_extractor_class": extractors.Embedded, "features_extractor_kwargs": {}}
    model = make_model(algo, OBSERVATIONS[kind], policy_kwargs=kwargs)
    before = state_of(model)
    found = attach(model)
    assert [n for n in changed(before, state_of(model)) if "places" in n]
    kept = [reason for c in found.reports[-1].networks.values() for reason in c.kept.values()]
    assert "embedding" in kept


MIXED = spaces.Dict(
    {
        "vector": spaces.Box(-1, 1, (3,), np.float32),
        "choice": spaces.Discrete(4),
        "bits": spaces.MultiBinary(2),
        "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    }
)


@pytest.mark.compat(
    section="Spaces",
    policy="MultiInputPolicy",
    setting="observations: Dict of Box, image, Discrete, MultiBinary",
)  # fmt: skip
@pytest.mark.parametrize(
    "algo", rows([("ppo",)], [algo for algo in EVERY_ALGORITHM if algo != "crossq"])
)
def test_mixed_observations(algo):
    """Attached."""
    attach(make_model(algo, MIXED))


IMAGES = {
    "channels last": (spaces.Box(0, 255, (36, 36, 1), np.uint8), {}),
    "floats, normalize_images=False": (
        spaces.Box(0, 1, (1, 36, 36), np.float32), {"normalize_images": False},
    ),
}  # fmt: skip


@pytest.mark.compat(section="Spaces", policy="CnnPolicy", setting="images: {kind}")
@pytest.mark.parametrize(("algo", "kind"), rows([], ["ppo", "dqn", "sac"], IMAGES))
def test_images(algo, kind):
    """Attached."""
    space, options = IMAGES[kind]
    kwargs = {"features_extractor_class": TinyExtractor, **options}
    attach(make_model(algo, space, policy_kwargs=kwargs))


# ------------------------------------------------------------------------------------ environments


def plain(algo, observation="mlp", n_envs=2, **options):
    kwargs = {"observation": observation, "discrete": algo in DISCRETE}
    return make_vec_env(RandomEnv, n_envs, env_kwargs=kwargs, **options)


ENVIRONMENTS = {
    "one environment": lambda algo: plain(algo, n_envs=1),
    "five environments": lambda algo: plain(algo, n_envs=5),
    "VecNormalize": lambda algo: VecNormalize(plain(algo)),
    "VecNormalize of one key": lambda algo: VecNormalize(
        plain(algo, "dict"), norm_obs_keys=["state"]
    ),
    "VecFrameStack": lambda algo: VecFrameStack(plain(algo), 3),
    "VecFrameStack of images": lambda algo: VecFrameStack(
        plain(algo, spaces.Box(0, 255, (36, 36, 1), np.uint8)), 4
    ),
    "VecNormalize of VecFrameStack": lambda algo: VecNormalize(VecFrameStack(plain(algo), 2)),
    "VecMonitor, VecCheckNan": lambda algo: VecCheckNan(
        VecMonitor(DummyVecEnv([lambda: RandomEnv(discrete=algo in DISCRETE)] * 2))
    ),
    "SubprocVecEnv": lambda algo: plain(algo, vec_env_cls=SubprocVecEnv),
}
IN_ENVIRONMENTS = ["ppo", "dqn", "sac", "recurrent_ppo", "tqc"]


@pytest.mark.compat(section="Environments", policy="fitting the observations", setting="{kind}")
@pytest.mark.parametrize(
    ("algo", "kind"),
    rows([("ppo", "five environments"), ("sac", "VecNormalize")], IN_ENVIRONMENTS, ENVIRONMENTS),
)
def test_environments(algo, kind):
    """Attached."""
    env = ENVIRONMENTS[kind](algo)
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}} if "images" in kind else None
    try:
        attach(
            make_model(algo, env=env, policy_kwargs=kwargs, tiny_images=False), total=120, every=40
        )
    finally:
        env.close()


@pytest.mark.compat(section="Environments", policy="MultiInputPolicy", setting="HerReplayBuffer")
@pytest.mark.parametrize(
    "algo", rows([("td3",)], [algo for algo in OFF_POLICY if algo != "crossq"])
)
def test_hindsight_replay(algo):
    """Attached."""
    kwargs = {"n_bits": 6, "continuous": algo not in DISCRETE}
    env = make_vec_env(BitFlippingEnv, 2, 0, env_kwargs=kwargs)
    options = {"replay_buffer_kwargs": {"n_sampled_goal": 2}, "learning_starts": 20}
    attach(make_model(algo, env=env, replay_buffer_class=HerReplayBuffer, **options))


class OwnRolloutBuffer(RolloutBuffer):
    """Somebody's subclass."""


OPTIONS = {
    "NStepReplayBuffer": (
        "dqn", {"replay_buffer_class": NStepReplayBuffer,
                "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.9}},
    ),
    "optimize_memory_usage": (
        "dqn", {"optimize_memory_usage": True,
                "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    ),
    "training by episodes": (
        "td3", {"n_envs": 1, "train_freq": (1, "episode"), "gradient_steps": -1},
    ),
    "action noise": ("ddpg", {"action_noise": NormalActionNoise(np.zeros(2), np.ones(2))}),
    "fixed entropy temperature": ("sac", {"ent_coef": 0.1}),
    "gradient_steps=-1": ("sac", {"gradient_steps": -1}),
    "subclass of RolloutBuffer": ("ppo", {"rollout_buffer_class": OwnRolloutBuffer}),
    "target_kl, clip_range_vf": ("ppo", {"target_kl": 0.05, "clip_range_vf": 0.2}),
}  # fmt: skip


@pytest.mark.compat(section="Training loops", setting="{kind}")
@pytest.mark.parametrize(
    ("algo", "kind"),
    [pytest.param(algo, kind, marks=pytest.mark.full) for kind, (algo, _) in OPTIONS.items()],
)
def test_options_of_algorithms(algo, kind):
    """Attached."""
    attach(make_model(algo, **OPTIONS[kind][1]))


# ---------------------------------------------------------------------------------- training loops


@pytest.mark.compat(section="Training loops", setting="learn() in chunks")
@pytest.mark.parametrize("algo", rows([("ppo",), ("td3",)], EVERY_ALGORITHM))
def test_learning_in_chunks(algo):
    """Events of several calls are those of one, with `horizon=`; the metrics go on."""
    whole = FireCallback(every=24)
    make_model(algo).learn(120, callback=whole)
    fire = FireCallback(every=24, horizon=120)
    metrics = PlasticityMetricsCallback(every=24, probe_size=32)
    model = make_model(algo)
    while model.num_timesteps < 120:
        model.learn(40, callback=[fire, metrics], reset_num_timesteps=False)
    assert [r.num_timesteps for r in fire.reports] == [r.num_timesteps for r in whole.reports]
    assert len(fire.reports) >= 3
    assert len(metrics.history) >= 3


@pytest.mark.compat(section="Training loops", setting="beside other callbacks")
@pytest.mark.parametrize("algo", ["ppo", pytest.param("sac", marks=pytest.mark.full)])
def test_beside_other_callbacks(algo, tmp_path):
    """Events and measurements happen beside SB3's own callbacks, and inside a CallbackList."""
    fire = FireCallback(every=32, stop=1.0)
    metrics = PlasticityMetricsCallback(every=32, probe_size=32)

    class Own(BaseCallback):
        def _on_step(self):
            return True

    model = make_model(algo)
    evaluation = EvalCallback(make_model(algo, n_envs=1).get_env(), eval_freq=16, verbose=0)
    checkpoint = CheckpointCallback(16, str(tmp_path))
    stop = StopTrainingOnMaxEpisodes(10**6)
    model.learn(96, callback=[evaluation, CallbackList([fire, Own()]), checkpoint, stop, metrics])
    assert len(fire.reports) == 2
    assert len(metrics.history) == 3
    assert list(tmp_path.glob("*.zip"))


PLAIN_SB3 = """
import json, sys
sys.modules["fire_rl"] = None  # importing it would raise
import numpy, sb3_contrib, stable_baselines3
found = {}
for algo, name, path, observations in json.loads(sys.argv[1]):
    kind = getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)
    actions, _ = kind.load(path).predict(numpy.float32(observations), deterministic=True)
    found[algo] = actions.tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def loaded_elsewhere(tmp_path_factory):
    """Models that have learned with the callbacks, their files, and what plain SB3 predicts."""
    folder, models, jobs = tmp_path_factory.mktemp("zips"), {}, []
    observations = np.random.default_rng(0).uniform(-1, 1, (4, 5)).tolist()
    for algo in EVERY_ALGORITHM:
        callbacks = [FireCallback(every=16), PlasticityMetricsCallback(32, probe_size=32)]
        models[algo] = make_model(algo).learn(60, callback=callbacks)
        models[algo].save(folder / algo)
        jobs.append([algo, type(models[algo]).__name__, str(folder / f"{algo}.zip"), observations])
    command = [sys.executable, "-c", PLAIN_SB3, json.dumps(jobs)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return models, folder, np.float32(observations), json.loads(done.stdout)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:A rank needs at least as many")  # soon after loading
@pytest.mark.compat(section="Training loops", setting="save, load with plain SB3, go on")
@pytest.mark.parametrize("algo", EVERY_ALGORITHM)
def test_files_for_plain_sb3(algo, loaded_elsewhere):
    """A process without fire_rl loads the file and predicts the same; attached again after load."""
    models, folder, observations, predicted = loaded_elsewhere
    expected, _ = models[algo].predict(observations, deterministic=True)
    np.testing.assert_allclose(predicted[algo], expected, rtol=1e-6, atol=1e-7)
    env = plain(algo)
    model = EVERY_ALGORITHM[algo].load(folder / f"{algo}.zip", env=env, device="cpu")
    assert not changed(state_of(models[algo]), state_of(model))
    attach(model)


# ------------------------------------------------------------------------------------------ devices


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none here")
@pytest.mark.compat(section="Devices", setting="device='cuda'")
@pytest.mark.parametrize("algo", EVERY_ALGORITHM)
def test_policies_on_cuda(algo):
    """Attached; the weights stay on the device."""
    model = make_model(algo, device="cuda")
    attach(model)
    apply_intervention(model, FIRE(hidden="reset"))
    assert {parameter.device.type for parameter in model.policy.parameters()} == {"cuda"}


# ------------------------------------------------------------------------- not for want of fire_rl


def _frozen_trpo():
    kwargs = {"features_extractor_class": extractors.Frozen, "features_extractor_kwargs": {}}
    return make_model("trpo", policy_kwargs=kwargs)


def _attentive_trpo():
    kwargs = {"features_extractor_class": extractors.Transformer, "features_extractor_kwargs": {}}
    return make_model("trpo", policy_kwargs=kwargs)


def _stack_of_normalized():
    return make_model("sac", env=VecFrameStack(VecNormalize(plain("sac")), 2))


CANNOT = {
    "CrossQ": (
        "MultiInputPolicy", "Dict observations",
        lambda: make_model("crossq", "dict", policy="MultiInputPolicy"), "Policy MultiInput",
    ),
    "DQN": (
        "MlpPolicy", "Discrete actions that begin at 2",
        lambda: make_model("dqn", action=ACTIONS["Discrete from 2"]), "out of bounds",
    ),
    "QR-DQN": (
        "MlpPolicy", "Discrete actions that begin at 2",
        lambda: make_model("qrdqn", action=ACTIONS["Discrete from 2"]), "out of bounds",
    ),
    "RecurrentPPO": (
        "MlpPolicy", "MultiBinary actions",
        lambda: make_model("recurrent_ppo", action=ACTIONS["MultiBinary"]), "can't be cast",
    ),
    "RecurrentPPO, MultiDiscrete": (
        "MlpPolicy", "MultiDiscrete observations",
        lambda: make_model("recurrent_ppo", OBSERVATIONS["MultiDiscrete"]), "input_size",
    ),
    "SAC": ("MlpPolicy", "VecFrameStack of VecNormalize", _stack_of_normalized, "broadcast"),
    "TRPO": ("custom extractor", "frozen layers", _frozen_trpo, "does not require grad"),
    "TRPO, attention": (
        "custom extractor", "nn.TransformerEncoder", _attentive_trpo, "not implemented",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=[
                pytest.mark.full,
                pytest.mark.compat(
                    section="What SB3 itself cannot do",
                    algorithm=case.partition(",")[0],
                    policy=policy,
                    setting=setting,
                ),
            ],
        )
        for case, (policy, setting, *_) in CANNOT.items()
    ],
)
def test_sb3_itself_cannot(case):
    """Without any callback: SB3 or sb3-contrib raises."""
    *_, make, message = CANNOT[case]
    with pytest.raises((ValueError, RuntimeError, TypeError), match=message):
        make().learn(32)
