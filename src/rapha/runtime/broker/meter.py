"""The meter: exactly which records and patients a job was given, counted before they are handed over.

The trainer is hostile, so nothing it says reaches this module except positions that the broker has
checked. One meter a job, shared by its training and its trusted-metrics session.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.handover import SPLIT, Descriptor, HandOver, SplitReader, pack_split, used_root
from rapha.runtime.broker.journal import Header, Journal
from rapha.runtime.broker.splits import NAMES, Order, Split
from rapha.runtime.broker.store import checked_patients
from rapha.runtime.broker.tally import Admitted, Tally, Walk
from rapha.spec.refusals import Refused

MAX_HAND_OVERS: Final = 4_000_000
"""Bounds the journal to about 0.5 GB besides 8 bytes a record, however the job spins."""
_CHECKPOINT_SECONDS: Final = 5.0


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


class Meter:
    """A tally behind a journal: whatever is handed over is in a file first, and comes back from it.

    The journal says of a walk which positions were handed over, and is read back by walking again, so that
    counting costs a few bytes a request. Safe for threads.
    """

    def __init__(
        self, patients: NDArray[np.int64], cap: int, key: bytes, journal: Journal, limit: int
    ) -> None:
        self.patients, self._cap, self._key = patients, cap, key
        self._journal, self._limit = journal, limit
        self._lock = threading.Lock()
        self._tally = Tally(patients, cap)
        self._splits: dict[int, Split] = {}
        self._batches = self._hand_overs = 0
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
            meter._reread()
            meter.revealed = True  # what was told before the crash is not in the journal
        except BaseException:
            journal.close()
            raise
        return meter

    @classmethod
    def root_of(cls, path: Path, key: bytes) -> tuple[str, int]:
        """`used_root` and the number of used records by a journal alone: an audit without the records.

        Raises:
            Refused: as `recover`, but patients are not compared.
        """
        header, journal = Journal.reopen(path, key)
        with journal:
            nobody = np.zeros(header.records, dtype=np.int64)
            meter = cls(nobody, header.cap, key, journal, MAX_HAND_OVERS)
            meter._reread()
            usage = meter.usage()
        return usage.used_root, usage.unique_records

    @property
    def first_record_served(self) -> bool:
        """Whether the job may know anything of the records: it saw one, or was told how many there are."""
        return self._tally.unique > 0 or self.revealed

    def reveal(self) -> None:
        """From now on the job knows something of the records, though none may be counted yet."""
        self.revealed = True

    @property
    def exhausted(self) -> bool:
        """Whether the limit of hand-overs is reached; then nothing more may be handed over."""
        return self._hand_overs >= self._limit

    def register(self, split: Split) -> None:
        """Write down which records `split` has, before any of them is handed over. Idempotent.

        Raises:
            Refused: `node.dataset_invalid` when it has others than before; `node.disk_full`,
                `node.internal`.
        """
        with self._lock:
            known = self._splits.get(split.code)
            if known is None:
                for payload in pack_split(split):
                    self._journal.append(payload)
            elif not known.same(split):
                raise Refused("node.dataset_invalid", f"split {NAMES[split.code]} has changed")
            self._splits[split.code] = split

    def walk(self, order: Order, first: int = 0) -> Walk:
        """Begin an epoch over `order`, taken up at position `first`; an earlier walk may go on.

        Raises:
            Refused: `node.internal` where its split is not registered.
        """
        with self._lock:
            if self._splits.get(order.split.code) is not order.split:
                raise Refused("node.internal", "the journal doesn't know which records the split has")
            return self._tally.begin(order, first)

    def advance(self, walk: Walk, count: int, about: Descriptor) -> NDArray[np.int64]:
        """Count the next `count` records of `walk`, at most as many as the cap allows.

        Returns:
            int64[k]: the dense indices that may be handed over now. k < count means that the cap cut it.

        Raises:
            Refused: `node.disk_full` or `node.internal` from the journal; nothing may be handed over.
        """
        with self._lock:
            admitted = self._tally.ahead(walk, count)
            handed = admitted.count
            return self._commit(HandOver(about, handed, handed < count), admitted)

    def take(self, dense: NDArray[np.int64], about: Descriptor) -> NDArray[np.int64]:
        """Count explicitly chosen records, which may repeat: the longest prefix that the cap allows.

        Returns and raises as `advance`.
        """
        with self._lock:
            admitted = self._tally.chosen(dense)
            handed = admitted.count
            return self._commit(HandOver(about, handed, handed < len(dense), admitted.fresh), admitted)

    def usage(self) -> Usage:
        """What was used so far."""
        with self._lock:
            records, patients = self._tally.settled()
            return Usage(
                unique_records=len(records),
                unique_patients=len(patients),
                batches=self._batches,
                transcript=self._journal.head.hex(),
                used_root=used_root(self._key, len(self.patients), records),
                capped=self._capped,
                first_record_served=self.first_record_served,
            )

    def used(self) -> NDArray[np.int64]:
        """The dense indices of the records that were handed over at least once, rising."""
        with self._lock:
            records, _ = self._tally.settled()
            return np.concatenate([np.empty(0, dtype=np.int64), *records.members()])

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

    def _commit(self, handover: HandOver, admitted: Admitted) -> NDArray[np.int64]:
        """Write the hand-over to the journal; only then does any count change."""
        if not handover.count and self._capped:
            return admitted.dense
        self._journal.append(handover.pack())
        self._enter(handover, admitted)
        now = time.monotonic()
        if now - self._synced_at > _CHECKPOINT_SECONDS:
            self._journal.sync()
            self._synced_at = now
        return admitted.dense

    def _enter(self, handover: HandOver, admitted: Admitted) -> None:
        self._hand_overs += 1
        self._batches += handover.batches
        self._capped |= handover.capped
        self._tally.enter(handover.about.split, admitted)

    def _reread(self) -> None:
        reader = SplitReader(self.patients)
        for payload in self._journal.frames():
            self._replay(payload, reader)

    def _replay(self, payload: bytes, reader: SplitReader) -> None:
        if payload[:1] == bytes([SPLIT]):
            if (split := reader.read(payload)) is not None:
                self._splits[split.code] = split
            return
        handover = HandOver.unpack(payload)
        listed = handover.fresh
        admitted = self._walked(handover) if listed is None else self._tally.chosen(self._listed(listed))
        if listed is not None and admitted.new != len(listed):
            raise Refused("node.journal_invalid", "a frame counts a record again")
        if listed is None and admitted.count != handover.count:
            raise Refused("node.journal_invalid", "a frame counts more than the cap")
        self._enter(handover, admitted)

    def _listed(self, fresh: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(fresh) and fresh.max() >= len(self.patients):
            raise Refused("node.journal_invalid", "a frame names a record that is not there")
        return fresh

    def _walked(self, handover: HandOver) -> Admitted:
        about = handover.about
        split = self._splits.get(about.split)
        if split is None or about.start + handover.count > len(split):
            raise Refused("node.journal_invalid", "a frame names a record that is not there")
        return self._tally.retraced(self._tally.resumed(about.order(split), about.start), handover.count)


def _digest(patients: NDArray[np.int64]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(patients, dtype="<i8").data).digest()
