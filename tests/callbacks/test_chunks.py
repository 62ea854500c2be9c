"""Training in several calls of learn(), from files too: the events are those of one call."""

import io
import warnings

import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv

from fire_rl import (
    Every,
    FireCallback,
    InterventionCallback,
    PlasticityMetricsCallback,
    RunCheckpointCallback,
    TrainingStopped,
)
from fire_rl.callbacks.event_clock import EventClock
from fire_rl.sb3.continuation import rollout_steps, updates_per_rollout
from tests.helpers.models import ON_POLICY, make_model

at_the_end = pytest.mark.filterwarnings("ignore:.*has not happened")


class Events(InterventionCallback):
    """The steps at which something would happen; nothing is done."""

    def __init__(self, schedule, **options):
        super().__init__("none", schedule, **options)
        self.events = []

    def _intervene(self, planned_step, cause):
        self.events.append(self.num_timesteps)


def make(algo, n_envs, length, unit="timesteps"):
    if algo == "ppo":
        return make_model(
            algo, n_envs=n_envs, n_steps=length, batch_size=n_envs * length, n_epochs=1
        )
    starts = 0 if unit == "gradient_updates" else 10**6
    return make_model(algo, n_envs=n_envs, train_freq=length, learning_starts=starts)


def saved_and_loaded(model):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return type(model).load(file, env=model.get_env(), device="cpu")


def in_chunks(model, schedule, chunks, new, zipped, **options):
    """Train in chunks; return the model, the events and where the first chunk ended."""
    callback, events, ends = Events(schedule, **options), [], []
    for chunk in chunks:
        if new:
            callback = Events(schedule, **options)
        if zipped and ends:
            model = saved_and_loaded(model)
        callback.events = events
        model.learn(chunk, callback=callback, reset_num_timesteps=False)
        ends.append(model.num_timesteps)
    return model, events, ends[0]


CHUNKED = {
    "algo": st.sampled_from(["ppo", "dqn"]),
    "n_envs": st.integers(1, 3),
    "length": st.integers(2, 9),
    "period": st.integers(1, 70),
    "chunks": st.lists(st.integers(1, 50), min_size=2, max_size=4),
    "stop": st.sampled_from([0.3, 0.8, 1.0]),
    "new": st.booleans(),
    "zipped": st.booleans(),
}


def check_chunks(algo, n_envs, length, period, chunks, stop, new, zipped):
    """The events are those of one call with ``stop=1``, but for those that the first call drops."""
    rollout = n_envs * length
    model = make(algo, n_envs, length)
    model, events, first_end = in_chunks(model, Every(period, stop), chunks, new, zipped)
    whole = Events(Every(period))
    make(algo, n_envs, length).learn(model.num_timesteps, callback=whole)
    limit = min(first_end, int(stop * chunks[0] + 1e-6))

    def acts(step):
        """Whether the rollout before a step has crossed a multiple that is not left out."""
        last = limit if step < first_end else step
        return last // period * period > step - rollout

    assert events == [step for step in whole.events if acts(step)]
    if stop == 1 and chunks[0] % rollout == 0:
        assert events == whole.events


@settings(max_examples=8, deadline=None, derandomize=True)
@given(**CHUNKED)
def test_chunks_give_the_events_of_one_call_with_stop_1(**drawn):
    check_chunks(**drawn)


@pytest.mark.full
@settings(max_examples=150, deadline=None)
@given(**CHUNKED)
def test_more_chunks_give_the_events_of_one_call_with_stop_1(**drawn):
    check_chunks(**drawn)


@pytest.mark.parametrize(
    ("algo", "new", "zipped"),
    [
        ("ppo", True, False),
        ("ppo", False, True),
        ("dqn", False, False),
        ("dqn", True, True),
        pytest.param("sac", True, True, marks=pytest.mark.full),
    ],
)
def test_gradient_updates_in_chunks(algo, new, zipped):
    """A new callback goes on from what the optimizers have counted."""
    options = {"unit": "gradient_updates", "horizon": None}
    chunks = [32, 16, 48]
    model = make(algo, 2, 4, "gradient_updates")
    _, events, _ = in_chunks(model, Every(3), chunks, new, zipped, **options)
    whole = Events(Every(3), **options)
    make(algo, 2, 4, "gradient_updates").learn(96, callback=whole)
    assert events == whole.events != []


