"""The report: its numbers, its tables, its pictures, its page, and the command that makes it."""

import base64
import csv
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import yaml

from fire_rl.cli import main as fire_rl
from fire_rl.files.flags import documented
from fire_rl.reports import recovery_table, write_report
from fire_rl.reports.curves import draw_curves, draw_games
from fire_rl.reports.experiment import make_experiment
from fire_rl.reports.figures import draw_scores, groups, styles
from fire_rl.reports.measures import Estimate, recoveries, return_curve, score, task_estimates
from fire_rl.reports.runs import find_runs, read_run
from fire_rl.reports.tables import Table, markdown, show
from fire_rl.reports.writing import make_page, make_tables
from fire_rl.runs.recovery import recovery
from tests.helpers.report_runs import constant, write_run
from tests.helpers.runs import ENVIRONMENT


def compare(root, **options):
    return make_experiment([read_run(path) for path in find_runs([root])], **options)


def table(experiment, name, kind="mean"):
    """A table's rows by the name of the arm, each by column."""
    (found,) = [one for one in make_tables(experiment, kind) if one.name == name]
    return {row["arm"]: row for row in found.rows}


@pytest.fixture(scope="module")
def report(real_runs, tmp_path_factory):
    return write_report([real_runs], tmp_path_factory.mktemp("report") / "out")


class Addresses(HTMLParser):
    """What a page would load or link to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.images = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                (self.images if tag == "img" else self.addresses).append(value)


def test_the_page_is_self_contained(report):
    text = report.page.read_text(encoding="utf-8")
    page = Addresses(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert all(address.startswith("#") for address in page.addresses)
    assert all(f'id="{address[1:]}"' in text for address in page.addresses)
    assert "url(" not in text
    assert "@import" not in text
    pictures = [name for name in report.files if name.endswith(".svg")]
    assert len(page.images) == len(pictures) >= 6
    for image in page.images:
        head, _, data = image.partition(",")
        assert head == "data:image/svg+xml;base64"
        root = ElementTree.fromstring(base64.b64decode(data))
        for element in root.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:")), value


def test_every_file_is_there_and_readable(report):
    folder = report.page.parent
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == set(report.files)
    names = {name.partition(".")[0] for name in there}
    assert {
        "figures/scores", "figures/curves_actor", "figures/curves_critic", "figures/tasks",
        "figures/sfe_dfi", "figures/spectrum_1_fire",
        "tables/scores", "tables/continual", "tables/tasks", "tables/recovery",
        "tables/plasticity", "tables/surgery", "tables/runs", "report",
    } == names  # fmt: skip
    for name in there:
        content = (folder / name).read_bytes()
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG")
        if name.endswith(".svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")


def test_the_scores_again_from_the_files(report, real_runs):
    """From episodes.csv, with nothing of the report's code."""
    index = json.loads((report.page.parent / "report.json").read_text())
    assert (index["returns_from"], index["control"], index["end"]) == ("episodes.csv", "none", 768)
    expected = {}
    for arm in ("none", "fire"):
        for seed in (0, 1):
            rows = (real_runs / arm / f"s{seed}" / "episodes.csv").read_text().splitlines()[1:]
            steps, returns = np.array([line.split(",")[:2] for line in rows], float).T
            bins = []
            for task in range(3):
                edges = np.linspace(256 * task, 256 * (task + 1), 25)
                inside = [(steps > a) & (steps <= b) for a, b in pairwise(edges)]
                known = [k for k in range(24) if inside[k].any()]
                means = [returns[inside[k]].mean() for k in known]
                bins.append(np.interp(range(24), known, means))
            expected[arm, seed] = np.mean(bins)
    found = {(run["arm"], run["seed"]): run["score"] for run in index["runs"]}
    assert found == pytest.approx(expected)
    rows = {row["arm"]: row for row in index["tables"]["scores"]["rows"]}
    ours, none = ([expected[arm, seed] for seed in (0, 1)] for arm in ("fire", "none"))
    assert rows["fire"]["return, IQM"]["value"] == pytest.approx(np.mean(ours))
    assert rows["fire"]["return, IQM"]["low"] == pytest.approx(min(ours))
    wins = np.mean([(a > b) + 0.5 * (a == b) for a in ours for b in none])
    assert rows["fire"]["P(better than none)"]["value"] == wins
    assert rows["none"]["P(better than none)"]["value"] is None
    gap = np.mean([max(475 - x, 0) / 475 for x in ours])
    assert rows["fire"]["optimality gap"]["value"] == pytest.approx(gap)


