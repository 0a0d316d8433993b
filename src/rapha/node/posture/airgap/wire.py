"""One request, one answer, each a line of JSON; a descriptor may come with the request.

A connection carries one of each and is closed, so that a slow or silent peer costs one deadline.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Final

from rapha.evidence import canonical
from rapha.node.posture.airgap.model import Ask, Lift, Request, Restore, Sever, State
from rapha.spec.refusals import REGISTRY, Refused

MAX_LINE: Final = 64 << 10
_DESCRIPTORS: Final = 4
_REQUESTS: Final[dict[str, type[Request]]] = {"sever": Sever, "lift": Lift, "state": Ask, "restore": Restore}


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a unix socket, as the kernel says."""

    pid: int
    uid: int


def peer(connection: socket.socket) -> Peer:
    """SO_PEERCRED of a connected unix socket."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return Peer(pid, uid)


def send(connection: socket.socket, value: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one line.

    Raises:
        OSError: if the peer is gone or too slow.
    """
    data = canonical.dumps(value) + b"\n"
    ancillary = []
    if descriptor is not None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]).tobytes())]
    rest = data[connection.sendmsg([data], ancillary) :]
    if rest:  # sending nothing fails once the peer has read all and left
        connection.sendall(rest)


def receive(connection: socket.socket, deadline_s: float) -> tuple[Any, list[int]]:
    """One line and the descriptors that came with it, which are the caller's to close.

    Raises:
        Refused: `schema.json` or `schema.too_large`; nothing is left open then.
        OSError: TimeoutError if the whole line is not there in time.
    """
    descriptors: list[int] = []
    try:
        line = _line(connection, time.monotonic() + deadline_s, descriptors)
        return canonical.loads_canonical(line, limit=MAX_LINE), descriptors
    except (Refused, OSError):
        shut(descriptors)
        raise


def shut(descriptors: list[int]) -> None:
    """Close them all."""
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()


def request(value: Any) -> Request:
    """Read a request strictly.

    Raises:
        Refused: `schema.*`.
    """
    name = value.get("op") if isinstance(value, dict) else None
    model = _REQUESTS.get(name) if isinstance(name, str) else None
    if model is None:
        raise Refused("schema.field_invalid", "op: no such request")
    return model.parse(value)


def answer(state: State) -> dict[str, Any]:
    """A yes."""
    return {"ok": True, "state": state.dump()}


def refusal(refused: Refused) -> dict[str, Any]:
    """A no."""
    return {"ok": False, "code": refused.code, "detail": refused.detail[:2048]}


def state(value: Any) -> State:
    """Read an answer strictly.

    Raises:
        Refused: what the helper refused with, or `posture.seal_failed` for what is no answer.
    """
    match value:
        case {"ok": True, "state": told, **rest} if not rest:
            return State.parse(told, "state")
        case {"ok": False, "code": str(code), "detail": str(detail), **rest} if not rest and code in REGISTRY:
            raise Refused(code, detail)
    raise Refused("posture.seal_failed", "the air-gap helper's answer can't be read")


def _line(connection: socket.socket, deadline: float, descriptors: list[int]) -> bytes:
    data = b""
    room = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the line did not end in time")
        connection.settimeout(left)
        part, ancillary, flags, _ = connection.recvmsg(MAX_LINE + 1 - len(data), room)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                descriptors += found
        if flags & socket.MSG_CTRUNC:
            raise Refused("schema.too_large", "too many descriptors")
        if not part:
            raise Refused("schema.json", "the line does not end")
        data += part
        if len(data) > MAX_LINE or b"\n" in data[:-1]:
            raise Refused("schema.too_large", f"more than one line, or one of more than {MAX_LINE} bytes")
    return data[:-1]
