"""One HTML page with everything in it: no file beside it, no address outside of it, no script."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from fire_rl.reports.drawing import Picture
from fire_rl.reports.tables import Table
from fire_rl.utils.version import VERSION

# What belongs together: a heading, the tables and the beginnings of the pictures' names.
_SECTIONS = (
    ("Scores", ("scores", "games"), ("scores",)),
    ("Learning curves", (), ("curves", "games")),
    ("Changing tasks", ("continual", "tasks"), ("tasks",)),
    ("Recovery from interventions", ("recovery",), ()),
    ("Plasticity", ("plasticity",), ()),
    ("What surgery did", ("surgery",), ("sfe_dfi", "spectrum")),
    ("Runs", ("runs",), ()),
)
_FOLDED = 16  # tables with more rows than this are folded
_CSS = """
:root { color-scheme: light dark; --text: #1c1c1c; --muted: #5a5a5a; --line: #d8d8d8;
  --page: #ffffff; --soft: #f5f5f3; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e6e3; --muted: #a9a6a1; --line: #3c3c3c;
  --page: #171717; --soft: #222222; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(0.8rem, 3vw, 2.5rem) 3rem; max-width: 76rem;
  background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.6rem 0 0.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 0.6rem; padding-top: 0.6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 0.3rem; }
p, li { max-width: 48rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; margin: 0.8rem 0; }
.muted, figcaption { color: var(--muted); font-size: 0.9rem; }
.notes { background: var(--soft); border-left: 3px solid var(--accent); padding: 0.5rem 1rem;
  overflow-wrap: anywhere; }
.notes p { margin: 0.3rem 0; }
.scroll { overflow-x: auto; margin: 0.6rem 0 1rem; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: normal; min-width: 5rem; background: var(--soft); }
tbody th { font-weight: 600; }
thead th:first-child, tbody th { position: sticky; left: 0; background: var(--soft); }
tbody th { background: var(--page); }
td.text, th.text { text-align: left; }
td.text { white-space: normal; min-width: 6rem; max-width: 34rem; }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; padding: 6px;
  border-radius: 4px; }
figcaption { max-width: 48rem; margin-top: 0.4rem; }
summary { cursor: pointer; color: var(--accent); margin: 0.6rem 0; }
@media (max-width: 40rem) { body { font-size: 15px; } table { font-size: 0.8rem; }
  th, td { padding: 0.25rem 0.45rem; } tbody th { max-width: 9rem; white-space: normal; }
  figure img { max-width: none; min-width: 36rem; width: 36rem; } }
@media print { :root { --text: #000; --muted: #333; --line: #bbb; --page: #fff; --soft: #fff; }
  body { max-width: none; font-size: 10pt; padding: 0; } nav { display: none; }
  .scroll { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: 1.5pt 4pt; }
  th, td, td.text { min-width: 0; white-space: normal; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def make_page(
    title: str,
    lead: str,
    notes: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
) -> str:
    """Return the page.

    Args:
        title: Its heading.
        lead: What was compared, in a sentence or two.
        notes: What the reader has to know first.
        tables: In the order of the page.
        pictures: The same.
    """
    links, body = [], []
    for heading, table_names, picture_names in _SECTIONS:
        own_tables = [table for name in table_names for table in tables if table.name == name]
        own_pictures = [p for p in pictures if p.name.split("_")[0] in _heads(picture_names)]
        if not (own_tables or own_pictures):
            continue
        anchor = heading.lower().replace(" ", "-")
        links.append(f'<a href="#{anchor}">{heading}</a>')
        body.append(f'<section id="{anchor}"><h2>{heading}</h2>')
        body += [_table(table, heading) for table in own_tables]
        body += [_figure(picture) for picture in own_pictures]
        body.append("</section>")
    told = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p>{html.escape(lead)}</p>
{f'<div class="notes">{told}</div>' if told else ""}
<nav>{"".join(links)}</nav>
{"".join(body)}
<p class="muted">Made by <code>fire-rl report</code> {html.escape(VERSION)}. Every number
at full precision is in report.json and tables/, every picture in figures/. Interquartile mean,
probability of improvement, optimality gap and stratified bootstrap as in Agarwal et al. 2021,
arXiv 2108.13264.</p>
</body>
</html>
"""


def _heads(names: Sequence[str]) -> set[str]:
    return {name.split("_")[0] for name in names}


def _table(table: Table, heading: str) -> str:
    title = "" if table.title == heading else f"<h3>{html.escape(table.title)}</h3>"
    about = f'<p class="muted">{html.escape(table.about)}</p>'
    content = f'<div class="scroll" tabindex="0">{table.to_html()}</div>'
    if len(table.rows) > _FOLDED:
        content = f"<details><summary>{len(table.rows)} rows</summary>{content}</details>"
    return title + about + content


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.svg).decode("ascii")
    title = html.escape(picture.title)
    image = f'<img alt="{title}" width="{picture.width}" src="data:image/svg+xml;base64,{data}">'
    caption = f"<figcaption>{title}. {html.escape(picture.caption)}</figcaption>"
    return f'<figure><div class="scroll">{image}</div>{caption}</figure>'
