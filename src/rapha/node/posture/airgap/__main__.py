"""`python -m rapha.node.posture.airgap`: the helper as a process of its own."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rapha.node.posture.airgap.helper import Options, serve
from rapha.spec.refusals import Refused

EXIT_REFUSED = 3
"""The helper could not start: nothing is known, which is treated as no."""


def main(arguments: list[str]) -> int:
    """Parse, drop inherited descriptors, serve; the exit code."""
    parser = argparse.ArgumentParser(
        prog="rapha-airgap", description="Severs the WAN interface while a job runs."
    )
    parser.add_argument("--socket", type=Path, required=True, help="where to listen")
    parser.add_argument("--journal", type=Path, required=True, help="folder for the journal")
    parser.add_argument(
        "--uid", type=int, action="append", default=[], help="a user that may sever; repeatable"
    )
    parser.add_argument("--run-as", type=int, help="user id to become")
    parser.add_argument("--parent", type=int, help="descriptor that ends with the starter")
    told = parser.parse_args(arguments)
    keep = told.parent if told.parent is not None else 2
    os.closerange(3, keep)
    os.closerange(max(keep + 1, 3), os.sysconf("SC_OPEN_MAX"))
    try:
        serve(Options(told.socket, told.journal, frozenset(told.uid), told.run_as, told.parent))
    except Refused as refused:
        print(f"{refused.code}: {refused.detail}", file=sys.stderr)  # noqa: T201
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
