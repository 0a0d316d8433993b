"""How requests, replies and events cross the socket between the pipeline and the dataset process.

frame = length u32 big-endian, canonical JSON (RFC 8785); a descriptor may ride on the length
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from typing import Any, Final

from rapha.evidence.canonical import dumps, loads_canonical
from rapha.spec.refusals import Refused

MAX_FRAME: Final = 32 * 2**20
_LENGTH: Final = 4
_RIGHTS_SPACE: Final = socket.CMSG_SPACE(4 * array.array("i").itemsize)


class Closed(Exception):  # noqa: N818  the peer's end, not a defect
    """The other end is gone."""


def send(sock: socket.socket, frame: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one frame, and a duplicate of `descriptor` with it.

    Raises:
        Closed: the peer is gone.
        Refused: `schema.too_large`.
    """
    data = dumps(frame)
    if len(data) > MAX_FRAME:
        raise Refused("schema.too_large", f"a frame of {len(data)} bytes; the limit is {MAX_FRAME}")
    rights = (
        [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    )
    try:
        sent = sock.sendmsg([len(data).to_bytes(_LENGTH)], rights)
        sock.sendall(len(data).to_bytes(_LENGTH)[sent:] + data)
    except (BrokenPipeError, ConnectionResetError):
        raise Closed from None


def receive(sock: socket.socket) -> tuple[dict[str, Any], int | None]:
    """One frame, and the descriptor that came with it, close-on-exec.

    Raises:
        Closed: the peer is gone.
        Refused: `schema.json` or `schema.too_large` for what is no frame.
    """
    descriptors: list[int] = []
    try:
        length = int.from_bytes(_exactly(sock, _LENGTH, descriptors))
        if length > MAX_FRAME:
            raise Refused("schema.too_large", f"a frame of {length} bytes; the limit is {MAX_FRAME}")
        frame = loads_canonical(_exactly(sock, length, descriptors))
        if not isinstance(frame, dict) or len(descriptors) > 1:
            raise Refused("schema.json", "not a frame of the dataset process")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return frame, descriptors[0] if descriptors else None


def _exactly(sock: socket.socket, length: int, descriptors: list[int]) -> bytes:
    parts: list[bytes] = []
    left = length
    while left:
        try:
            part, rights, _, _ = sock.recvmsg(min(left, 2**20), _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            raise Closed from None
        descriptors.extend(_descriptors(rights))
        if not part:
            raise Closed
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _descriptors(rights: list[tuple[int, int, bytes]]) -> Iterator[int]:
    # Not socket.recv_fds: it drops its flags, and a descriptor without close-on-exec reaches every child.
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            yield from numbers
