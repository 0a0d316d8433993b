"""`python -m rapha.runtime.scan`: `{"image": path}` on stdin, the report on stdout.

An image that can't be read gives `{"refused": {"code", "detail"}}` instead.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from rapha.evidence import canonical
from rapha.runtime.image import read
from rapha.runtime.scan.scanner import scan
from rapha.spec.refusals import Refused

_MEMORY = 3 * 1024 * 1024 * 1024
_REQUEST = 64 * 1024


def _confine() -> None:
    """Walls against an image that exhausts the scanner: memory, files, processes, core dumps."""
    for kind, most in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, hard = resource.getrlimit(kind)
        ceiling = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (ceiling, ceiling))


def main() -> int:
    """Answer one request. Exit 0 with an answer; anything else means there is none."""
    request = canonical.loads(sys.stdin.buffer.read(_REQUEST), limit=_REQUEST)
    _confine()
    try:
        answer = scan(read(Path(request["image"]))).dump()
    except Refused as refusal:
        answer = {"refused": {"code": refusal.code, "detail": refusal.detail}}
    sys.stdout.buffer.write(canonical.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
