"""The broker: what the dataset's process runs to serve one job, and no more than one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from threading import Event
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.meter import Meter, Usage
from rapha.runtime.broker.ring import Layout, Ring
from rapha.runtime.broker.session import Session
from rapha.runtime.broker.splits import CHUNK, Given, make_splits
from rapha.runtime.broker.store import Field, RecordStore
from rapha.spec.refusals import Refused

SLOTS: Final = 4
SLOT_BYTES: Final = 1 << 22
"""A slot aims at 4 MiB: the ring stays in the processor's cache, and a message is one of many batches."""
MAX_SLOT_BYTES: Final = 1 << 26
_WANTED_RECORDS: Final = 64
"""Large records get larger slots, up to `MAX_SLOT_BYTES`, so that a usual batch fits one."""
_MAX_RECORDS: Final = 1 << 16
"""In a slot: bounds what one request makes the broker look up."""
RAGGED_BYTES: Final = 1 << 23
"""What one record may hold in its ragged fields, shared evenly, where their values aren't large."""
_RAGGED_RECORD: Final = 256
"""Bytes that a slot's number of records allows for a ragged field: many are shorter, few requests long."""


class Broker:
    """Serves `store` to one job through one socket, counting with `meter` before each hand-over.

    Args:
        store: the records.
        split: dense indices of `train` and `test`: distinct, with no patient on both sides; may be empty.
            Consecutive ones take no memory, and may be given as a range.
        meter: shared by the job's sessions; both count.

    Raises:
        Refused: `node.dataset_invalid` when these don't fit together.
    """

    def __init__(self, store: RecordStore, split: Given, meter: Meter) -> None:
        if len(store) != len(store.patients) or not _same(store.patients, meter.patients):
            raise Refused("node.dataset_invalid", "the meter is about other records")
        self._store, self._meter = store, meter
        _check_fits(store)
        self._splits = make_splits(split, store.patients)
        for indexed in self._splits.values():
            meter.register(indexed)

    def serve(
        self,
        sock: socket.socket,
        split: str = "train",
        hide_labels: bool = False,
        on_first_record: Callable[[], None] | None = None,
        stop: Event | None = None,
    ) -> Usage:
        """Answer the job until its end is closed everywhere, `stop` is set, or it misbehaves too often.

        Precondition: the caller holds no copy of the job's end. The socket is shut down, not closed, at the
        end, and the journal is on disk.

        Args:
            sock: the broker's end of an AF_UNIX SOCK_SEQPACKET pair.
            split: the only split that this session serves. `test` comes without labels and in fixed order.
            hide_labels: leave label fields out of `train` too.
            on_first_record: called once a job, before it is told anything but the schema.
            stop: looked at between messages and at least five times a second.

        Returns:
            What the job has used so far, over all of its sessions.

        Raises:
            Refused: `node.dataset_invalid` (unknown split, no field left), `node.disk_full`, `node.internal`.
        """
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
            raise Refused("node.internal", "the broker needs a SOCK_SEQPACKET socket")
        if split not in self._splits:
            raise Refused("node.dataset_invalid", f"no split {split!a}")
        hidden = hide_labels or split == "test"
        fields = tuple(field for field in self._store.fields if not (field.label and hidden))
        ring = Ring(plan(fields))
        try:
            Session(
                store=self._store,
                split=self._splits[split],
                meter=self._meter,
                ring=ring,
                sock=sock,
                fixed_order=split == "test",
                on_first_record=on_first_record or _nothing,
                stop=stop or Event(),
            ).run()
        finally:
            ring.close()
            self._meter.checkpoint()
        return self._meter.usage()


def plan(fields: tuple[Field, ...]) -> Layout:
    """The ring for these fields; of the schema alone, so that its size tells nothing of the records.

    Raises:
        Refused: `node.dataset_invalid` for no field, and for one whose records don't fit a slot.
    """
    if not fields:
        raise Refused("node.dataset_invalid", "no field is left to serve")
    record = 0
    for field in fields:
        record += _RAGGED_RECORD if field.ragged else field.record_bytes
        if record > MAX_SLOT_BYTES:
            raise _too_large(field.name, f"a record has {record} bytes up to it")
    records = min(max(SLOT_BYTES, _WANTED_RECORDS * record), MAX_SLOT_BYTES) // record
    return Layout.plan(fields, min(records, _MAX_RECORDS), SLOTS, _longest(fields))


def _longest(fields: tuple[Field, ...]) -> list[int]:
    """Of each field the most values that one record may hold; 0 where it isn't ragged."""
    ragged = sum(field.ragged for field in fields)
    longest = []
    for field in fields:
        values = 0
        if field.ragged:
            wanted = max(RAGGED_BYTES // ragged, _WANTED_RECORDS * field.record_bytes)
            values = min(wanted, MAX_SLOT_BYTES // ragged) // field.record_bytes
            if not values:
                raise _too_large(field.name, f"a value has {field.record_bytes} bytes")
        longest.append(values)
    return longest


def _check_fits(store: RecordStore) -> None:
    """Every record of every ragged field fits a slot, and the fixed ones do.

    Raises:
        Refused: `node.dataset_invalid`, naming the field.
    """
    plan(store.fields)
    for field, most in zip(store.fields, _longest(store.fields), strict=True):
        if not field.ragged:
            continue
        if field.label:
            raise Refused("node.dataset_invalid", f"field {field.name!a}: a label has no variable length")
        for start in range(0, len(store), CHUNK):
            lengths = store.lengths(field.name, np.arange(start, min(start + CHUNK, len(store))))
            if lengths.max() > most:
                raise _too_large(field.name, f"a record has more than {most} values")


def _too_large(field: str, what: str) -> Refused:
    return Refused("node.dataset_invalid", f"field {field!a} doesn't fit a slot: {what}")


def _same(mine: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    if mine is other or len(mine) != len(other):
        return mine is other
    return all(
        np.array_equal(mine[start : start + CHUNK], other[start : start + CHUNK])
        for start in range(0, len(mine), CHUNK)
    )


def _nothing() -> None:
    pass
