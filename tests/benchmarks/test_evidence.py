"""The evidence suite: its plan, its rows, and that its page says what its rows say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.evidence import suite, tables
from experiments.config import parse_config
from fire_rl.utils.jsonable import without_nan
from tests.helpers.runs import ROOT

ROWS = json.loads((ROOT / "benchmarks/results/continual.json").read_text())["rows"]
PAGE = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")

TINY = """
algo: ppo
env: CartPole-v1
total_timesteps: 768
n_envs: 2
tasks: {change: offset, every: 256, evaluate_earlier: 1, evaluate_episodes: 1}
agent: {policy: MlpPolicy, n_steps: 32, batch_size: 32, n_epochs: 1, policy_kwargs: {net_arch: [8]}}
metrics: {every: 256, probe_size: 32}
eval: null
checkpoint: null
num_threads: 1
"""


@pytest.mark.parametrize("name", suite.FULL)
def test_every_arm_of_every_setting_is_a_valid_run_that_acts(name):
    setting = suite.FULL[name]
    control = suite.configuration(setting, "none", 3)
    before = len(control.get("intervention") or [])
    for arm in setting.arms:
        values = suite.configuration(setting, arm, 3)
        assert values["seed"] == 3
        if "tasks" in values:
            assert values["tasks"]["seed"] == 3
        config = parse_config(values)
        listed = config.intervention or []
        assert len(listed) == before + (arm != "none")
        if arm == "fire":
            period = config.tasks.every if config.tasks else None
            changes = list(range(period, config.total_timesteps, period)) if period else [1_024]
            assert listed[-1] == {"name": "fire", "schedule": {"at": changes}}


def test_a_buffer_is_cleared_and_no_weight_changes_before_every_arm():
    values = suite.configuration(suite.FULL["dqn_offset_cleared"], "fire", 0)
    clearing, fire = values["intervention"]
    assert (clearing["keep"], clearing["replay_buffer"]) == (1.0, "clear")
    assert clearing["schedule"] == fire["schedule"] == {"at": [32_768, 65_536]}


def test_curves_by_hand():
    # Two tasks of 80 steps, eighths of ten: (step, return).
    episodes = [(10, 1.0), (7, 3.0), (40, 8.0), (80, 5.0), (95, 6.0), (160, 9.0)]
    curve = suite.task_curves(episodes, 80, 2)
    assert curve.tolist() == [
        [2.0, 2.0, 2.0, 8.0, 8.0, 8.0, 8.0, 5.0],
        [6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 9.0],
    ]
    with pytest.raises(ValueError, match="No episode ended in a task of 80 steps"):
        suite.task_curves(episodes[:4], 80, 2)


def test_a_run_becomes_a_row_and_is_not_trained_again(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(suite, "CONFIGS", tmp_path)
    monkeypatch.setattr(suite, "FULL", {"tiny": suite.Setting("tiny")})
    jobs = suite.planned(suite.FULL, None, 1, tmp_path / "runs")
    assert [job.arm for job in jobs] == list(suite.SIX)
    job = jobs[1]
    (job.folder).mkdir(parents=True)
    (job.folder / "config.yaml").write_text("left over from a run that was stopped")
    row = suite.train(job)
    assert (row["setting"], row["arm"], row["seed"]) == ("tiny", "fire", 0)
    assert re.fullmatch(r"[0-9a-f]{40}", row["commit"])
    assert row["events"] == [256, 512]
    assert len(row["curve"]) == 3 * suite.BINS
    assert row["mean_return"] == pytest.approx(np.mean(row["curve"]), abs=1e-3)
    assert [(trained, task) for trained, task, _ in row["evaluated"]] == [
        (0, 0), (1, 0), (1, 1), (2, 1), (2, 2)
    ]  # fmt: skip
    assert [step for step, _ in row["plasticity"]["plasticity/actor/dfi_per_sv"]] == [256, 512, 768]
    finished = (job.folder / "result.json").stat().st_mtime_ns
    assert suite.train(job) == row
    assert (job.folder / "result.json").stat().st_mtime_ns == finished


def test_every_row_names_its_commit_configuration_and_seed():
    keys = set()
    for row in ROWS:
        assert re.fullmatch(r"[0-9a-f]{40}", row["commit"])
        assert row["modified"] is False
        assert re.fullmatch(r"[0-9a-f]{64}", row["config_sha256"])
        assert yaml.safe_load((ROOT / row["config"]).read_text())["env"]
        keys.add((row["setting"], row["arm"], row["seed"]))
    assert len(keys) == len(ROWS)
    planned = {job.key for job in suite.planned(suite.FULL, None, None, Path())}
    assert keys == planned  # 5 seeds in the headline, 3 elsewhere, nothing left out


def test_the_page_holds_what_the_rows_say():
    found = json.loads(json.dumps(without_nan(tables.summary(ROWS))))
    committed = json.loads((ROOT / "benchmarks/results/evidence.json").read_text())
    assert committed == found
    summary = tables.summary(ROWS)
    assert tables.filled(PAGE, summary) == PAGE
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.filled(readme, summary) == readme


def test_every_number_with_a_decimal_on_the_page_is_in_the_committed_json():
    known = set()

    def collect(value):
        if isinstance(value, dict):
            for item in value.values():
                collect(item)
        elif isinstance(value, list):
            for item in value:
                collect(item)
        elif isinstance(value, float | int):
            known.update({f"{abs(value):.1f}", f"{abs(value):.2f}"})

    collect(json.loads((ROOT / "benchmarks/results/evidence.json").read_text()))
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv \d+\.\d+", "", PAGE)
    numbers = re.findall(r"(?<![\d.,])\d[\d,]*\.\d+(?![\d.])", prose)
    assert len(numbers) > 50
    assert [n for n in numbers if n.replace(",", "") not in known] == []