def test_csv_and_json_agree_at_full_precision(report):
    folder = report.page.parent
    index = json.loads((folder / "report.json").read_text())
    with (folder / "tables" / "plasticity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row, expected in zip(rows, index["tables"]["plasticity"]["rows"], strict=True):
        assert (row["network"], row["arm"]) == (expected["network"], expected["arm"])
        assert float(row["effective rank"]) == expected["effective rank"]["value"]
        assert float(row["effective rank low"]) == expected["effective rank"]["low"]
    assert "| fire" in (folder / "tables" / "plasticity.md").read_text()
    curve = index["curves"]["fire"]["plasticity/actor/dfi_per_sv"]
    assert curve["steps"] == [128, 256, 384, 512, 640, 768]


def test_surgery_is_told_layer_by_layer(report, real_runs):
    index = json.loads((report.page.parent / "report.json").read_text())
    rows = index["tables"]["surgery"]["rows"]
    lines = [
        json.loads(line)
        for seed in (0, 1)
        for line in (real_runs / "fire" / f"s{seed}" / "interventions.jsonl")
        .read_text()
        .splitlines()
    ]
    layers = [e["networks"]["actor"]["layers"][0] for e in lines if "networks" in e]
    assert len(layers) == 4
    (row,) = [r for r in rows if (r["arm"], r["layer"]) == ("fire", layers[0]["name"])]
    assert (row["shape"], row["events"]) == ("8×4", 4)
    relative = [layer["sfe"] / layer["norm_before"] ** 2 for layer in layers]
    assert row["relative SFE"] == pytest.approx(np.median(relative))
    after = [layer["dfi_after"] / layer["num_singular_values"] for layer in layers]
    assert row["DfI/sv after"] == pytest.approx(np.median(after))
    assert not [r for r in rows if r["arm"] == "none"]


def test_a_hand_worked_comparison(tmp_path):
    for arm, levels in {"none": (10, 20, 30, 40), "fire": (20, 30, 40, 150)}.items():
        for seed, level in enumerate(levels):
            write_run(tmp_path / arm / f"s{seed}", constant((1000, float(level))))
    row = table(compare(tmp_path, target=100), "scores")["fire"]
    assert row["return, IQM"].value == 35
    assert row["return, mean"].value == 60
    assert row["optimality gap"].value == pytest.approx((80 + 70 + 60) / 400)
    assert row["P(better than none)"].value == (1 + 2 + 3 + 4 + 1.5) / 16
    assert row["return, IQM"].low < 35 < row["return, IQM"].high


def test_mean_and_final_scores(tmp_path):
    write_run(tmp_path / "a" / "s0", constant((500, 10.0), (900, 20.0), (1000, 50.0)))
    experiment = compare(tmp_path)
    assert score(experiment.runs[0], experiment, "mean") == pytest.approx(18)
    assert score(experiment.runs[0], experiment, "final") == 50
    with pytest.raises(ValueError, match=r"`--score` must be one of 'mean', 'final', got 'last'"):
        write_report([tmp_path], tmp_path / "out", score="last")


def test_bins_without_an_episode_are_passed_over(tmp_path):
    """Episodes of 200 steps: not zero where none ended."""
    write_run(tmp_path / "a" / "s0", constant((1000, 7.0), every=200))
    experiment = compare(tmp_path)
    assert score(experiment.runs[0], experiment, "mean") == 7
    assert np.nanmin(return_curve(experiment, "a").values) == 7


def test_a_single_seed_has_no_interval(tmp_path, capfd):
    write_run(tmp_path / "runs" / "none" / "s0", constant((1000, 10.0)))
    write_run(tmp_path / "runs" / "fire" / "s0", constant((1000, 20.0)))
    assert fire_rl(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    out = capfd.readouterr().out
    assert "20 [–]" in out
    assert "A single seed: none, fire." in out
    assert "there are no intervals (–)" in out
    assert "A single seed: none, fire." in (tmp_path / "out" / "report.html").read_text()
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["tables"]["scores"]["rows"]
    fire = {row["arm"]: row for row in rows}["fire"]
    assert fire["return, IQM"] == {"value": 20, "low": None, "high": None}
    assert fire["P(better than none)"] == {"value": 1, "low": None, "high": None}
    assert "–" not in (tmp_path / "out" / "tables" / "scores.csv").read_text()


def test_phases_of_tasks(tmp_path):
    """Tasks of 800: the first eighth at 10, the last quarter at 50 and 70, 30 between."""
    levels = [(100, 90.0), (600, 30.0), (800, 50.0), (900, 10.0), (1400, 30.0), (1600, 70.0)]
    tasks = {"change": "permutation", "every": 800}
    for seed in (0, 1):
        path = write_run(tmp_path / "fire" / f"s{seed}", constant(*levels), tasks=tasks, seed=seed)
        (path / "continual.csv").write_text(
            "step,trained_task,task,return,return_std,episodes\n"
            f"800,0,0,{80 + seed},0,5\n1600,1,0,20,0,5\n1600,1,1,90,0,5\n"
        )
    experiment = compare(tmp_path)
    assert list(experiment.tasks) == [0, 1]
    found = task_estimates(experiment, "fire")
    assert [one.value for one in found["mean"]] == pytest.approx([42.5, 37.5])
    assert [one.value for one in found["just after the switch"]] == pytest.approx(
        [math.nan, 10], nan_ok=True
    )
    assert [one.value for one in found["at its end"]] == [50, 70]
    assert [one.value for one in found["evaluated at its end"]] == [80.5, 90]
    earlier = [one.value for one in found["evaluated on earlier tasks"]]
    assert earlier == pytest.approx([math.nan, 20], nan_ok=True)
    row = table(experiment, "continual")["fire"]
    assert row["just after the switch"].value == 10  # the first task begins with no switch
    assert row["at its end"].value == 60
    assert row["evaluated at its end"] == Estimate(85.25, 85, 85.5)
    assert table(experiment, "scores")["fire"]["return, IQM"].value == pytest.approx(40)


def events(path, *steps, **more):
    lines = [{"num_timesteps": s, "networks": {}, "intervention": "fire", **more} for s in steps]
    (path / "interventions.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_recoveries_are_those_of_fire_rl_reports_recovery(tmp_path):
    flat, dipped = constant((1000, 10.0)), constant((400, 10.0), (500, 2.0), (1000, 14.0))
    write_run(tmp_path / "none" / "s0", flat)
    events(write_run(tmp_path / "fire" / "s0", dipped), 400, 700)
    experiment = compare(tmp_path)
    found = recoveries(experiment.of("fire")[0], experiment)
    assert found == [recovery(dipped, 400, 700, flat), recovery(dipped, 700, 1000, flat)]
    assert found[0].steps_to_regain > 0
    # The control has no events of its own: what noise does at those of the others.
    control = recoveries(experiment.of("none")[0], experiment)
    assert [(one.step, one.dip) for one in control] == [(400, 0), (700, 0)]
    row = table(experiment, "recovery")["fire"]
    assert (row["events"], row["regained"]) == (2, "2 of 2")
    assert row["dip"].value == 4  # mean of 8 and 0
    assert row["plateau - none"].value == 4


def test_branches_count_from_where_they_branched(tmp_path):
    for arm, level in {"none": 10.0, "redo": 30.0}.items():
        path = tmp_path / "s0" / arm
        branch = {"arm": arm, "checkpoint": "runs/s0/trunk/checkpoints/500"}
        write_run(path, constant((500, 2.0), (1000, level)), branch=branch)
        events(path, *range(500, 1000, 100))
    experiment = compare(tmp_path)
    assert experiment.start == 500
    assert table(experiment, "scores")["redo"]["return, mean"].value == 30
    assert [(one.step, one.end) for one in recoveries(experiment.of("redo")[0], experiment)] == [
        (500, 1000)
    ]


def test_metrics_that_are_missing(tmp_path):
    """Not in one arm, NaN in another, partly NaN in the third: a dash, no zero and no crash."""
    header = "time/total_timesteps,rollout/ep_rew_mean,plasticity/actor/effective_rank"
    for arm, ranks in {"none": ("nan", "nan"), "fire": ("nan", "4"), "lost": ("", "")}.items():
        for seed in (1, 2):
            folder = tmp_path / f"{arm}_{seed}"
            folder.mkdir()
            rows = [header, f"500,10,{ranks[0]}", f"1000,20,{ranks[1]}"]
            (folder / "progress.csv").write_text("\n".join(rows))
    experiment = compare(tmp_path)
    rows = table(experiment, "plasticity")
    assert set(rows) == {"fire"}
    assert rows["fire"]["effective rank"].value == 4
    (picture,) = draw_curves(experiment)
    assert picture.files["png"].startswith(b"\x89PNG")


def test_human_normalised_scores_by_game(tmp_path):
    """Breakout: random 1.7, human 30.5; Pong: -20.7 and 14.6."""
    values = {"none": {"Breakout": 1.7, "Pong": -20.7}, "fire": {"Breakout": 30.5, "Pong": -3.05}}
    for arm, games in values.items():
        for game, value in games.items():
            for seed in (0, 1):
                path = tmp_path / f"{arm}_{game}" / f"s{seed}"
                write_run(path, constant((1000, value)), env=f"ALE/{game}-v5", seed=seed)
    rules = [("none", "none_*/*"), ("fire", "fire_*/*")]
    experiment = make_experiment([read_run(path, rules) for path in find_runs([tmp_path])])
    rows = table(experiment, "scores")
    assert rows["none"]["human-normalised, IQM"].value == pytest.approx(0)
    assert rows["fire"]["human-normalised, IQM"].value == pytest.approx(0.75)
    assert rows["fire"]["optimality gap"].value == pytest.approx(0.25)
    assert rows["fire"]["P(better than none)"].value == 1
    (games,) = [one for one in make_tables(experiment, "mean") if one.name == "games"]
    cells = {
        (row["game"], row["arm"]): (row["return"].value, row["human-normalised"].value)
        for row in games.rows
    }
    assert cells["ALE/Pong-v5", "fire"] == (pytest.approx(-3.05), pytest.approx(0.5))
    assert return_curve(experiment, "fire").values[50] == pytest.approx(0.75)
    assert return_curve(experiment, "fire", "ALE/Pong-v5").values[50] == pytest.approx(-3.05)
    (picture,) = draw_games(experiment)
    assert picture.name == "games"


def test_nothing_but_a_report_is_overwritten(tmp_path):
    write_run(tmp_path / "runs" / "fire" / "s0", constant((1000, 10.0)))
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and holds no report of fire-rl"):
        write_report([tmp_path / "runs"], out)
    (out / "report.json").write_text('{"format": "another"}')
    with pytest.raises(FileExistsError, match="holds no report"):
        write_report([tmp_path / "runs"], out)
    with pytest.raises(FileExistsError, match="is a file"):
        write_report([tmp_path / "runs"], out / "thesis.tex")
    index = {"format": "fire-rl report", "files": ["old.png", "../kept.txt", "report.json"]}
    (out / "report.json").write_text(json.dumps(index))
    (out / "old.png").write_text("")
    (tmp_path / "kept.txt").write_text("")
    write_report([tmp_path / "runs"], out)
    assert not (out / "old.png").exists()
    assert (out / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "kept.txt").exists()
    first = (out / "report.html").read_text()
    assert write_report([tmp_path / "runs"], out).page.read_text() == first


def test_names_may_be_anything(tmp_path):
    """Dollars are no formulas, tags no tags, bars no columns."""
    names = ["a$x^2$b", "<b>&amp;", "one|two"]
    for name in names:
        write_run(tmp_path / name / "s0", constant((1000, 10.0)))
    experiment = compare(tmp_path)
    tables = make_tables(experiment, "mean")
    picture = draw_scores(experiment, tables[0], "mean")
    page = make_page("<i>", "<i>", ["<i>"], tables, [picture])
    assert "<i>" not in page
    assert "<b>&amp;" not in page
    assert "&lt;b&gt;&amp;amp;" in page
    lines = tables[0].to_markdown().splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_every_text_of_the_page_is_escaped(tmp_path):
    """Of arms, environments, layers, interventions, titles and notes, through write_report."""
    name = "<script>alert('&')<|script>"
    layers = {
        "name": name, "action": "project", "shape": [2, 2], "num_singular_values": 2,
        "norm_before": 1.0, "sfe": 0.1, "dfi_before": 1.0, "dfi_after": 0.5,
        "spectrum_before": [2.0, 1.0], "spectrum_after": [1.0, 1.0],
    }  # fmt: skip
    networks = {name: {"layers": [layers]}}
    for arm in ("none", name):
        path = write_run(tmp_path / "runs" / arm / "s0", constant((1000, 10.0)), env=name)
        events(path, 500, networks=networks, intervention=name)
        header = f"time/total_timesteps,plasticity/{name.replace('/', '|')}/weight_norm"
        (path / "progress.csv").write_text(f"{header}\n500,1\n")
    page = write_report([tmp_path / "runs"], tmp_path / "out", title=name).page.read_text()
    for text in (name, "<script", "('&')"):
        assert text not in page
    escaped = page.count("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;|script&gt;")
    assert escaped > 20
    assert not Addresses(page).tags & {"script"}


def test_the_recovery_of_arms_pools_their_seeds():
    """Before: 10. The event at 1000 throws it to 2, at 1250 it is back at 10, later at 14."""
    flat = constant((2000, 10.0))
    dipped = constant((1000, 10.0), (1250, 2.0), (1600, 10.0), (2000, 14.0))
    lost = constant((1000, 10.0), (2000, 2.0))
    fire = recovery(dipped, 1000, 2000, flat).to_dict()
    arms = {
        "none": [recovery(flat, 1000, 2000, flat).to_dict()] * 2,
        "fire": [{**fire, "policy_kl": kl} for kl in (0.1, 0.3)],
        "lost": [recovery(lost, 1000, 2000, flat).to_dict()],
    }
    text = recovery_table(arms, "none").to_markdown()
    assert len({len(line) for line in text.splitlines()}) == 1
    header, _, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
    )
    fire, lost = (dict(zip(header, line, strict=True)) for line in lines)
    assert (fire["events"], fire["regained"]) == ("2", "2 of 2")
    assert fire["plateau - none"] == "4 [4, 4]"
    assert fire["policy KL"] == "0.2 [0.1, 0.3]"
    assert (lost["regained"], lost["steps to regain"]) == ("0 of 1", "–")
    assert lost["policy KL"] == "–"
    assert "action diff" not in header  # of no arm


def test_markdown_without_padding():
    rows = [["`fire`", "1"], ["a|b", "20"]]
    assert markdown(["arm", "x"], rows, [True, False], pad=False).splitlines() == [
        "| arm | x |", "|---|---:|", "| `fire` | 1 |", "| a\\|b | 20 |",
    ]  # fmt: skip
    assert markdown(["arm", "x"], rows, [True, False]).splitlines() == [
        "| arm    |  x |", "| ------ | -: |", "| `fire` |  1 |", "| a\\|b   | 20 |",
    ]  # fmt: skip


def test_tables_show_four_digits_and_keep_all():
    cells = ("a", 12345, 0.123456789, Estimate(1234.5, 1000, 2000), math.nan, Estimate(math.nan))
    columns = ("name", "count", "share", "score", "nothing", "none")
    one = Table("t", "T", "about", [dict(zip(columns, cells, strict=True))])
    assert [show(cell) for cell in cells] == [
        "a", "12,345", "0.1235", "1,234 [1,000, 2,000]", "–", "–",
    ]  # fmt: skip
    header, row = csv.reader(one.to_csv().splitlines())
    assert dict(zip(header, row, strict=True)) == {
        "name": "a", "count": "12345", "share": "0.123456789", "score": "1234.5",
        "score low": "1000", "score high": "2000", "nothing": "", "none": "", "none low": "",
        "none high": "",
    }  # fmt: skip
    assert list(one.without_empty_columns().columns) == ["name", "count", "share", "score"]
    frame = one.to_frame()
    assert frame["score high"].tolist() == [2000]
    assert frame["share"].tolist() == [0.123456789]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 14])
