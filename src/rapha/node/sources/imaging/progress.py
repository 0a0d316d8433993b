"""Progress, told a few times a second however often something is done."""

from __future__ import annotations

import time
from typing import Final

from rapha.node.sources.interface import Told

_EVERY_S: Final = 0.25


class Progress:
    """Counts what is done of `total` (0: not known), under the name `what`."""

    def __init__(self, tell: Told, what: str, total: int) -> None:
        self._tell = tell
        self._what = what
        self._total = total
        self._done = 0
        self._next = time.monotonic() + _EVERY_S

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if (now := time.monotonic()) >= self._next:
            self._next = now + _EVERY_S
            self._tell(self._what, self._done, self._total)

    def end(self) -> None:
        """Tell the last count."""
        self._tell(self._what, self._done, self._total or self._done)
