"""pytest plugin: tests that are rows of the compatibility table, and the page that they make.

A test says which row it proves with a mark::

    @pytest.mark.compat(section="Spaces", policy="MlpPolicy", setting="{space} actions")
    @pytest.mark.parametrize("space", [...])
    @pytest.mark.parametrize("algo", [...])
    def test_spaces(algo, space):
        '''What was checked is the first line of the docstring.'''

Texts are filled in from the test's parameters, or are functions of them; ``algorithm`` is
``"{algo}"`` unless given. A mark on a single ``pytest.param(...)`` goes before that of the
function. ``pytest --compatibility=PATH tests`` runs these tests only and writes the page, with what
came out of each.
"""

import datetime
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

KEY = "compatibility"
COLUMNS = ("algorithm", "policy", "setting", "checked", "test", "result")
SECTIONS = (
    "Algorithms and policies",
    "Feature extractors and kinds of layers",
    "Policies of your own",
    "Policy settings",
    "Compiled networks",
    "Spaces",
    "Environments",
    "Training loops",
    "Algorithms of your own",
    "What is particular to an algorithm",
    "Devices",
    "Command line",
    "Refused, with the reason",
    "What SB3 itself cannot do",
)
ALGORITHMS = {
    "a2c": "A2C", "ppo": "PPO", "dqn": "DQN", "ddpg": "DDPG", "sac": "SAC", "td3": "TD3",
    "crossq": "CrossQ", "maskable_ppo": "MaskablePPO", "qrdqn": "QR-DQN",
    "recurrent_ppo": "RecurrentPPO", "tqc": "TQC", "trpo": "TRPO", "ars": "ARS",
}  # fmt: skip
NAMES = {**ALGORITHMS, "her": "SAC"}
POLICIES = {"mlp": "MlpPolicy", "cnn": "CnnPolicy", "dict": "MultiInputPolicy"}
_DEFAULTS = {"algorithm": "{algo}", "policy": "MlpPolicy", "setting": ""}


def row_of(item):
    """The row that a test proves, without its result; None if it proves none."""
    own = [mark for mark in item.own_markers if mark.name == "compat"]  # parameters' are the last
    above = [mark for mark in item.iter_markers("compat") if mark not in own]
    if not own and not above:
        return None
    row = dict(_DEFAULTS)
    for mark in [*reversed(above), *own]:
        row.update(mark.kwargs)
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    row = {
        key: text(parameters) if callable(text) else text.format_map(parameters)
        for key, text in row.items()
    }
    row["algorithm"] = NAMES.get(row["algorithm"], row["algorithm"])
    row["policy"] = POLICIES.get(row["policy"], row["policy"])
    if "checked" not in row:
        row["checked"] = (item.function.__doc__ or "").strip().partition("\n")[0]
    row["test"] = item.nodeid.removeprefix("tests/")
    unknown = set(row) - {*COLUMNS, "section"}
    wrong = row["section"] not in SECTIONS or unknown or not row["checked"]
    if wrong or any("|" in text for text in row.values()):
        raise pytest.UsageError(f"{item.nodeid}: a compat mark must be a row of the table: {row}")
    return row


# ------------------------------------------------------------------------------------- hooks


def pytest_addoption(parser):
    parser.addoption(
        "--compatibility", metavar="PATH", help="run the rows of the compatibility table; write it"
    )


def pytest_collection_modifyitems(config, items):
    chosen, others = [], []
    for item in items:
        row = row_of(item)
        if row is not None:
            item.user_properties.append((KEY, row))  # travels with reports, also between processes
        (others if row is None else chosen).append(item)
    if config.getoption("compatibility"):
        items[:] = chosen
        config.hook.pytest_deselected(items=others)


def pytest_configure(config):
    if config.getoption("compatibility") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Writer(Path(config.getoption("compatibility"))))


class _Writer:
    """Collects what came out of each row, and writes the page at the end."""

    def __init__(self, path):
        self.path, self.rows = path, {}

    def pytest_collection_finish(self, session):
        for item in getattr(session, "items", []):  # none where xdist collects elsewhere
            row = dict(item.user_properties)[KEY]
            self.rows[row["test"]] = {**row, "result": "not run"}

    def pytest_runtest_logreport(self, report):
        row = dict(report.user_properties).get(KEY)
        if row is None or (report.passed and report.when != "call"):
            return
        result = report.outcome
        if report.skipped:
            result = f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}"
        self.rows[row["test"]] = {**row, "result": result}

    def pytest_sessionfinish(self):
        self.path.write_text(page(list(self.rows.values())), encoding="utf-8")


