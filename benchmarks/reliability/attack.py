"""Try to bring the toolkit down; count what was tried and what it survived.

    python -m benchmarks.reliability.attack                 # about half an hour on two cores
    python -m benchmarks.reliability.attack --areas numbers
    python -m benchmarks.reliability.attack --page          # docs/reliability.md from the results

Every trial runs in a process of its own. Writes benchmarks/results/attack.json, with the words of
every trial that was not survived, and docs/reliability.md from it and from soak.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, write_result
from benchmarks.reliability import damage, hostile, interrupts, numbers, page, places, strangers
from benchmarks.reliability.trial import Trial, attempt

AREAS: dict[str, Callable[[Path], Iterator[tuple[str, Trial]]]] = {
    "damage": damage.trials,
    "strangers": strangers.trials,
    "hostile": hostile.trials,
    "places": places.trials,
    "numbers": lambda prepared: numbers.trials(),
    "interrupts": lambda prepared: interrupts.trials(),
}


def main() -> None:
    """Run, print what falls, write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--areas", nargs="*", default=[*AREAS], choices=[*AREAS])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="write the page only")
    arguments = parser.parse_args()
    if not arguments.page:
        path = RESULTS / "attack.json"
        before = json.loads(path.read_text(encoding="utf-8"))["areas"] if path.exists() else {}
        areas = before | run(arguments.areas, arguments.jobs)
        write_result("attack", {"areas": areas})
    page.write()


def run(areas: list[str], jobs: int) -> dict[str, Any]:
    """Carry out all trials of some areas; return the counts and what fell, by area."""
    counted: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(jobs) as pool:
        folder = Path(name)
        prepared = folder / "prepared"
        fallen = attempt(Trial("prepare", lambda path: damage.prepare(path)), prepared)
        if fallen is not None:
            raise RuntimeError(fallen)
        every = [found for area in areas for found in AREAS[area](prepared)]
        places = [folder / str(number) for number in range(len(every))]
        answers = pool.map(attempt, (trial for _, trial in every), places)
        for (area, trial), answer in zip(every, answers, strict=True):
            row = counted.setdefault(area, {"tried": 0, "survived": 0, "fell": []})
            row["tried"] += 1
            row["survived"] += answer is None
            if answer is not None:
                line = f"{trial.name}: {answer}".replace(str(folder), "FOLDER")
                row["fell"].append(line)
                print(f"{area}: {line}", flush=True)
    return counted


if __name__ == "__main__":
    main()
