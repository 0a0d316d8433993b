"""The loader at home: the same batches, in the same order, from a `.npz` file.

`RAPHA_HOME_DATA` names the file. Each array in it is a field, [n, *shape]. Two names are special:
`__labels__`, the names of the label fields, and `__test__`, the indices of the test split's records (by
default split "test" is all records, and "train" is what `__test__` leaves).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rapha_trainer.source import Arrays, Epoch, Field, length

_SPECIAL = ("__labels__", "__test__")


class HomeSource:
    """One split of a `.npz` file; nothing is counted.

    Raises:
        ValueError: the arrays don't have the same length, or a special one is wrong.
    """

    capped = False

    def __init__(self, path: str, split: str) -> None:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        labels = {str(name) for name in arrays.get("__labels__", ())}
        test = arrays.get("__test__")
        columns = {name: array for name, array in arrays.items() if name not in _SPECIAL}
        lengths = {len(column) for column in columns.values() if column.ndim}
        if len(lengths) != 1 or any(not column.ndim for column in columns.values()):
            raise ValueError(f"{path}: the fields must be arrays of the same length")
        if labels - columns.keys():
            raise ValueError(
                f"{path}: __labels__ names {sorted(labels - columns.keys())}, which is not there"
            )
        self._chosen = _split(lengths.pop(), test, split)
        self._columns = {
            name: column for name, column in columns.items() if split == "train" or name not in labels
        }
        self.fields = tuple(
            Field(name, column.dtype.name, column.shape[1:], name in labels)
            for name, column in self._columns.items()
        )

    @property
    def records(self) -> int:
        """How many records the split has."""
        return len(self._chosen)

    def epoch_records(self, epoch: Epoch) -> int:
        """How many records `epoch` has."""
        return length(self.records, epoch)

    def batches(self, epoch: Epoch) -> Iterator[Arrays]:
        """As `Source.batches`."""
        order = self._order(epoch)
        for start in range(0, self.epoch_records(epoch), epoch.batch_size):
            chosen = order[start : start + epoch.batch_size]
            batch = {name: column[chosen] for name, column in self._columns.items()}
            for array in batch.values():
                # As in a job, where the memory is the broker's: code that writes into a batch fails here too.
                array.flags.writeable = False
            yield batch

    def _order(self, epoch: Epoch) -> NDArray[np.int64]:
        if epoch.indices is not None:
            return self._chosen[epoch.indices]
        if epoch.shuffle:
            return self._chosen[shuffled(self.records, epoch.seed, epoch.number)]
        return self._chosen


def shuffled(records: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of 0 … records-1 for an epoch, the same one that the node's broker draws."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(records)


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
