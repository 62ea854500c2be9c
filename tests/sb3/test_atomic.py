"""An event that is interrupted anywhere leaves the model as it was, or wholly operated."""

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

import fire_rl
from fire_rl import FireCallback, apply_intervention, fire_
from fire_rl.interventions.operation import Operation
from fire_rl.sb3.model_view import ModelView
from fire_rl.utils.jsonable import append_json
from fire_rl.utils.undo import all_or_nothing, signals_held
from tests.helpers.models import make_model

ROOM = Path(fire_rl.__file__).parent
ROOT = ROOM.parent
TRACED = ("sb3/surgery.py", "sb3/side_effects.py", "sb3/head_refit.py", "interventions/")
EVERYTHING = {
    "optimizer_state": "all",
    "entropy_temperature": "reset",
    "vecnormalize": "reset",
    "replay_buffer": "clear",
}
ALGORITHMS = {  # with all that an event can touch there
    "ppo": ({"vecnormalize": "reset"}, {"use_sde": True}),
    "sac": (EVERYTHING, {}),
    "dqn": ({"replay_buffer": "clear"}, {}),
}
QUICK = [("sac", "fire", True), ("ppo", "reset", False), ("dqn", "redo", False)]
CASES = [  # at every 151st line; at every seventh in `make test-all`
    *(pytest.param(*case, 151) for case in QUICK),
    *(
        pytest.param(algo, name, refit, 7, marks=pytest.mark.full)
        for algo in ALGORITHMS
        for name in fire_rl.INTERVENTIONS
        for refit in ([False, True] if name == "fire" else [False])
        if name != "none" and (algo == "sac" or name != "entropy_temperature_reset")
    ),
]


class Injected(BaseException):
    """No Exception, as a KeyboardInterrupt is none."""


def plain(value):
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes()
    return value.tobytes() if isinstance(value, np.ndarray) else value


def fingerprint(model):
    """Everything that an event may write, to the bit; whose state it is, too."""
    found = {name: plain(tensor) for name, tensor in ModelView(model).tensors.items()}
    optimizers = [*ModelView(model).optimizers, getattr(model, "ent_coef_optimizer", None)]
    for number, optimizer in enumerate(each for each in optimizers if each is not None):
        names = {id(p): n for n, p in enumerate(optimizer.param_groups[0]["params"])}
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                found[number, names[id(parameter)], key] = plain(value)
    if getattr(model, "log_ent_coef", None) is not None:
        found["temperature"] = plain(model.log_ent_coef)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        for rms in (normalize.obs_rms, normalize.ret_rms):
            found[id(rms)] = (plain(rms.mean), plain(rms.var), rms.count)
        found["returns"] = plain(normalize.returns)
    if getattr(model, "replay_buffer", None) is not None:
        found["buffer"] = (model.replay_buffer.pos, model.replay_buffer.full)
    noise = getattr(getattr(model.policy, "actor", model.policy), "action_dist", None)
    if hasattr(noise, "exploration_mat"):
        found["noise"] = (plain(noise.exploration_mat), plain(noise.exploration_matrices))
    if hasattr(model, "exploration_schedule"):
        found["exploration"] = (id(model.exploration_schedule), model.exploration_rate)
    return found


def trained(algo, **options):
    model = make_model(algo, seed=0, **options)
    model.set_env(VecNormalize(model.get_env()))
    return model.learn(48)


def values(found):
    """Those of a fingerprint that two models have in common: without identities."""
    return [value for key, value in found.items() if key != "exploration"]


class RaiseAt:
    """Raise at the k-th line of our own surgery that is run."""

    def __init__(self, line):
        self.left, self.raised = line, False

    def __enter__(self):
        sys.settrace(self._call)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _call(self, frame, event, arg):
        path = frame.f_code.co_filename
        ours = path.startswith(str(ROOM)) and any(part in path for part in TRACED)
        return self._line if ours else None

    def _line(self, frame, event, arg):
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.raised = True
                raise Injected
        return self._line


