"""Write docs/reliability.md from the results of the soak and the attack."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import RESULTS, ROOT

PAGE = ROOT / "docs" / "reliability.md"

_HEAD = """\
# What was tried to bring it down

This page is written by `python -m benchmarks.reliability.attack --page` from
`benchmarks/results/soak.json` and `attack.json`; `python -m benchmarks.reliability.soak` and
`python -m benchmarks.reliability.attack` make them anew.

"""


def write() -> None:
    """Write the page."""
    PAGE.write_text(text(), encoding="utf-8")


def text() -> str:
    """Return the page."""
    return f"{_HEAD}{_kills(_read('soak'))}\n{_tried(_read('attack'))}"


def _read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return values


def _where(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Commit {machine['commit']}, {machine['date']}, {machine['cpu']}, "
        f"{machine['cores']} cores, Python {machine['python']}, {versions}."
    )


def _kills(soak: dict[str, Any]) -> str:
    rows = [
        "| training | kills | orphans | steps repeated | steps different or missing | records | "
        "different | lost | doubled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in soak["results"].items():
        if "logs" not in result:
            continue
        logs = result["logs"]
        wrong = result.get("steps_different", 0) + result.get("steps_missing", 0)
        steps = (result["steps_repeated"], wrong) if "steps" in result else ("–", "–")
        cells = (
            name.replace("_", " "), result.get("kills", "–"), result.get("orphans", "–"), *steps,
            logs["entries"], logs["different"], logs["lost"], logs["doubled"],
        )  # fmt: skip
        rows.append(f"| {' | '.join(f'{c:,}' if isinstance(c, int) else c for c in cells)} |")
    return f"""\
## Kills

Each training ran once undisturbed, and once under SIGKILL at random moments ({soak["kills"]} in
all), resumed each time as its user would. *Records* are the rows and values of every file of the
run folder: weights, episodes, `progress.csv`, TensorBoard, `interventions.jsonl`, evaluations,
results; all but what a clock decides. *Orphans* are worker processes that outlived a killed parent
by ten seconds. `full disk`: a file system of 4 MB filled up and was enlarged, and the training went
on.

{chr(10).join(rows)}

{_where(soak)}
"""


def _tried(attack: dict[str, Any]) -> str:
    rows = ["| area | tried | survived |", "|---|---|---|"]
    rows += [
        f"| {area} | {row['tried']:,} | {row['survived']:,} |"
        for area, row in sorted(attack["areas"].items())
    ]
    fell = [f"- {area}: {line}" for area, row in attack["areas"].items() for line in row["fell"]]
    return f"""\
## Damage, strangers, numbers, exceptions

Survived means: the training ends with the weights and logs of an undisturbed one, or an error of
one line names the file or the tensor and ends with exit code 2; no code of a file runs; nothing
outside a run folder is written; after an exception in the middle of an event the model is as
before, to the bit.

{chr(10).join(rows)}

{"Not survived:" if fell else "All were survived."}
{chr(10).join(fell)}

{_where(attack)}
"""
