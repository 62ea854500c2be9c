"""Files that appear whole or not at all, and lines that are appended behind a cut one."""

import contextlib
import json

import pytest

from fire_rl.utils.files import replacing, write_whole
from fire_rl.utils.jsonable import append_json


def test_an_error_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_whole(path, "old")
    with contextlib.suppress(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_links_are_replaced_and_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    for name in ("result.json", ".result.json.tmp"):
        (tmp_path / name).symlink_to(precious)
    write_whole(tmp_path / "result.json", "{}\n")
    assert not (tmp_path / "result.json").is_symlink()
    assert (tmp_path / "result.json").read_text() == "{}\n"
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("before", ["", '{"a": 1}\n', '{"a": 1}\n{"b'])
def test_a_line_is_appended_behind_whatever_was_cut(tmp_path, before):
    path = tmp_path / "deeper" / "log.jsonl"
    path.parent.mkdir()
    path.write_text(before)
    append_json(path, {"c": float("nan")})
    append_json(path, {"d": "é"})
    *_, one, two = path.read_text().splitlines()
    assert (json.loads(one), json.loads(two)) == ({"c": None}, {"d": "é"})
    assert path.read_text().startswith(before)
