"""Lists in the documentation are those of the registries."""

import dataclasses
import inspect
import re
import tomllib
from fnmatch import fnmatchcase
from typing import get_type_hints

import pytest

from agents import ALGORITHMS
from benchmarks.evidence import suite
from experiments.flags import Args
from fire_rl import FIRE, INTERVENTIONS, METRICS, FireCallback
from fire_rl.checkpoints.replay_segments import _KNOWN as BUFFERS
from fire_rl.interventions import published_schedule
from fire_rl.metrics.registry import Shown
from fire_rl.sb3.contrib_anatomies import known_algorithms
from tests.helpers.models import EVERY_ALGORITHM
from tests.helpers.runs import ROOT

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
         "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"]  # fmt: skip
PAGES = ["README.md", "CHANGELOG.md", "Makefile", "configs/README.md",
         *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))
           if path.name != "compatibility.md")]  # fmt: skip # `make compatibility` writes that
PATH = re.compile(
    r"\b(?:benchmarks|tests|configs|docs|experiments|fire_rl|agents|envs)/[\w/.]*\w"
    r"\.(?:py|yaml|md|json|csv|png|svg)\b"
)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def paragraph(page, start):
    """The one paragraph of a page that begins so, on one line."""
    (found,) = [part for part in read(page).split("\n\n") if part.startswith(start)]
    return " ".join(found.split())


