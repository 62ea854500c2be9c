"""Compare run folders in numbers, tables and pictures: ``fire-rl report``, ``docs/reports.md``.

:func:`write_report` writes the whole report. :func:`recovery` measures how the return went on
after an intervention, and :func:`recovery_table` compares arms in it.

From run folders to a page: ``runs``, ``experiment`` (what may be compared), ``measures`` with
``statistics``, ``tables``, ``figures`` and ``curves`` (also spectra), ``writing``.
"""

from fire_rl.reports.tables import recovery_table
from fire_rl.reports.writing import write_report
from fire_rl.runs.recovery import BINS, Episodes, Recovery, recovery

__all__ = ["BINS", "Episodes", "Recovery", "recovery", "recovery_table", "write_report"]
