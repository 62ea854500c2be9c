"""Run folders of strangers and of killed runs: a report, or one line that names the file."""

import json
import os
import struct

import pytest

from fire_rl.cli import main
from fire_rl.reports.experiment import make_experiment
from fire_rl.reports.runs import read_runs
from fire_rl.reports.writing import make_tables, write_report
from fire_rl.runs import readers
from fire_rl.utils.limits import Limits
from tests.helpers.report_runs import constant, write_run

EVENT = {
    "num_timesteps": 500, "intervention": "fire", "networks": {"critic": {"layers": [{
        "name": "q.0", "action": "project", "shape": [4, 4], "num_singular_values": 4,
        "norm_before": 2.0, "sfe": 1.0, "dfi_before": 1.0, "dfi_after": 0.1,
        "spectrum_before": [2.0, 1.0], "spectrum_after": [1.0, 1.0],
    }]}},
}  # fmt: skip
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{','.join([f'*{chr(97 + k)}'] * 10)}]\n" for k in range(9)
)
MERGES = "m0: &m0 {a: 1, b: 2}\n" + "".join(
    f"m{k + 1}: &m{k + 1} {{<<: [{','.join([f'*m{k}'] * 10)}]}}\n" for k in range(12)
)


def layer(**values):
    event = json.loads(json.dumps(EVENT))
    event["networks"]["critic"]["layers"][0] |= values
    return json.dumps(event)


def run(folder, **files):
    """A good run of 1000 steps; files by name, a content or a function of the path."""
    config = files.pop("config", None)
    write_run(folder, constant((1000, 7)), intervention={"name": "fire"})
    if config is not None:
        files["config.yaml"] = config
    for name, content in files.items():
        path = folder / name
        if callable(content):
            path.unlink(missing_ok=True)
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8", errors="surrogatepass")
    return folder


def tables_of(folder, **options):
    experiment = make_experiment(read_runs([folder], (), (), Limits()), **options)
    return make_tables(experiment, "mean")


def crc_of(data):
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return struct.pack("<I", masked_crc32c(data))


def record(data, size=None):
    length = struct.pack("<Q", len(data) if size is None else size)
    return length + crc_of(length) + data + crc_of(data)


