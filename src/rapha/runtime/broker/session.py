"""One session: messages in, counts and batches out. Nothing that the job sends changes a count but a
well-formed request for records, and that one is counted first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker import wire
from rapha.runtime.broker.channel import Channel, Pace
from rapha.runtime.broker.handover import Descriptor
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.ring import Area, Ring
from rapha.runtime.broker.splits import NAMES, Split
from rapha.runtime.broker.store import Field, RecordStore
from rapha.runtime.broker.tally import Walk
from rapha.runtime.broker.wire import End, Fault, FaultCode, Kind, Op, Request
from rapha.spec.refusals import Refused

MAX_FAULTS: Final = 1000
"""Refused messages after which the session ends."""
MAX_BATCH: Final = 2**31 - 1
_LOG_FAULTS: Final = 20
_log: Final = logging.getLogger("rapha.broker")


@dataclass(slots=True)
class _Epoch:
    walk: Walk
    about: Descriptor
    end: int
    ended: End | None = None


class Session:
    """Serves one split through one ring and one socket. See `Broker.serve` for the arguments."""

    def __init__(
        self,
        *,
        store: RecordStore,
        split: Split,
        meter: Meter,
        ring: Ring,
        sock: socket.socket,
        fixed_order: bool,
        on_first_record: Callable[[], None],
        stop: Event,
    ) -> None:
        self._store, self._split, self._meter, self._ring = store, split, meter, ring
        self._channel, self._fixed_order = Channel(sock, stop), fixed_order
        self._on_first_record, self._stop = on_first_record, stop
        self._free = list(range(ring.layout.slots))
        self._epoch: _Epoch | None = None
        self._ragged = [(i, field) for i, field in enumerate(ring.layout.fields) if field.ragged]
        self._pace, self._faults = Pace(), 0
        self._descriptor = self._describe()

    def run(self) -> None:
        """Answer until the other end is gone, `stop` is set, or there were too many faults."""
        try:
            while (message := self._channel.receive()) is not None:
                if not self._channel.send(*self._answer(message)):
                    break
                if self._faults >= MAX_FAULTS:
                    _log.warning("the session ends: %d refused messages", self._faults)
                    break
        finally:
            self._channel.shut_down()

    def _answer(self, message: bytes) -> tuple[bytes, tuple[int, ...]]:
        """The reply to `message`, and the descriptors that go with it."""
        try:
            request = wire.parse(message)
            if request.split != self._split.code:
                raise Fault(FaultCode.SPLIT)
            if request.op is Op.HELLO:
                return self._hello(request)
            self._reveal()
            return self._perform(request), ()
        except Fault as fault:
            self._faults += 1
            if self._faults <= _LOG_FAULTS:
                _log.warning("refused a message of %d bytes: %s", len(message), fault.code.name)
            self._pace.spend(self._stop)
            return wire.reply(Kind.FAULT, wire.tag_of(message), fault.code), ()

    def _reveal(self) -> None:
        """Every answer but HELLO's tells something about records, if only how many there are."""
        if not self._meter.revealed:
            self._on_first_record()
            self._meter.reveal()

    def _perform(self, request: Request) -> bytes:
        match request.op:
            case Op.EPOCH:
                return self._start(request)
            case Op.NEXT:
                return self._next(request)
            case Op.COUNT:
                self._pace.spend(self._stop)
                return wire.reply(Kind.STARTED, request.tag, b=len(self._split))
            case _:
                return self._explicit(request)

    def _hello(self, request: Request) -> tuple[bytes, tuple[int, ...]]:
        # A second program in the job may start over, so this may come again; every slot is free then.
        self._pace.spend(self._stop)
        self._reset()
        reply = wire.reply(Kind.HELLO, request.tag, a=len(self._descriptor))
        return reply + self._descriptor, (self._ring.fd,)

    def _start(self, request: Request) -> bytes:
        self._pace.spend(self._stop)
        batch_size, shuffle, first = request.a, bool(request.flags & wire.SHUFFLE), request.d
        if not 1 <= batch_size <= MAX_BATCH:
            raise Fault(FaultCode.RANGE)
        if shuffle and self._fixed_order:
            raise Fault(FaultCode.ORDER)
        total = len(self._split)
        if first > total:
            raise Fault(FaultCode.RANGE)
        self._reset()
        end = total - (total - first) % batch_size if request.flags & wire.DROP_LAST else total
        about = Descriptor(self._split.code, shuffle, batch_size, request.b, request.c, first)
        self._epoch = _Epoch(self._meter.walk(about.order(self._split), first), about, end)
        return wire.reply(Kind.STARTED, request.tag, a=end, b=total)

    def _next(self, request: Request) -> bytes:
        epoch = self._epoch
        if epoch is None:
            raise Fault(FaultCode.STATE)
        if not 1 <= request.a <= MAX_BATCH:
            raise Fault(FaultCode.RANGE)
        slot = self._slot(request.b)
        start = epoch.walk.cursor
        count = min(request.a, self._ring.layout.records, epoch.end - start)
        if not count:
            epoch.ended = epoch.ended or End.EPOCH
        if ended := epoch.ended or self._over():
            return self._end(request, ended)
        if self._ragged:
            count = self._fitting(epoch.walk.order.dense(start, start + count))
        admitted = self._meter.advance(epoch.walk, count, replace(epoch.about, start=start))
        if len(admitted) < count:
            epoch.ended = End.CAP
        return self._hand_over(request, slot, admitted, count, start)

    def _explicit(self, request: Request) -> bytes:
        if self._fixed_order:
            raise Fault(FaultCode.ORDER)
        if not 1 <= request.c <= self._ring.layout.records or not 1 <= request.a <= MAX_BATCH:
            raise Fault(FaultCode.RANGE)
        chosen = np.frombuffer(request.tail, dtype="<u4")
        if chosen.max() >= len(self._split):
            raise Fault(FaultCode.RANGE)
        slot = self._slot(request.b)
        if ended := self._over():
            return self._end(request, ended)
        about = Descriptor(self._split.code, False, request.a, explicit=hashlib.sha256(request.tail).digest())
        dense = self._split.at(chosen.astype(np.int64))
        if self._ragged:
            dense = dense[: self._fitting(dense)]
        admitted = self._meter.take(dense, about)
        return self._hand_over(request, slot, admitted, len(dense), 0)

    def _fitting(self, dense: NDArray[np.int64]) -> int:
        """How many of these records are sure to fit a slot; at least one."""
        return self._ring.layout.fitting(
            {number: self._store.lengths(field.name, dense) for number, field in self._ragged}
        )

    def _hand_over(
        self, request: Request, slot: int, dense: NDArray[np.int64], asked: int, start: int
    ) -> bytes:
        """Write what was counted into `slot`. The job may read the slot as soon as it is written."""
        if not len(dense):
            return self._end(request, End.CAP)
        for number, field in enumerate(self._ring.layout.fields):
            if field.ragged:
                self._write_ragged(slot, number, dense)
            else:
                self._store.gather(field.name, dense, self._ring.view(slot, number, len(dense)))
        self._free.remove(slot)
        code = End.CAP if len(dense) < asked else 0
        return wire.reply(Kind.BATCH, request.tag, code, a=slot, b=len(dense), c=start)

    def _write_ragged(self, slot: int, number: int, dense: NDArray[np.int64]) -> None:
        name = self._ring.layout.fields[number].name
        ends = np.cumsum(self._store.lengths(name, dense))
        index = self._ring.index(slot, number, len(dense))
        index[0], index[1:] = 0, ends
        self._store.gather_values(name, dense, self._ring.view(slot, number, int(ends[-1])))

    def _over(self) -> End | None:
        """Why nothing more comes of any epoch or list, if so."""
        return End.LIMIT if self._meter.exhausted else None

    def _end(self, request: Request, why: End) -> bytes:
        self._pace.spend(self._stop)
        return wire.reply(Kind.END, request.tag, why)

    def _slot(self, returned: int) -> int:
        """Take back `returned` and choose a free slot; it stays free until something is handed over."""
        if returned != wire.NO_SLOT:
            if returned >= self._ring.layout.slots or returned in self._free:
                raise Fault(FaultCode.SLOT)
            self._free.append(returned)
        if not self._free:
            raise Fault(FaultCode.SLOT)
        return self._free[-1]

    def _reset(self) -> None:
        self._free = list(range(self._ring.layout.slots))
        self._epoch = None

    def _describe(self) -> bytes:
        layout = self._ring.layout
        text = json.dumps(
            {
                "version": wire.VERSION,
                "split": NAMES[self._split.code],
                "slots": layout.slots,
                "slot_bytes": layout.slot_bytes,
                "slot_records": layout.records,
                "fields": [
                    _described(field, area) for field, area in zip(layout.fields, layout.areas, strict=True)
                ],
            },
            separators=(",", ":"),
        ).encode()
        if len(text) > wire.MAX_DESCRIPTOR:
            raise Refused("node.dataset_invalid", "the fields don't fit one message; join some into arrays")
        return text


def _described(field: Field, area: Area) -> dict[str, Any]:
    about = {"name": field.name, "dtype": field.dtype, "shape": field.shape, "label": field.label}
    where: dict[str, Any] = {"ragged": field.ragged, "offset": area.offset}
    return about | where | ({"index": area.index, "values": area.values} if field.ragged else {})
