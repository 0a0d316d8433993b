"""A synchronous netlink socket: requests that are acknowledged, dumps that are whole, transactions.

Formats: RFC 3549, linux/netlink.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

ROUTE: Final = socket.NETLINK_ROUTE
NETFILTER: Final = 12

F_REQUEST: Final = 0x001
F_MULTI: Final = 0x002
F_ACK: Final = 0x004
F_DUMP_INTR: Final = 0x010
F_DUMP: Final = 0x300
F_EXCL: Final = 0x200
F_CREATE: Final = 0x400
F_APPEND: Final = 0x800

_ERROR: Final = 2
_DONE: Final = 3
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_RECEIVE: Final = 1 << 20
_DEADLINE_S: Final = 10.0
_TRIES: Final = 20


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message without its length, sequence and port."""

    type: int
    body: bytes
    flags: int = 0


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def pairs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Attributes in order, flags of the type cleared.

    Raises:
        ValueError: for a length that leaves the data.
    """
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not 4 <= length <= len(data) - offset:
            raise ValueError("a netlink attribute leaves its message")
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; of a repeated one the last."""
    return dict(pairs(data))


class Netlink:
    """One socket. Use a fresh one a task: an answer that nobody waited for can then confuse no later one."""

    def __init__(self, protocol: int, groups: int = 0) -> None:
        """Open, and subscribe to the groups (a bit mask).

        Raises:
            OSError: if the kernel has no such protocol.
        """
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        try:
            self._socket.bind((0, groups))
            self._socket.settimeout(_DEADLINE_S)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def ask(self, message: Message) -> None:
        """Send one request and wait for the kernel's yes.

        Raises:
            OSError: with the kernel's errno.
        """
        self._send([message], F_ACK)
        self._await(self._sequence)

    def transact(self, messages: Sequence[Message], subsystem: int) -> None:
        """Send one nfnetlink batch: all of it holds, or none.

        Raises:
            OSError: with the errno of the first message that the kernel refused.
        """
        edge = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(subsystem))
        # Only what is between the edges is acknowledged by every kernel; nobody waits for the edges.
        inner = [Message(m.type, m.body, m.flags | F_ACK) for m in messages]
        self._send([Message(_BATCH_BEGIN, edge), *inner, Message(_BATCH_END, edge)])
        self._await(self._sequence - 1)

    def dump(self, message: Message) -> list[Message]:
        """Every object of one kind, as one consistent reading.

        Raises:
            OSError: with the kernel's errno; EBUSY if the objects never stood still.
        """
        for _ in range(_TRIES):
            self._sequence += 1
            flags = F_REQUEST | F_DUMP
            self._socket.sendto(_pack(message.type, flags, self._sequence, message.body), (0, 0))
            found, whole = self._collect(self._sequence)
            if whole:
                return found
        raise OSError(errno.EBUSY, "the kernel's tables changed during every reading")

    def events(self) -> list[Message]:
        """What was sent to the groups since the last call; does not wait.

        Raises:
            OSError: ENOBUFS where events were lost.
        """
        found: list[Message] = []
        self._socket.settimeout(0)
        while True:
            try:
                data, sender = self._socket.recvfrom(_RECEIVE)
            except BlockingIOError:
                return found
            if sender[0] == 0:
                found += [message for message, _ in _unpack(data)]

    def _send(self, messages: Sequence[Message], flags: int = 0) -> None:
        data = b""
        for message in messages:
            self._sequence += 1
            data += _pack(message.type, message.flags | F_REQUEST | flags, self._sequence, message.body)
        self._socket.sendto(data, (0, 0))

    def _await(self, last: int) -> None:
        while True:
            for message, sequence in self._receive():
                if message.type != _ERROR:
                    continue
                _raise(message.body)
                if sequence == last:
                    return

    def _collect(self, sequence: int) -> tuple[list[Message], bool]:
        found: list[Message] = []
        whole = True
        while True:
            for message, number in self._receive():
                if number != sequence:
                    continue
                whole = whole and not message.flags & F_DUMP_INTR
                if message.type in {_ERROR, _DONE}:
                    _raise(message.body)
                    return found, whole
                found.append(message)

    def _receive(self) -> Iterator[tuple[Message, int]]:
        data, sender = self._socket.recvfrom(_RECEIVE)
        # Any process may send to this port; only port 0 is the kernel.
        return iter(_unpack(data) if sender[0] == 0 else [])


def _raise(body: bytes) -> None:
    # NLMSG_DONE carries an errno too, when a dump failed on its way.
    code = struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if code < 0:
        raise OSError(-code, os.strerror(-code))


def _pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    padded = body + bytes(-len(body) % 4)
    return _HEADER.pack(_HEADER.size + len(padded), kind, flags, sequence, 0) + padded


def _unpack(data: bytes) -> list[tuple[Message, int]]:
    found = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            raise ValueError("a netlink message leaves its datagram")
        found.append((Message(kind, data[offset + _HEADER.size : offset + length], flags), sequence))
        offset += (length + 3) & ~3
    return found
