"""The flags of `fire-rl`: all options of FIRE, words as they were typed, one line for a fault."""

import dataclasses

import pytest
import torch
import tyro

from agents import algorithms
from fire_rl import FIRE
from fire_rl.cli import COMMANDS, main
from fire_rl.files.apply import ALGORITHMS, find_algorithm
from fire_rl.files.flags import FireFlags, given_options
from fire_rl.interventions import make_intervention
from fire_rl.utils.version import VERSION


def given(*words):
    return given_options(tyro.cli(FireFlags, args=words))


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_unknown_arguments_and_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["apply", "model.zip", "--strenght", "1"])
    assert stopped.value.code == 2
    assert "Did you mean '--strength'?" in capsys.readouterr().err
    text = "".join(help_of(capsys, command) for command in ("inspect", "apply")).replace("│", " ")
    assert "dead rows   some units" in text
    for option in dataclasses.fields(FIRE):
        _, found, after = text.partition(f"  --{option.name.replace('_', '-')} ")
        assert found, option.name
        assert len(after.split("--")[0].split()) > 3, f"{option.name} is not documented"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["aply", "model.zip"], "fire-rl: error: unknown command 'aply'. Did you mean 'apply'?"),
        (["inspect", "a.zip", "b.zip"], "fire-rl inspect: error: unknown argument 'b.zip'."),
        (["inspect", "a.zip", "--jsn"], "unknown argument '--jsn'. Did you mean '--json'?"),
        # No flag, but a name that stands alone.
        (
            ["inspect", "a.zip", "--model", "b"],
            "fire-rl inspect: error: unknown argument '--model'.",
        ),
    ],
)
def test_a_wrong_word_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "--model'?" not in error


@pytest.mark.parametrize(
    "words", [[], ["inspect"], ["report", "runs"], ["apply", "m", "--seed", "x"]]
)
def test_what_is_missing_or_no_number_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_a_report_needs_runs(tmp_path, capsys):
    assert main(["report", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "fire-rl report: error: RUNS is needed: run folders, or folders of them.\n"
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fire-rl {VERSION}\n"


@pytest.mark.parametrize("columns", [80, 100])
def test_help_fits_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    overview = help_of(capsys)
    for name, kind in COMMANDS.items():
        first = kind.__doc__.partition("\n")[0]
        assert f"{name} " in overview
        assert first in overview
        text = help_of(capsys, name)
        assert first in text
        assert max(map(len, (text + overview).splitlines())) <= columns
    assert "columns:" not in overview


def test_only_what_was_given_counts():
    assert given() == {}
    assert given("--preset", "paper_dqn", "--head", "keep") == {
        "preset": "paper_dqn",
        "head": "keep",
    }
    assert given("--null_directions", "complete") == given("--null-directions=complete")
    assert given("--include", "a", "b", "--include", "c")["include"] == ["a", "b", "c"]
    assert given("--target", "keep", "--target", "same") == {"target": "same"}
    assert given("--hidden", "None") == {"hidden": "None"}  # a word as any other: FIRE refuses it
    with pytest.raises(ValueError, match="`--networks` needs a value"):
        given("--networks")


@pytest.mark.parametrize(
    ("words", "split"),
    [
        (["by_name"], "by_name"),
        (["c_attn=3"], {"c_attn": 3}),
        (["c_attn=3", "--split", "qkv=project,keep"], {"c_attn": 3, "qkv": ["project", "keep"]}),
    ],
)
def test_split(words, split):
    assert given("--split", *words) == {"split": split}


def test_split_without_blocks():
    with pytest.raises(ValueError, match="`--split` must be by_name or PATTERN=BLOCKS, got 'qkv'"):
        given("--split", "c_attn=3", "qkv")


def test_numbers():
    flags = "--strength 1e-3 --num-steps 7 --scale 2.5"
    made = make_intervention({"name": "fire", **given(*flags.split())})
    assert made == FIRE(strength=0.001, num_steps=7, scale=2.5)
    for flag, word in (("scale", "-1"), ("strength", "half"), ("num-steps", "2.5")):
        with pytest.raises(ValueError, match=f"`{flag.replace('-', '_')}` must be .*got .*{word}"):
            make_intervention({"name": "fire", **given(f"--{flag}", word)})


def test_every_preset_is_a_choice(capsys):
    text = " ".join(help_of(capsys, "apply").replace("│", " ").split())
    presets = [name for name in vars(FIRE) if name.startswith("paper_")]
    assert f"--preset {{{','.join(presets)}}}" in text
    assert "--recurrent {keep,project}" in text  # in FIRE's order
    assert "--tied {project,keep}" in text
    assert "--scale {published,frobenius_optimal,NUMBER}" in text
    assert "(default: published)" in text


def test_algo_means_what_it_means_to_train():
    """`agents` cannot be imported by the library: its table of names must say the same."""
    pytest.importorskip("sb3_contrib", reason="needs sb3-contrib")
    trained = {name: algorithms.ALGORITHMS[algorithms.algorithm_name(name)] for name in ALGORITHMS}
    assert trained == {name: find_algorithm(name) for name in ALGORITHMS}
    assert set(trained.values()) == set(algorithms.ALGORITHMS.values())


def test_a_flag_without_a_value_is_refused(tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save({"layer.weight": torch.ones(2, 2)}, path)
    assert main(["apply", str(path), "--dry-run", "--include"]) == 2
    assert capsys.readouterr().err == "fire-rl apply: error: `--include` needs a value.\n"
