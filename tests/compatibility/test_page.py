"""The compatibility page and the plugin that writes it."""

import subprocess
import sys

import pytest

from tests.compatibility.page import ALGORITHMS, COLUMNS, POLICIES, page, parse
from tests.helpers.runs import ENVIRONMENT, ROOT

PAGE = ROOT / "docs" / "compatibility.md"
EXAMPLE = '''
import pytest
from tests.compatibility.page import *  # the hooks

@pytest.mark.compat(section="Spaces", policy="{observation}", setting="{kind}, twice")
@pytest.mark.parametrize("kind", ["one", pytest.param("two", marks=MARK)])
@pytest.mark.parametrize(("algo", "observation"), [("dqn", "cnn")])
def test_rows(algo, observation, kind):
    """What is checked.

    And more."""
    if kind == "two":
        pytest.skip("no such device")

@pytest.mark.compat(section="Devices", algorithm="ppo", setting="falls")
def test_falls():
    """It fails."""
    assert False

def test_no_row():
    assert False
'''.replace("MARK", "pytest.mark.compat(setting=lambda p: p['kind'] * 2)")


def run_pytest(*args, cwd=ROOT):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, args)]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def without_results(rows):
    return sorted(row[:-1] for row in rows)


def test_the_committed_page_has_the_rows_that_there_are_and_all_have_passed(tmp_path):
    files = [f for f in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.compat(" in f.read_text()]
    done = run_pytest("--collect-only", "--compatibility", tmp_path / "page.md", *files)
    assert done.returncode == 0, done.stdout
    collected = parse((tmp_path / "page.md").read_text(encoding="utf-8"))
    committed = parse(PAGE.read_text(encoding="utf-8"))
    message = "run `make compatibility` and commit docs/compatibility.md"
    assert without_results(collected) == without_results(committed), message
    results = {row[-1] for row in committed if "[" in row[-2]}
    assert all(result == "passed" or result.startswith("skipped: ") for result in results)
    assert "passed" in results


def test_every_algorithm_has_every_policy_that_it_has_in_sb3():
    committed = parse(PAGE.read_text(encoding="utf-8"))
    proved = {(row[0], row[1]) for row in committed if row[-1] == "passed"}
    for algorithm in ALGORITHMS.values():
        for policy in POLICIES.values():
            missing = algorithm == "ARS" or (algorithm, policy) == ("CrossQ", "MultiInputPolicy")
            assert ((algorithm, policy) in proved) or missing


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_the_plugin_writes_what_came_out(workers, tmp_path):
    (tmp_path / "conftest.py").write_text("from tests.compatibility.page import *\n")
    (tmp_path / "test_rows.py").write_text(EXAMPLE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = compat\n")
    target = tmp_path / "page.md"
    done = run_pytest("--compatibility", target, *workers, cwd=tmp_path)
    assert done.returncode == 1
    text = target.read_text(encoding="utf-8")
    one, two = (f"test_rows.py::test_rows[dqn-cnn-{name}]" for name in ("one", "two"))
    skipped = "skipped: no such device"
    assert parse(text) == [
        ("DQN", "CnnPolicy", "one, twice", "What is checked.", "test_rows.py::test_rows", "passed"),
        ("DQN", "CnnPolicy", "twotwo", "What is checked.", "test_rows.py::test_rows", skipped),
        ("PPO", "MlpPolicy", "falls", "It fails.", "test_rows.py::test_falls", "failed"),
        ("DQN", "CnnPolicy", "one, twice", one, "passed"),
        ("DQN", "CnnPolicy", "twotwo", two, skipped),
        ("PPO", "MlpPolicy", "falls", "test_rows.py::test_falls", "failed"),
    ]
    assert "3 tests, 1 passed, 1 skipped, 1 failed." in text


def test_a_mark_that_is_no_row_is_refused(tmp_path):
    (tmp_path / "conftest.py").write_text("from tests.compatibility.page import *\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = compat\n")
    for mark in ('section="Space", algorithm="x"', 'section="Spaces", algorithm="x", poicy="y"'):
        text = f"import pytest\n@pytest.mark.compat({mark})\ndef test_it():\n    '''Checked.'''\n"
        (tmp_path / "test_rows.py").write_text(text)
        done = run_pytest(cwd=tmp_path)
        assert done.returncode == 4
        assert "a compat mark must be a row of the table" in done.stdout + done.stderr


def test_the_matrix_ticks_what_has_passed_only():
    row = dict.fromkeys(COLUMNS, "x") | {"section": "Algorithms and policies", "algorithm": "SAC"}
    rows = [
        {**row, "policy": policy, "result": result}
        for policy, result in [
            ("MlpPolicy", "passed"), ("CnnPolicy", "passed"), ("CnnPolicy", "failed"),
            ("MultiInputPolicy", "skipped: why"),
        ]
    ]  # fmt: skip
    assert "| SAC | ✓ | – | – |" in page(rows)
