"""The job's end of the broker's protocol: one request, one reply, over the socket that the node left open.

    request = version u8, op u8, split u8, flags u8, tag u32, a u64, b u64, c u64, d u64     (40 bytes, LE)
      HELLO    -                                        reply HELLO, then JSON; carries the ring's descriptor
      EPOCH    a batch size, b seed, c epoch, d start   reply STARTED (a its end, b records in the split)
      NEXT     a records, b slot given back             reply BATCH (a slot, b records) or END
      INDICES  a batch size, b slot given back, c count; then count × u32        reply BATCH or END
      COUNT    -                                        reply STARTED (b records in the split)

A reply is laid out alike, with a kind for the op and a code for the flags. Fields of varying length lie in
a slot as offsets and values; then a reply may hold fewer records than were asked for, and no more of them
were counted.

A slot is memory that only the broker writes. It is not written again until it is given back, so requests
for the next slots are sent ahead while the job works on this one.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from rapha_trainer.batch import copied
from rapha_trainer.slots import cut, joined, views
from rapha_trainer.source import Arrays, Epoch, Field, length

VERSION: Final = 2
STRUCT: Final = struct.Struct("<BBBBIQQQQ")
HELLO, EPOCH, NEXT, INDICES, COUNT = 1, 2, 3, 4, 5
STARTED, BATCH, END, FAULT = 2, 3, 4, 5
END_CAP, END_LIMIT = 2, 3
SHUFFLE, DROP_LAST = 1, 2
NO_SLOT: Final = 2**64 - 1
MAX_INDICES: Final = 16384
SPLITS: Final = ("train", "test")
FAULTS: Final = ("", "LENGTH", "VERSION", "OP", "UNUSED", "SPLIT", "ORDER", "RANGE", "SLOT", "STATE")
_MAX_REPLY: Final = STRUCT.size + 128 * 1024


@dataclass(slots=True)
class _Reading:
    """An epoch under way. Positions are of records in its order.

    Attributes:
        block: most records in one request.
        end: where it ends.
        alone: one request at a time, since what comes of it may be less than was asked for.
        slots: to give back with the next requests.
        wanted: records of each request under way.
        asked: up to where records were asked for.
        received: up to where they came.
    """

    epoch: Epoch
    tag: int
    block: int
    end: int
    alone: bool
    slots: deque[int]
    wanted: deque[int]
    asked: int
    received: int


_connected: dict[int, BrokerSource] = {}


def connect(fd: int, split: str) -> BrokerSource:
    """The session on descriptor `fd`; a process has one, which all loaders share.

    Raises:
        RuntimeError: the node serves another split in this run.
        ConnectionError: the node has closed the session.
    """
    source = _connected.get(fd)
    if source is None or source.pid != os.getpid():
        source = _connected[fd] = BrokerSource(fd, split)
    if source.split != split:
        raise RuntimeError(f"this run has split={source.split!r}; the other split has a run of its own")
    return source


class BrokerSource:
    """Records as the node's broker serves them; every record that is asked for is counted."""

    def __init__(self, fd: int, split: str) -> None:
        self.pid, self.split, self.capped = os.getpid(), split, False
        self._read = 0
        self._socket = socket.socket(fileno=os.dup(fd))
        # Distinct from the tags of a program that held this socket before.
        self._tag = int.from_bytes(os.urandom(3), "little") << 8
        try:
            described, memory = self._hello()
        except BaseException:
            self._socket.close()
            raise
        self.fields = tuple(
            Field(f["name"], f["dtype"], tuple(f["shape"]), f["label"], f["ragged"])
            for f in described["fields"]
        )
        self._records: int | None = None
        self._slot_records: int = described["slot_records"]
        self._slots: list[Arrays] = [views(described, memory, slot) for slot in range(described["slots"])]

    def close(self) -> None:
        """Leave the session, for a program that goes on without it. Idempotent."""
        self._socket.close()
        for fd in [fd for fd, source in _connected.items() if source is self]:
            del _connected[fd]

    @property
    def records(self) -> int:
        """How many records the split has. From the first look on, the node explains no crash any more."""
        if self._records is None:
            self._tag = (self._tag + 1) % 2**32
            self._send(COUNT, self._tag)
            _, _, _, self._records = self._reply(self._tag)
        return self._records

    def epoch_records(self, epoch: Epoch) -> int:
        """How many records `epoch` has."""
        return length(self.records, epoch)

    def batches(self, epoch: Epoch) -> Iterator[Arrays]:
        """As `Source.batches`. A batch within one slot is a view of it; any other is put together."""
        size = epoch.batch_size
        pieces: list[Arrays] = []
        missing = size
        for slot, count in self._blocks(self._begin(epoch)):
            arrays, taken = self._slots[slot], 0
            while taken < count:
                part = min(missing, count - taken)
                piece = {name: cut(column, taken, taken + part) for name, column in arrays.items()}
                taken, missing = taken + part, missing - part
                if not missing:
                    yield joined([*pieces, piece])
                    pieces, missing = [], size
                else:
                    # The slot is given back before the rest of the batch is there.
                    pieces.append(copied(piece))
        if pieces:
            yield joined(pieces)

    def _begin(self, epoch: Epoch) -> _Reading:
        self._tag = (self._tag + 1) % 2**32
        explicit = epoch.indices is not None
        block = min(self._slot_records, MAX_INDICES) if explicit else self._slot_records
        if epoch.batch_size <= block:
            block -= block % epoch.batch_size
        # Explicit indices need no epoch, but starting one frees all slots.
        flags = 0 if explicit else SHUFFLE * epoch.shuffle | DROP_LAST * epoch.drop_last
        start = 0 if explicit else epoch.start
        self._send(EPOCH, self._tag, epoch.batch_size, epoch.seed, epoch.number, start, flags=flags)
        kind, _, end, self._records = self._reply(self._tag)
        if kind != STARTED:
            raise RuntimeError(f"the node answered with a message of kind {kind}")
        return _Reading(
            epoch=epoch,
            tag=self._tag,
            block=block,
            end=self.epoch_records(epoch) if explicit else end,
            alone=explicit and any(field.ragged for field in self.fields),
            slots=deque([NO_SLOT] * len(self._slots)),
            wanted=deque(),
            asked=epoch.start,
            received=epoch.start,
        )

    def _blocks(self, reading: _Reading) -> Iterator[tuple[int, int]]:
        """Slots in order, with how many records each holds, while the next ones are under way.

        What comes is counted, so no more is asked ahead than was read before: a script that looks at one
        batch and stops pays for two.
        """
        while reading.received < reading.end:
            self._ask(reading, max(self._ahead(reading.epoch), reading.epoch.batch_size))
            self._check(reading.tag)
            kind, code, slot, count = self._reply(reading.tag)
            wanted = reading.wanted.popleft()
            if kind == BATCH:
                reading.asked -= wanted - count
                reading.received += count
                self._read += count
                self._ask(reading, self._ahead(reading.epoch))
                yield slot, count
                self._check(reading.tag)
                reading.slots.append(slot)
            self.capped |= code == END_CAP
            if kind == END and code == END_LIMIT:
                raise RuntimeError("the node answers no more requests of this job; take larger batches")
            if kind != BATCH or code:
                return

    def _ahead(self, epoch: Epoch) -> int:
        """How many records to ask for beyond those received."""
        return self._read if epoch.prefetch is None else min(self._read, epoch.prefetch * epoch.batch_size)

    def _ask(self, reading: _Reading, ahead: int) -> None:
        """Ask for blocks, up to the last whole batch within `ahead` records, while there are slots."""
        start, size = reading.epoch.start, reading.epoch.batch_size
        goal = min(start + (reading.received + ahead - start) // size * size, reading.end)
        while reading.slots and reading.asked < goal and not (reading.alone and reading.wanted):
            want = min(reading.block, goal - reading.asked)
            self._request(reading, reading.slots.popleft(), want)
            reading.wanted.append(want)
            reading.asked += want

    def _request(self, reading: _Reading, slot: int, count: int) -> None:
        indices, size = reading.epoch.indices, reading.epoch.batch_size
        if indices is None:
            self._send(NEXT, reading.tag, count, slot)
            return
        chosen = indices[reading.asked : reading.asked + count].astype("<u4").tobytes()
        self._send(INDICES, reading.tag, size, slot, count, tail=chosen)

    def _check(self, tag: int) -> None:
        if tag != self._tag:
            raise RuntimeError("another iteration has begun; one loader at a time reads from the node")
        if self.pid != os.getpid():
            raise RuntimeError("this loader belongs to another process; use num_workers=0")

    def _send(
        self, op: int, tag: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, *, flags: int = 0,
        tail: bytes = b"",
    ) -> None:  # fmt: skip
        try:
            message = STRUCT.pack(VERSION, op, SPLITS.index(self.split), flags, tag, a, b, c, d)
            self._socket.send(message + tail)
        except BrokenPipeError:
            raise ConnectionError("the node has closed the session") from None

    def _reply(self, tag: int) -> tuple[int, int, int, int]:
        """Kind, code, a and b of the next reply to `tag`; what is left of earlier epochs is passed over."""
        while True:
            kind, code, echoed, a, b = _unpack(self._socket.recv(_MAX_REPLY))
            if echoed != tag:
                continue
            if kind == FAULT:
                raise RuntimeError(f"the node refused the request: {FAULTS[code]}")
            return kind, code, a, b

    def _hello(self) -> tuple[dict[str, Any], mmap.mmap]:
        self._send(HELLO, self._tag)
        while True:
            message, fds, _, _ = socket.recv_fds(self._socket, _MAX_REPLY, 1)
            kind, code, echoed, _, _ = _unpack(message)
            if echoed == self._tag:
                break
            for fd in fds:
                os.close(fd)
        if kind == FAULT and FAULTS[code] == "SPLIT":
            raise RuntimeError(f"this run does not serve split={self.split!r}")
        if kind != HELLO or not fds:
            raise RuntimeError("the node did not answer as a broker does; are the versions the same?")
        described = json.loads(message[STRUCT.size :])
        memory = mmap.mmap(fds[0], described["slots"] * described["slot_bytes"], prot=mmap.PROT_READ)
        os.close(fds[0])
        return described, memory


def _unpack(message: bytes) -> tuple[int, int, int, int, int]:
    if len(message) < STRUCT.size:
        raise ConnectionError("the node has closed the session")
    _, kind, code, _, tag, a, b, _, _ = STRUCT.unpack_from(message)
    return kind, code, tag, a, b