@pytest.mark.parametrize("new", [False, True])
def test_gradient_updates_of_an_optimizer_that_counts_none(new):
    """SGD: a new callback goes on from what the one before has counted."""
    model = make_model("dqn", policy_kwargs={"optimizer_class": torch.optim.SGD})
    chunks, options = [32, 16, 48], {"unit": "gradient_updates", "horizon": None}
    _, events, _ = in_chunks(model, Every(9), chunks, new, False, **options)
    whole = Events(Every(9), **options)
    make_model("dqn", policy_kwargs={"optimizer_class": torch.optim.SGD}).learn(96, callback=whole)
    assert events == whole.events != []


def test_a_rollout_of_episodes_is_as_long_as_they_were():
    model = make_model("td3", n_envs=1, train_freq=(2, "episode"), learning_starts=10**6)
    model, events, _ = in_chunks(model, Every(40), [30, 20, 60], new=True, zipped=True)
    assert rollout_steps(model) == 24  # 2 episodes of 12 steps
    whole = Events(Every(40))
    model = make_model("td3", n_envs=1, train_freq=(2, "episode"), learning_starts=10**6)
    model.learn(144, callback=whole)
    assert events == whole.events == [48, 96, 120]


def test_updates_of_what_is_no_torch_optimizer_cannot_be_counted():
    class Wrapped:
        def __init__(self, optimizer):
            self.param_groups, self.state = optimizer.param_groups, optimizer.state
            self.step, self.zero_grad = optimizer.step, optimizer.zero_grad

    model = make_model("dqn")
    model.policy.optimizer = Wrapped(model.policy.optimizer)
    fire = FireCallback(every=16)
    model.learn(48, callback=fire)
    assert fire.reports[-1].optimizer_entries_forgotten > 0
    with pytest.raises(ValueError, match=r"cannot count the steps of Wrapped, .*'timesteps'"):
        model.learn(48, callback=FireCallback(every=16, unit="gradient_updates"))


@pytest.mark.parametrize("size", [1000, 50])  # the second one is overwritten
def test_episodes_without_a_monitor_are_read_from_the_replay_buffer(size):
    def model():
        env = DummyVecEnv([lambda: TimeLimit(CartPoleEnv(), 7)])
        options = {"train_freq": (3, "episode"), "learning_starts": 10**6, "buffer_size": size}
        return DQN("MlpPolicy", env, seed=0, device="cpu", **options)

    chunked, events, _ = in_chunks(model(), Every(20), [30, 20, 45], new=True, zipped=False)
    whole = Events(Every(20))
    model().learn(chunked.num_timesteps, callback=whole)
    assert rollout_steps(chunked) == 21
    assert events == whole.events == [21, 42, 63, 84, 105]


@pytest.mark.parametrize("algo", ["ppo", "a2c", "trpo", "dqn", "sac"])
def test_the_length_of_a_rollout(algo):
    """One call: as many environment steps and optimizer steps as between two rollout starts."""

    class Starts(BaseCallback):
        def __init__(self):
            super().__init__()
            self.steps, self.updates = [], []
            self.clock = EventClock(Every(1), None, "gradient_updates")

        def _on_training_start(self):
            self.clock.start(self.model)

        def _on_rollout_start(self):
            self.steps.append(self.num_timesteps)
            self.updates.append(self.clock.now(self.model))

        def _on_training_end(self):
            self.clock.stop()

        def _on_step(self):
            return True

    options = {} if algo in ON_POLICY else {"train_freq": 3, "gradient_steps": -1}
    model, starts = make_model(algo, **options), Starts()
    model.learn(64, callback=starts)
    assert rollout_steps(model) == starts.steps[-1] - starts.steps[-2]
    assert updates_per_rollout(model) == starts.updates[-1] - starts.updates[-2]


