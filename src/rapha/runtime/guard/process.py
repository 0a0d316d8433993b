"""Run the guard in a process of its own, which holds no secret and dies with its parent."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from rapha.evidence import canonical
from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.reading import folder_of, read_plain
from rapha.runtime.guard.report import GuardReport, Ledger
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import VERDICT_BITS, ReleasePlan

REPORT_LIMIT: Final = 2**24
"""Bytes of a report: 8192 tensors with long names fit."""
ENVIRONMENT: Final = {
    "PYDANTIC_DISABLE_PLUGINS": "__all__",  # no code of other packages in this process
    **{"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
    # One thread: nothing here multiplies matrices, and idle pools cost start-up time and address space.
    **{"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
}


def run_in_process(
    directory: Path, plan: ReleasePlan, out: Path | None = None, timeout_s: float = 60.0
) -> GuardReport:
    """`inspect` in a child with a clean environment, resource limits and a deadline.

    The child is not believed about what it wrote: the files in `out` are hashed again here. A child that
    dies, is late or says nonsense gives a report with `decided` false, and `out` is left empty.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        return undecided(plan, "guard.out", "the folder for released files is not an empty folder")
    request = {
        "directory": str(directory.absolute()),
        "plan": plan.dump(),
        "out": None if out is None else str(out.absolute()),
    }
    try:
        report = _report(_ask(canonical.dumps(request), timeout_s), plan)
        if report.ok and out is not None:
            _confirm(out, report, plan)
    except Finding as finding:
        report = undecided(plan, finding.code, finding.reason)
    if out is not None and not report.ok:
        _empty(out, plan)
    return report


def undecided(plan: ReleasePlan, code: str, reason: str) -> GuardReport:
    """A no because the guard could not find out."""
    ledger = Ledger()
    ledger.failed(Finding(code, reason))
    return GuardReport(
        ok=False,
        decided=False,
        code=code,
        plan_digest=canonical.digest(plan.dump()),
        checks=ledger.checks(),
        covert_bound_bits=math.ceil(VERDICT_BITS),
    )


def _ask(request: bytes, timeout_s: float) -> bytes:
    command = [sys.executable, "-I", "-B", "-m", "rapha.runtime.guard"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    child = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=null, env=ENVIRONMENT, cwd="/", start_new_session=True
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(timeout_s, end)
    timer.start()
    with child:
        assert child.stdin is not None and child.stdout is not None  # noqa: S101  both are pipes
        try:
            child.stdin.write(request)
            child.stdin.close()
        except BrokenPipeError:
            pass  # it died; the empty answer says so
        answer = child.stdout.read(REPORT_LIMIT + 1)
        if len(answer) > REPORT_LIMIT:
            child.kill()
    timer.cancel()
    if late.is_set():
        raise Finding("guard.time", f"no answer within {timeout_s} s")
    if child.returncode not in (0, 1, 3):
        raise Finding("guard.died", f"exit {child.returncode}")
    return answer


def _report(answer: bytes, plan: ReleasePlan) -> GuardReport:
    try:
        report = GuardReport.parse(canonical.loads(answer, limit=REPORT_LIMIT))
    except Refused as refusal:
        raise Finding("guard.died", f"not a report: {refusal.detail}") from None
    names = sorted(f.name for f in report.released)
    if report.plan_digest != canonical.digest(plan.dump()) or names != sorted(
        plan.files if report.ok else ()
    ):
        raise Finding("guard.died", "the report is about another plan")
    return report


def _confirm(out: Path, report: GuardReport, plan: ReleasePlan) -> None:
    """The folder holds exactly the files that the report names, of the sizes that the plan allows."""
    with folder_of(out) as folder:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
        if names != sorted(f.name for f in report.released):
            raise Finding("guard.died", "the released files are not those of the report")
        for file in report.released:
            data = read_plain(folder, file.name, 1, plan.released_bytes)
            if (len(data), hashlib.sha256(data).hexdigest()) != (file.bytes, file.sha256):
                raise Finding("guard.died", f"{file.name} is not what the report says")


def _empty(out: Path, plan: ReleasePlan) -> None:
    for name in plan.files:
        (out / name).unlink(missing_ok=True)