@pytest.mark.parametrize("control", [None, "arm 0"])
def test_arms_on_one_axis_are_told_apart(count, control):
    arms = [f"arm {k}" for k in range(count)]
    look = styles(arms, control)
    parts = groups(arms, control)
    assert {arm for part in parts for arm in part} == set(arms)
    for part in parts:
        assert len(part) <= 5
        assert control is None or part[0] == control
        assert len({look[arm].colour for arm in part}) == len(part)
        assert len({look[arm].marker for arm in part}) == len(part)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_same_picture_is_the_same_file(tmp_path):
    write_run(tmp_path / "fire" / "s0", constant((1000, 10.0)))
    experiment = compare(tmp_path)
    (first,), (second,) = (draw_curves(experiment) for _ in range(2))
    assert first.files is not second.files
    assert first.files == second.files


def test_settings_of_matplotlib_change_no_picture(tmp_path):
    write_run(tmp_path / "fire" / "s0", constant((1000, 10.0)))
    experiment = compare(tmp_path)
    (expected,) = draw_curves(experiment)
    assert expected.files
    with matplotlib.rc_context({"figure.facecolor": "red", "font.size": 30, "lines.marker": "o"}):
        (found,) = draw_curves(experiment)
        assert found.files == expected.files
        assert matplotlib.rcParams["font.size"] == 30


