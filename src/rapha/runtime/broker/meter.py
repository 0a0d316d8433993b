"""The meter: exactly which records and patients a job was given, counted before they are handed over.

The trainer is hostile, so nothing it says reaches this module except positions that the broker has
checked. One meter a job, shared by its training and its trusted-metrics session.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from rapha.runtime.broker.handover import Descriptor, HandOver, used_root
from rapha.runtime.broker.journal import Header, Journal
from rapha.runtime.broker.splits import Order, bitmap, indices_of
from rapha.runtime.broker.store import checked_patients
from rapha.spec.refusals import Refused

MAX_HAND_OVERS: Final = 4_000_000
"""Bounds the journal to about 0.5 GB besides 4 bytes a unique record, however the job spins."""
_CHECKPOINT_SECONDS: Final = 5.0
_NONE: Final = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a job used. The counts are exact and stay in the hospital; the digests are keyed.

    Attributes:
        unique_records: records handed over at least once.
        unique_patients: patients of those records.
        batches: batches handed over, in whole or in part.
        transcript: hex; head of the HMAC chain over the descriptors of all hand-overs, in order.
        used_root: hex; see `used_root`.
        capped: whether a record was withheld because of the cap.
        first_record_served: whether the job may know anything of the records, if only their number.
    """

    unique_records: int
    unique_patients: int
    batches: int
    transcript: str
    used_root: str
    capped: bool
    first_record_served: bool


class _Run(Enum):
    FRESH = "no record of the split was used before this walk"
    USED = "all records of the split were used before"
    MIXED = "each record has to be looked up"


class Walk:
    """An epoch's order and how far it has been handed over. Made by `Meter.walk`."""

    def __init__(self, order: Order, run: _Run) -> None:
        self.order, self.run, self.cursor = order, run, 0


