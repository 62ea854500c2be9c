"""Objects as plain data and back: every kind of attribute is exact, or named."""

import socket
import sys
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fire_rl.checkpoints.env_state import (
    NotCapturable,
    capture_attributes,
    capture_env,
    restore_attributes,
    restore_env,
)
from fire_rl.checkpoints.object_restore import fill_set
from fire_rl.checkpoints.safe_tree import read_tree, write_tree
from tests.helpers import random_envs
from tests.helpers.random_envs import PARTS, Puzzle, play


def through_files(state, folder):
    """What a checkpoint does: it is written and read as data only."""
    write_tree(folder, state)
    return read_tree(folder)


def restored(env, other, folder):
    """Put the state of one environment into another; return what is not restored."""
    return [p.text for p in restore_env(other, through_files(capture_env(env), folder))]


def assert_goes_on_alike(make, folder, steps=11, seed=0):
    env, other = make(), make()
    env.reset(seed=seed)
    play(env, steps, seed)
    other.reset(seed=seed + 1)
    play(other, 3, seed + 1)
    problems = restore_env(other, through_files(capture_env(env), folder))
    notes = [p.text for p in problems if p.text.startswith("the items of the set")]
    assert [p.text for p in problems if p.text not in notes] == []
    np.testing.assert_array_equal(play(env, 45, 7), play(other, 45, 7))
    assert random_envs.START == [0, 0]


@pytest.mark.parametrize("home", ["self", "dict"])
@pytest.mark.parametrize("part", PARTS)
def test_every_kind_of_attribute_is_exact(part, home, tmp_path):
    assert_goes_on_alike(lambda: Puzzle([part], [home]), tmp_path)


@pytest.mark.parametrize("place", [Path("b"), "/tmp/b"])
def test_where_files_are_is_named_and_not_restored(place, tmp_path):
    """A stranger's checkpoint would say where to write."""
    env, other = Puzzle([], []), Puzzle([], [])
    env.output, env.level = place, 3
    other.output, other.level = type(place)("mine"), 0
    (problem,) = restored(env, other, tmp_path)
    assert "`output` says where something is on a disk" in problem
    assert (str(other.output), other.level) == ("mine", 3)


WRAPPERS = [
    lambda env: env,
    wrappers.NormalizeObservation,
    wrappers.NormalizeReward,
    lambda env: wrappers.FlattenObservation(wrappers.FrameStackObservation(env, 2)),
    lambda env: wrappers.DelayObservation(env, 2),
    wrappers.RecordEpisodeStatistics,
    lambda env: wrappers.TransformObservation(env, lambda x: x * 2, env.observation_space),
]


@st.composite
def puzzles(draw):
    parts = draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=5, unique=True))
    homes = draw(st.lists(st.sampled_from(["self", "box", "list", "dict"]), min_size=len(parts),
                          max_size=len(parts)))  # fmt: skip
    # One attribute of a name: of all that sit in the environment itself, only the first.
    homes = ["box" if h == "self" and "self" in homes[:k] else h for k, h in enumerate(homes)]
    length, continuous = draw(st.integers(3, 30)), draw(st.booleans())
    wrapper = draw(st.sampled_from(WRAPPERS))
    return lambda: wrapper(Puzzle(parts, homes, length, continuous))


class TestRandomEnvironments:
    """Straight on against resumed, for environments that nobody wrote by hand."""

    def check(self, folder, make, steps, seed):
        assert_goes_on_alike(make, folder, steps, seed)

    common = settings(
        deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )

    @given(puzzles(), st.integers(0, 60), st.integers(0, 1000))
    @settings(common, max_examples=20)
    def test_go_on_exactly(self, tmp_path, make, steps, seed):
        self.check(tmp_path, make, steps, seed)

    @pytest.mark.full
    @given(puzzles(), st.integers(0, 60), st.integers(0, 1000))
    @settings(common, max_examples=600)
    def test_go_on_exactly_many(self, tmp_path, make, steps, seed):
        self.check(tmp_path, make, steps, seed)


# ---------------------------------------------------------------------- what is not exact is said


class Counting(gym.Env):
    """Counts, and holds what a test gives it."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, **attributes):
        self.level = 0
        vars(self).update(attributes)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action):
        self.level += 1
        return np.full(1, float(self.level)), 1.0, False, False, {}


def generate():
    yield 1


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: iter([1, 2]), "builtins.list_iterator"),
        (generate, "builtins.generator"),
        (lambda: open(__file__), "_io.TextIOWrapper"),  # noqa: SIM115
        (socket.socket, "socket.socket"),
        (lambda: memoryview(b"x"), "builtins.memoryview"),
        (lambda: types.MappingProxyType({}), "builtins.mappingproxy"),
        (lambda: np.ma.array([1]), "numpy.ma.MaskedArray: a class of arrays with a state"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed")
def test_what_cannot_be_read_is_named_and_all_else_is_restored(make, kind, tmp_path):
    env = wrappers.NormalizeObservation(Counting(engine={"parts": [make()]}))
    other = wrappers.NormalizeObservation(Counting(engine={"parts": [make()]}))
    env.reset(seed=0)
    play(env, 50, 0)
    (said,) = restored(env, other, tmp_path)
    assert said.startswith(f"`Counting.engine['parts'][0]` is a {kind}")
    assert other.unwrapped.level == 50
    assert other.obs_rms.count == env.obs_rms.count > 50
    assert other.unwrapped.np_random.random() == env.unwrapped.np_random.random()


def test_an_attribute_that_another_environment_lacks_is_named(tmp_path):
    class Engine:
        """A class that a checkpoint cannot name."""

    assert restored(Counting(engine=Engine()), Counting(engine=Engine()), tmp_path) == []
    (said,) = restored(Counting(engine=[Engine()]), Counting(engine=[]), tmp_path / "..")
    assert said.startswith("`Counting.engine[0]`: it was a test_an_attribute")
    assert said.endswith("Engine, which cannot be found from here")
    (said,) = restored(Counting(rule=max_of), Counting(rule=min_of), tmp_path / "..")
    assert said == "`Counting.rule`: it was the function max_of, and is another one now"


def max_of(values):
    return max(values)


def min_of(values):
    return min(values)


def test_another_environment_is_named_and_left_alone(tmp_path):
    env, other = (
        wrappers.OrderEnforcing(Counting(level=3)),
        wrappers.RecordEpisodeStatistics(Counting()),
    )
    (said,) = restored(env, other, tmp_path)
    assert said == "`OrderEnforcing`: it was a OrderEnforcing, and is a RecordEpisodeStatistics"
    assert other.unwrapped.level == 0


class WithTotal(Counting):
    total = 0


def test_state_of_a_class_and_of_a_module_is_named(tmp_path, monkeypatch):
    module = types.ModuleType("somebodys_game")
    code = """
