"""Can this host still reach the coordinator? Tried, not concluded from the rules that should stop it."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Verdict = Literal["unreachable", "reachable", "unknown"]

_DEADLINE_S: Final = 1.5
_RESOLVE_S: Final = 5.0
_NO_FAMILY: Final = {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}
_NOT_TRIED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
"""What this host lacks says nothing about the network."""
_ANSWERED: Final = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPROTO}
"""A host that refuses is a host that was reached."""


@dataclass(frozen=True, slots=True)
class Target:
    """One address of the coordinator, as `socket` takes it."""

    family: socket.AddressFamily
    address: tuple[str, int]


def resolve(host: str, port: int) -> tuple[Target, ...]:
    """Every address of a host; empty if the name can't be resolved in time.

    Called before the WAN is severed: afterwards a resolver beyond it does not answer.
    """
    found: list[Target] = []

    def ask() -> None:
        try:
            told = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found.extend(Target(family, (str(at[0]), port)) for family, _, _, _, at in told)

    # A resolver waits as long as it likes; a thread of its own can be left behind.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_RESOLVE_S)
    return tuple(dict.fromkeys(found))


def probe(host: str, port: int, known: Sequence[Target] = ()) -> Verdict:
    """Try TCP and UDP to every address of the host.

    Args:
        host, port: of the coordinator.
        known: what `resolve` found while the name could still be resolved.

    Returns:
        `unreachable` if the network refused or nobody answered at any address; `unknown` if no address is
        known or a try could not be made.
    """
    targets = dict.fromkeys([*known, *resolve(host, port)])
    if not targets:
        return "unknown"
    tries: list[socket.socket] = []
    try:
        for target in targets:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                if _start(target, kind, tries):
                    return "reachable"
        return "reachable" if _answered(tries) else "unreachable"
    except OSError:  # a socket that could not be made reached nobody, which proves nothing
        return "unknown"
    finally:
        for one in tries:
            one.close()


def _start(target: Target, kind: socket.SocketKind, tries: list[socket.socket]) -> bool:
    """Begin one try, kept in `tries` while it is open; True if it was answered at once.

    Raises:
        OSError: if this host could not make it.
    """
    try:
        one = socket.socket(target.family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as refused:
        if refused.errno in _NO_FAMILY:
            return False
        raise
    tries.append(one)
    error = one.connect_ex(target.address)
    if error in _NOT_TRIED:
        raise OSError(error, os.strerror(error))
    if kind == socket.SOCK_DGRAM and error == 0:
        try:
            one.send(b"\0")
        except OSError as refused:
            error = refused.errno or 0
            return error in _ANSWERED
        return False
    if error not in {0, errno.EINPROGRESS}:
        tries.remove(one)
        one.close()
    return error == 0 or error in _ANSWERED


def _answered(tries: list[socket.socket]) -> bool:
    deadline = time.monotonic() + _DEADLINE_S
    waiting = select.poll()
    for one in tries:
        # A stream is writable once connected; a datagram socket always is, so only an answer counts.
        waiting.register(one, select.POLLOUT if one.type & socket.SOCK_STREAM else select.POLLIN)
    by_number = {one.fileno(): one for one in tries}
    while by_number and (left := deadline - time.monotonic()) > 0:
        for number, events in waiting.poll(left * 1000):
            error = by_number.pop(number).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            waiting.unregister(number)
            if error in _ANSWERED or (error == 0 and events & (select.POLLOUT | select.POLLIN)):
                return True
    return False