EPISODES = "step,return,length\n10,1,10\n"
READ = {
    "episodes cut in a row": {"episodes.csv": EPISODES + "20,"},
    "episodes without numbers": {"episodes.csv": EPISODES + "x,y,z\n"},
    "episodes with NUL": {"episodes.csv": EPISODES + "\x00\x00\x00\n"},
    "episodes infinite": {"episodes.csv": EPISODES + "20,inf,10\n30,-inf,1\n40,nan,2\n"},
    "episodes huge": {"episodes.csv": EPISODES + "20,1e308,10\n30,1e400,1\n1e300,1,2\n-5,1,1\n"},
    "episodes of long digits": {
        "episodes.csv": EPISODES + f"{'9' * 10_000},1,1\n20,{'9' * 9999},1\n"
    },
    "episodes with a quote": {"episodes.csv": EPISODES + '20,"' + "x" * 300_000 + "\n30,1,1\n"},
    "episodes with more columns": {"episodes.csv": EPISODES + "1,2,3,4,5\n"},
    "episodes with a mark": {"episodes.csv": "\ufeff" + EPISODES},
    "events null": {"interventions.jsonl": '{"num_timesteps": 5, "networks": null}\n'},
    "events a list": {"interventions.jsonl": '[1]\n"x"\n{"networks": []}\nnull\n'},
    "events cut": {"interventions.jsonl": json.dumps(EVENT) + "\n" + json.dumps(EVENT)[:50]},
    "events deep": {"interventions.jsonl": "[" * 50_000 + "\n" + '{"networks":' * 900},
    "events no step": {"interventions.jsonl": json.dumps({**EVENT, "num_timesteps": None})},
    "events infinite step": {"interventions.jsonl": layer().replace("500", "Infinity")},
    "events step of digits": {"interventions.jsonl": layer().replace("500", "5" * 9999)},
    "events step 1e400": {"interventions.jsonl": layer().replace("500", "1e400")},
    "events negative": {"interventions.jsonl": layer().replace("500", "-500")},
    "events layers null": {"interventions.jsonl": '{"num_timesteps": 5, "networks": {"a": null}}'},
    "layers no dicts": {
        "interventions.jsonl": '{"num_timesteps":5,"networks":{"a":{"layers":[1]}}}'
    },
    "layer without numbers": {
        "interventions.jsonl": '{"num_timesteps":5,"networks":{"a":{"layers":[{"name":[]}]}}}'
    },
    "layer of texts": {"interventions.jsonl": layer(sfe="x", norm_before=[], dfi_after={})},
    "layer huge": {"interventions.jsonl": layer(norm_before=1e200, sfe=1e300)},
    "layer tiny": {"interventions.jsonl": layer(norm_before=1e-300, sfe=1e90)},
    "layer of digits": {"interventions.jsonl": layer(norm_before=10**400)},
    "layer zero": {"interventions.jsonl": layer(num_singular_values=0, norm_before=0)},
    "layer spectrum": {
        "interventions.jsonl": layer(spectrum_before="abc", spectrum_after=[None, "x"])
    },
    "layer shape": {"interventions.jsonl": layer(shape=None, name=None)},
    "result infinite": {"result.json": '{"num_timesteps": Infinity}'},
    "result null": {"result.json": "null"},
    "result of digits": {"result.json": '{"num_timesteps": ' + "9" * 9999 + "}"},
    "result deep": {"result.json": "[" * 100_000},
    "monitor empty": {"monitor.csv": ""},
    "monitor comment only": {"monitor.csv": '#{"env_id": []}\n'},
    "monitor no JSON": {"monitor.csv": "#{{{\nr,l,t\n1,2,3\n"},
    "monitor binary": {"monitor.csv": os.urandom(3000)},
    "monitor utf-16": {"monitor.csv": "#{}\nr,l,t\n1,2,3\n".encode("utf-16")},
    "monitor lengths": {"monitor.csv": "#{}\nr,l,t\n1,1e300,3\n1,-5,1\n1,inf,1\n"},
    "continual without columns": {"continual.csv": "a,b\n1,2\n"},
    "continual binary": {"continual.csv": b"\xff\xfe\x00\x01"},
    "progress cut": {"progress.csv": "time/total_timesteps,rollout/ep_rew_mean\n10,1\n20"},
    "progress infinite": {"progress.csv": "time/total_timesteps,plasticity/critic/dead\n10,inf\n"},
    "progress roles": {
        "progress.csv": "time/total_timesteps,plasticity/../../x/dormant_ratio\n1,1\n"
    },
    "config branch of nothing": {"config": "branch: [1, 2]\nintervention: 5\nenv: [a]\nseed: x\n"},
    "config of numbers": {"config": "1: 2\nenv: .inf\nseed: .nan\n"},
    "config surrogate": {"config": 'env: "\\uD800"\nalgo: "\\0"\n'},
    "config aliases of one": {"config": "a: &a {x: 1}\nb: *a\n"},
    "a dead link": {"result.json": lambda path: path.symlink_to("x")},
    "a link to itself": {"config.yaml": lambda path: path.symlink_to(path)},
    "tensorboard cut": {"events.out.tfevents.1": record(b"\x09" * 9)[:-6]},
    "tensorboard noise": {"events.out.tfevents.1": os.urandom(500)},
}
REFUSED = {
    "alias bomb": ({"config": BOMB}, "config.yaml"),
    "merge bomb": ({"config": MERGES}, "config.yaml"),
    "alias to itself": ({"config": "a: &a [*a]"}, "config.yaml"),
    "deep flow": ({"config": "[" * 5000}, "config.yaml"),
    "deep blocks": ({"config": "{a: " * 100 + "1" + "}" * 100}, "config.yaml"),
    "python tag": ({"config": "!!python/object/apply:os.system ['true']"}, "config.yaml"),
    "no date": ({"config": "a: 2020-99-99"}, "config.yaml"),
    "digits": ({"config": f"a: {'9' * 10_000}"}, "config.yaml"),
    "list": ({"config": "[1]"}, "config.yaml"),
    "large": ({"config": "a: 1\n" * 100_000}, "config.yaml"),
    "no utf-8": ({"config.yaml": b"\xff\xfe\x00"}, "config.yaml"),
    "pipe": ({"monitor.csv": os.mkfifo}, "monitor.csv"),
    "pipe of events": ({"my.tfevents.x": os.mkfifo}, "my.tfevents.x"),
    "folder": ({"interventions.jsonl": os.mkdir}, "interventions.jsonl"),
    "dead link": ({"0.monitor.csv": lambda path: path.symlink_to("x")}, "0.monitor.csv"),
    "link to itself": ({"1.monitor.csv": lambda path: path.symlink_to(path)}, "1.monitor.csv"),
    "device": ({"result.json": lambda path: path.symlink_to("/dev/zero")}, "result.json"),
    "no event": ({"events.out.tfevents.1": record(b"\xff" * 40)}, "tfevents"),
    "event of 2^50 bytes": ({"events.out.tfevents.1": record(b"x", 2**50)}, "tfevents"),
    "tasks of nothing": ({"config": "tasks: {every: 0}"}, "tasks.every"),
    "tasks of text": ({"config": "tasks: {every: x}"}, "tasks.every"),
    "tasks of one step": ({"config": "tasks: {every: 1e-9}"}, "tasks.every"),
    "tasks without end": ({"config": "tasks: {change: x}"}, "tasks.every"),
    "a late branch": ({"config": "branch: {checkpoint: x/99999}"}, "branched off"),
    "no episode": ({"episodes.csv": "step,return,length\n"}, "no return"),
    "no step": ({"episodes.csv": "step,return,length\n0,1,1\n"}, "step"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(READ))
def test_damaged_lines_are_left_out_of_the_tables(name, tmp_path):
    tables = tables_of(run(tmp_path / "fire" / "s0", **READ[name]))
    for table in tables:
        assert table.to_csv().encode()
        assert table.to_markdown().encode()


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_read_is_one_line_that_names_it(name, tmp_path, capsys):
    files, named = REFUSED[name]
    run(tmp_path / "fire" / "s0", **files)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "unexpected" not in error
    assert len(error) < 1000
    assert not (tmp_path / "out").exists()


def test_the_good_lines_of_a_damaged_file_count_and_the_others_are_told(tmp_path):
    rows = "step,return,length\n100,1,9\n200,x,9\n300,3,9\n400,inf,9\n50"
    folder = run(tmp_path / "fire" / "s0", **{"episodes.csv": rows})
    (found,) = read_runs([folder], (), (), Limits())
    series = found.returns["episodes.csv"]
    assert series.steps.tolist() == [100, 300, 400]
    assert series.values[:2].tolist() == [1, 3]
    assert "2 damaged lines are left out of episodes.csv" in found.note


def test_the_limits_of_memory_and_time(tmp_path, capsys):
    run(tmp_path / "fire" / "s0")
    words = ["report", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*words, "--max-memory", "0.00001"]) == 2
    assert "--max-memory" in capsys.readouterr().err
    assert main([*words, "--max-seconds", "0.01"]) == 2
    error = capsys.readouterr().err
    assert "no end after 0.01 seconds" in error
    assert str(tmp_path) in error
    assert not (tmp_path / "out").exists()


