"""Names of strangers: one line, no markup, no formula."""

import pytest

from fire_rl.utils.plain_text import csv_text, markdown_text, printable


@pytest.mark.parametrize(
    ("text", "markdown", "csv"),
    [
        ("fire_adaptive", "fire_adaptive", "fire_adaptive"),
        ("lr 1e-4, -x", "lr 1e-4, -x", "lr 1e-4, -x"),
        ("<b>&", "&lt;b&gt;&amp;", "<b>&"),
        ("_a_ *b* `c`", "\\_a\\_ \\*b\\* \\`c\\`", "_a_ *b* `c`"),
        ("![x](y)", "!\\[x\\](y)", "![x](y)"),
        ("# a", "\\# a", "# a"),
        ("=1+1", "\\=1+1", "'=1+1"),
        ("  @SUM(A1)", "  @SUM(A1)", "'  @SUM(A1)"),
        ("-2", "\\-2", "'-2"),
        ("a;=1", "a;=1", "a;'=1"),
        ("a; b", "a; b", "a; b"),
        ("＝1", "＝1", "'＝1"),
        ("\t=1", " =1", "' =1"),
        ("a\nb\x1b\u202e\udcff", "a b???", "a b???"),
    ],
)
def test_texts(text, markdown, csv):
    assert markdown_text(text) == markdown
    assert csv_text(text) == csv


def test_long_texts_are_cut():
    assert printable("abcdef", 4) == "abc…"
    assert printable("abcd", 4) == "abcd"
