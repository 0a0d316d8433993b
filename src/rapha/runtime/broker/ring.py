"""Shared memory that the broker writes and the job can only read."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Mapping, Sequence
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
class Area:
    """Where a field lies in a slot.

    Attributes:
        offset: byte at which its values begin.
        values: how many there is room for: one a record, or any number a record where it is ragged.
        index: byte at which int32[records + 1] offsets into the values begin; None unless it is ragged.
    """

    offset: int
    values: int
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """`slots` slots of `slot_bytes`, each with room for `records` records, fields in `areas`."""

    fields: tuple[Field, ...]
    records: int
    slots: int
    areas: tuple[Area, ...]
    slot_bytes: int

    @classmethod
    def plan(cls, fields: tuple[Field, ...], records: int, slots: int, longest: Sequence[int] = ()) -> Self:
        """Lay out slots for up to `records` records each, fields on 64-byte boundaries, slots on pages.

        Args:
            fields: what a slot holds.
            records: most records a slot.
            slots: how many slots.
            longest: of each field the most values that one record may hold; used where it is ragged.
        """
        areas, end = [], 0
        for number, field in enumerate(fields):
            index, values = None, records
            if field.ragged:
                index, values = end, 2 * longest[number]
                end = _up(end + 4 * (records + 1), ALIGNMENT)
            areas.append(Area(end, values, index))
            end = _up(end + values * field.record_bytes, ALIGNMENT)
        return cls(fields, records, slots, tuple(areas), _up(end, _PAGE))

    def fitting(self, lengths: Mapping[int, NDArray[np.int64]]) -> int:
        """How many records fit a slot, given by field number how many values each holds.

        A record comes along whenever those before it fill no more than half of each area; so whether it
        does tells nothing of the record itself, which is not counted if it stays behind. No record has
        more values than half an area, so it fits.
        """
        fit = min(len(of_field) for of_field in lengths.values())
        for number, of_field in lengths.items():
            before = np.cumsum(of_field[:fit]) - of_field[:fit]
            fit = int(np.searchsorted(before, self.areas[number].values // 2, side="right"))
        return fit


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
                memory.madvise(mmap.MADV_DONTDUMP)
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
        """Field number `field` of the first `count` records in `slot`, or its first `count` values where
        it is ragged: writable, [count, *shape].
        """
        return self._views[slot][field][0][:count]

    def index(self, slot: int, field: int, records: int) -> NDArray[np.int32]:
        """Offsets of the first `records` records into the values of a ragged field: writable,
        int32[records + 1].
        """
        return self._views[slot][field][1][: records + 1]

    def close(self) -> None:
        """Unmap and close; the job's own mapping lives until the job ends. Idempotent."""
        # The mapping goes with its last view; closing it by hand would fail while a traceback holds one.
        self._views = []
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _slot(self, memory: mmap.mmap, slot: int) -> list[tuple[NDArray[Any], NDArray[np.int32]]]:
        layout, base = self.layout, slot * self.layout.slot_bytes
        return [
            (
                np.ndarray((area.values, *f.shape), f.dtype, memory, base + area.offset),
                np.empty(0, np.int32)
                if area.index is None
                else np.ndarray(layout.records + 1, np.int32, memory, base + area.index),
            )
            for f, area in zip(layout.fields, layout.areas, strict=True)
        ]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
