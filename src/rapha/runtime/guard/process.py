"""The guard in a plain child process, and what is asked of any process that says it is the guard."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from rapha.evidence import canonical
from rapha.runtime.guard.bounds import Bounds
from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.reading import folder_of, open_plain, parts
from rapha.runtime.guard.released import Folder, folder_for
from rapha.runtime.guard.report import REPORT_LIMIT, GuardReport, ReleasedFile, refusal
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan

ENVIRONMENT: Final = {
    "PYDANTIC_DISABLE_PLUGINS": "__all__",  # no code of other packages in this process
    **{"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
    # One thread: nothing here multiplies matrices, and idle pools cost start-up time and address space.
    **{"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
}


def run_in_child(
    directory: Path, plan: ReleasePlan, out: Path | None = None, timeout_s: float = 60.0
) -> GuardReport:
    """`inspect` in a child with a clean environment, resource limits and a deadline, but no sandbox.

    For folders of one's own; a node takes `run_in_process`. A child that dies, is late or says nonsense
    gives a report with `decided` false, and `out` is left empty.
    """
    if in_use(out):
        return refusal(plan, Finding("guard.out", "the folder for released files is not an empty folder"))
    report: GuardReport | None = None
    try:
        said = believed(_ask(_request(directory, plan, out), timeout_s), plan)
        if said.ok and out is not None:
            take(out, said, plan, None)
        report = said
    except Finding as finding:
        report = refusal(plan, finding)
    finally:  # also where a person interrupts
        if out is not None and not (report and report.ok):
            _clear(out, plan)
    return report


def _clear(out: Path, plan: ReleasePlan) -> None:
    for name in plan.files:
        with suppress(OSError):  # such as no folder at all
            (out / name).unlink(missing_ok=True)


def in_use(out: Path | None) -> bool:
    """Whether `out` is something else than absent or an empty folder that can be looked at."""
    if out is None:
        return False
    try:
        with os.scandir(out) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # a file, a name that is too long, a folder of somebody else
        return True


def _request(directory: Path, plan: ReleasePlan, out: Path | None) -> bytes:
    try:
        return encode_request(directory.absolute(), plan, out.absolute() if out is not None else None)
    except (OSError, Refused):
        reason = "a path is not UTF-8, or the working folder is gone"
        raise Finding("guard.directory", reason) from None


def encode_request(directory: Path, plan: ReleasePlan, out: Path | None) -> bytes:
    """What `python -m rapha.runtime.guard` reads; paths are absolute."""
    where = {"directory": str(directory), "out": None if out is None else str(out)}
    return canonical.dumps({**where, "plan": plan.dump()})


def _ask(request: bytes, timeout_s: float) -> bytes:
    command = [sys.executable, "-I", "-B", "-m", "rapha.runtime.guard"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    try:
        child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=null, env=ENVIRONMENT, cwd="/", start_new_session=True
        )
    except OSError as error:
        raise Finding("guard.died", f"it can't be started: {error.strerror}") from None
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(timeout_s, end)
    answer: bytes | None = None
    try:
        with child:
            try:
                timer.start()
                answer = _talk(child, request)
            finally:
                if answer is None:  # interrupted, or without a deadline
                    child.kill()
    except RuntimeError:
        raise Finding("guard.memory", "no thread can be started") from None
    finally:
        timer.cancel()
    if late.is_set():
        raise Finding("guard.time", f"no answer within {timeout_s} s")
    if child.returncode not in (0, 1, 3):
        raise Finding("guard.died", f"exit {child.returncode}")
    return answer


def _talk(child: subprocess.Popen[bytes], request: bytes) -> bytes:
    assert child.stdin is not None and child.stdout is not None  # noqa: S101  both are pipes
    with suppress(BrokenPipeError), child.stdin as stream:  # it died; the empty answer says so
        stream.write(request)
    answer = child.stdout.read(REPORT_LIMIT + 1)
    if len(answer) > REPORT_LIMIT:
        child.kill()
    return answer


def believed(answer: bytes, plan: ReleasePlan) -> GuardReport:
    """The report in `answer`, if it is one that the guard can give about `plan`.

    Raises:
        Finding: `guard.died`.
    """
    try:
        report = GuardReport.parse(canonical.loads(answer, limit=REPORT_LIMIT))
    except Refused as refused:
        raise Finding("guard.died", f"not a report: {refused.detail}") from None
    if not report.agrees_with(plan):
        raise Finding("guard.died", "the report is about another plan, or contradicts itself")
    return report


def take(folder: Path, report: GuardReport, plan: ReleasePlan, out: Path | None) -> None:
    """Copy the files that `report` names to `out`: the guard's process is not believed.

    They have the report's digests, and the weights the plan's header and no integer that the plan does not
    let out. What a job states of itself is in `report`, and `believed` looked at it. Without `out` the files
    are only looked at.

    Raises:
        Finding: `guard.died` for another file or other bytes, `guard.out`; then `out` is empty.
    """
    with folder_of(folder) as handle, folder_for(out) as into:
        with os.scandir(handle) as entries:
            names = sorted(entry.name for entry in entries)
        if names != sorted(f.name for f in report.released):
            raise Finding("guard.died", "the released files are not those of the report")
        for file in report.released:
            _take(handle, file, plan, into)


def _take(handle: int, file: ReleasedFile, plan: ReleasePlan, into: Folder) -> None:
    weights = plan.weights if plan.weights and plan.weights.file == file.name else None
    bounds = Bounds(weights) if weights else None
    try:
        with open_plain(handle, file.name, file.bytes, min(file.bytes, plan.released_bytes)) as source:
            copy = into.file(file.name, source.size)
            for piece in parts(source):
                if bounds:
                    bounds.see(piece)
                copy.write(piece)
            if bounds:
                bounds.finish()
            source.check_unchanged()
            same = copy.finish().sha256 == file.sha256
    except Finding as finding:
        raise finding if finding.code == "guard.out" else Finding("guard.died", finding.reason) from None
    if not same:
        raise Finding("guard.died", f"{file.name} is not what the report says")
