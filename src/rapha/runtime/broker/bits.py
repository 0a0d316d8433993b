"""A set of dense indices: one bit each, so that looking up and adding cost the same at any density."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BIT: Final = (1 << np.arange(8)).astype(np.uint8)
_BYTES: Final = 1 << 16


class Bits:
    """Members of 0 … size-1, empty at first. Memory that no member is near is never touched."""

    def __init__(self, size: int) -> None:
        self._bytes = np.zeros(-(-size // 8), dtype=np.uint8)

    def __len__(self) -> int:
        return sum(int(np.bitwise_count(piece).sum()) for _, piece in self._pieces())

    def has(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `indices` are members: bool of their length."""
        found: NDArray[np.bool_] = (self._bytes[indices >> 3] & _BIT[indices & 7]) != 0
        return found

    def add(self, indices: NDArray[np.int64]) -> None:
        """Make `indices`, which may repeat, members."""
        np.bitwise_or.at(self._bytes, indices >> 3, _BIT[indices & 7])

    def members(self) -> Iterator[NDArray[np.int64]]:
        """The members, rising, in pieces of at most 2^19."""
        for first, piece in self._pieces():
            yield np.flatnonzero(np.unpackbits(piece, bitorder="little")) + 8 * first

    def _pieces(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for first in range(0, len(self._bytes), _BYTES):
            yield first, self._bytes[first : first + _BYTES]
