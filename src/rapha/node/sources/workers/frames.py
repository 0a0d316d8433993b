"""What a pool and a worker say to each other, over one stream: items one way, answers the other.

    item:   ordinal, length of args, number of paths, number of data; their lengths; args, paths, data
    answer: ordinal, verdict, length of the reply; the reply
mark:   as an answer without a verdict and a reply: the item's first part is done, the second begins

The worker believes the pool. The pool believes nothing: a frame that isn't the answer to the item at the head
of the worker's queue ends the worker.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Item, Limits

MAX_ARGS: Final = 2**20
MAX_PATH: Final = 4096
MAX_STORED: Final = 4096
"""Files or pieces of data in one item; each is a descriptor in the worker."""
MAX_REPLY: Final = 2**20

READY: Final = b"R"
"""The first byte of a worker whose walls hold; `FAILED` and one line stand in its place where they don't."""
FAILED: Final = b"F"

_ITEM: Final = struct.Struct("<IIHH")
_ANSWER: Final = struct.Struct("<IBI")
_SPENT: Final = 0x80
_MARK: Final = 0x40
_KNOWN: Final = frozenset(map(int, Quarantine))


class GarbageError(Exception):
    """The worker said something that no worker says."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A worker's answer, not yet believed to be about any item.

    Attributes:
        spent: the worker ran out of memory; what it does next may fail for that alone.
        mark: this is no answer yet.
        chosen: it is about the item's second part; said by the pool, never by the worker.
    """

    ordinal: int
    verdict: Quarantine
    spent: bool
    reply: bytes
    mark: bool = False
    chosen: bool = False


def fits(item: Item, limits: Limits) -> bool:
    """Whether the item is within what a frame and the limits hold."""
    return (
        len(item.args) <= MAX_ARGS
        and len(item.paths) + len(item.data) <= MAX_STORED
        and all(len(data) <= limits.file_bytes for data in item.data)
        and sum(map(len, item.data)) <= limits.memory_bytes // 2
        and all(map(_is_path, item.paths))
    )


def _is_path(path: str) -> bool:
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return False
    return 0 < len(encoded) < MAX_PATH and b"\0" not in encoded


def encode_item(ordinal: int, item: Item) -> bytes:
    """The item as bytes. Precondition: it fits."""
    parts = (*(os.fsencode(path) for path in item.paths), *item.data)
    head = _ITEM.pack(ordinal & 0xFFFFFFFF, len(item.args), len(item.paths), len(item.data))
    return b"".join((head, struct.pack(f"<{len(parts)}Q", *map(len, parts)), item.args, *parts))


def read_items(stream: BinaryIO) -> Iterator[tuple[int, Item]]:
    """Items until the pool closes; used by the worker."""
    while len(head := stream.read(_ITEM.size)) == _ITEM.size:
        ordinal, args, paths, data = _ITEM.unpack(head)
        lengths = struct.unpack(f"<{paths + data}Q", stream.read(8 * (paths + data)))
        said = stream.read(args)
        parts = [stream.read(length) for length in lengths]
        yield ordinal, Item(said, tuple(map(os.fsdecode, parts[:paths])), tuple(parts[paths:]))


def encode_answer(ordinal: int, verdict: Quarantine, reply: bytes, *, spent: bool = False) -> bytes:
    """The answer as bytes; used by the worker."""
    return _ANSWER.pack(ordinal, int(verdict) | (_SPENT if spent else 0), len(reply)) + reply


def encode_mark(ordinal: int) -> bytes:
    """The mark as bytes; used by the worker."""
    return _ANSWER.pack(ordinal, _MARK, 0)


def take_answer(received: bytearray) -> Frame | None:
    """Remove the first whole answer or mark from `received`; None where there is none yet.

    Raises:
        GarbageError: no answer begins like that.
    """
    if len(received) < _ANSWER.size:
        return None
    ordinal, verdict, length = _ANSWER.unpack_from(received)
    if verdict == _MARK and not length:
        del received[: _ANSWER.size]
        return Frame(ordinal, Quarantine.NONE, spent=False, reply=b"", mark=True)
    known, spent = verdict & ~_SPENT, bool(verdict & _SPENT)
    if length > MAX_REPLY or known not in _KNOWN or (known and length):
        raise GarbageError
    end = _ANSWER.size + length
    if len(received) < end:
        return None
    reply = bytes(received[_ANSWER.size : end])
    del received[:end]
    return Frame(ordinal, Quarantine(known), spent, reply)
