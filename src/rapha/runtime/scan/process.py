"""The scanner as a child process: killed at its deadline, whatever the image does to it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rapha.evidence import canonical
from rapha.runtime.image import EMPTY, AllowList
from rapha.runtime.scan.report import ScanReport
from rapha.spec.refusals import Refused


def run_in_process(
    path: Path,
    timeout_s: float = 60.0,
    *,
    allow: AllowList = EMPTY,
    packages: Sequence[str] | None = None,
    certain: bool = False,
    room: Path | None = None,
) -> ScanReport:
    """Scan the image at `path` in a child with limits on memory, files and time.

    Args:
        path: an OCI layout, a folder or an archive of one.
        timeout_s: seconds until the child is killed.
        allow: the bases on which a full image may stand; what it adds to one is judged.
        packages: the distributions of the runtime, which must be installed here. None: no import is
            called missing.
        certain: `packages` are those of the runtime that the job will meet, so that a missing one refuses.
        room: the folder for what is unpacked, by default the system's; it is left empty.

    Raises:
        Refused: an `image.*` code where the image can't be read; `node.disk_full` or `node.config`;
            `node.internal` where the child gave no answer in time or ended without one.
    """
    # The parent owns the folder: a child that is killed cleans up nothing.
    with tempfile.TemporaryDirectory(prefix="rapha-scan-", dir=room) as into:
        request = {
            "image": str(path.resolve()),
            "into": into,
            "allow": allow.dump(),
            "packages": None if packages is None else list(packages),
            "certain": certain,
        }
        return _ask(path, canonical.dumps(request), timeout_s)


def _ask(path: Path, request: bytes, timeout_s: float) -> ScanReport:
    command = [sys.executable, "-I", "-m", "rapha.runtime.scan"]
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, timeout=timeout_s, check=False, env={}
        )
    except subprocess.TimeoutExpired:
        raise Refused("node.internal", f"the scan of {path} took over {timeout_s:g} s") from None
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise Refused("node.internal", f"the scan of {path} ended without an answer: {last}")
    answer = canonical.loads(done.stdout)
    if "refused" in answer:
        raise Refused(answer["refused"]["code"], answer["refused"]["detail"])
    return ScanReport.parse(answer)
