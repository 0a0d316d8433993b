"""The time that a pool reckons deadlines in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds of the pool's own time: a caller that is slow takes nothing from a worker's deadline."""

    def __init__(self) -> None:
        self._lost = 0.0

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() - self._lost

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Time in here does not pass."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._lost += time.monotonic() - began
