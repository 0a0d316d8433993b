"""The data loader: plain `for` loop over batches of the records that the job was granted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapha_trainer.source import Arrays, Epoch, Field, open_source


class RaphaDataLoader:
    """Batches of records, as a dict of arrays [k, *shape] by field name; iterates all epochs.

    Each record counts once towards the job's `max_records`, when it is first asked for, however often it
    is read. Don't wrap it in worker processes (`num_workers=0`): the next batches are on their way while
    you work on this one. One loader reads at a time.

    Args:
        batch_size: records a batch; the last one of an epoch may be smaller.
        shuffle: a new order each epoch, determined by `seed` and the epoch's number.
        seed: 0 … 2^64-1.
        epochs: how often to go through the records.
        split: "train", or in the predict entry "test" (no labels, fixed order).
        as_torch: tensors instead of numpy arrays.
        drop_last: leave out a smaller last batch.
        copy: False gives views of memory that the node writes: read-only, and valid until the next batch is
            asked for. True gives arrays of your own. By default numpy gets views and torch gets copies,
            since torch can't mark a tensor read-only and an in-place operation would end the process.
        indices: read these records (0 … records-1) in this order each epoch, instead of all of them.
        prefetch: most batches to ask for ahead; 0 asks for each when it is needed. By default as many as
            fit, but never more than were read so far.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: there are no records here, or this run serves another split.
    """

    def __init__(
        self,
        batch_size: int = 64,
        shuffle: bool = False,
        seed: int = 0,
        epochs: int = 1,
        split: str = "train",
        as_torch: bool = False,
        drop_last: bool = False,
        copy: bool | None = None,
        *,
        indices: Sequence[int] | NDArray[Any] | None = None,
        prefetch: int | None = None,
    ) -> None:
        _check("batch_size", batch_size, 1, 2**31 - 1)
        _check("seed", seed, 0, 2**64 - 1)
        _check("epochs", epochs, 0, 2**31 - 1)
        _check("prefetch", prefetch or 0, 0, 2**31 - 1)
        if split not in ("train", "test"):
            raise ValueError(f"split must be train or test, not {split!r}")
        if split == "test" and (shuffle or indices is not None):
            raise ValueError("the test split has a fixed order")
        if shuffle and indices is not None:
            raise ValueError("give either shuffle or indices")
        self.batch_size, self.epochs, self.split = batch_size, epochs, split
        self._source = open_source(split)
        chosen = None if indices is None else _indices(indices, self._source.records)
        self._epoch = Epoch(batch_size, shuffle, seed, 0, drop_last, chosen, prefetch)
        self._copy = as_torch if copy is None else copy
        self._as_torch = as_torch
        if as_torch and not self._copy:
            _silence_torch()

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a batch holds: name, dtype, shape of one record, and whether it is a label."""
        return self._source.fields

    @property
    def records(self) -> int:
        """How many records the split has. Looking is not billed, but ends the node's help with crashes."""
        return self._source.records

    def __len__(self) -> int:
        """Batches in all epochs."""
        return -(-self._source.epoch_records(self._epoch) // self.batch_size) * self.epochs

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All epochs. Ends early, with a RuntimeWarning, when `max_records` is used up."""
        for number in range(self.epochs):
            epoch = self._epoch
            of_number = Epoch(
                epoch.batch_size, epoch.shuffle, epoch.seed, number, epoch.drop_last, epoch.indices,
                epoch.prefetch,
            )  # fmt: skip
            for batch in self._source.batches(of_number):
                yield self._handed(batch)
            if self._source.capped:
                warnings.warn("max_records is used up; no further records come", RuntimeWarning, stacklevel=2)
                return

    def _handed(self, batch: Arrays) -> dict[str, Any]:
        if self._copy:
            batch = {name: array.copy() for name, array in batch.items()}
        if not self._as_torch:
            return batch
        from torch import from_numpy

        return {name: from_numpy(array) for name, array in batch.items()}


def _check(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def _indices(indices: Sequence[int] | NDArray[Any], records: int) -> NDArray[np.uint32]:
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in "iu"):
        raise ValueError("indices must be a list of whole numbers")
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < records:
        raise ValueError(f"indices must be from 0 to {records - 1}")
    return chosen.astype(np.uint32)


def _silence_torch() -> None:
    """Torch warns once a process about memory that it can't write; the docstring above says it already."""
    from torch import from_numpy

    array = np.zeros(1)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from_numpy(array)
