"""FireCallback's own arguments: listed, described, checked by type checkers, named in errors."""

import dataclasses
import inspect
import re
import subprocess
import sys
from typing import get_args, get_origin, get_type_hints

import pytest

from fire_rl import FIRE, FireCallback
from fire_rl.callbacks.fire import FireOptions, Preset
from tests.helpers.runs import ENVIRONMENT, ROOT

OPTIONS = [option.name for option in dataclasses.fields(FIRE)]


def test_the_options_are_those_of_fire():
    here, there = get_type_hints(FireOptions), get_type_hints(FIRE)
    assert set(here) == set(OPTIONS)
    for name, hint in here.items():
        if "Literal" in str(hint):  # choices; names and lists are wider here
            assert hint == there[name], name
    assert get_origin(here["networks"]) is not None
    assert set(get_args(Preset)) == {n for n in vars(FIRE) if n.startswith("paper_")}


def test_the_signature_shows_every_option_with_its_default():
    parameters = inspect.signature(FireCallback).parameters
    assert {"every", "at", "fractions", "threshold", "stop", "preset", *OPTIONS} <= set(parameters)
    assert "options" not in parameters
    assert parameters["strength"].default == FIRE().strength
    assert parameters["method"].default == "newton_schulz"
    assert parameters["split"].default == FIRE().split

    class Own(FireCallback):
        def __init__(self, period: int):
            super().__init__(every=period)

    assert list(inspect.signature(Own).parameters) == ["period"]


def test_every_argument_has_a_line_where_it_is_looked_up():
    arguments = FireCallback.__doc__.partition("Args:")[2].partition("Raises:")[0]
    described = re.findall(r"^ {8}(\w+): ", arguments, re.MULTILINE)
    assert set(described) == set(inspect.signature(FireCallback).parameters)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`FireCallback` must have exactly one of every, at and fractions, got none of them"),
        ({"every": 5, "at": [3]}, "`FireCallback` must have exactly one of .*, got every, at"),
        (
            {"stop": 0.5},
            "`FireCallback` must have exactly one of every, at and fractions, got none",
        ),
        ({"evry": 5}, "`FireCallback` has no argument 'evry'.* Did you mean 'every'"),
        ({"every": 5, "strenght": 0.5}, "no argument 'strenght'.* Did you mean 'strength'"),
        ({"every": 5, "name": "reset"}, "`FireCallback` has no argument 'name'"),
        ({"schedule": {"every": 5}}, "'schedule', which is InterventionCallback's.*`every`, `at`"),
        ({"every": 5, "intervention": "reset"}, "'intervention', which is InterventionCallback's"),
        ({"threshold": {"metric": "dfi", "abov": 1}}, "`threshold` has no option 'abov'.*'above'"),
        ({"threshold": {"above": 1}}, "`threshold` must be a mapping such as"),
        ({"at": 5, "stop": 0.5}, "`stop` limits `every` only"),
        ({"preset": "paper_gpt"}, "`FireCallback` must have exactly one of"),
    ],
)
def test_errors_name_its_own_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        FireCallback(**arguments)
    assert "`schedule` must" not in str(caught.value)


SNIPPET = """
from fire_rl import FireCallback
FireCallback(every=5, method="exact", strength=0.5, networks=["critic"], scale=2.0)
FireCallback(preset="paper_dqn", head="keep", split={"*.qkv": 3})
FireCallback(every=5, strenght=0.5)
FireCallback(every=5, method="exat")
FireCallback(every=5, head="projekt")
FireCallback(preset="paper_dnq")
"""


@pytest.mark.full
def test_mypy_catches_misspelt_names_and_values(tmp_path):
    path = tmp_path / "snippet.py"
    path.write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), str(path)]
    environment = {**ENVIRONMENT, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    lines = sorted({int(n) for n in re.findall(r"snippet\.py:(\d+): error", done.stdout)})
    assert lines == [5, 6, 7, 8], done.stdout