@pytest.mark.parametrize(("algo", "name", "head_refit", "stride"), CASES)
def test_an_event_that_is_interrupted_at_any_line(algo, name, head_refit, stride):
    aftermath, options = ALGORITHMS[algo]
    intervention = {"name": name}
    if name not in ("optimizer_reset", "entropy_temperature_reset"):
        intervention |= aftermath
    if name == "redo":
        intervention["tau"] = 0.5

    def act(model, done):
        apply_intervention(model, intervention, head_refit=head_refit, on_report=done.append)

    whole, model = trained(algo, **options), trained(algo, **options)
    before = fingerprint(model)
    assert values(before) == values(fingerprint(whole))
    act(whole, [])
    after = values(fingerprint(whole))
    assert after != values(before)
    line, stops = 1, 0
    while True:
        done = []
        with RaiseAt(line) as tracer:
            try:
                act(model, done)
            except Injected:
                assert tracer.raised
        found = fingerprint(model)
        if not tracer.raised:
            break
        assert found == before or (done and values(found) == after), line
        if found != before:  # only behind the very end
            model = trained(algo, **options)
            before = fingerprint(model)
        line, stops = line + stride, stops + 1
    assert values(found) == after
    assert stops > 5


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, SystemExit, KeyboardInterrupt])
def test_an_event_that_is_interrupted_at_any_write_and_once_more_while_it_is_undone(
    error, monkeypatch
):
    model = trained("sac")
    before, copy_ = fingerprint(model), torch.Tensor.copy_
    calls = 0

    def failing(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls in (first, first + 1, first + 3):
            raise error("injected")
        return copy_(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", failing)
    for first in range(1, 1000, 5):
        calls = 0
        try:
            apply_intervention(model, {"name": "fire", **EVERYTHING})
        except error:
            assert fingerprint(model) == before, first
        else:
            break
    assert first > 10
    assert fingerprint(model) != before


def test_ctrl_c_twice_within_an_event_waits_until_it_is_whole(tmp_path, monkeypatch):
    """Also the log line: what was done is told."""
    whole, model = trained("sac"), trained("sac")
    apply_intervention(whole, "fire")

    def twice(*args):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return forget(*args)

    forget = Operation.forget
    monkeypatch.setattr(Operation, "forget", twice)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        apply_intervention(
            model, "fire", on_report=lambda report: append_json(tmp_path / "log", {"done": 1})
        )
    assert signal.getsignal(signal.SIGINT) is handler
    assert values(fingerprint(model)) == values(fingerprint(whole))
    assert (tmp_path / "log").read_text().count("\n") == 1


SCRIPT = """
import sys, time
from pathlib import Path
from fire_rl.interventions.operation import Operation

forget, folder = Operation.forget, Path(sys.argv[1])
def slow(*args):
    (folder / "inside").touch()
    for _ in range(50):
        time.sleep(0.05)  # the weights are new by now, the moments are the old ones
    return forget(*args)
Operation.forget = slow
"""
PLAIN = """
from stable_baselines3 import SAC
from fire_rl import FireCallback
model = SAC("MlpPolicy", "Pendulum-v1", learning_starts=10, batch_size=8, seed=0)
try:
    model.learn(200, callback=FireCallback(at=[50], log_dir=folder))
except KeyboardInterrupt:
    model.save(folder / "model.zip")
"""
TRAIN = """
import train
sys.argv = ["train.py", "--algo", "sac", "--env", "Pendulum-v1", "--total-timesteps", "200",
            "--log-dir", str(folder / "run"), "--set", "agent.learning_starts=10",
            "--set", "agent.batch_size=8", "--intervention", "fire", "--at", "50"]
sys.exit(train.main())
"""


@pytest.mark.full
@pytest.mark.parametrize("way", [PLAIN, TRAIN], ids=["plain", "train.py"])
def test_two_real_ctrl_c_leave_a_whole_event_with_its_line(way, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT + way, str(tmp_path)], cwd=ROOT)
    while not (tmp_path / "inside").exists() and process.poll() is None:
        time.sleep(0.02)
    for _ in range(2):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == (0 if way is PLAIN else 130)
    [log] = tmp_path.rglob("interventions.jsonl")
    assert log.read_text().count("planned_step") == 1
    [zipped] = tmp_path.rglob("model.zip")
    model = SAC.load(zipped)
    groups = ModelView(model).groups
    assert model.num_timesteps == 50
    for group in groups:
        for layer in group.online.layers:
            spread = torch.linalg.svdvals(layer.weight.detach())
            assert spread.median() / spread.max() > 0.99, layer.name  # projected, all of them
            assert layer.weight not in group.optimizer.state, layer.name


def test_signals_are_held_and_handed_on_in_order():
    came = []
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {n: signal.signal(n, lambda n, _: came.append(n)) for n in numbers}
    try:
        with signals_held(), signals_held():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == []
        assert came == [signal.SIGUSR1, signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(came) == 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_in_another_thread_there_are_no_signals_to_hold():
    model = trained("dqn")
    before, found = fingerprint(model), []

    def act():
        apply_intervention(model, "fire")
        found.append(fingerprint(model))

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    assert found
    assert found[0] != before


def test_an_event_whose_line_cannot_be_written_is_undone_and_still_to_come(tmp_path):
    """The log folder is a file at first; the same training goes on when it is free."""
    (tmp_path / "logs").write_text("in the way")
    model = make_model("dqn", seed=0)
    callback = FireCallback(at=[24], log_dir=tmp_path / "logs", restart_exploration=20)
    states = []
    learn = {"total_timesteps": 48, "callback": [Before(states), callback]}
    with pytest.raises(OSError, match="logs"):
        model.learn(**learn)
    assert fingerprint(model) == states[-1]
    assert (callback.reports, callback.recoveries()) == ([], [])
    (tmp_path / "logs").unlink()
    model.learn(24, callback=callback, reset_num_timesteps=False)
    assert [report.num_timesteps for report in callback.reports] == [24]
    assert (tmp_path / "logs" / "interventions.jsonl").read_text().count("planned_step") == 1


class Before(BaseCallback):
    """What the model is just before the events."""

    def __init__(self, states):
        super().__init__()
        self.states = states

    def _on_rollout_start(self):
        self.states.append(fingerprint(self.model))

    def _on_step(self):
        return True


def test_plain_modules_and_their_optimizer_are_put_back_too(monkeypatch):
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    states = list(optimizer.state.values())
    monkeypatch.setattr(Operation, "forget", lambda *args: fail_after(forget, *args))
    forget = original_forget
    with pytest.raises(MemoryError):
        fire_(module, optimizer=optimizer)
    same_dicts(module.state_dict(), before[0])
    same_dicts(optimizer.state_dict()["state"], before[1]["state"])
    assert all(one is two for one, two in zip(optimizer.state.values(), states, strict=True))


original_forget = Operation.forget


def fail_after(action, *args):
    action(*args)
    raise MemoryError


def same_dicts(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            same_dicts(value, two[key])
        else:
            assert torch.equal(value, two[key]), key


def test_attributes_and_the_containers_in_them_are_put_back():
    class Owner:
        pass

    owner = Owner()
    owner.number, owner.names, owner.held = 1, ["a"], {"k": 1}
    names = owner.names

    def change():
        owner.number, owner.new = 2, 3
        owner.names.append("b")
        owner.held.clear()
        raise KeyError

    with pytest.raises(KeyError), all_or_nothing([], objects=[owner]):
        change()
    assert vars(owner) == {"number": 1, "names": ["a"], "held": {"k": 1}}
    assert owner.names is names
