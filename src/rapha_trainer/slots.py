"""Slots of the node's shared memory as arrays, and batches cut out of them."""

from __future__ import annotations

import mmap
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapha_trainer.source import Arrays, Ragged

Column = NDArray[Any] | Ragged
_MAX_VALUES: Final = 2**31 - 1


def views(described: dict[str, Any], memory: mmap.mmap, slot: int) -> Arrays:
    """The fields of one slot, where HELLO's JSON says that they lie; with room for all its records."""
    records, base = described["slot_records"], slot * described["slot_bytes"]
    columns: Arrays = {}
    for f in described["fields"]:
        count = f["values"] if f["ragged"] else records
        column = np.ndarray((count, *f["shape"]), f["dtype"], memory, base + f["offset"])
        if f["ragged"]:
            columns[f["name"]] = Ragged(column, np.ndarray(records + 1, np.int32, memory, base + f["index"]))
        else:
            columns[f["name"]] = column
    return columns


def cut(column: Column, start: int, stop: int) -> Column:
    """The records start … stop-1 of a column, as a view of its values."""
    if not isinstance(column, Ragged):
        return column[start:stop]
    offsets = column.offsets[start : stop + 1]
    return Ragged(column.values[offsets[0] : offsets[-1]], offsets - offsets[0] if offsets[0] else offsets)


def joined(pieces: list[Arrays]) -> Arrays:
    """One batch of the records of all `pieces`, of which there is at least one.

    Raises:
        ValueError: a field of varying length has more than 2^31-1 values in it.
    """
    if len(pieces) == 1:
        return pieces[0]
    return {name: _concatenated(name, [piece[name] for piece in pieces]) for name in pieces[0]}


def _concatenated(name: str, columns: list[Column]) -> Column:
    ragged = [column for column in columns if isinstance(column, Ragged)]
    if not ragged:
        return np.concatenate([column for column in columns if not isinstance(column, Ragged)])
    if sum(len(column.values) for column in ragged) > _MAX_VALUES:
        raise ValueError(f"{name}: a batch has more than 2^31-1 values; take a smaller batch_size")
    lengths = np.concatenate([np.diff(column.offsets) for column in ragged])
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    return Ragged(np.concatenate([column.values for column in ragged]), offsets)
