"""What the journal says of each hand-over, and the digest of all records that were handed over."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from rapha.runtime.broker.splits import indices_of
from rapha.spec.refusals import Refused

_PAYLOAD: Final = struct.Struct("<B??xIQQQI32s")
_ROOT_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What the job asked for. With the split, it determines which records come.

    `start` is the position of the first record in the epoch's order. For explicit indices `explicit` is
    the SHA-256 of the list; otherwise it is 32 zero bytes.
    """

    split: int
    shuffle: bool
    batch_size: int
    seed: int = 0
    epoch: int = 0
    start: int = 0
    explicit: bytes = bytes(32)


@dataclass(frozen=True, slots=True)
class HandOver:
    """A descriptor and what came of it: `count` records, of which `fresh` were never handed over before.

    As a payload: the fixed part, then the dense indices of `fresh` as u32, little-endian.
    """

    about: Descriptor
    count: int
    capped: bool
    fresh: NDArray[np.int64]

    @property
    def batches(self) -> int:
        """Batches that begin in this hand-over."""
        start, size = self.about.start, self.about.batch_size
        return -(-(start + self.count) // size) + (-start // size)

    def pack(self) -> bytes:
        """The journal's payload."""
        a = self.about
        return (
            _PAYLOAD.pack(
                a.split,
                a.shuffle,
                self.capped,
                a.batch_size,
                a.seed,
                a.epoch,
                a.start,
                self.count,
                a.explicit,
            )
            + self.fresh.astype("<u4").tobytes()
        )

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read a payload.

        Raises:
            Refused: `node.journal_invalid`.
        """
        if len(payload) < _PAYLOAD.size or (len(payload) - _PAYLOAD.size) % 4:
            raise Refused("node.journal_invalid", "a frame has a wrong size")
        split, shuffle, capped, size, seed, epoch, start, count, explicit = _PAYLOAD.unpack_from(payload)
        if not size:
            raise Refused("node.journal_invalid", "a frame has batches of no records")
        fresh = np.frombuffer(payload, dtype="<u4", offset=_PAYLOAD.size).astype(np.int64)
        return cls(Descriptor(split, shuffle, size, seed, epoch, start, explicit), count, capped, fresh)


def used_root(key: bytes, records: int, used: BitMap) -> str:
    """Keyed digest of a used set; who is given the opening (key and set) can recompute it.

    HMAC-SHA256(key, "rapha/broker/used/1\\0" || records u64 || the dense indices, rising, u32), all
    little-endian.
    """
    mac = hmac.new(key, b"rapha/broker/used/1\0" + struct.pack("<Q", records), hashlib.sha256)
    for start in range(0, records, _ROOT_CHUNK):
        chunk = used & BitMap(range(start, start + _ROOT_CHUNK))
        mac.update(indices_of(chunk).astype("<u4").tobytes())
    return mac.hexdigest()
