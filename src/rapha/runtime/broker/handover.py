"""What the journal says: which records a split has, and what came of each request for some of them.

    split    = 1 u8, split u8, range u8, 0 × 5, total u64, first u64; then u32 × n, unless it is a range
    walk     = 2 u8, ...                          (the fields of `HandOver`, in that order)
    explicit = 3 u8, ..., then u32 × n            (little-endian)

A walk's frame lists no record: from the split, the order's seed and the position, whoever reads the journal
computes which ones they were. So a frame has 80 bytes, however many records it counts.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.bits import Bits
from rapha.runtime.broker.splits import CHUNK, NAMES, Indices, Order, Shuffle, Split, index_split
from rapha.spec.refusals import Refused

SPLIT: Final = 1
WALK: Final = 2
EXPLICIT: Final = 3
_HAND_OVER: Final = struct.Struct("<BBBBIQQQQQ32s")
_SPLIT: Final = struct.Struct("<BBB5xQQ")
_NONE: Final = np.empty(0, dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What the job asked for. With the split, it determines which records come.

    `origin` is the position at which the epoch was taken up, `start` that of the first record here. For
    explicit indices `explicit` is the SHA-256 of the list, and the positions are 0; else it is zero bytes.
    """

    split: int
    shuffle: bool
    batch_size: int
    seed: int = 0
    epoch: int = 0
    origin: int = 0
    start: int = 0
    explicit: bytes = bytes(32)

    def order(self, split: Split) -> Order:
        """The order of the epoch."""
        return Order(split, Shuffle(self.seed, self.epoch) if self.shuffle else None)


@dataclass(frozen=True, slots=True)
class HandOver:
    """A descriptor and what came of it: `count` records, cut short by the cap or not.

    Attributes:
        fresh: of a walk None; else the dense indices among them that were never handed over before.
    """

    about: Descriptor
    count: int
    capped: bool
    fresh: Indices | None = None

    @property
    def batches(self) -> int:
        """Batches that begin in this hand-over."""
        start, size = self.about.start - self.about.origin, self.about.batch_size
        return -(-(start + self.count) // size) + (-start // size)

    def pack(self) -> bytes:
        """The journal's payload."""
        a = self.about
        kind, tail = (WALK, b"") if self.fresh is None else (EXPLICIT, self.fresh.astype("<u4").tobytes())
        fixed = _HAND_OVER.pack(
            kind, a.split, a.shuffle, self.capped, a.batch_size, a.seed, a.epoch, a.origin, a.start,
            self.count, a.explicit,
        )  # fmt: skip
        return fixed + tail

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read a payload of kind WALK or EXPLICIT.

        Raises:
            Refused: `node.journal_invalid`.
        """
        tail = len(payload) - _HAND_OVER.size
        if tail < 0 or tail % 4 or (tail and payload[0] == WALK):
            raise _invalid("a frame has a wrong size")
        kind, split, shuffle, capped, size, seed, epoch, origin, start, count, explicit = (
            _HAND_OVER.unpack_from(payload)
        )
        if kind not in (WALK, EXPLICIT) or split >= len(NAMES) or not size or origin > start:
            raise _invalid("a frame says what can't be")
        about = Descriptor(split, bool(shuffle), size, seed, epoch, origin, start, explicit)
        fresh = np.frombuffer(payload, dtype="<u4", offset=_HAND_OVER.size).astype(np.int64)
        return cls(about, count, bool(capped), None if kind == WALK else fresh)


def pack_split(split: Split) -> Iterator[bytes]:
    """The payloads that say which records `split` has."""
    total = len(split)
    if isinstance(split.dense, range):
        yield _SPLIT.pack(SPLIT, split.code, True, total, split.dense.start)
        return
    for first in range(0, total, CHUNK):
        listed = split.dense[first : first + CHUNK].astype("<u4", copy=False)
        yield _SPLIT.pack(SPLIT, split.code, False, total, first) + listed.tobytes()


class SplitReader:
    """Puts splits together from their payloads, in the order in which they were written."""

    def __init__(self, patients: Indices) -> None:
        self._patients = patients
        self._partial: dict[int, tuple[NDArray[np.uint32], int]] = {}

    def read(self, payload: bytes) -> Split | None:
        """The split, once it is whole.

        Raises:
            Refused: `node.journal_invalid`.
        """
        if len(payload) < _SPLIT.size or (len(payload) - _SPLIT.size) % 4:
            raise _invalid("a frame has a wrong size")
        _, code, is_range, total, first = _SPLIT.unpack_from(payload)
        listed = np.frombuffer(payload, dtype="<u4", offset=_SPLIT.size)
        records = len(self._patients)
        if code >= len(NAMES) or total > records:
            raise _invalid("a frame is about a split that is not there")
        if is_range:
            if len(listed) or first + total > records:
                raise _invalid("a split has records that are not there")
            return index_split(code, range(first, first + total), self._patients)
        return self._piece(code, total, first, listed)

    def _piece(self, code: int, total: int, first: int, listed: NDArray[np.uint32]) -> Split | None:
        # A writer that was interrupted and came back begins again from the start.
        dense, known = self._partial.get(code, (_NONE, 0)) if first else (np.empty(total, np.uint32), 0)
        if first != known or len(dense) != total or first + len(listed) > total:
            raise _invalid("a split has a gap")
        if len(listed) and listed.max() >= len(self._patients):
            raise _invalid("a split has records that are not there")
        dense[first : first + len(listed)] = listed
        self._partial[code] = (dense, first + len(listed))
        if first + len(listed) < total:
            return None
        del self._partial[code]
        return index_split(code, dense, self._patients)


def used_root(key: bytes, records: int, used: Bits) -> str:
    """Keyed digest of a used set; who is given the opening (key and set) can recompute it.

    HMAC-SHA256(key, "rapha/broker/used/1\\0" || records u64 || the dense indices, rising, u32), all
    little-endian.
    """
    mac = hmac.new(key, b"rapha/broker/used/1\0" + struct.pack("<Q", records), hashlib.sha256)
    for members in used.members():
        mac.update(members.astype("<u4").tobytes())
    return mac.hexdigest()


def _invalid(what: str) -> Refused:
    return Refused("node.journal_invalid", what)
