"""Names of strangers as plain text: what they may not do to terminals, pages and spreadsheets."""

from __future__ import annotations

import re

# Spreadsheets take a cell that begins so for a formula; some split cells at semicolons, too.
_FORMULA = re.compile(r"(^|[;\t])(\s*)(?=[=+\-@＝＋－＠])")  # and wide twins
_MARKUP = re.compile(r"[\\`*\[\]~]|(?<!\w)_|_(?!\w)|^[#+=-]")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def printable(text: str, limit: int | None = None) -> str:
    """Return a text in one line, without characters that control a terminal or reverse its text.

    Args:
        text: Any text, also one with half a character (a name that is not UTF-8).
        limit: Longest text; what is beyond is cut off.
    """
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - 1]}…"
    return "".join(c if c.isprintable() else " " if c in "\t\n\r" else "?" for c in text)


def markdown_text(text: str) -> str:
    """Return Markdown that shows a text as it is: no HTML, no link, no heading."""
    text = "".join(_HTML.get(c, c) for c in printable(text))
    return _MARKUP.sub(lambda match: f"\\{match[0]}", text)


def csv_text(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: an apostrophe comes first."""
    return _FORMULA.sub(r"\1'\2", printable(text))