import gymnasium as gym
STEPS, RULES = 0, {"size": 3}
class Game(gym.Env):
    seen = []
    def play(self):
        global STEPS
        STEPS += RULES["size"]
        self.STEPS = 1  # not the module's
"""
    exec(code, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.Game.__module__ = module.__name__
    env = module.Game()
    state = through_files(capture_env(env), tmp_path)
    assert restore_env(env, state) == []
    env.play()
    env.seen.append(1)
    problems = restore_env(env, state)
    assert [p.text.split("`")[1] for p in problems] == ["Game.seen", "somebodys_game.STEPS"]
    assert all(p.is_note for p in problems)  # it is said; the episodes go on
    assert module.STEPS == 3  # other trainings may use it


def test_the_order_of_a_set_is_kept_or_named(tmp_path):
    rng, kept = np.random.default_rng(0), 0
    for _ in range(200):
        numbers = set()
        for item in rng.integers(0, 40, 60).tolist():
            numbers ^= {item}
        again = set()
        is_kept = fill_set(again, list(numbers))
        assert again == numbers
        assert is_kept == (list(again) == list(numbers))
        kept += is_kept
    assert kept > 100  # removed items leave gaps behind that cannot be made again
    numbers = {8}
    numbers |= {0}
    numbers -= {8}
    numbers |= {8, 16}  # where 8 has been, nothing is put again
    env, other = Counting(numbers=numbers), Counting(numbers=set())
    said = restored(env, other, tmp_path)
    is_kept = list(other.numbers) == list(numbers)
    assert is_kept or said[0].startswith("the items of the set `Counting.numbers` come in another")
    assert other.numbers == numbers


def test_references_are_kept(tmp_path):
    def make():
        shared = np.random.default_rng(0)
        board = types.SimpleNamespace(rng=shared, cells=np.zeros(4))
        env = Counting(rng=shared, board=board, cells=board.cells, left=board.cells[:2])
        env.itself, env.rng2 = [env], None
        return env

    env, other = make(), make()
    env.rng2 = env.rng
    env.rng.random(7)
    env.left += 1
    assert restored(env, other, tmp_path) == []
    assert other.rng is other.board.rng is other.rng2
    assert other.cells is other.board.cells
    assert other.left.base is other.cells
    assert other.cells.tolist() == [1, 1, 0, 0]
    assert other.itself == [other]
    assert other.rng.random() == env.rng.random()


def test_data_alone_makes_no_class_and_calls_nothing(tmp_path):
    """A checkpoint that somebody has changed."""
    state = through_files(capture_env(Counting(engine=[1], path=types.SimpleNamespace())), tmp_path)
    number = state["nodes"][0]["attributes"]["engine"]["ref"]
    for node, said in (
        ({"kind": "object", "class": "Popen", "attributes": {}}, "it was a Popen, which cannot"),
        ({"kind": "class", "class": "system", "data": None}, "it was a system, which cannot"),
        ({"kind": "function", "class": "function", "data": "system"}, "it was the function system"),
        ({"kind": "path", "class": "x", "data": ["os", "x"]}, "KeyError('os')"),
        ({"kind": "bits", "class": "x", "data": {"state": {"bit_generator": "save"}, "seed": None}},
         "save is no bit generator"),
        ({"kind": "exec", "class": "x", "data": None}, "KeyError('exec')"),
    ):  # fmt: skip
        state["nodes"][number] = {**node, "copy": None, "path": "Counting.engine"}
        other = Counting(engine=[2])
        (problem,) = restore_env(other, state)
        assert problem.text.startswith(f"`Counting.engine`: {said}")
        assert other.engine == [2]


def test_parts_of_a_model_are_exact_or_an_error():
    class Noise:
        def __init__(self):
            self.sigma = np.ones(2)

    noise, other = Noise(), Noise()
    noise.sigma *= 3
    restore_attributes(other, capture_attributes(noise))
    assert other.sigma.tolist() == [3, 3]
    noise.file = iter([])
    with pytest.raises(NotCapturable, match=r"`Noise.file` is a builtins.list_iterator"):
        capture_attributes(noise)
