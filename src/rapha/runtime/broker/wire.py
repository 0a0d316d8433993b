"""The broker's protocol: one request, one reply, in fixed little-endian structs over SOCK_SEQPACKET.

    request = version u8, op u8, split u8, flags u8, tag u32, a u64, b u64, c u64, d u64     (40 bytes)
      HELLO    -                                        reply HELLO, then JSON; carries the ring's descriptor
      EPOCH    a batch size, b seed, c epoch, d start   reply STARTED
      NEXT     a records, b slot given back             reply BATCH or END
      INDICES  a batch size, b slot given back, c count; then count × u32, relative to the split
                                                        reply BATCH or END
      COUNT    -                                        reply STARTED, a 0
    reply   = version u8, kind u8, code u8, 0 u8, tag u32, a u64, b u64, c u64, 0 u64        (40 bytes)
      HELLO    a bytes of the JSON that follows
      STARTED  a position at which the epoch ends, b records in the split
      BATCH    a slot, b records in it, c position of the first in the epoch; code CAP when cut short
      END      code: why
      FAULT    code: what was wrong; nothing changed

An epoch is taken up at position `start` of its order; what lies before is neither handed over nor counted.
HELLO's JSON says where each field lies in a slot, and which are ragged: those have int32 offsets at `index`,
one more than records, into `values` values at `offset`. As many records come as are sure to fit; the
rest of the request is neither handed over nor counted, and can be asked for again.

HELLO tells the schema and no number of records: everything after it depends on records, so from the next
message on a crash of the job is no longer explained. What an op doesn't use must be zero. A tag is the
job's own; replies repeat it. `rapha_trainer` has its own copy of this page, since it stands alone; a test
holds the two together.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

VERSION: Final = 2
STRUCT: Final = struct.Struct("<BBBBIQQQQ")
SHUFFLE: Final = 1
DROP_LAST: Final = 2
NO_SLOT: Final = 2**64 - 1
MAX_INDICES: Final = 16384
"""Explicit indices in one message; it must pass the kernel's default limit on a message."""
MAX_MESSAGE: Final = STRUCT.size + 4 * MAX_INDICES
MAX_DESCRIPTOR: Final = 128 * 1024


class Op(IntEnum):
    """What a request asks for."""

    HELLO = 1
    EPOCH = 2
    NEXT = 3
    INDICES = 4
    COUNT = 5


class Kind(IntEnum):
    """What a reply is."""

    HELLO = 1
    STARTED = 2
    BATCH = 3
    END = 4
    FAULT = 5


class End(IntEnum):
    """Why no batch comes."""

    EPOCH = 1
    CAP = 2
    LIMIT = 3


class FaultCode(IntEnum):
    """What was wrong with a request."""

    LENGTH = 1
    VERSION = 2
    OP = 3
    UNUSED = 4
    SPLIT = 5
    ORDER = 6
    RANGE = 7
    SLOT = 8
    STATE = 9


class Fault(Exception):  # noqa: N818  a verdict on a message, not a defect
    """A request that is refused; it changes nothing."""

    def __init__(self, code: FaultCode) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose form is right; ranges are the session's to judge. `tail` is INDICES' list."""

    op: Op
    split: int
    flags: int
    tag: int
    a: int
    b: int
    c: int
    d: int
    tail: bytes


_USES: Final = {
    # op: flags allowed, then whether a, b, c and d are used
    Op.HELLO: (0, False, False, False, False),
    Op.EPOCH: (SHUFFLE | DROP_LAST, True, True, True, True),
    Op.NEXT: (0, True, True, False, False),
    Op.INDICES: (0, True, True, True, False),
    Op.COUNT: (0, False, False, False, False),
}


def parse(message: bytes) -> Request:
    """Read a request.

    Raises:
        Fault: LENGTH, VERSION, OP or UNUSED.
    """
    if not STRUCT.size <= len(message) <= MAX_MESSAGE:
        raise Fault(FaultCode.LENGTH)
    version, op, split, flags, tag, a, b, c, d = STRUCT.unpack_from(message)
    if version != VERSION:
        raise Fault(FaultCode.VERSION)
    if op not in _USES:
        raise Fault(FaultCode.OP)
    allowed, *used = _USES[op]
    if flags & ~allowed or any(value and not use for value, use in zip((a, b, c, d), used, strict=True)):
        raise Fault(FaultCode.UNUSED)
    if len(message) != STRUCT.size + (4 * c if op == Op.INDICES else 0):
        raise Fault(FaultCode.LENGTH)
    return Request(Op(op), split, flags, tag, a, b, c, d, message[STRUCT.size :])


def tag_of(message: bytes) -> int:
    """The tag of a refused message, as far as it has one."""
    return int(STRUCT.unpack_from(message)[4]) if len(message) >= STRUCT.size else 0


def reply(kind: Kind, tag: int, code: int = 0, a: int = 0, b: int = 0, c: int = 0) -> bytes:
    """A reply; HELLO's JSON goes behind it."""
    return STRUCT.pack(VERSION, kind, code, 0, tag, a, b, c, 0)
