"""The order of a shuffled epoch, computed position by position.

A permutation of 0 … n-1 that nobody has to hold: a Feistel network over pairs (left, right), left below
⌈√n⌉ and right below ⌈n / ⌈√n⌉⌉, each round adding a keyed hash of one half to the other. There are fewer
than √n pairs too many; a position that lands on one is sent on through the network until it doesn't
(cycle walking, Black and Rogaway 2002). So an epoch starts at once at any size, can be taken up again
anywhere, and the node and the job's own machine draw the same one.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_RECORDS: Final = 2**32 - 1
_ROUNDS: Final = 6
_CHUNK: Final = 1 << 14
"""Positions at a time: the intermediate values stay in the processor's cache."""

Words = NDArray[np.uint32]


def positions(records: int, seed: int, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
    """Where the shuffled epoch's positions start … stop-1 lie in the split.

    Args:
        records: n, 0 … 2^32-1.
        seed: with `epoch`, what determines the permutation; both 0 … 2^64-1.
        epoch: number of the epoch.
        start: first position, 0 … stop.
        stop: one after the last position, at most `records`.

    Returns:
        int64[stop - start], distinct, each in 0 … records-1.

    Raises:
        ValueError: a number is out of its range.
    """
    if not 0 <= start <= stop <= records <= MAX_RECORDS:
        raise ValueError(f"no positions {start} to {stop} in an order of {records} records")
    if not (0 <= seed < 2**64 and 0 <= epoch < 2**64):
        raise ValueError("seed and epoch are from 0 to 2^64-1")
    result = np.empty(stop - start, dtype=np.int64)
    if start == stop:
        return result
    network = _Network.of(records, seed, epoch)
    for first in range(start, stop, _CHUNK):
        last = min(first + _CHUNK, stop)
        result[first - start : last - start] = network.walk(np.arange(first, last, dtype=np.uint32))
    return result


@dataclass(frozen=True, slots=True)
class _Network:
    """The permutation of 0 … left * right - 1, and the `records` that it is restricted to."""

    records: int
    left: int
    right: int
    keys: tuple[int, ...]

    @classmethod
    def of(cls, records: int, seed: int, epoch: int) -> _Network:
        left = math.isqrt(records - 1) + 1
        digest = hashlib.sha256(b"rapha/order/1\0" + struct.pack("<QQ", seed, epoch)).digest()
        return cls(records, left, -(-records // left), struct.unpack_from(f"<{_ROUNDS}I", digest))

    def walk(self, values: Words) -> Words:
        """Permute `values`, each below `records`, within 0 … records-1."""
        values = self._permuted(values)
        while len(outside := np.flatnonzero(values >= self.records)):
            values[outside] = self._permuted(values[outside])
        return values

    def _permuted(self, values: Words) -> Words:
        left = values // np.uint32(self.right)
        right = values - left * np.uint32(self.right)
        for even, odd in zip(self.keys[::2], self.keys[1::2], strict=True):
            _add(left, right, even, self.left)
            _add(right, left, odd, self.right)
        left *= np.uint32(self.right)
        left += right
        return left


def _add(half: Words, other: Words, key: int, size: int) -> None:
    """Add a hash of `other` to `half`, modulo `size` (at most 2^16); every value of `half` is below it."""
    mixed = other ^ np.uint32(key)
    # A 32-bit mixer whose bias is near the least known (Wellons, "Prospecting for hash functions").
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x21F0AAAD)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0xD35A2D97)
    mixed >>= np.uint32(16)
    mixed *= np.uint32(size)
    mixed >>= np.uint32(16)
    half += mixed
    # Both were below `size`, so their sum is below 2 * size; where it is below `size`, this wraps far above.
    np.minimum(half, half - np.uint32(size), out=half)
