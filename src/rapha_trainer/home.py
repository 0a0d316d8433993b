"""The loader at home: the same batches, in the same order, from a `.npz` file.

`RAPHA_HOME_DATA` names the file. Each array in it is a field, [n, *shape]. A field of variable length is two:
`labs`, the values of all records one after the other, and `labs__offsets`, whole numbers [n + 1], where
record i has the values from offset i to offset i + 1. Names in double underscores are no fields:
`__labels__`, the names of the label fields, and `__test__`, the indices of the test split's records (by
default split "test" is all records, and "train" is what `__test__` leaves). `rapha job mock` writes such a
file from a catalogue entry.

On a node a view that is kept beyond its time shows other records, and nothing says so. Here it is overwritten
with NaN, or a number at the end of its dtype's range, so that a script learns it before it matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rapha_trainer.order import positions
from rapha_trainer.source import Arrays, Epoch, Field, Ragged, length

OFFSETS: Final = "__offsets"
"""What the offsets of a field of variable length are called, behind the field's name."""
_SPECIAL: Final = ("__labels__", "__test__", "__synthetic__")


class _Lists(NamedTuple):
    """A field of variable length as the file has it; unlike a batch's, its offsets are of 64 bits."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]


Column = NDArray[Any] | _Lists


class _Turn:
    """Whose turn it is to read: a node serves one loader at a time, so a script learns it here already."""

    now = 0


class HomeSource:
    """One split of a `.npz` file; nothing is counted.

    Raises:
        ValueError: the arrays don't have the same length, or one is not of the form above.
    """

    capped = False

    def __init__(self, path: str, split: str) -> None:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], order="C") for name in file.files}
        labels = {str(name) for name in arrays.get("__labels__", ())}
        test = arrays.get("__test__")
        columns = _columns(path, {name: array for name, array in arrays.items() if name not in _SPECIAL})
        lengths = {_records(column) for column in columns.values()}
        if len(lengths) != 1:
            raise ValueError(f"{path}: the fields must be arrays of the same length")
        if labels - columns.keys():
            raise ValueError(
                f"{path}: __labels__ names {sorted(labels - columns.keys())}, which is not there"
            )
        self._chosen = _split(lengths.pop(), test, split)
        self._columns = {
            name: column for name, column in columns.items() if split == "train" or name not in labels
        }
        self.fields = tuple(_field(name, column, name in labels) for name, column in self._columns.items())
        self._handed: Arrays = {}

    @property
    def records(self) -> int:
        """How many records the split has."""
        return len(self._chosen)

    def epoch_records(self, epoch: Epoch) -> int:
        """How many records `epoch` has."""
        return length(self.records, epoch)

    def batches(self, epoch: Epoch) -> Iterator[Arrays]:
        """As `Source.batches`."""
        turn = _Turn.now = _Turn.now + 1
        total = self.epoch_records(epoch)
        for start in range(epoch.start, total, epoch.batch_size):
            chosen = self._walked(epoch, start, min(start + epoch.batch_size, total))
            _overwrite(self._handed)
            self._handed = {name: _taken(column, chosen) for name, column in self._columns.items()}
            yield self._handed
            if turn != _Turn.now:
                raise RuntimeError("another iteration has begun; one loader at a time reads from the node")

    def _walked(self, epoch: Epoch, start: int, stop: int) -> NDArray[np.int64]:
        """Which records are at positions start … stop-1 of the epoch."""
        if epoch.indices is not None:
            return self._chosen[epoch.indices[start:stop]]
        if epoch.shuffle:
            return self._chosen[positions(self.records, epoch.seed, epoch.number, start, stop)]
        return self._chosen[start:stop]


def _columns(path: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Column]:
    """The fields; those of variable length with their offsets."""
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or not array.dtype.isnative:
            raise ValueError(f"{path}: {name} must be plain numbers, not {array.dtype}")
        if not array.ndim:
            raise ValueError(f"{path}: the fields must be arrays of the same length; {name} is one number")
    offsets = {name.removesuffix(OFFSETS): name for name in arrays if name.endswith(OFFSETS)}
    if alone := sorted(offsets.keys() - arrays.keys()):
        raise ValueError(f"{path}: the values {alone[0]!r} must be there for {offsets[alone[0]]!r}")
    return {
        name: _lists(f"{path}: {offsets[name]}", array, arrays[offsets[name]]) if name in offsets else array
        for name, array in arrays.items()
        if name not in offsets.values()
    }


def _lists(where: str, values: NDArray[Any], offsets: NDArray[Any]) -> _Lists:
    """Raises `ValueError` unless the offsets rise from 0 to the number of values."""
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
        raise ValueError(f"{where} must be a list of whole numbers, one more than there are records")
    wide = offsets.astype(np.int64)
    if wide[0] != 0 or wide[-1] != len(values) or (np.diff(wide) < 0).any():
        raise ValueError(f"{where} must rise from 0 to the number of values, {len(values)}")
    return _Lists(values, wide)


def _records(column: Column) -> int:
    return len(column.offsets) - 1 if isinstance(column, _Lists) else len(column)


def _field(name: str, column: Column, label: bool) -> Field:
    values = column.values if isinstance(column, _Lists) else column
    return Field(name, values.dtype.name, values.shape[1:], label, isinstance(column, _Lists))


def _taken(column: Column, chosen: NDArray[np.int64]) -> NDArray[Any] | Ragged:
    """The records `chosen`, read-only: in a job the memory is the broker's, and writing fails here too."""
    if not isinstance(column, _Lists):
        return _frozen(column[chosen])
    starts, stops = column.offsets[chosen], column.offsets[chosen + 1]
    counts = stops - starts
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    # Where each value lies: its position in the batch, moved by how far its record was moved.
    where = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    return Ragged(_frozen(column.values[where]), _frozen(offsets.astype(np.int32)))


def _overwrite(batch: Arrays) -> None:
    """Put values into a batch that no record has; offsets stay, since Arrow goes where they point."""
    for column in batch.values():
        values = column.values if isinstance(column, Ragged) else column
        values.flags.writeable = True
        kind = values.dtype.kind
        values.fill(np.nan if kind == "f" else kind == "b" or _end(values.dtype))
        values.flags.writeable = False


def _end(dtype: np.dtype[Any]) -> int:
    limits = np.iinfo(dtype)
    return int(limits.min or limits.max)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _split(records: int, test: NDArray[np.int64] | None, split: str) -> NDArray[np.int64]:
    everything = np.arange(records)
    if test is None:
        return everything
    if (
        test.ndim != 1
        or test.dtype.kind not in "iu"
        or (len(test) and not 0 <= test.min() <= test.max() < records)
    ):
        raise ValueError("__test__ must be a list of record indices")
    return test.astype(np.int64) if split == "test" else np.setdiff1d(everything, test)
