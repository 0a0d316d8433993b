"""The scanner as a child process: killed at its deadline, whatever the image does to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rapha.evidence import canonical
from rapha.runtime.scan.report import ScanReport
from rapha.spec.refusals import Refused


def run_in_process(path: Path, timeout_s: float = 60.0) -> ScanReport:
    """Scan the image at `path` in a child with limits on memory, files and time.

    Raises:
        Refused: an `image.*` code where the image can't be read; `node.internal` where the child gave
            no answer in `timeout_s` seconds or ended without one.
    """
    request = canonical.dumps({"image": str(path.resolve())})
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
