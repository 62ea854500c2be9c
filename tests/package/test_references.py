"""Every name that a docstring or a page refers to is there."""

import importlib
import re

import pytest

from tests.helpers.runs import ROOT

ROOMS = ("fire_rl", "agents", "envs", "experiments", "benchmarks")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
ROOM = "|".join(ROOMS)
LINK = re.compile(rf":(?:class|func|meth|mod|data|attr):`~?((?:{ROOM})\.[\w.]+)`")
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
NAMED = re.compile(rf"`((?:{ROOM})(?:\.\w+)+)")


def resolve(path):
    """Return what a dotted path names: a module, or an attribute below one."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_docstrings_lead_somewhere(path):
    for name in LINK.findall(path.read_text(encoding="utf-8")):
        resolve(name)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_names_on_a_page_exist(path):
    for name in NAMED.findall(path.read_text(encoding="utf-8")):
        resolve(name)


def test_the_search_finds_links_and_faults():
    files = [path.read_text(encoding="utf-8") for path in FILES]
    assert sum(len(LINK.findall(text)) for text in files) > 60
    with pytest.raises(AttributeError):
        resolve("fire_rl.sb3.networks.no_such_function")
