"""What a pool of workers is given and gives back.

A worker runs one task from a closed table, sees one item at a time, and may crash, hang or be taken over by
what it parses: then that item is lost with a reason, and no other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

from rapha.node.sources.interface import Quarantine


class Task(StrEnum):
    """Modules that a worker may run; each has `make(setup: bytes) -> Work`."""

    INDEX = "rapha.node.sources.imaging.headers"
    DECODE = "rapha.node.sources.imaging.decode"


Work = Callable[[bytes, Sequence[BinaryIO], memoryview], bytes]
"""`work(args, stored, out) -> reply`: reads what is stored, may write into `out`. Raises `Unusable`."""


class InParts(ABC):
    """A `Work` of two parts: what is stored, in which no job has a say, and what the job chose to do with it.

    Whether a record falls out must not hang on the job: it could choose steps at which only the largest do,
    and compare cohorts with and without. So the first part loses its item; what goes wrong in the second is
    no verdict on the item but the end of the run.
    """

    @abstractmethod
    def begin(self, args: bytes, stored: Sequence[BinaryIO], out: memoryview) -> Callable[[], bytes]:
        """The first part; what it returns is the second, with the reply. Raises `Unusable`."""

    def __call__(self, args: bytes, stored: Sequence[BinaryIO], out: memoryview) -> bytes:
        """Both parts."""
        return self.begin(args, stored, out)()


class Unusable(Exception):  # noqa: N818  a verdict on a record, not a defect
    """This item can't be used, and why. It carries no other word."""

    def __init__(self, quarantine: Quarantine) -> None:
        super().__init__(quarantine.reason)
        self.quarantine = quarantine


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of work: files below the pool's folder (no link followed), or stored bytes, or neither.

    Attributes:
        args: the task's own encoding of what to do.
        paths: relative to the pool's folder.
        data: the stored bytes themselves, in place of `paths`.
    """

    args: bytes
    paths: tuple[str, ...] = ()
    data: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of the item with that number (from 0, in the order of the items).

    Attributes:
        quarantine: NONE, or why there is no reply; then `reply` is empty.
        output: what the task wrote for it, `output_bytes` long; valid until the next answer is asked for.
    """

    ordinal: int
    quarantine: Quarantine
    reply: bytes
    output: memoryview


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one worker: seconds an item may take, bytes of memory, bytes of one stored file.

    Attributes:
        chosen_s: seconds for an item's second part, apart from `item_s`.
    """

    item_s: float = 30.0
    chosen_s: float = 120.0
    memory_bytes: int = 2 * 2**30
    file_bytes: int = 2**31
