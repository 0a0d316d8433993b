"""Random numbers that are the same whenever a question is: nobody gets a mean of several by asking again.

Which labels the rules draw and which patients are resampled hangs on the patients alone, and which way a
number is rounded on the number: other jobs, orders, plans, names of a subgroup or scores of the same ranks
don't change them. Questions that differ in their answer get numbers of their own.
"""

from __future__ import annotations

import hashlib

import numpy as np

from rapha.runtime.metrics.case import Indices


class Chance:
    """Args: seed: the dataset's own and secret, at least 0 and below 2^256."""

    def __init__(self, seed: int) -> None:
        self._key = seed.to_bytes(32)

    def labels(self, who: Indices) -> np.random.Generator:
        """For drawing the labels of these rows' patients."""
        return self._of(b"labels", who.tobytes())

    def resamples(self, who: Indices) -> np.random.Generator:
        """For resampling these rows' patients."""
        return self._of(b"resamples", who.tobytes())

    def rounding(self, name: str, value: float, step: float) -> float:
        """In [0, 1): from where on `value` is told as the next step.

        The value counts to a ten-thousandth of itself: a model that differs by less asks the same.
        """
        return float(self._of(b"rounding", f"{name} {value:.3e} {step:.6g}".encode()).random())

    def _of(self, purpose: bytes, about: bytes) -> np.random.Generator:
        digest = hashlib.blake2b(purpose + b"\0" + about, key=self._key, digest_size=32)
        return np.random.default_rng(int.from_bytes(digest.digest()))
