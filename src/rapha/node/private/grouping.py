"""Which records belong to one patient, for the hospital's own trainer and nobody else.

No submitter's code ever sees this file: with it, a job could tell who is in the data how often.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rapha.node.datasets.client import DatasetProcess
from rapha.node.private.admit import PrivateRun

GROUPS: Final = "groups.i32"
"""Below /rapha/in: int32, little-endian, the number of each record's patient, in the order served."""


@contextmanager
def grouped(
    private: PrivateRun | None, data: DatasetProcess, work: Path, shadow: int | None = None
) -> Iterator[dict[str, Path]]:
    """More inputs of a training run: the file `GROUPS` for a private one, deleted afterwards.

    Raises:
        Refused: `policy.conflict` before the records are prepared, `node.*`.
    """
    if private is None:
        yield {}
        return
    path = work / GROUPS
    try:
        with os.fdopen(data.groups(shadow), "rb") as numbers, path.open("xb") as file:
            shutil.copyfileobj(numbers, file)
            os.fchmod(file.fileno(), 0o444)
        yield {GROUPS: path}
    finally:
        path.unlink(missing_ok=True)