def test_a_model_from_a_file_is_operated_though_the_call_is_short():
    """An old zip, every=500 and 200 more steps: 0.8 of the call used to forbid it."""
    model = saved_and_loaded(make_model("ppo", n_envs=1, n_steps=64, n_epochs=1).learn(440))
    fire = FireCallback(every=500)
    model.learn(200, callback=fire, reset_num_timesteps=False)
    assert [report.num_timesteps for report in fire.reports] == [512]


@at_the_end
def test_reports_go_on_where_a_model_is_saved_and_loaded_between_calls():
    fire, model = FireCallback(every=32, stop=1.0), make_model("ppo")
    metrics = PlasticityMetricsCallback(every=32, probe_size=16)
    for _ in range(3):
        model.learn(48, callback=[fire, metrics], reset_num_timesteps=False)
        model = saved_and_loaded(model)
    assert [report.num_timesteps for report in fire.reports] == [32, 64, 96, 128]
    assert [step for step, _ in metrics.history] == [32, 64, 96, 128]


def test_an_interrupted_rollout_does_no_event_twice():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps != 36

    fire, model = FireCallback(every=30), make_model("ppo")  # rollouts of 16
    model.learn(320, callback=[fire, Stop()])
    assert [report.num_timesteps for report in fire.reports] == [32]
    model.learn(16, callback=fire, reset_num_timesteps=False)  # 30 lies in (36 - 16, 36]
    assert [report.num_timesteps for report in fire.reports] == [32]


@at_the_end
def test_a_call_that_counts_from_0_is_a_new_training():
    fire, model = FireCallback(at=[30]), make_model("ppo")
    model.learn(32, callback=fire)  # armed, and forgotten
    with pytest.warns(UserWarning, match="will not act in this training of 16 timesteps"):
        model.learn(16, callback=fire)
    assert fire.reports == []


@pytest.mark.parametrize("schedule", [{"fractions": [0.5]}, {"preset": "paper_dqn"}])
def test_shares_of_a_call_that_begins_later_are_an_error(schedule):
    model = make_model("dqn").learn(32)
    with pytest.raises(ValueError, match=r"begins at step 32\. Give `horizon=`, the steps in all"):
        model.learn(32, callback=FireCallback(**schedule), reset_num_timesteps=False)
    assert model.num_timesteps == 32
    fire = FireCallback(**schedule, horizon=80)
    model.learn(32, callback=fire, reset_num_timesteps=False)
    assert [report.num_timesteps for report in fire.reports] == [40]


@pytest.mark.parametrize("saver_first", [False, True])
def test_a_resumed_run_goes_on_with_the_plan_of_its_checkpoint(saver_first, tmp_path):
    """In a call that begins at N > 0 too: its weights, and what was due, are the checkpoint's."""
    start = make_model("ppo").learn(32)

    def callbacks(resume, stop_at=None):
        fire = FireCallback(every=32, log_dir=tmp_path)
        saver = RunCheckpointCallback(1000, tmp_path / "c", resume=resume, stop_at=stop_at)
        return fire, [saver, fire] if saver_first else [fire, saver]

    fire, listed = callbacks(True, stop_at=112)  # an empty folder
    with pytest.raises(TrainingStopped):
        saved_and_loaded(start).learn(160, callback=listed, reset_num_timesteps=False)
    expected = [32, 64, 96]
    assert [report.num_timesteps for report in fire.reports] == expected
    fire, listed = callbacks(True)
    saved_and_loaded(start).learn(170, callback=listed, reset_num_timesteps=False)
    assert [report.num_timesteps for report in fire.reports] == [*expected, 128, 160, 192]
    lines = (tmp_path / "interventions.jsonl").read_text().splitlines()
    assert sum('"planned_step"' in line for line in lines) == 6  # none twice


def test_fractions_of_a_run_resumed_later_are_those_of_its_checkpoint(tmp_path):
    make_model("ppo").learn(64, RunCheckpointCallback(32, tmp_path / "other"))
    saver = RunCheckpointCallback(1000, tmp_path / "c", stop_at=32)
    with pytest.raises(TrainingStopped):
        make_model("ppo").learn(96, callback=[FireCallback(fractions=[0.5]), saver])
    model = make_model("ppo").learn(32)  # as a zip beside the checkpoint
    fire = FireCallback(fractions=[0.5])
    saver = RunCheckpointCallback(1000, tmp_path / "c", resume=True)
    model.learn(64, callback=[fire, saver], reset_num_timesteps=False)
    assert [report.num_timesteps for report in fire.reports] == [48]


