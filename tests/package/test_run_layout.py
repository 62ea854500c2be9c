"""The run folder's format has one home, and training does not load the reports."""

import ast
import subprocess
import sys

import pytest

from fire_rl.runs import layout
from tests.helpers.runs import ENVIRONMENT, ROOT

HOME = ROOT / "fire_rl" / "runs" / "layout.py"
NAMES = {
    layout.CONFIG, layout.ENVIRONMENT, layout.RESULT, layout.PROGRESS, layout.EVENTS,
    layout.MONITOR, layout.MONITORS, layout.EPISODES, layout.CONTINUAL, layout.INTERVENTIONS,
    layout.EVALUATIONS, layout.MODEL, layout.BEST_MODEL, layout.VECNORMALIZE,
    layout.BEST_VECNORMALIZE, layout.CHECKPOINTS, layout.MANIFEST, layout.FINISHED, layout.TRUNK,
    layout.RECOVERY, layout.RECOVERY_TABLE, layout.VIDEOS,
}  # fmt: skip
COLUMNS = (layout.EPISODE_COLUMNS, layout.CONTINUAL_COLUMNS)
FILES = sorted(
    {
        ROOT / "train.py",
        *(path for room in ("fire_rl", "experiments", "agents", "envs", "benchmarks")
          for path in (ROOT / room).rglob("*.py")),
    } - {HOME}
)  # fmt: skip


def spelled_out(text):
    """The names and columns of the layout that a file's strings hold, docstrings left out."""
    tree = ast.parse(text)
    prose = {
        id(node.value) for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            parts = set(node.value.replace("/", " ").split())
            yield from parts & NAMES if " " not in node.value else ()
        elif isinstance(node, ast.Tuple | ast.List):
            values = tuple(e.value for e in node.elts if isinstance(e, ast.Constant))
            if values in COLUMNS:
                yield values


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_file_spells_out_a_name_of_the_run_folder(path):
    assert not list(spelled_out(path.read_text(encoding="utf-8")))


def test_the_search_finds_what_it_is_for():
    assert list(spelled_out('path = folder / "config.yaml"')) == ["config.yaml"]
    assert list(spelled_out('found = root.glob("*/manifest.json")')) == ["manifest.json"]
    assert list(spelled_out('found = f"{root}/checkpoints"')) == ["checkpoints"]
    assert list(spelled_out('row = ("step", "return", "length")')) == [layout.EPISODE_COLUMNS]
    assert not list(spelled_out('"""Write config.yaml."""'))
    assert not list(spelled_out('raise ValueError("There is no config.yaml in it.")'))


def test_training_loads_no_reports(tmp_path):
    """Nor what they need. SB3 itself imports pandas and matplotlib: that is not counted."""
    code = """
import sys
import stable_baselines3, sb3_contrib, tensorboard, torch.utils.tensorboard
from stable_baselines3 import PPO
options = {"n_steps": 32, "batch_size": 32, "device": "cpu", "tensorboard_log": "."}
model = PPO("MlpPolicy", "CartPole-v1", **options)
model.learn(32)
before = set(sys.modules)
from fire_rl import FireCallback, RunCheckpointCallback
fire = FireCallback(at=64)
model.learn(128, callback=[fire, RunCheckpointCallback(64, "saved")])
assert len(fire.reports) == 1
loaded = set(sys.modules) - before
print(*sorted(loaded))
"""
    command = [sys.executable, "-W", "error::ImportWarning", "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split()
    assert "fire_rl.runs.recovery" in loaded
    assert not [name for name in loaded if name.startswith("fire_rl.reports")]
    assert not {name.partition(".")[0] for name in loaded} & {
        "jinja2", "matplotlib", "pandas", "scipy",
    }  # fmt: skip


def test_the_command_line_loads_no_reports():
    code = "import sys, train; print(*sorted(sys.modules))"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split()
    assert "experiments.arms" in loaded
    assert not [name for name in loaded if name.startswith("fire_rl.reports")]
