"""Gaussian noise from the operating system's generator: nobody chose a seed, and nobody can draw it again.

It blurs what values encode; it is no guarantee. A bound on what n bits can say is not smaller because some of
them are noise that nobody measured, so no stated price changes.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_STEPS: Final = 2.0**32
"""Different values of a uniform number; the largest deviate is √(2 · 32 · ln 2) ≈ 6.7, once in 10^10."""


def gaussian(count: int) -> npt.NDArray[Any]:
    """`count` independent standard normal F64 values (Box and Muller, 1958)."""
    pairs = (count + 1) // 2
    uniform = np.frombuffer(os.urandom(8 * pairs), "<u4")
    radius = np.sqrt(-2.0 * np.log((uniform[:pairs] + 1.0) / _STEPS))  # in (0, 1]: its logarithm is finite
    angle = (uniform[pairs:] * (2 * np.pi / _STEPS)).astype(np.float32)  # 24 bits are enough to turn by
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
