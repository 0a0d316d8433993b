"""How far opening or decoding a job's records has come, where the node's own people see it.

It holds exact counts, stays in the job's working folder, and ends with the job.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from rapha.evidence import canonical
from rapha.node.datasets.channel import Tell
from rapha.node.datasets.control import Progress
from rapha.spec.refusals import Refused

NAME: Final = "progress.json"


def teller(work: Path) -> Tell:
    """Writes progress into a job's working folder."""

    def tell(progress: Progress) -> None:
        new = work / f".{NAME}.new"
        with suppress(OSError):  # such as a full disk: the work itself may well go on
            new.write_text(json.dumps(progress.dump()))
            new.replace(work / NAME)

    return tell


def read(state: Path) -> Progress | None:
    """Of the job that is being prepared, if any is."""
    for path in sorted((state / "jobs").glob(f"*/{NAME}")):
        with suppress(OSError, Refused):  # it ended meanwhile
            return Progress.parse(canonical.loads(path.read_bytes()))
    return None
