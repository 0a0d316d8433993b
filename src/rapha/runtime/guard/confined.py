"""The guard in the node's sandbox: what parses hostile bytes can reach nothing but those bytes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from rapha.runtime.guard import reading
from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.process import ENVIRONMENT, believed, encode_request, in_use, take
from rapha.runtime.guard.report import REPORT_LIMIT, GuardReport, refusal
from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import OUT, Ending, Limits, Mount, Sandbox, Spec
from rapha.runtime.sandbox.pyruntime import LIB, PythonRuntime
from rapha.spec.price import GUARD_S
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan

PACKAGES: Final = ("numpy", "ml-dtypes", "pydantic", "rfc8785")
_OUTPUTS: Final = "/rapha/in/outputs"
_REQUEST: Final = "/rapha/in/request.json"
_THREADS: Final = 4
"""Of the guard, at most."""
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

    Check 1 runs here as well, without parsing anything. Then the sandbox sees `directory` itself, read-only;
    it must be one that no job can write any more, such as what the sandbox of the job left, and it and its
    files are made readable for the sandbox's user. What the sandbox writes is hashed again on its way to
    `out`. Where it can't be built, or its process dies, is late or says nonsense, the report has `decided`
    false and `out` stays empty. Rebuilt files lie below `scratch` for a while (the system's temporary folder
    by default), which a node clears after a crash. The sandbox keeps `hold` open as long as it lives.
    """
    if in_use(out):
        return refusal(plan, Finding("guard.out", "the folder for released files is not an empty folder"))
    try:
        with tempfile.TemporaryDirectory(prefix="guard-", dir=scratch, ignore_cleanup_errors=True) as folder:
            with reading.open_outputs(directory, plan, share=True):
                report, made = _run(Path(folder), directory, plan, timeout_s, sandbox or Bubblewrap(), hold)
            if report.ok:  # and no file changed meanwhile
                take(made, report, plan, out)
    except Finding as finding:
        return refusal(plan, finding)
    except OSError as error:  # such as a full disk
        return refusal(plan, Finding("guard.sandbox", f"its folders can't be made: {error.strerror}"))
    except Refused as refused:
        return refusal(plan, Finding("guard.sandbox", refused.detail))
    return report


def _run(
    scratch: Path,
    directory: Path,
    plan: ReleasePlan,
    timeout_s: float,
    sandbox: Sandbox,
    hold: int | None,
) -> tuple[GuardReport, Path]:
    request, made = scratch / "request.json", scratch / "out"
    made.mkdir()
    request.write_bytes(encode_request(Path(_OUTPUTS), plan, Path(OUT)))
    request.chmod(0o444)
    spec = _spec(directory, request, made, plan, timeout_s)
    outcome = sandbox.start(replace(spec, hold=hold)).wait()
    if outcome.ending is Ending.timeout:
        raise Finding("guard.time", f"no answer within {timeout_s} s")
    if outcome.ending is not Ending.exited or outcome.exit_code not in (0, 1, 3) or outcome.anomalies:
        why = outcome.detail or f"{outcome.ending.value}, exit {outcome.exit_code}"
        raise Finding("guard.died", "; ".join([why, *outcome.anomalies]))
    return _collect(made, plan), made


def _spec(directory: Path, request: Path, made: Path, plan: ReleasePlan, timeout_s: float) -> Spec:
    runtime = PythonRuntime.discover(PACKAGES)
    command = (runtime.python, "-s", "-P", "-B", "-m", "rapha.runtime.guard")
    released = plan.released_bytes + REPORT_LIMIT
    given = (Mount(directory, _OUTPUTS), Mount(request, _REQUEST))
    return Spec(
        argv=(*command, _REQUEST, f"{OUT}/{_REPORT}"),
        mounts=(*runtime.mounts, Mount(_RAPHA, f"{LIB}/rapha"), *given),
        env={**runtime.env, **ENVIRONMENT, "PATH": runtime.env["PATH"]},
        cwd="/",
        limits=Limits(
            wall_s=timeout_s,
            cpu_s=int(_THREADS * timeout_s) + 1,
            memory_bytes=2**29 + 2 * released,
            processes=16,
            open_files=64,
            out_bytes=released + 2**20,
            tmp_bytes=2**20,
        ),
        out=made,
    )


def _collect(made: Path, plan: ReleasePlan) -> GuardReport:
    if not (made / _REPORT).is_file():
        raise Finding("guard.died", "no report")
    with reading.folder_of(made) as folder:
        answer = reading.read_plain(folder, _REPORT, 2, REPORT_LIMIT)
    (made / _REPORT).unlink()
    return believed(answer, plan)
