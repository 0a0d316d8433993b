"""A host's addresses, within a deadline: getaddrinfo knows none, and a resolver may be slow or hostile."""

from __future__ import annotations

import socket
import threading
import time
from queue import Empty, SimpleQueue
from typing import Final

MAX_ADDRESSES: Final = 8
"""Of one name that are tried."""
_MAX_ASKING: Final = 8
"""Threads that may be waiting for the resolver: each ends when that gives up, and not before."""
_ASKING: Final = threading.BoundedSemaphore(_MAX_ASKING)


def addresses(host: str, port: int, seconds: float) -> tuple[str, ...]:
    """The numeric addresses of `host`, in the order in which to try them.

    Raises:
        TimeoutError: not within `seconds`.
        OSError: there are none.
    """
    end = time.monotonic() + seconds
    if not _ASKING.acquire(timeout=seconds):
        raise TimeoutError
    answer: SimpleQueue[list[str] | None] = SimpleQueue()
    # A daemon: no end of the process waits for a resolver.
    threading.Thread(target=_ask, args=(host, port, answer), name="resolve", daemon=True).start()
    try:
        found = answer.get(timeout=max(0.0, end - time.monotonic()))
    except Empty:
        raise TimeoutError from None
    if not found:
        raise OSError("no address")
    return tuple(dict.fromkeys(found))[:MAX_ADDRESSES]


def _ask(host: str, port: int, answer: SimpleQueue[list[str] | None]) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        answer.put([str(address[0]) for *_, address in found])
    except (OSError, UnicodeError):  # UnicodeError: what can't be written as a name, such as "a..b"
        answer.put(None)
    finally:
        _ASKING.release()
