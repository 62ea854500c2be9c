"""Run folders → numbers, tables and pictures: ``fire-rl report``.

:func:`recovery` and :func:`recovery_table` tell what an intervention cost and brought,
:func:`write_report` writes the whole report; see ``docs/reports.md``.
"""

from fire_rl.reports.writing import write_report
from fire_rl.runs.recovery import BINS, Episodes, Recovery, recovery, recovery_table

__all__ = ["BINS", "Episodes", "Recovery", "recovery", "recovery_table", "write_report"]