def first_cells(page, heading):
    """What stands in the first column of the table with this first heading."""
    lines = read(page).splitlines()
    (start,) = [n for n, line in enumerate(lines) if line.startswith(f"| {heading} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line.split("|")[1].strip())
    return rows


# --- algorithms ---------------------------------------------------------------------------------


def test_what_is_known_is_what_is_trained_and_tested():
    trained = {kind.__name__ for kind in ALGORITHMS.values()}
    assert set(known_algorithms()) == trained == {k.__name__ for k in EVERY_ALGORITHM.values()}


def test_readme_and_docs_list_every_algorithm():
    listed = paragraph("README.md", "DQN, PPO, A2C").partition(" and subclasses")[0]
    words = re.findall(r"\b[A-Z][\w-]+", listed.replace("QR-DQN", "QRDQN"))
    assert sorted(words) == sorted(known_algorithms())
    cells = ", ".join(first_cells("docs/algorithms.md", "algorithm")).replace("QR-DQN", "QRDQN")
    assert sorted(cells.split(", ")) == sorted([*known_algorithms(), "ARS"])
    names = paragraph("docs/algorithms.md", "`train.py` trains all of them").partition(";")[0]
    assert re.findall(r"`(\w+)`", names) == sorted(ALGORITHMS)
    assert f"“all” are the {WORDS[len(EVERY_ALGORITHM)]} of" in read("docs/compatibility.md")


def test_the_help_lists_algorithms_and_interventions():
    hints = get_type_hints(Args, include_extras=True)
    assert ", ".join(ALGORITHMS) in hints["algo"].__metadata__[0].help
    assert ", ".join(INTERVENTIONS) in hints["intervention"].__metadata__[0].help


def test_long_runs_lists_every_buffer_that_is_saved():
    (line,) = [part for part in read("docs/long_runs.md").split("\n- ") if "Buffer" in part[:60]]
    assert {*re.findall(r"`(\w+Buffer)`", line)} == {kind.__name__ for kind in BUFFERS}


# --- metrics ------------------------------------------------------------------------------------


def test_metrics_of_pictures_and_events_are_named():
    """The table of all of them is compared in tests/metrics/test_registry.py."""
    pictures = paragraph("docs/reports.md", "Scores; learning curves with marks")
    for title in Shown("curves").values():
        assert title.replace("DfI per singular value", "deviation from isometry") in pictures
    (row,) = [line for line in read("README.md").splitlines() if "`intervention/<role>/" in line]
    assert all(metric.title in row for metric in METRICS.values() if metric.event_key)


# --- interventions ------------------------------------------------------------------------------


def test_comparisons_list_every_intervention_and_preset():
    page = read("docs/comparisons.md")
    names = [cell.strip("`") for cell in first_cells("docs/comparisons.md", "name")]
    assert sorted(names) == sorted(INTERVENTIONS)
    for name, kind in INTERVENTIONS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        presets = {key for key, value in vars(kind).items()
                   if isinstance(value, classmethod) and not key.startswith("_")}  # fmt: skip
        if name == "fire":  # the others are of plain torch models
            plain = read("docs/plain_torch.md")
            assert all(f"`FIRE.{key}()`" in plain for key in presets - {"paper_dqn", "paper_sac"})
            presets = {"paper_dqn", "paper_sac"}
        assert all(f"`{preset}`" in row for preset in presets), presets
        for preset in presets:
            every = (published_schedule({"name": name, "preset": preset}) or {}).get("every")
            assert every is None or f"{every:,}" in row


def test_the_arguments_that_matter_exist():
    known = {*inspect.signature(FireCallback).parameters, "preset",
             *(option.name for option in dataclasses.fields(FIRE))}  # fmt: skip
    cells = first_cells("README.md", "`FireCallback(...)`")
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert len(named) > 15
    assert set(named) <= known


# --- the evidence -------------------------------------------------------------------------------


def test_settings_and_arms_of_the_evidence_are_counted_right():
    settings, arms = WORDS[len(suite.FULL)], WORDS[len(suite.ARMS)]
    assert f"{settings.capitalize()} settings, what FIRE wins" in read("README.md")
    changelog = " ".join(read("CHANGELOG.md").split())
    assert f"{settings} settings, most with tasks that change, up to {arms} arms" in changelog
    seeds = {setting.seeds for setting in suite.HEADLINE.values()}
    numbers = f"{len(suite.ARMS)} arms, {seeds.pop()} seeds, {len(suite.HEADLINE)} settings"
    assert not seeds
    assert numbers in read("docs/evidence.md")
    assert numbers in read("Makefile")
    assert f"the headline, {len(suite.ARMS)} arms" in suite.__doc__


def test_evidence_lists_every_setting_and_arm():
    cells = ", ".join(first_cells("docs/evidence.md", "setting (`configs/continual/`)"))
    patterns = [name.replace("…", "*") for name in re.findall(r"`([\w…]+)`", cells)]
    for name in suite.FULL:
        assert any(fnmatchcase(name, pattern) for pattern in patterns), name
    for pattern in patterns:
        assert any(fnmatchcase(name, pattern) for name in suite.FULL), pattern
    arms = paragraph("docs/evidence.md", "The arms, in full in")
    assert {*re.findall(r"`(\w+)`", arms)} == set(suite.ARMS)


# --- files --------------------------------------------------------------------------------------


def test_readme_lists_every_extra():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    (listed,) = re.findall(r"\(extras:\s(.*?)\)", read("README.md"), re.S)
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(project["optional-dependencies"])


def test_every_config_is_in_the_list():
    """``dqn.yaml``, ``dqn_fire.yaml`` in one cell are in the folder that the first one names."""
    patterns = []
    for cell in first_cells("configs/README.md", "file"):
        folder = ""
        for name in re.findall(r"`([^`]+)`", cell):
            if name.startswith("_"):  # "... and both with `_cleared`"
                patterns += [pattern.replace(".yaml", f"{name}.yaml") for pattern in patterns[-2:]]
                continue
            folder = name.rpartition("/")[0] or folder
            path = f"{folder}/{name.rpartition('/')[2]}".lstrip("/")
            patterns.append(re.sub(r"<\w+>", "*", path))
    files = [p.relative_to(ROOT / "configs").as_posix() for p in ROOT.glob("configs/**/*.yaml")]
    for file in files:
        assert any(fnmatchcase(file, pattern) for pattern in patterns), file
    for pattern in patterns:
        assert any(fnmatchcase(file, pattern) for file in files), pattern


@pytest.mark.parametrize("page", PAGES)
def test_files_that_pages_name_exist(page):
    named = PATH.findall(read(page))
    assert [path for path in named if not (ROOT / path).exists()] == []
