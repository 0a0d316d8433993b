"""The guard in the node's sandbox: what parses hostile bytes can reach nothing but those bytes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from rapha.runtime.guard import reading
from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.inspection import write_files
from rapha.runtime.guard.process import ENVIRONMENT, believed, encode_request, in_use, read_released
from rapha.runtime.guard.report import REPORT_LIMIT, GuardReport, refusal
from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import OUT, Ending, Limits, Mount, Sandbox, Spec
from rapha.runtime.sandbox.pyruntime import LIB, PythonRuntime
from rapha.spec.price import GUARD_S
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan

PACKAGES: Final = ("numpy", "ml-dtypes", "pydantic", "rfc8785")
_IN: Final = "/rapha/in"
_REPORT: Final = "report.guard"
"""No planned file ends so."""
_RAPHA: Final = Path(__file__).parents[2]


def run_in_process(
    directory: Path,
    plan: ReleasePlan,
    out: Path | None = None,
    timeout_s: float = GUARD_S,
    sandbox: Sandbox | None = None,
    scratch: Path | None = None,
    hold: int | None = None,
) -> GuardReport:
    """`inspect` in a sandboxed process (bubblewrap unless `sandbox` says otherwise).

    Check 1 runs here, without parsing anything, and copies; the sandbox sees the copies read-only, and
    what it writes is hashed again before it reaches `out`. Where the sandbox can't be built, or its
    process dies, is late or says nonsense, the report has `decided` false and `out` stays empty. Copies
    lie below `scratch` (the system's temporary folder by default), which a node clears after a crash. The
    sandbox keeps `hold` open as long as it lives.
    """
    if in_use(out):
        return refusal(plan, Finding("guard.out", "the folder for released files is not an empty folder"))
    try:
        raw = reading.read_outputs(directory, plan)
        with tempfile.TemporaryDirectory(prefix="guard-", dir=scratch) as folder:
            report, files = _run(Path(folder), raw, plan, timeout_s, sandbox or Bubblewrap(), hold)
        if report.ok and out is not None:
            write_files(out, files)
    except Finding as finding:
        return refusal(plan, finding)
    except Refused as refused:
        return refusal(plan, Finding("guard.sandbox", refused.detail))
    return report


def _run(
    scratch: Path,
    raw: dict[str, bytearray],
    plan: ReleasePlan,
    timeout_s: float,
    sandbox: Sandbox,
    hold: int | None,
) -> tuple[GuardReport, dict[str, bytearray]]:
    given, made = scratch / "in", scratch / "out"
    (given / "outputs").mkdir(parents=True)
    made.mkdir()
    for name, data in raw.items():
        (given / "outputs" / name).write_bytes(data)
    (given / "request.json").write_bytes(encode_request(Path(_IN, "outputs"), plan, Path(OUT)))
    for path in (given, *given.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o444)
    outcome = sandbox.start(replace(_spec(given, made, plan, timeout_s), hold=hold)).wait()
    if outcome.ending is Ending.timeout:
        raise Finding("guard.time", f"no answer within {timeout_s} s")
    if outcome.ending is not Ending.exited or outcome.exit_code not in (0, 1, 3) or outcome.anomalies:
        why = outcome.detail or f"{outcome.ending.value}, exit {outcome.exit_code}"
        raise Finding("guard.died", "; ".join([why, *outcome.anomalies]))
    return _collect(made, plan)


def _spec(given: Path, made: Path, plan: ReleasePlan, timeout_s: float) -> Spec:
    runtime = PythonRuntime.discover(PACKAGES)
    command = (runtime.python, "-s", "-P", "-B", "-m", "rapha.runtime.guard")
    released = plan.released_bytes + REPORT_LIMIT
    return Spec(
        argv=(*command, f"{_IN}/request.json", f"{OUT}/{_REPORT}"),
        mounts=(*runtime.mounts, Mount(_RAPHA, f"{LIB}/rapha"), Mount(given, _IN)),
        env={**runtime.env, **ENVIRONMENT, "PATH": runtime.env["PATH"]},
        cwd="/",
        limits=Limits(
            wall_s=timeout_s,
            cpu_s=int(timeout_s) + 1,
            memory_bytes=2**29 + 2 * plan.output_bytes + 3 * released,
            processes=16,
            open_files=64,
            out_bytes=released + 2**20,
            tmp_bytes=2**20,
        ),
        out=made,
    )


def _collect(made: Path, plan: ReleasePlan) -> tuple[GuardReport, dict[str, bytearray]]:
    if not (made / _REPORT).is_file():
        raise Finding("guard.died", "no report")
    with reading.folder_of(made) as folder:
        answer = reading.read_plain(folder, _REPORT, 2, REPORT_LIMIT)
    (made / _REPORT).unlink()
    report = believed(bytes(answer), plan)
    return report, read_released(made, report, plan)
