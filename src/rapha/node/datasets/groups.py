"""The patients of the training split as job-local numbers, for the hospital's own private trainer."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np

from rapha.node.datasets.prepare import Ready
from rapha.node.sources.interface import Array


def groups(ready: Ready, dense: Array) -> BinaryIO:
    """A file in memory: int32, little-endian, for each record in the order served its patient, 0 to n - 1.

    `dense` are the records that are served for training, in order.

    The numbers are of this job and of nothing else: by them two jobs can't tell whether they saw one patient.
    """
    patients = np.asarray(ready.store.patients)[dense]
    _, numbers = np.unique(patients, return_inverse=True)
    file = os.fdopen(os.memfd_create("groups", os.MFD_CLOEXEC), "w+b")
    file.write(numbers.astype("<i4").tobytes())
    file.flush()
    file.seek(0)
    return file
