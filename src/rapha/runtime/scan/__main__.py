"""`python -m rapha.runtime.scan`: a request on stdin, the report on stdout.

The request is `{"image", "into", "allow", "packages", "certain"}`: the image, an empty folder that takes
what is unpacked, the node's allow-list, and the runtime's distributions or null. An image that can't be
read gives `{"refused": {"code", "detail"}}` instead of a report.
"""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rapha.evidence import canonical
from rapha.runtime.image import AllowList, read
from rapha.runtime.image.model import FULL
from rapha.runtime.scan.provided import Provided, of_distributions
from rapha.runtime.scan.scanner import scan
from rapha.spec.refusals import Refused

MEMORY: Final = 768 * 1024 * 1024
"""Bytes of address space; what is resident stays below two thirds of it, as the tests measure."""
_REQUEST: Final = 8 * 1024 * 1024


def _confine() -> None:
    """Walls against an image that exhausts the scanner: memory, files, processes, core dumps."""
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, FULL.unpacked),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, hard = resource.getrlimit(kind)
        ceiling = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (ceiling, ceiling))


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        provided = _provided(request)
        with read(Path(request["image"]), Path(request["into"]), AllowList.parse(request["allow"])) as image:
            return scan(image, provided=provided).dump()
    except Refused as refusal:
        return {"refused": {"code": refusal.code, "detail": refusal.detail}}


def _provided(request: Mapping[str, Any]) -> Provided | None:
    packages = request["packages"]
    return None if packages is None else of_distributions(tuple(packages), request["certain"])


def main() -> int:
    """Answer one request. Exit 0 with an answer; anything else means there is none."""
    request = canonical.loads(sys.stdin.buffer.read(_REQUEST), limit=_REQUEST)
    _confine()
    # Syntax trees are many small objects without cycles: looking for some takes a third of the time.
    gc.set_threshold(500_000)
    sys.stdout.buffer.write(canonical.dumps(_answer(request)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
