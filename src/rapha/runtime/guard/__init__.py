"""The output guard: default-deny, and it rebuilds every byte that leaves.

Checks carry the numbers of the design: 1 files, 2 format, 3 values, 4 transform, 5 rebuild, 6 reported
metrics, 7 tripwires. `inspect` runs them here; `run_in_process` in a confined process of their own.
"""

from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.process import run_in_process
from rapha.runtime.guard.report import Check, GuardReport

__all__ = ["Check", "GuardReport", "inspect", "run_in_process"]
