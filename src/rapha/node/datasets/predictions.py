"""Predictions as a job leaves them: a file of float32, read with suspicion."""

from __future__ import annotations

import os
import stat

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.metrics import parse_predictions
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import MAX_COLUMNS


def read_predictions(descriptor: int | None, rows: int) -> NDArray[np.float32]:
    """What the file behind `descriptor` predicts of `rows` records. Raises `Refused` (`job.outputs`)."""
    limit = 4 * rows * MAX_COLUMNS
    if descriptor is None or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise Refused("job.outputs", "predictions: not a regular file")
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Refused("job.outputs", f"predictions: more than {MAX_COLUMNS} columns")
    return parse_predictions(data, rows, max(1, len(data) // (4 * rows)))
