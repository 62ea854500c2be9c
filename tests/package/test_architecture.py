"""The rooms: imports go down the list only, and the public API is what it says."""

import ast

import pytest

import fire_rl
import fire_rl.interventions
import fire_rl.metrics
from tests.helpers.runs import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# From the top: a room may import those below it. Rooms on one line know nothing of each other.
FLOORS = [
    set(line.strip().removesuffix(".py").split(", "))
    for line in PAGE.partition("<!-- rooms -->\n")[2].partition("<!-- end -->")[0].splitlines()
]
KNOWS_NO_SB3 = {"interventions", "schedules", "metrics", "weights", "utils"}
FILES = sorted(
    [
        *(path for room in ("fire_rl", "agents", "envs", "experiments", "benchmarks")
          for path in (ROOT / room).rglob("*.py")),
        ROOT / "train.py",
    ]
)  # fmt: skip


def dotted(path):
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Every module that a file imports, at any depth; what is imported from it, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module):
    """The room that a module is in; None for other packages. ``fire_rl`` itself is its face."""
    parts = module.split(".")
    if parts[0] != "fire_rl":
        return parts[0] if any(parts[0] in floor for floor in FLOORS) else None
    room = ".".join(parts[:2])
    return room if any(room in floor for floor in FLOORS) else "fire_rl"


def floor_of(room):
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def test_every_room_has_its_floor():
    assert len(FLOORS) == 16
    folders = {f"fire_rl.{path.name}" for path in (ROOT / "fire_rl").iterdir()
               if path.is_dir() and any(path.glob("*.py"))}  # fmt: skip
    assert folders == {room for floor in FLOORS for room in floor if room.count(".")} - {
        "fire_rl.cli"
    }
    modules = {path.stem for path in (ROOT / "fire_rl").glob("*.py")}
    assert modules == {"__init__", "cli"}


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_go_down_only(path):
    here = room_of(dotted(path))
    for module in imports(path):
        assert module.split(".")[0] != "tests", module
        there = room_of(module)
        if there is not None and there != here:
            assert floor_of(there) > floor_of(here), f"{dotted(path)} imports {module}"


@pytest.mark.parametrize("room", sorted(KNOWS_NO_SB3))
def test_below_sb3_nothing_knows_it(room):
    for path in (ROOT / "fire_rl" / room).glob("*.py"):
        for module in imports(path):
            assert module.split(".")[0] not in ("stable_baselines3", "sb3_contrib"), (path, module)


@pytest.mark.parametrize("module", [fire_rl, fire_rl.interventions, fire_rl.metrics])
def test_the_public_api_is_sorted_and_documented(module):
    classes_first = sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    names = list(module.__all__)
    assert sorted(names) == sorted(set(names))
    assert [n for n in classes_first if n.isupper()] == [n for n in names if n.isupper()]
    for name in names:
        item = getattr(module, name)
        assert name == "INTERVENTIONS" or item.__doc__, name


def test_every_intervention_has_a_row():
    files = {path.stem for path in (ROOT / "fire_rl" / "interventions").glob("*.py")}
    others = {
        "__init__",
        "base",
        "on_modules",
        "operation",
        "optimizer_state",
        "options",
        "registry",
        "report",
    }
    assert set(fire_rl.INTERVENTIONS) == files - others
    for name, kind in fire_rl.INTERVENTIONS.items():
        assert kind.name == name