NAMES = (
    "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "![i](http:x)", "=1+1", "@SUM(1)",
    "+1", "a;=1+1", "a|b", "`x`", "x\ny", "\u202exe", "\udcff\udcfe", "日本", "\x1b[2J", "-1",
)  # fmt: skip


def test_names_are_text_in_markdown_html_csv_and_the_terminal(tmp_path, capsys):
    for name in NAMES:
        run(tmp_path / "runs" / name / "s0")
    tables = tables_of(tmp_path / "runs")
    markdown = "\n".join(table.to_markdown() for table in tables)
    assert "<img" not in markdown
    assert "](javascript" not in markdown.replace("\\](javascript", "")
    assert "&lt;img src=x" in markdown
    for table in tables:
        assert (
            len({line.replace("\\|", "").count("|") for line in table.to_markdown().split("\n")})
            == 1
        )
        for line in table.to_csv().splitlines():
            assert not line.startswith(("=", "+", "-", "@", '"=', "\t"))
            assert ";=" not in line
    assert "'=1+1" in tables[0].to_csv()
    assert "\u202e" not in markdown + tables[0].to_csv()


def test_a_whole_report_of_a_hostile_name(tmp_path, capsys):
    for name in (NAMES[0], "\udcff=1\n|", "@x" + "a" * 200):
        run(tmp_path / "runs" / name / "s0", **{"interventions.jsonl": json.dumps(EVENT)})
    out = tmp_path / "out"
    assert main(["report", str(tmp_path / "runs"), "--out", str(out), "--title", NAMES[0]]) == 0
    for file in (out / "report.html", out / "report.md", *(out / "tables").iterdir()):
        assert "<img src=x" not in file.read_text(encoding="utf-8") or file.suffix == ".csv"
    assert all(len(name) < 100 for name in os.listdir(out / "figures"))


def test_a_report_is_written_nowhere_else(tmp_path):
    run(tmp_path / "fire" / "s0")
    out, kept = tmp_path / "out", tmp_path / "kept"
    kept.mkdir()
    (kept / "precious.md").write_text("mine")
    out.mkdir()
    index = {"format": "fire-rl report", "files": ["report.html", "sub/../../kept/precious.md", 5]}
    (out / "report.json").write_text(json.dumps(index))
    (out / "report.html").symlink_to(kept / "precious.md")
    (out / "tables").symlink_to(kept)
    with pytest.raises(ValueError, match="link to another folder"):
        write_report([tmp_path / "fire"], out)
    (out / "tables").unlink()
    write_report([tmp_path / "fire"], out)
    assert (kept / "precious.md").read_text() == "mine"
    assert os.listdir(kept) == ["precious.md"]
    assert not (out / "report.html").is_symlink()


def test_too_many_arms(tmp_path):
    for k in range(101):
        folder = tmp_path / f"arm{k}x" / "s0"
        folder.mkdir(parents=True)
        (folder / "episodes.csv").write_text(EPISODES)
    with pytest.raises(ValueError, match="101 arms are too many"):
        tables_of(tmp_path)


def test_sizes_are_checked_before_a_file_is_opened(tmp_path):
    path = tmp_path / "monitor.csv"
    with path.open("wb") as file:
        file.truncate(10**12)  # a sparse file of a terabyte
    with pytest.raises(ValueError, match="--max-memory"):
        readers.check_files(tmp_path, Limits())
