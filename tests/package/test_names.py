"""A method's name stands in its own file and in the registry, and nowhere else."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from fire_rl.interventions import CONTROL, INTERVENTIONS
from tests.helpers.runs import ROOT

# FIRE has doors of its own (FireCallback, fire_, `fire-rl apply`); "reset" and "none" are ordinary
# words too, such as the option head="reset": for these the comparisons below are looked at.
ORDINARY = {"fire", "reset", "none"}
LISTS = {"fire_rl/__init__.py", "fire_rl/interventions/__init__.py",
         "fire_rl/interventions/registry.py"}  # fmt: skip
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        ROOT / "train.py",
        *(path for room in ("fire_rl", "agents", "envs", "experiments")
          for path in (ROOT / room).rglob("*.py")),
    ]
)  # fmt: skip
# What "none" means to others: matplotlib's colours, lines, marks and layouts, and a missing suffix.
OTHER_NONES = ("mfc='none'", "ls='none'", "fmt='none'", "set_layout_engine('none')",
               "suffix or 'none'")  # fmt: skip


def own_file(kind):
    return Path(inspect.getsourcefile(kind)).relative_to(ROOT).as_posix()


def source(path):
    return (ROOT / path).read_text(encoding="utf-8")


def strangers(text, path):
    """Names of methods and of their classes that a file should not know."""
    text = text.replace("timoklein/redo", "")  # a repository that is cited
    found = []
    for name, kind in INTERVENTIONS.items():
        if name not in ORDINARY and path not in {*LISTS, own_file(kind)}:
            found += re.findall(rf"\b(?:{name}|{kind.__name__})\b", text)
    return found


@pytest.mark.parametrize("path", FILES)
def test_no_other_file_knows_a_method(path):
    assert strangers(source(path), path) == []


def test_a_name_would_be_found():
    assert strangers("if intervention.name == 'redo':", "fire_rl/sb3/surgery.py") == ["redo"]
    assert strangers("isinstance(x, ReDo)", "experiments/flags.py") == ["ReDo"]
    assert strangers("ReDo", "fire_rl/interventions/redo.py") == []


def controls(text):
    """Where the name of the control stands as a literal, but for what is somebody else's."""
    there = list(ast.walk(ast.parse(text)))
    others = {
        id(part)
        for node in there
        if isinstance(node, ast.Call | ast.BoolOp | ast.keyword)
        and ast.unparse(node).endswith(OTHER_NONES)
        for part in ast.walk(node)
    }
    return [(node.lineno, node.col_offset) for node in there
            if isinstance(node, ast.Constant) and node.value == CONTROL
            and id(node) not in others]  # fmt: skip


def test_the_name_of_the_control_stands_once():
    """All others import ``CONTROL``; there is no other literal that means it."""
    files = {*FILES} - {own_file(INTERVENTIONS[CONTROL]), *LISTS}
    assert {path: found for path in files if (found := controls(source(path)))} == {}
    assert controls("arm == 'none'; plot(x, fmt='none'); plot('none')") == [(1, 7), (1, 41)]


def comparisons(text):
    """Comparisons of a name with that of a method."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare):
            constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)
                         and isinstance(part.value, str)}  # fmt: skip
            asks = re.search(r"\b(name|names|intervention|arm)\b", ast.unparse(node))
            found += [ast.unparse(node)] * bool(asks and constants & set(INTERVENTIONS))
    return found


@pytest.mark.parametrize("path", sorted({*FILES} - LISTS))
def test_no_name_is_compared_with_a_method(path):
    """What a method needs is an attribute of its class, such as ``only_agents``."""
    assert comparisons(source(path)) == []


def test_a_comparison_would_be_found():
    assert len(comparisons("a = intervention.name in ('reset', 'x'); head == 'reset'")) == 1
