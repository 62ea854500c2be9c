"""The soak and the attack count what they claim to count; their page says what their files say."""

import json
import shutil

import pytest

from benchmarks.reliability import page
from benchmarks.reliability.records import compare
from benchmarks.reliability.trial import Ending, Trial, attempt
from tests.helpers.runs import ROOT

SOAK, ATTACK = (
    json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    for name in ("soak", "attack")
)


@pytest.fixture
def folders(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    (whole / "progress.csv").write_text("time/total_timesteps,time/fps,a\n64,9,1\n128,8,2\n")
    (whole / "interventions.jsonl").write_text('{"num_timesteps": 64, "seconds": 1}\n')
    shutil.copytree(whole, cut)
    return whole, cut


def counts(folders):
    difference = compare(*folders)
    return difference.different, difference.lost, difference.doubled


def test_a_clock_makes_no_difference(folders):
    (folders[1] / "progress.csv").write_text("time/total_timesteps,time/fps,a\n64,3,1\n128,4,2\n")
    (folders[1] / "interventions.jsonl").write_text('{"num_timesteps": 64, "seconds": 2}\n')
    assert compare(*folders).entries == 3
    assert counts(folders) == (0, 0, 0)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("64,9,1\n128,8,3\n", (1, 0, 0)),
        ("64,9,1\n", (0, 1, 0)),
        ("64,9,1\n64,9,1\n128,8,2\n", (0, 0, 1)),
        ("", (0, 2, 0)),
    ],
)
def test_rows_are_different_lost_or_doubled(folders, rows, expected):
    (folders[1] / "progress.csv").write_text(f"time/total_timesteps,time/fps,a\n{rows}")
    assert counts(folders) == expected


def test_a_missing_file_is_lost(folders):
    (folders[1] / "interventions.jsonl").unlink()
    assert counts(folders) == (0, 1, 0)


@pytest.mark.parametrize(
    ("ending", "survived"),
    [
        (Ending(0, "", ""), True),
        (Ending(2, "", "config.yaml cannot be read"), True),
        (Ending(2, "", "cannot be read"), False),
        (Ending(1, "", "config.yaml"), False),
        (Ending(2, "", "Traceback ... config.yaml"), False),
    ],
)
def test_an_error_counts_as_survived_only_if_it_names_the_file(ending, survived):
    assert (ending.names("config.yaml") is None) == survived


def fails(folder):
    raise ValueError("this")


def exits(folder):
    import os

    os._exit(3)


def test_a_trial_that_raises_or_dies_is_not_survived(tmp_path):
    assert attempt(Trial("fine", lambda folder: None), tmp_path / "1") is None
    assert attempt(Trial("raises", fails), tmp_path / "2") == "raised ValueError: this"
    assert "died" in attempt(Trial("dies", exits), tmp_path / "3")


def test_the_page_says_what_the_results_say():
    assert page.PAGE.read_text(encoding="utf-8") == page.text()


def test_nothing_was_lost_under_a_hundred_kills_of_seven_kinds():
    kinds = {name: result for name, result in SOAK["results"].items() if name != "full_disk"}
    assert len(kinds) >= 7
    assert SOAK["kills"] == sum(result["kills"] for result in kinds.values()) >= 100
    for name, result in SOAK["results"].items():
        logs = result["logs"]
        assert (logs["different"], logs["lost"], logs["doubled"]) == (0, 0, 0), name
        assert result.get("orphans", 0) == 0, name
        assert result.get("weights_equal", True), name


def test_the_attack_covers_its_areas():
    assert len(ATTACK["areas"]) >= 12
    assert sum(row["tried"] for row in ATTACK["areas"].values()) >= 600
    for area, row in ATTACK["areas"].items():
        assert row["survived"] + len(row["fell"]) == row["tried"], area