class Meter:
    """Roaring bitmaps of used records and patients, with a cap on unique records, behind a journal.

    Whole epochs are counted without looking up each record: a walk through a split of which nothing (or
    everything) was used before adds all of its records (or none), and enters the bitmap when it ends.
    Safe for threads.
    """

    def __init__(
        self, patients: NDArray[np.int64], cap: int, key: bytes, journal: Journal, limit: int
    ) -> None:
        self.patients, self._cap, self._key = patients, cap, key
        self._journal, self._limit = journal, limit
        self._lock = threading.Lock()
        self._used, self._used_patients = BitMap(), BitMap()
        self._live: Walk | None = None
        self._unique = self._batches = self._hand_overs = 0
        self.revealed = False
        self._capped = False
        self._synced_at = time.monotonic()

    @classmethod
    def create(
        cls, path: Path, *, patients: NDArray[Any], cap: int, key: bytes, limit: int = MAX_HAND_OVERS
    ) -> Self:
        """Start counting a job.

        Args:
            path: the journal; it must not exist.
            patients: int64[n], dense patient index of each record.
            cap: most unique records that may be handed over (`max_records` of the job).
            key: 32 random bytes of this job; they key the journal, the transcript and the root.
            limit: most hand-overs.

        Raises:
            Refused: `node.key_unsafe`, `node.dataset_invalid`, `node.disk_full`, `node.internal`.
        """
        patients = checked_patients(patients)
        if not 0 <= cap < 2**63:
            raise Refused("node.internal", "the cap is not a count")
        header = Header(len(patients), cap, _digest(patients))
        return cls(patients, cap, key, Journal.create(path, header, key), limit)

    @classmethod
    def recover(cls, path: Path, *, patients: NDArray[Any], key: bytes, limit: int = MAX_HAND_OVERS) -> Self:
        """The meter as it was when its process ended, from the journal; a torn last frame is dropped.

        A frame is written before its records are handed over, so a dropped frame was never handed over.

        Raises:
            Refused: `node.journal_invalid` (changed bytes, other key, other patients), `node.internal`.
        """
        patients = checked_patients(patients)
        header, journal = Journal.reopen(path, key)
        try:
            if (header.records, header.patients) != (len(patients), _digest(patients)):
                raise Refused("node.journal_invalid", "the journal is about another set of records")
            meter = cls(patients, header.cap, key, journal, limit)
            for payload in journal.frames():
                meter._replay(payload)
            meter.revealed = True  # what was told before the crash is not in the journal
        except BaseException:
            journal.close()
            raise
        return meter

    @property
    def first_record_served(self) -> bool:
        """Whether the job may know anything of the records: it saw one, or was told how many there are."""
        return self._unique > 0 or self.revealed

    def reveal(self) -> None:
        """From now on the job knows something of the records, though none may be counted yet."""
        self.revealed = True

    @property
    def exhausted(self) -> bool:
        """Whether the limit of hand-overs is reached; then nothing more may be asked for."""
        return self._hand_overs >= self._limit

    def walk(self, order: Order) -> Walk:
        """Begin an epoch over `order`; an earlier walk may go on, counted record by record."""
        with self._lock:
            self._settle()
            if self._used.isdisjoint(order.split.records):
                run = _Run.FRESH
            else:
                run = _Run.USED if order.split.records.issubset(self._used) else _Run.MIXED
            self._live = Walk(order, run)
            return self._live

    def advance(self, walk: Walk, count: int, about: Descriptor) -> NDArray[np.int64]:
        """Count the next `count` records of `walk`, at most as many as the cap allows.

        Returns:
            int64[k]: the dense indices that may be handed over now. k < count means that the cap cut it.

        Raises:
            Refused: `node.disk_full` or `node.internal` from the journal; nothing may be handed over.
        """
        with self._lock:
            if walk is not self._live:
                self._settle()
            dense = walk.order.dense(walk.cursor, walk.cursor + count)
            if walk.run is _Run.MIXED:
                admitted, fresh = self._sift(dense)
            elif walk.run is _Run.USED:
                admitted, fresh = dense, _NONE
            else:
                admitted = fresh = dense[: self._cap - self._unique]
            self._commit(about, len(dense), len(admitted), fresh)
            if walk.run is _Run.MIXED:
                self._include(fresh)
            walk.cursor += len(admitted)
            return admitted

    def take(self, dense: NDArray[np.int64], about: Descriptor) -> NDArray[np.int64]:
        """Count explicitly chosen records, which may repeat: the longest prefix that the cap allows.

        Returns and raises as `advance`.
        """
        with self._lock:
            self._settle()
            admitted, fresh = self._sift(dense)
            self._commit(about, len(dense), len(admitted), fresh)
            self._include(fresh)
            return admitted

    def usage(self) -> Usage:
        """What was used so far."""
        with self._lock:
            self._settle()
            return Usage(
                unique_records=len(self._used),
                unique_patients=len(self._used_patients),
                batches=self._batches,
                transcript=self._journal.head.hex(),
                used_root=used_root(self._key, len(self.patients), self._used),
                capped=self._capped,
                first_record_served=self.first_record_served,
            )

    def checkpoint(self) -> None:
        """Wait until the journal is on disk.

        Raises:
            Refused: `node.disk_full` or `node.internal`.
        """
        with self._lock:
            self._journal.sync()

    def close(self) -> None:
        """Close the journal; nothing more can be counted. Idempotent."""
        with self._lock:
            self._journal.close()

    def _sift(self, dense: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The longest prefix of `dense` whose new records fit under the cap, and those new records."""
        room = self._cap - self._unique
        fresh = bitmap(dense) - self._used
        if len(fresh) > room:
            distinct, first = np.unique(dense, return_index=True)
            new = np.sort(first[np.isin(distinct, indices_of(fresh))])
            dense = dense[: new[room]]
            fresh = bitmap(dense) - self._used
        return dense, indices_of(fresh)

    def _commit(self, about: Descriptor, asked: int, admitted: int, fresh: NDArray[np.int64]) -> None:
        """Write the hand-over to the journal; only then does any count change."""
        if not admitted and self._capped:
            return
        handover = HandOver(about, admitted, admitted < asked, fresh)
        self._journal.append(handover.pack())
        self._tally(handover)
        now = time.monotonic()
        if now - self._synced_at > _CHECKPOINT_SECONDS:
            self._journal.sync()
            self._synced_at = now

    def _tally(self, handover: HandOver) -> None:
        self._hand_overs += 1
        self._batches += handover.batches
        self._unique += len(handover.fresh)
        self._capped |= handover.capped

    def _include(self, fresh: NDArray[np.int64]) -> None:
        if len(fresh):
            self._used |= bitmap(fresh)
            self._used_patients |= bitmap(self.patients[fresh])

    def _settle(self) -> None:
        """Enter the live walk into the bitmaps; from here on it is looked up record by record."""
        walk, self._live = self._live, None
        if walk is None or walk.run is not _Run.FRESH:
            return
        split, walk.run = walk.order.split, _Run.MIXED
        if walk.cursor == len(split):
            self._used |= split.records
            self._used_patients |= split.patients
        elif walk.cursor:
            self._used |= walk.order.walked(walk.cursor)
            self._used_patients |= bitmap(self.patients[walk.order.dense(0, walk.cursor)])

    def _replay(self, payload: bytes) -> None:
        handover = HandOver.unpack(payload)
        if len(handover.fresh) and handover.fresh.max() >= len(self.patients):
            raise Refused("node.journal_invalid", "a frame names a record that is not there")
        self._tally(handover)
        self._include(handover.fresh)
        if len(self._used) != self._unique:
            raise Refused("node.journal_invalid", "a frame counts a record again")


def _digest(patients: NDArray[np.int64]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(patients, dtype="<i8").data).digest()
