"""A job's Landlock domain, and the proof that it holds: each part denies what worked a moment before.

One domain with all parts, made inside, after the last mount: a domain that handles paths forbids mounting. A
second one around bubblewrap, of TCP and scopes alone, would cost the job every rename from one directory to
another, which Landlock denies to each layer that does not handle it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Final

from rapha.runtime.sandbox.launcher import landlock

_WRITABLE: Final = ("/tmp", "/dev/shm", "/rapha/out")  # noqa: S108  inside
_RULES: Final = (
    ("/", landlock.READ),
    *((folder, landlock.WRITE) for folder in _WRITABLE),
    ("/dev/null", landlock.READ_FILE | landlock.WRITE_FILE | landlock.TRUNCATE),
)
_PROBE: Final = "/dev/full"
"""A device that anyone may write to, and that no rule lets anyone write to."""
_LOOPBACK: Final = ("127.0.0.1", 0)
_INIT: Final = 1
"""bubblewrap's own process inside: of our uid, and outside the domain."""


class UnprovenError(Exception):
    """The self-test did not show what it must; the command is not started."""


def enter(version: int, tcp: int) -> tuple[str, ...]:
    """Restrict this process to what a job may do, and see it hold.

    Args:
        version: the kernel's ABI, at least 1.
        tcp: an unbound TCP socket, -1 where this kernel has none; no filter of calls lets one be made here.

    Returns:
        The names of the parts, in the order of `landlock.Rights`.

    Raises:
        UnprovenError: a part does not hold, or the attempt that would show it failed before.
        OSError: the kernel refuses the domain.
    """
    handled = landlock.rights(version)
    with socket.socket(socket.AF_UNIX) as outside:
        outside.bind("")  # an abstract name of the kernel's choice
        outside.listen(2)
        attempts = _attempts(outside, tcp)
        for name in handled.names:
            for attempt, _ in attempts[name]:
                _control(name, attempt)
        landlock.restrict(version, handled, _RULES)
        for name in handled.names:
            for attempt, number in attempts[name]:
                _proof(name, attempt, number)
    return handled.names


_Attempt = tuple[Callable[[], None], int]


def _attempts(outside: socket.socket, tcp: int) -> dict[str, list[_Attempt]]:
    """What must work without the domain, and with which error it must fail under it."""
    scopes: list[_Attempt] = [
        (lambda: os.kill(_INIT, 0), errno.EPERM),
        (lambda: _connect(outside.getsockname()), errno.EPERM),
    ]
    return {
        "paths": [(_open, errno.EACCES)],
        "tcp": [(lambda: _bind(tcp), errno.EACCES)] if tcp >= 0 else [],
        "scopes": scopes,
    }


def _open() -> None:
    os.close(os.open(_PROBE, os.O_WRONLY | os.O_CLOEXEC))


def _bind(tcp: int) -> None:
    # Port 0 needs no privilege, so only a security module says EACCES.
    with socket.socket(fileno=os.dup(tcp)) as ours:
        ours.bind(_LOOPBACK)


def _connect(name: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as ours:
        ours.setblocking(False)
        ours.connect(name)


def _control(name: str, attempt: Callable[[], None]) -> None:
    if name == "tcp":
        return  # it would bind a port of the host's
    try:
        attempt()
    except OSError as error:
        raise UnprovenError(f"landlock: {name} is denied already: {error.strerror}") from None


def _proof(name: str, attempt: Callable[[], None], number: int) -> None:
    try:
        attempt()
    except OSError as error:
        if error.errno == number:
            return
        raise UnprovenError(f"landlock: {name}: {error.strerror}") from None
    raise UnprovenError(f"landlock: {name} is not denied")
