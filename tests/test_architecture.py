"""The rings: arrows point inwards only, and the public API is what it says."""

import ast
from pathlib import Path

import pytest

import fire_rl
import fire_rl.interventions
import fire_rl.metrics

ROOT = Path(__file__).parent.parent
RINGS = [
    {"_validation", "_steps", "_random", "orthogonal", "layers", "projections"},
    {
        "interventions", "schedules", "threshold", "metrics", "optimizer_state", "functional",
        "reports", "episodes", "statistics",
        "plain", "object_state", "connections",
        "skeleton", "model_files", "inspection", "cli_options",
    },
    {
        "anatomy", "contrib_anatomies", "networks", "probe", "replay", "measurement",
        "aftermath", "surgery", "clock",
        "logs", "rollout_callback", "metrics_callback", "intervention_callback", "recovery_log",
        "callbacks", "training_state",
        "vec_env_state", "replay_files", "checkpoint", "checkpoint_callback", "trigger", "aids",
        "stand_in", "file_surgery", "cli",
    },
]  # fmt: skip
FILES = sorted((ROOT / "fire_rl").rglob("*.py"))


def imports(path):
    """Every module that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ring_of(module):
    parts = module.split(".")
    if len(parts) < 2 or parts[0] != "fire_rl":
        return None
    return next((ring for ring, names in enumerate(RINGS) if parts[1] in names), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_inwards(path):
    if path == ROOT / "fire_rl" / "__init__.py":
        return
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    ring = ring_of(name)
    assert ring is not None, f"{name} has no ring: add it to RINGS"
    for module in imports(path):
        assert module.split(".")[0] not in ("agents", "envs", "configs", "train", "tests"), module
        inner = ring_of(module)
        assert inner is None or inner <= ring, f"{name} (ring {ring}) imports {module}"
        if ring < 2:
            assert not module.startswith("stable_baselines3"), f"{name} imports {module}"


@pytest.mark.parametrize("folder", ["agents", "envs"])
def test_the_workbench_knows_ring_1_at_most(folder):
    other = {"agents": "envs", "envs": "agents"}[folder]
    for path in (ROOT / folder).rglob("*.py"):
        for module in imports(path):
            assert module.split(".")[0] not in (other, "train", "tests"), (path, module)
            assert (ring_of(module) or 0) < 2, (path, module)


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
    assert set(fire_rl.INTERVENTIONS) == files - {"__init__", "base", "options", "report"}
    for name, kind in fire_rl.INTERVENTIONS.items():
        assert kind.name == name


def test_files_and_functions_have_one_job():
    for path in [*FILES, *(ROOT / "agents").rglob("*.py"), *(ROOT / "envs").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 350, path
