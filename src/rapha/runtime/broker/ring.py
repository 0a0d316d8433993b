"""Shared memory that the broker writes and the job can only read."""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.store import Field
from rapha.spec.refusals import Refused

ALIGNMENT: Final = 64
_PAGE: Final = mmap.PAGESIZE
_F_SEAL_FUTURE_WRITE: Final = 0x10
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _F_SEAL_FUTURE_WRITE
"""Without these the job truncates the memory under the broker, or writes into it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`slots` slots of `slot_bytes`; field i of a slot is contiguous at `offsets[i]`, room for `records`."""

    fields: tuple[Field, ...]
    records: int
    slots: int
    offsets: tuple[int, ...]
    slot_bytes: int

    @classmethod
    def plan(cls, fields: tuple[Field, ...], records: int, slots: int) -> Self:
        """Lay out slots for up to `records` records each, fields on 64-byte boundaries, slots on pages."""
        offsets, end = [], 0
        for field in fields:
            offsets.append(end)
            end = _up(end + records * field.record_bytes, ALIGNMENT)
        return cls(fields, records, slots, tuple(offsets), _up(end, _PAGE))


class Ring:
    """A memfd mapped here for writing, then sealed so that everyone else maps it read-only.

    Raises:
        Refused: `node.internal` when the host has no room or can't seal.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        size = layout.slots * layout.slot_bytes
        try:
            self.fd = os.memfd_create("rapha-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                # Allocated now: running out later would be a SIGBUS in the middle of a write.
                os.posix_fallocate(self.fd, 0, size)
                memory = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
                # A memfd is born writable for everyone, and seals don't cover extended attributes: the job
                # could hang memory of any size on it.
                os.fchmod(self.fd, 0o444)
            except BaseException:
                os.close(self.fd)
                raise
        except OSError as error:
            raise Refused("node.internal", f"the shared memory can't be made: {error.strerror}") from None
        self._views = [self._slot(memory, slot) for slot in range(layout.slots)]

    def view(self, slot: int, field: int, count: int) -> NDArray[Any]:
        """Field number `field` of the first `count` records in `slot`, writable, [count, *shape]."""
        return self._views[slot][field][:count]

    def close(self) -> None:
        """Unmap and close; the job's own mapping lives until the job ends. Idempotent."""
        # The mapping goes with its last view; closing it by hand would fail while a traceback holds one.
        self._views = []
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _slot(self, memory: mmap.mmap, slot: int) -> list[NDArray[Any]]:
        layout, base = self.layout, slot * self.layout.slot_bytes
        return [
            np.ndarray((layout.records, *f.shape), f.dtype, memory, base + offset)
            for f, offset in zip(layout.fields, layout.offsets, strict=True)
        ]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
