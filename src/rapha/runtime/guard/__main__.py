"""The guard as a process of its own: `{"directory", "plan", "out"}` on stdin, the report on stdout.

`python -m rapha.runtime.guard REQUEST REPORT` takes files instead, for a sandbox that has no streams.

Exits 0 for yes, 1 for no, 2 for a request or plan that is not valid, 3 where it could not find out.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from rapha.evidence import canonical
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.report import REPORT_LIMIT
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_ADDRESS_SPACE: Final = 3 * 2**29
"""Bytes that Python, numpy and a few threads map; files are not held, so their size adds nothing."""


class Request(NamedTuple):
    """One inspection."""

    directory: Path
    plan: ReleasePlan
    out: Path | None


def read_request(data: bytes) -> Request:
    """The request in `data`.

    Raises:
        Refused: `schema.*`.
    """
    value = canonical.loads(data)
    if not isinstance(value, dict) or value.keys() != {"directory", "plan", "out"}:
        raise Refused("schema.field_invalid", "a request is directory, plan and out")
    return Request(
        Path(_path(value["directory"])),
        ReleasePlan.parse(value["plan"], "plan"),
        None if value["out"] is None else Path(_path(value["out"])),
    )


def _path(value: Any) -> str:
    if not isinstance(value, str) or "\x00" in value or not value.startswith("/"):
        raise Refused("schema.field_invalid", "directory and out are absolute paths")
    return value


def confine() -> None:
    """Die with the parent, gain nothing, and leave no core file that holds outputs; a sandbox does it all."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in (
        (_PR_SET_PDEATHSIG, signal.SIGKILL),
        (_PR_SET_DUMPABLE, 0),
        (_PR_SET_NO_NEW_PRIVS, 1),
    ):
        if libc.prctl(option, *(ctypes.c_ulong(v) for v in (value, 0, 0, 0))) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, 64)


def limit_to(plan: ReleasePlan) -> None:
    """Memory, and by the plan the size of files."""
    _lower(resource.RLIMIT_AS, _ADDRESS_SPACE)
    _lower(resource.RLIMIT_FSIZE, plan.released_bytes + REPORT_LIMIT)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails as any other


def _lower(kind: int, value: int) -> None:
    """Set a limit for good, unless a lower one is in force already."""
    _, hard = resource.getrlimit(kind)
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (most, most))


def main(files: list[str]) -> int:
    """Serve one request, from and to two files (in a sandbox) or the standard streams (without one)."""
    if not files:
        confine()
    try:
        with open(files[0], "rb") if files else sys.stdin.buffer as stream:  # noqa: PTH123  not yet a path
            request = read_request(stream.read(canonical.MAX_BYTES + 1))
    except Refused as refusal:
        sys.stderr.write(f"{refusal}\n")
        return 2
    limit_to(request.plan)
    os.umask(0o077)
    report = inspect(*request)
    with open(files[1], "xb") if files else sys.stdout.buffer as stream:  # noqa: PTH123
        stream.write(canonical.dumps(report.dump()))
    if not report.decided:
        return 3
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
