"""Randomness that nobody can seed: who is in a step, and the noise.

All of it comes from the kernel (getrandom(2)). The researcher chooses no seed, and the trainer keeps no state
from which a later draw could be told.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Source = Callable[[int], bytes]
"""So many random bytes; a parameter only so that tests can look at the arithmetic."""
_DRAWS: Final = 4
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Patients:
    """Which records belong to which patient: those of patient p are `records[starts[p]:starts[p + 1]]`."""

    records: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, groups: NDArray[np.int32]) -> Patients:
        """From the patient of each record, numbered 0, 1, 2 … without a gap.

        Raises:
            ValueError: they are not numbered so.
        """
        if groups.ndim != 1 or not len(groups) or groups.min() < 0:
            raise ValueError("groups: not a list of patients")
        counts = np.bincount(groups)
        if not counts.all():
            raise ValueError("groups: the patients are not numbered without a gap")
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return cls(np.argsort(groups, kind="stable").astype(np.int64), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1


def sample(patients: Patients, rate: float, source: Source = os.urandom) -> NDArray[np.int64]:
    """One record each of the patients that are in this step; int64, at most one a patient.

    Each patient is in with probability floor(rate × 2^64) / 2^64, which is never above `rate`, whatever the
    others are. Which of their records stands for them is drawn from their own alone. (That this draw is
    uniform up to 2^-40 costs no privacy: any rule that looks at one patient only would do.)
    """
    count = len(patients)
    # 2^64 itself is no uint64: with a rate of 1 everybody is in.
    threshold = int(rate * 2**64)
    drawn = np.frombuffer(source(8 * count), "<u8")
    chosen = np.arange(count) if threshold >= 2**64 else np.flatnonzero(drawn < np.uint64(threshold))
    first = patients.starts[chosen]
    own = patients.starts[chosen + 1] - first
    which = np.frombuffer(source(8 * len(chosen)), "<u8") % own.astype(np.uint64)
    return patients.records[first + which.astype(np.int64)]


def gaussian(count: int, std: float, source: Source = os.urandom) -> NDArray[np.float64]:
    """`count` draws from a normal distribution of mean 0 and standard deviation `std`.

    A draw in floating point has gaps that give away what it was added to (Mironov, CCS 2012). Each is
    therefore half the sum of four (Holohan and Braghin, Secure Random Sampling in Differential Privacy,
    ESORICS 2021), and what it is added to is rounded to single precision afterwards.
    """
    drawn = np.empty(count, np.float64)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        four = _normal(_DRAWS * (stop - start), source).reshape(_DRAWS, stop - start)
        drawn[start:stop] = four.sum(axis=0)
    return drawn * (std / _DRAWS**0.5)


def _normal(count: int, source: Source) -> NDArray[np.float64]:
    """Standard normal draws (Box and Muller, 1958)."""
    pairs = -(-count // 2)
    uniform = (np.frombuffer(source(16 * pairs), "<u8") >> np.uint64(11)).astype(np.float64)
    radius = np.sqrt(-2 * np.log((uniform[:pairs] + 1) * 2.0**-53))  # (0, 1], so that it is finite
    angle = uniform[pairs:] * (2 * np.pi * 2.0**-53)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