# --- what is said -------------------------------------------------------------------------------


def said(total, *, model=None, reset=True, **options):
    """Return what a training warns of, with callbacks that print nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = model or make_model("ppo")
        model.learn(total, callback=FireCallback(**options), reset_num_timesteps=reset)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("total", "options", "expected"),
    [
        (96, {"every": 90}, "90, and nothing acts after 76 (`stop=0.8`)"),
        (96, {"every": 200, "stop": 1.0}, "the first multiple of `every` is 200. Plan it earlier"),
        (96, {"at": [200, 300]}, "`at` begins with 200"),
        (96, {"every": 60, "horizon": 64}, "training of 64 timesteps: the first multiple"),
        (96, {"at": [90]}, "planned at step 90 has not happened"),
        (16, {"fractions": [0.5]}, "planned at step 8 has not happened"),
        (16, {"every": 5}, "planned at step 10 has not happened"),
        (96, {"every": 20, "unit": "gradient_updates"}, "this training of 24 updates: none was"),
        (
            96,
            {"every": 24, "unit": "gradient_updates", "stop": 1.0},
            "planned at update 24 has not",
        ),
        (96, {"every": 8, "unit": "gradient_updates"}, None),
        (96, {"every": 96, "stop": 1.0}, "planned at step 96 has not happened"),
        (96, {"every": 48, "stop": 1.0}, None),  # 48 happened, and nothing learns after 96
        (96, {"every": 32}, None),
        (96, {"fractions": [0.5]}, None),
        (32, {"every": 60, "horizon": 128}, None),  # a chunk that holds no multiple
        (32, {"every": 30, "horizon": 128}, None),  # a chunk whose last rollout has crossed one
        (96, {"at": [90], "horizon": 64}, "planned at step 90 has not happened"),
        (96, {"threshold": {"metric": "dfi", "above": 1e9, "every": 10_000}}, None),
        (96, {"threshold": {"metric": "dfi", "above": 1e9, "every": 96, "stop": 1.0}}, None),
    ],
)
def test_what_does_not_happen_is_said(total, options, expected):
    messages = said(total, **options)
    assert len(messages) == (expected is not None), messages
    assert expected is None or (expected in messages[0] and messages[0].startswith("`fire` "))


def test_the_control_says_nothing():
    for schedule in ({"every": 1000}, {"at": [90]}):
        make_model("ppo").learn(96, callback=InterventionCallback("none", schedule))


def test_chunks_without_a_multiple_are_silent():
    model = make_model("ppo").learn(32)
    assert said(16, model=model, reset=False, every=100) == []
    assert said(16, model=model, reset=False, every=100, horizon=64) != []


def test_the_same_callback_says_it_once_for_each_model():
    fire, model = FireCallback(every=30), make_model("ppo")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            model.learn(32, callback=fire, reset_num_timesteps=False)
    assert [report.num_timesteps for report in fire.reports] == [32, 64, 96, 128]
    messages = [str(warning.message) for warning in caught]
    assert [("will not act" in text, "has not happened" in text) for text in messages] == [
        (True, False),
        (False, True),
    ]
    with pytest.warns(UserWarning, match="will not act"):
        make_model("ppo").learn(32, callback=fire)


def test_that_an_event_waits_is_said_once_of_callbacks_made_anew():
    model = make_model("ppo").learn(16)
    said_of = [said(16, model=model, reset=False, every=32) for _ in range(5)]
    assert [len(messages) for messages in said_of] == [1, 0, 0, 0, 0]
    assert "planned at step 32 has not happened" in said_of[0][0]
    assert any("has not happened" in text for text in said(32, model=model, every=32, stop=1.0))


def test_a_horizon_that_was_given_is_not_advised():
    (text,) = said(96, every=60, horizon=64)
    assert text.endswith("Plan it earlier or train longer.")
    (text,) = said(96, every=200)
    assert text.endswith("give `horizon=`, the steps in all.")


@pytest.mark.parametrize("new", [False, True])
def test_chunks_that_all_count_from_0_are_said(new):
    """`horizon` promises events that no call reaches."""
    model, fire = make_model("ppo"), FireCallback(every=64, horizon=128)
    model.learn(32, callback=fire)
    fire = FireCallback(every=64, horizon=128) if new else fire
    with pytest.warns(UserWarning, match=r"counts from step 0 again .*reset_num_timesteps=False"):
        model.learn(32, callback=fire)


def test_events_that_lie_behind_a_new_callback_are_logged(caplog):
    model = make_model("ppo").learn(64)
    model.learn(16, callback=FireCallback(at=[20]), reset_num_timesteps=False)
    assert "fire has no event ahead: this call of learn() begins at step 64" in caplog.text


# --- plans ---------------------------------------------------------------------------------------


def test_a_plan_of_a_billion_events_is_neither_stored_nor_printed(capsys, tmp_path):
    """every=1 with 1e9 steps, stopped early: what is kept and printed does not grow with them."""

    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 16

    fire = FireCallback(every=1, verbose=1)
    model = make_model("ppo")
    with pytest.warns(UserWarning, match="has not happened"):
        model.learn(10**9, callback=[fire, Stop()])
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == (
        "fire: planned at 1, 2, 3, … 800,000,000 (800,000,000 events) timesteps; not at "
        "800,000,001, 800,000,002, 800,000,003, … 999,999,999 (199,999,999 events), past the "
        "`stop` of this call"
    )
    state = fire.get_state()
    assert isinstance(fire.clock.planned(), range)
    assert set(state["clock"]) == {"armed", "previous", "updates", "done", "began"}
    assert state["announced"] == 800_000_000


def test_the_plan_of_a_call_that_begins_later(capsys):
    model = make_model("ppo").learn(32)
    fire = FireCallback(every=100, verbose=1)
    for _ in range(2):
        model.learn(16, callback=fire, reset_num_timesteps=False)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == ("fire: every 100 timesteps (no `stop`: this call begins at step 32, not at 0)")


# --- a second model ------------------------------------------------------------------------------


def test_a_second_model_starts_clean_after_an_error_too(tmp_path):
    """Trials of a search with one list of callbacks, one of them pruned."""

    class Prune(BaseCallback):
        at = None

        def _on_step(self):
            if self.num_timesteps == self.at:
                raise RuntimeError("pruned")
            return True

    fire, metrics = FireCallback(every=32), PlasticityMetricsCallback(every=32, probe_size=16)
    saver, prune = RunCheckpointCallback(32), Prune()
    kept = []
    for number, prune.at in enumerate((None, 80, None)):
        model = make_model("ppo", seed=number)
        model.set_logger(configure(str(tmp_path / str(number)), ["csv"]))
        if prune.at:
            with pytest.raises(RuntimeError, match="pruned"):
                model.learn(96, callback=[fire, metrics, saver, prune])
        else:
            model.learn(96, callback=[fire, metrics, saver, prune])
        model.logger.close()
        assert saver.folder == tmp_path / str(number) / "checkpoints"
        kept.append((fire.reports, metrics.history, saver.saved))
        saver.stop_requested = number == 1  # of a training that is gone
    numbers = [tuple(map(len, lists)) for lists in kept]
    assert numbers == [(2, 3, 2), (2, 2, 2), (2, 3, 2)]
    assert len(fire.recoveries()) == 2
    assert [saved.path.name for saved in saver.saved] == ["32", "64"]


def test_a_training_of_the_same_class_is_another_one():
    """The same step and class, other weights: another model."""
    fire = FireCallback(at=[20])
    for seed in (0, 1):
        model = PPO.load(io.BytesIO(zip_of(seed)), env=make_model("ppo").get_env())
        model.learn(16, callback=fire, reset_num_timesteps=False)
        assert [report.num_timesteps for report in fire.reports] == [32]


def zip_of(seed):
    file = io.BytesIO()
    make_model("ppo", seed=seed).learn(32).save(file)
    return file.getvalue()