# -------------------------------------------------------------------------------------- page


def page(rows):
    """The whole page, from rows with results."""
    rows = sorted(rows, key=_order)
    lines = [*_head(rows), *_matrix(rows)]
    for section in SECTIONS:
        groups = {}
        for row in (row for row in rows if row["section"] == section):
            key = (row["policy"], row["setting"], row["checked"], row["test"].partition("[")[0])
            groups.setdefault(key, []).append(row)
        if groups:
            lines += ["", f"## {section}", "", *_table(COLUMNS, map(_together, groups.values()))]
    lines += ["", "## Every test", "", "<details>", ""]
    lines += [*_table(("algorithm", "policy", "setting", "test", "result"), rows)]
    return "\n".join([*lines, "", "</details>", ""])


def parse(text):
    """Lines of the page's tables that name a test, as tuples of their cells."""
    cells = (line.strip("|").split(" | ") for line in text.splitlines() if ".py::" in line)
    return [tuple(cell.strip(" `") for cell in row) for row in cells]


def _table(columns, rows):
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = {**row, "test": f"`{row['test']}`"}
        lines.append(f"| {' | '.join(cells[column] for column in columns)} |")
    return lines


def _together(rows):
    """One line for the rows of one test that differ by the algorithm only."""
    results = list(dict.fromkeys(row["result"] for row in rows))
    counts = [f"{sum(r['result'] == result for r in rows)} {result}" for result in results]
    names = list(dict.fromkeys(row["algorithm"] for row in rows))
    others = [name for name in ALGORITHMS.values() if name not in (*names, "ARS")]
    algorithms = ", ".join(names)
    if len(others) < 4:
        algorithms = "all but " + ", ".join(others) if others else "all"
    return {
        **rows[0],
        "algorithm": algorithms,
        "test": rows[0]["test"].partition("[")[0],
        "result": results[0] if len(rows) == 1 else ", ".join(counts),
    }


def _order(row):
    names = list(ALGORITHMS.values())
    algorithm = names.index(row["algorithm"]) if row["algorithm"] in names else len(names)
    section, policy = SECTIONS.index(row["section"]), list(POLICIES.values())
    policy = policy.index(row["policy"]) if row["policy"] in policy else len(policy)
    return section, row["setting"], policy, row["test"].partition("[")[0], algorithm, row["test"]


def _head(rows):
    counts = [f"{len(rows)} tests"]
    for outcome in ("passed", "skipped", "failed", "not run"):
        number = sum(row["result"].startswith(outcome) for row in rows)
        counts += [f"{number} {outcome}"] if number else []
    packages = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "fire-rl")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return [
        "# Compatibility",
        "",
        "Generated by `make compatibility`; do not edit. Every row is a test that was run on real",
        "models, and its result is what came out of it: nothing here is a guess. What is not here,",
        "nobody has tried. A line may stand for several algorithms (“all” are the twelve of the",
        "matrix); every single test is listed at the end. To run one: `pytest 'tests/<test>'`. A",
        "test is added to the page by a mark, see `tests/compatibility/page.py`.",
        "",
        f"{', '.join(counts)}. Run on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, "
        f"Python {platform.python_version()}, {versions}; {platform.system()} "
        f"{platform.machine()}.",
        "",
        "Where it says “attached”, the model has learned with `FireCallback(method='exact')` and",
        "`PlasticityMetricsCallback`, and `tests/helpers/attached.py` has seen: at every event,",
        "that each linear, convolutional and attention weight became the nearest isometry (by a",
        "singular value decomposition of its own), that nothing else of the policy changed, that",
        "target networks equalled the online ones (running statistics included), and that",
        "optimizers forgot these weights and only these; that every weight was trained on",
        "afterwards; and that no metric was NaN, infinite or out of its bounds.",
    ]


def _matrix(rows):
    """Algorithm by policy: a tick where every test of the pair as it comes has passed."""
    mine = [row for row in rows if row["section"] == SECTIONS[0]]
    if not mine:
        return []
    lines = ["", "| |" + "".join(f" {name} |" for name in POLICIES.values())]
    lines.append("|---" * (1 + len(POLICIES)) + "|")
    for algorithm in ALGORITHMS.values():
        cells = []
        for policy in POLICIES.values():
            found = [r for r in mine if (r["algorithm"], r["policy"]) == (algorithm, policy)]
            ticked = bool(found) and all(row["result"] == "passed" for row in found)
            cells.append("✓" if ticked else "–")
        if "✓" in cells:
            lines.append(f"| {algorithm} | {' | '.join(cells)} |")
    return lines
