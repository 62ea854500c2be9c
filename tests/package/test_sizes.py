"""Files, functions and the entry point stay short."""

import ast

import pytest

from tests.helpers.runs import ROOT

ROOMS = ("fire_rl", "agents", "envs", "experiments", "benchmarks")
FILES = [*sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")), ROOT / "train.py"]
LINES_OF_A_FILE = 350
LINES_OF_TRAIN_PY = 60
LINES_OF_A_FUNCTION = 50  # without its signature and docstring


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def functions(source):
    """Every function of a file, methods and inner ones too: its line, name and number of lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            first = min((_first_line(statement) for statement in body), default=node.end_lineno + 1)
            yield node.lineno, node.name, node.end_lineno - first + 1


def _first_line(statement):
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def test_every_room_is_here():
    assert len(FILES) > 100
    assert {path.parts[len(ROOT.parts)] for path in FILES} == {*ROOMS, "train.py"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (LINES_OF_TRAIN_PY if path.name == "train.py" else LINES_OF_A_FILE)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_short(path):
    found = functions(path.read_text(encoding="utf-8"))
    assert [(*place, n) for *place, n in found if n > LINES_OF_A_FUNCTION] == []


def test_what_counts_as_a_line_of_a_function():
    source = '''
@decorator
def outer(
    argument,
):
    """A docstring
    of two lines."""

    @decorator
    def inner():
        return 1

    return inner

class Class:
    async def documented(self):
        """Nothing else."""

    def method(self): return (
        2
    )
'''
    assert list(functions(source)) == [
        (3, "outer", 5), (10, "inner", 1), (16, "documented", 0), (19, "method", 3),
    ]  # fmt: skip
