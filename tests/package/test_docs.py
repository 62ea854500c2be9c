"""What the documentation shows runs: its code, its YAML, its commands, its files and links."""

import importlib.util
import pkgutil
import re
import shlex
import tomllib
from typing import NamedTuple

import pytest
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm

import fire_rl
from experiments.config import parse_config
from experiments.plain_yaml import read_yaml
from fire_rl.cli import main as fire_rl_command
from tests.helpers.report_runs import constant, write_run
from tests.helpers.runs import ROOT

PAGES = ["README.md", "configs/README.md",
         *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]  # fmt: skip
# What a page presupposes: names that its reader has.
GIVEN = {
    "README.md": """
        from torch import nn
        my_torch_module = nn.Linear(8, 8)
    """,
    "docs/algorithms.md": """
        from stable_baselines3.common.base_class import BaseAlgorithm
        from tests.helpers.own_policies import DuelingPolicy
        class MyAlgorithm(BaseAlgorithm): ...
    """,
    "docs/long_runs.md": """
        from stable_baselines3 import DQN
        model = DQN("MlpPolicy", "CartPole-v1", buffer_size=1_000, device="cpu")
        others = []
    """,
}
MOST_STEPS = 1_000  # of a `learn()` in a page


class Block(NamedTuple):
    page: str
    line: int
    text: str


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(language, pages=PAGES):
    found = []
    for page in pages:
        text = read(page)
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found.append(Block(page, text.count("\n", 0, match.start()) + 1, match[1]))
    return found


def name_of(block):
    return f"{block.page}:{block.line}"


PYTHON, YAML, BASH = map(blocks, ("python", "yaml", "bash"))


def test_every_block_is_found():
    assert len(PAGES) >= 11
    assert len(PYTHON) >= 8
    assert len(YAML) >= 6
    assert len(BASH) >= 12
    fences = sum(len(re.findall(r"^ *```", read(page), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len([*PYTHON, *YAML, *BASH]), "a block in another language"


# --- python -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:You are trying to run PPO on the GPU:UserWarning")
@pytest.mark.filterwarnings("ignore:A rank needs at least as many:UserWarning")  # few steps
@pytest.mark.filterwarnings("ignore:`fire` will not act in this training:UserWarning")  # few steps
@pytest.mark.parametrize("page", list(dict.fromkeys(block.page for block in PYTHON)))
def test_python_runs(page, tmp_path, monkeypatch, registered):
    """The blocks of a page one after the other, in a folder of their own, with few steps."""
    monkeypatch.chdir(tmp_path)
    setup = BaseAlgorithm._setup_learn

    def short(self, total_timesteps, *args, **kwargs):
        return setup(self, min(total_timesteps, MOST_STEPS), *args, **kwargs)

    monkeypatch.setattr(BaseAlgorithm, "_setup_learn", short)
    for arm, level in (("none", 100), ("fire", 200)):
        for seed in (0, 1, 2):
            write_run(tmp_path / f"runs/experiment/{arm}/s{seed}", constant((1000, level + seed)))
    namespace = {}
    exec(re.sub(r"^        ", "", GIVEN.get(page, ""), flags=re.MULTILINE), namespace)
    for block in blocks("python", [page]):
        exec(compile("\n" * block.line + block.text, ROOT / page, "exec"), namespace)


# --- yaml ---------------------------------------------------------------------------------------


def build(entry):
    """Build a callback as rl_zoo3 does, from its name and arguments."""
    ((name, arguments),) = entry.items() if isinstance(entry, dict) else [(entry, {})]
    package, _, kind = name.rpartition(".")
    assert package == "fire_rl"
    return getattr(fire_rl, kind)(**arguments)


@pytest.mark.parametrize("block", YAML, ids=name_of)
def test_yaml_is_understood(block):
    """A part of a run's configuration; or callbacks, as rl_zoo3 names them."""
    values = yaml.safe_load(block.text)
    if "fire_rl." in block.text:
        if isinstance(values, dict):
            values = next(iter(values.values())) if "callback" not in values else values
            values = values["callback"]
        assert [build(entry) for entry in values]
    else:
        run = {"algo": "dqn", "env": "CartPole-v1", **read_yaml(block.text)}
        assert parse_config(run).model_dump().keys() >= values.keys()


# --- commands -----------------------------------------------------------------------------------


def commands(block):
    """The command lines of a block, as the shell splits them."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def flags_in(text):
    return {word.partition("=")[0] for word in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text)}


@pytest.fixture
def help_of(main, capfd):
    """The flags that the help of train.py, or of a subcommand of fire-rl, names."""

    def help_of(*command):
        if not command:
            code, text, _ = main("--help")
        else:
            with pytest.raises(SystemExit) as exit:
                fire_rl_command([*command, "--help"])
            code, text = exit.value.code, capfd.readouterr().out
        assert code == 0
        return flags_in(re.sub(r"\x1b\[[\d;]*m", "", text))

    return help_of


EXTRAS = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE)
CONTINUES = {"--resume", "--branch-from", "--play"}  # needs a run


@pytest.mark.parametrize("block", BASH, ids=name_of)
def test_commands_are_known(block, main, help_of):
    for words in commands(block):
        while words[0].startswith((".venv/bin/", "python")) and len(words) > 1:
            words = [words[0].rpartition("/")[2], *words[1:]]
            if words[0] != "python":
                break
            words = words[2:] if words[1] == "-m" else words[1:]
        program, *rest = words
        given = {word for word in rest if word.startswith("-")}
        if program == "train.py":
            assert given <= help_of()
            if not given & CONTINUES:
                if "--arms" in rest:  # which excludes --print-config
                    arms = rest.index("--arms")
                    assert set(rest[arms + 1].split(",")) <= set(fire_rl.INTERVENTIONS)
                    del rest[arms : arms + 2]
                code, out, err = main(*rest, "--print-config")
                assert (code, err) == (0, "")
                assert parse_config(read_yaml(out))
        elif program == "fire-rl":
            assert given <= help_of(rest[0])
        elif program == "make":
            assert set(rest) <= set(TARGETS)
        elif program == "pip":
            for extras in re.findall(r"\[(.*?)\]", " ".join(rest)):
                assert set(extras.split(",")) <= set(EXTRAS)
        else:
            assert program in ("tensorboard", "rl_zoo3.train", "rl_zoo3.enjoy"), words


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    """In the text: modules, make targets, extras, files, names in Python, links and their goals."""
    text = read(page)
    for module in re.findall(r"python -m ((?:benchmarks|fire_rl)[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert target in TARGETS, target
    for extras in re.findall(r"fire-rl\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(EXTRAS), extras
    folders = "agents|benchmarks|configs|docs|envs|experiments|fire_rl|tests"
    base = ROOT / "tests" if "`pytest 'tests/<test>'`" in text else ROOT  # the compatibility page
    for name in re.findall(rf"(?<![\w/.<])((?:{folders})/[\w/.-]*\w)(?![\w<*])", text):
        there = (ROOT / name).exists() or (base / name).exists()
        assert there or name == "configs/FILE", name
    for name in re.findall(r"(?<![\w/-])fire_rl(?:\.\w+)+", text):
        assert pkgutil.resolve_name(name), name
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = (ROOT / page).parent / name if name else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
