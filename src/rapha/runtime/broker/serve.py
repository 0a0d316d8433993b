"""The broker: what the dataset's process runs to serve one job, and no more than one."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.meter import Meter, Usage
from rapha.runtime.broker.ring import Layout, Ring
from rapha.runtime.broker.session import Session
from rapha.runtime.broker.splits import make_splits
from rapha.runtime.broker.store import Field, RecordStore
from rapha.spec.refusals import Refused

SLOTS: Final = 4
SLOT_BYTES: Final = 1 << 22
"""A slot aims at 4 MiB: the ring stays in the processor's cache, and a message is one of many batches."""
MAX_SLOT_BYTES: Final = 1 << 26
_WANTED_RECORDS: Final = 64
"""Large records get larger slots, up to `MAX_SLOT_BYTES`, so that a usual batch fits one."""


class Broker:
    """Serves `store` to one job through one socket, counting with `meter` before each hand-over.

    Args:
        store: the records.
        split: dense indices of `train` and `test`: distinct, with no patient on both sides; may be empty.
        meter: shared by the job's sessions; both count.

    Raises:
        Refused: `node.dataset_invalid` when these don't fit together.
    """

    def __init__(self, store: RecordStore, split: Mapping[str, NDArray[Any]], meter: Meter) -> None:
        if len(store) != len(store.patients) or not np.array_equal(store.patients, meter.patients):
            raise Refused("node.dataset_invalid", "the meter is about other records")
        self._store, self._meter = store, meter
        self._splits = make_splits(split, store.patients)

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
            on_first_record: called once a job: its first record is counted, and not yet handed over.
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
        fields = self._visible(hide_labels or split == "test")
        # The ring's size must not tell how many records there are; memory that isn't written costs nothing.
        ring = Ring(Layout.plan(fields, _slot_records(fields), SLOTS))
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

    def _visible(self, hide_labels: bool) -> tuple[Field, ...]:
        fields = tuple(f for f in self._store.fields if not (f.label and hide_labels))
        if not fields:
            raise Refused("node.dataset_invalid", "no field is left to serve")
        return fields


def _slot_records(fields: tuple[Field, ...]) -> int:
    record = sum(f.record_bytes for f in fields)
    if record > MAX_SLOT_BYTES:
        raise Refused("node.dataset_invalid", f"a record has {record} bytes, the limit is {MAX_SLOT_BYTES}")
    return min(max(SLOT_BYTES, _WANTED_RECORDS * record), MAX_SLOT_BYTES) // record


def _nothing() -> None:
    pass
