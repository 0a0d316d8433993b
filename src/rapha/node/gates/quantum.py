"""Evened-out time: the coordinator sees when a job goes on, and some steps take longer for more records."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rapha.node.node import Node


@contextmanager
def whole_quanta(node: Node) -> Iterator[None]:
    """However it ends, it takes a whole number of quanta: which of several rules refused shows in no time."""
    quantum, begun = node.config.quantum_s, time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - begun
        node.stop.wait(math.ceil(seconds / quantum) * quantum - seconds)
