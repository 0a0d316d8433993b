"""A name server of one name, for controls that must not ask anybody else's."""

from __future__ import annotations

import socket
import struct
from typing import Final

NAME: Final = "probe.rapha.invalid"
ADDRESS: Final = "192.0.2.77"
"""What our server, and nobody else's, answers (RFC 5737)."""
_QUESTION_AT: Final = 12


def question() -> bytes:
    """A query for NAME's IPv4 address (RFC 1035, section 4)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in NAME.split("."))
    return struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def answer(query: bytes) -> bytes:
    """ADDRESS, whatever is asked; empty for what is no query."""
    end = query.find(b"\0", _QUESTION_AT) + 5
    if end <= _QUESTION_AT + 5 or len(query) < end:
        return b""
    head = query[:2] + struct.pack(">5H", 0x8180, 1, 1, 0, 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(ADDRESS)
    return head + query[_QUESTION_AT:end] + record
