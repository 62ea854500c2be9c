"""What users install: the wheel in a bare place, and a core without extras."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version

import pytest

import fire_rl
from tests.helpers.runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = (
    "ale_py",
    "cv2",
    "minatar",
    "mujoco",
    "pydantic",
    "safetensors",
    "sb3_contrib",
    "yaml",
    "tensorboard",
    "rich",
    "tqdm",
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools would pack what an earlier build has left in the checkout."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("fire_rl", "agents", "envs", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (built,) = folder.glob("fire_rl-*.whl")
    return built


def test_version_comes_from_metadata():
    assert fire_rl.__version__ == version("fire-rl") == PROJECT["version"]


def test_the_wheel_holds_fire_rl_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fire_rl", f"fire_rl-{PROJECT['version']}.dist-info"}
    data = {"py.typed", "reports/atari_scores.csv", "reports/page.html.j2"}
    assert {f"fire_rl/{name}" for name in data} <= set(names)
    shipped = {name for name in names if name.endswith(".py")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "fire_rl").rglob("*.py")}
    assert shipped == sources
    points = f"fire_rl-{PROJECT['version']}.dist-info/entry_points.txt"
    assert b"fire-rl = fire_rl.cli:main" in zipfile.ZipFile(wheel).read(points)


def test_the_wheel_works_elsewhere_with_the_core_only(wheel, tmp_path):
    """Unpacked in an empty folder, every extra masked: the README's example runs."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
for name in {EXTRAS!r}:
    sys.modules[name] = None
import fire_rl
assert fire_rl.__file__.startswith({str(tmp_path)!r}), fire_rl.__file__
assert not any(m.split(".")[0] in ("agents", "envs", "train") for m in sys.modules)
from stable_baselines3 import PPO
from fire_rl import FireCallback, PlasticityMetricsCallback
fire = FireCallback(every=128)
metrics = PlasticityMetricsCallback(every=128)
model = PPO("MlpPolicy", "CartPole-v1", n_steps=128, device="cpu")
model.learn(512, callback=[fire, metrics])
assert len(fire.reports) == 3 and len(metrics.history) == 4
from fire_rl.cli import main
model.save("model.zip")
assert main(["inspect", "model.zip"]) == 0
assert main(["apply", "model.zip", "--out", "new.zip"]) == 0
PPO.load("new.zip", device="cpu")
"""
    run = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_every_pinned_version_is_the_installed_one():
    """`constraints.txt` pins all that is installed, so that a fresh clone gets the same."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, pinned = line.partition("==")
            pins[name.lower().replace("_", "-")] = pinned
    assert pins["torch"] == "2.13.0"
    for requirement in (
        "torch",
        "stable-baselines3",
        "gymnasium",
        "numpy",
        "ale-py",
        "sb3-contrib",
        "tensorboard",
    ):
        assert version(requirement).partition("+")[0] == pins[requirement]
