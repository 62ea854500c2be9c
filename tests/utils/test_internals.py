"""torch's and gymnasium's private names, and who may use such names at all."""

import ast
import re
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.nn.utils import parametrizations

from envs import internals as env_internals
from fire_rl.utils import gymnasium_internals, torch_internals
from fire_rl.utils.foreign import private
from tests.helpers.runs import ROOT

# The only files that may touch private names of other packages.
INTERNALS = {
    "envs/internals.py",
    "fire_rl/sb3/internals.py",
    "fire_rl/utils/foreign.py",
    "fire_rl/utils/gymnasium_internals.py",
    "fire_rl/utils/torch_internals.py",
}
DOCUMENTED = {"_fields", "_asdict", "_replace", "_make"}  # of named tuples
ROOMS = ("fire_rl", "agents", "envs", "experiments", "benchmarks")


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def private_names(tree):
    """Every private name that code takes from an object that is not its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            value = node.value
            own = isinstance(value, ast.Name) and value.id in ("self", "cls")
            inherited = (
                isinstance(value, ast.Call)
                and isinstance(value.func, ast.Name)
                and value.func.id == "super"
            )
            if not own and not inherited:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, a.name) for a in node.names if is_private(a.name))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            named = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
            if node.func.id in ("getattr", "setattr", "hasattr", "private", "set_private"):
                yield from ((node.lineno, n) for n in named if isinstance(n, str) and is_private(n))


@pytest.mark.parametrize("room", ROOMS)
def test_private_names_of_others_stand_in_one_place(room):
    for path in (ROOT / room).rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name not in INTERNALS:
            found = list(private_names(ast.parse(path.read_text(encoding="utf-8"))))
            assert not found, f"{name}: {found}; write an accessor in one of {sorted(INTERNALS)}"


def test_the_search_finds_what_it_should():
    code = "a._b; self._c; super()._d(); getattr(a, '_e'); from x import _f\na.b._g = 1; p._fields"
    assert {name for _, name in private_names(ast.parse(code))} == {"a._b", "_e", "_f", "a.b._g"}


def test_a_missing_name_is_told_with_the_version():
    line = f"torch {version('torch')} has no `Linear._no_such`"
    with pytest.raises(RuntimeError, match=re.escape(line)):
        private(nn.Linear(1, 1), "_no_such", "torch")


def test_bases_without_a_public_name():
    assert isinstance(nn.BatchNorm2d(3), torch_internals.BATCH_NORM)
    assert isinstance(nn.Dropout(), torch_internals.DROPOUT)
    assert isinstance(nn.MaxPool2d(2), torch_internals.MAX_POOLING)
    assert isinstance(nn.AvgPool1d(2), torch_internals.AVERAGE_POOLING)
    for register, kind in (
        (parametrizations.weight_norm, torch_internals.WEIGHT_NORM),
        (parametrizations.spectral_norm, torch_internals.SPECTRAL_NORM),
        (parametrizations.orthogonal, torch_internals.ORTHOGONAL),
    ):
        (found,) = register(nn.Linear(3, 3)).parametrizations.weight
        assert isinstance(found, kind)


def test_tables_of_a_module_are_its_own():
    module = nn.Sequential(nn.Linear(2, 3))
    weight = nn.Parameter(torch.zeros(3, 2))
    torch_internals.own_parameters(module[0])["weight"] = weight
    assert module[0].weight is weight
    assert set(torch_internals.own_parameters(module)) == set()
    torch_internals.own_modules(module)["1"] = nn.ReLU()
    assert isinstance(module[1], nn.ReLU)
    torch_internals.own_buffers(module)["b"] = torch.ones(1)
    assert dict(module.named_buffers())["b"].item() == 1
    handle = module.register_forward_pre_hook(print)
    assert torch_internals.forward_pre_hooks(module) == [print]
    handle.remove()


def test_compiled_modules_and_initialisers():
    module = nn.Linear(2, 2)
    assert torch_internals.uncompiled(torch.compile(module, backend="eager")) is module
    assert torch_internals.uncompiled(module) is module
    names = dict(torch.compile(module, backend="eager").named_parameters())
    assert all(name.startswith(f"{torch_internals.COMPILED}.") for name in names)
    assert torch_internals.initialiser(module) == module.reset_parameters
    assert torch_internals.initialiser(nn.MultiheadAttention(4, 1)) is not None
    assert torch_internals.initialiser(nn.ReLU()) is None


def test_a_twin_shares_all_but_what_is_replaced():
    module, weight = nn.Linear(2, 2), nn.Parameter(torch.zeros(2, 2))
    twin = torch_internals.with_parameter(module, nn.Linear, weight=weight)
    assert twin.weight is weight
    assert twin.bias is module.bias
    assert module.weight is not weight


def test_a_spaces_generator():
    space = spaces.Discrete(1000)
    assert gymnasium_internals.generator_of(space) is None  # and asking makes none
    space.seed(3)
    drawn = [space.sample() for _ in range(5)]
    gymnasium_internals.set_generator(space, None)
    space.seed(3)
    assert [space.sample() for _ in range(5)] == drawn
    mine = np.random.default_rng(0)
    gymnasium_internals.set_generator(space, mine)
    assert gymnasium_internals.generator_of(space) is mine


def test_the_names_of_configuration_are_gymnasiums():
    env = gym.make("CartPole-v1")
    names = {name for level in (env, env.env, env.unwrapped) for name in vars(level)}
    assert {"_saved_kwargs", "_cached_spec", "_metadata"} & names
    assert "spec" in vars(env.unwrapped)
    assert {"spec", "_saved_kwargs", "_cached_spec"} <= gymnasium_internals.CONFIGURATION


def test_switches_of_the_atari_console_and_running():
    pytest.importorskip("ale_py")
    env = gym.make("ALE/Breakout-v5", mode=4, difficulty=1).unwrapped
    assert env_internals.game_switches(env) == (4, 1)
    env_internals.set_game_switches(env, 0, 0)
    env.reset(seed=0)
    assert env_internals.game_switches(env) == (0, 0)
    assert not env_internals.rewards_running(env)
    assert env_internals.rewards_running(gym.make("HalfCheetah-v5").unwrapped)
