"""Wakes long polls when something they wait for may have happened.

Only a hint: every waiter reads the store again, and would find out within `RECHECK_S` without it.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

T = TypeVar("T")

RECHECK_S: Final = 1.0
MAX_WAIT_S: Final = 25.0
ROUTED: Final = "routed"
"""Topic of jobs that wait for a node; a job's own topic is its id."""


class Notifier:
    """Topics and who waits for them, on the server's event loop."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def start(self) -> None:
        """Belong to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def publish(self, topics: Iterable[str]) -> None:
        """Wake the waiters of `topics`; from any thread, after the change has committed."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake, tuple(topics))

    def close(self) -> None:
        """Let every waiter answer now, so that the server can stop."""
        self._closed = True
        self.publish(tuple(self._waiting))

    async def wait(self, topic: str, seconds: float, query: Callable[[], Awaitable[T | None]]) -> T | None:
        """Repeat `query` until it gives something, or `seconds` (at most `MAX_WAIT_S`) have passed."""
        deadline = time.monotonic() + min(seconds, MAX_WAIT_S)
        event = asyncio.Event()
        self._waiting[topic].add(event)
        try:
            while True:
                event.clear()
                found = await query()
                left = deadline - time.monotonic()
                if found is not None or left <= 0 or self._closed:
                    return found
                try:
                    await asyncio.wait_for(event.wait(), min(left, RECHECK_S))
                except TimeoutError:
                    continue
        finally:
            self._waiting[topic].discard(event)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def _wake(self, topics: tuple[str, ...]) -> None:
        for topic in topics:
            for event in self._waiting.get(topic, ()):
                event.set()