def test_the_flags_are_the_arguments_of_write_report(capfd):
    """Their help is its docstring's."""
    with pytest.raises(SystemExit):
        fire_rl(["report", "--help"])
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capfd.readouterr().out).split())
    for name, help_text in documented(write_report).items():
        flag = "RUNS [RUNS ...]" if name == "runs" else f"--{name.removesuffix('s')} "
        assert flag in text
        assert len(help_text.split()) > 3
        assert help_text in text


def test_the_command(tmp_path):
    for seed, level in enumerate((10.0, 20.0)):
        write_run(tmp_path / "runs" / "fire" / f"s{seed}", constant((1000, level)))
    command = [sys.executable, "-m", "fire_rl.cli", "report", "runs", "--out", "report"]
    run = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    assert re.search(r"\| fire \| +2 \| +15 \[10, 20\] \|", run.stdout)
    assert run.stdout.rstrip().endswith("report/report.html")
    assert "15 [10, 20]" in (tmp_path / "report" / "report.html").read_text()


def test_faults_are_one_line(tmp_path, capfd):
    out = str(tmp_path / "out")
    assert fire_rl(["report", str(tmp_path), "--out", out]) == 2
    error = capfd.readouterr().err
    assert error.startswith("fire-rl report: error: ")
    assert "holds no run" in error
    assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        fire_rl(["report", str(tmp_path), "--out", out, "--contrl", "none"])
    assert "unknown argument '--contrl'. Did you mean '--control'?" in capfd.readouterr().err


@pytest.mark.parametrize("module", ["jinja2", "matplotlib", "pandas", "yaml", "tensorboard"])
def test_what_is_not_installed_is_named_with_its_extra(module, tmp_path, monkeypatch, capfd):
    folder = write_run(tmp_path / "runs" / "fire" / "s0", constant((1000, 10.0)), seed=0)
    if module == "tensorboard":
        (folder / "events.out.tfevents.1").write_bytes(b"")
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    assert fire_rl(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert "pip install 'fire-rl[report]'" in error
    assert {"matplotlib": "matplotlib", "yaml": "PyYAML"}.get(module, module) in error
    assert not (tmp_path / "out").exists()


def test_without_tensorboard_the_csv_will_do(real_runs, monkeypatch):
    names = [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]
    for name in [*names, "tensorboard"]:
        monkeypatch.setitem(sys.modules, name, None)
    run = read_run(real_runs / "fire" / "s0")
    assert "plasticity/actor/dfi" in run.scalars
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == run.config
