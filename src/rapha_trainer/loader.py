"""The data loader: plain `for` loop over batches of the records that the job was granted."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from rapha_trainer import batch as forms
from rapha_trainer import place as places
from rapha_trainer.place import PassSampler, Place, check
from rapha_trainer.source import Arrays, Epoch, Field, open_source

_WORKERS: Final = (
    "use no worker processes (num_workers=0): the next batches are on their way while you work on this one"
)


class RaphaDataLoader:
    """Batches of records, as a dict of arrays [k, *shape] by field name.

    Each `iter()` is a pass of `epochs` epochs; the next pass goes on with the next epoch, in a new order if
    shuffled. Lightning and MONAI take the loader as it is. Each record counts once towards the job's
    `max_records`, when it is first asked for, however often it is read. One loader reads at a time, in one
    process: the next batches are on their way while you work on this one.

    Fields of variable length come as `pyarrow.ListArray`, or as jagged `torch.nested` tensors.

    Args:
        batch_size: records a batch; the last one of an epoch may be smaller.
        shuffle: a new order each epoch, determined by `seed` and the epoch's number.
        seed: 0 … 2^64-1.
        epochs: how often one pass goes through the records.
        split: "train", or in the predict entry "test" (no labels, fixed order).
        as_torch: tensors instead of numpy arrays.
        drop_last: leave out a smaller last batch.
        copy: False gives views of memory that the node writes: read-only, and valid until the next batch is
            asked for. True gives arrays of your own. By default numpy gets views and torch gets copies,
            since torch can't mark a tensor read-only and an in-place operation would end the process.
        indices: read these records (0 … records-1) in this order each epoch, instead of all of them.
        prefetch: most batches to ask for ahead; 0 asks for each when it is needed. By default as many as
            fit, but never more than were read so far.
        rename: other keys for some fields, such as {"pixels": "image"} for MONAI.
        num_workers: 0; here to say so.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: there are no records here, or this run serves another split.
        ImportError: a field of variable length needs a library that is not installed.
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
        rename: Mapping[str, str] | None = None,
        num_workers: int = 0,
    ) -> None:
        check("batch_size", batch_size, 1, 2**31 - 1)
        check("seed", seed, 0, 2**64 - 1)
        check("epochs", epochs, 0, 2**31 - 1)
        if prefetch is not None:
            check("prefetch", prefetch, 0, 2**31 - 1)
        _check_combination(split, shuffle, indices is not None, num_workers)
        self.batch_size, self.epochs, self.split = batch_size, epochs, split
        self._source = open_source(split)
        forms.check(self._source.fields, as_torch)
        self._keys = _keys(self._source.fields, {} if rename is None else rename, split)
        chosen = None if indices is None else _indices(indices, self._source.records)
        self._epoch = Epoch(batch_size, bool(shuffle), seed, 0, bool(drop_last), chosen, prefetch)
        self._copy = as_torch if copy is None else copy
        self._as_torch = as_torch
        if as_torch and not self._copy:
            forms.silence_torch()
        self._place = Place(0, 0, 0)
        self._resumed = False
        self._pid = os.getpid()

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a batch holds: key, dtype, shape of one record or value, and whether it is a label."""
        return tuple(replace(field, name=self._keys[field.name]) for field in self._source.fields)

    @property
    def records(self) -> int:
        """How many records the split has. Looking is not billed, but ends the node's help with crashes."""
        return self._source.records

    @property
    def epoch(self) -> int:
        """The number of the epoch that the next batch is from."""
        return self._normal().epoch

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass at the start of `epoch`, 0 … 2^63-1.

        Raises:
            ValueError: out of range.
        """
        check("epoch", epoch, 0, places.MAX_EPOCH)
        self._place, self._resumed = Place(epoch, epoch, 0), False

    @property
    def batch_sampler(self) -> PassSampler:
        """Where Lightning looks for `sampler.set_epoch`, to say which pass of its run begins."""
        return PassSampler(self._begin)

    def __len__(self) -> int:
        """Batches in a whole pass, wherever reading stands."""
        return -(-self._source.epoch_records(self._epoch) // self.batch_size) * self.epochs

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """A pass. Ends early, with a RuntimeWarning, when `max_records` is used up.

        Raises:
            RuntimeError: in another process than the loader's own.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(f"this loader belongs to another process; {_WORKERS}")
        return self._pass()

    def state_dict(self) -> dict[str, Any]:
        """Where reading stands, as JSON types: after the batch handed out last, and nothing fetched ahead.

        After the last batch of an epoch that is the start of the next one.
        """
        return places.write(self._normal(), self._arguments())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next pass go on behind the batch that was the last one when `state_dict` was taken.

        It goes on with the pass that was under way, or with a new one if that had come to its end.

        Raises:
            ValueError: the state is of a loader over other records or with other arguments, or is no state.
        """
        place = places.read(state_dict, self._arguments())
        total = self._source.epoch_records(self._epoch)
        if place.position and (place.position >= total or place.position % self.batch_size):
            raise ValueError(f"no batch of this loader begins at record {place.position}")
        self._place, self._resumed = place, True

    def __getitem__(self, index: object) -> NoReturn:
        """Not there: a loader gives batches, in the order that the node walks.

        Raises:
            TypeError: always; torch's `DataLoader` ends here if it is given this loader as a data set.
        """
        raise TypeError(
            "a RaphaDataLoader is a loader, not a data set: it gives whole batches, so iterate over it "
            f"instead of wrapping it in a DataLoader, and {_WORKERS}; for chosen records pass indices="
        )

    def __reduce__(self) -> NoReturn:
        """Not there.

        Raises:
            TypeError: always; a started worker process ends here.
        """
        raise TypeError(f"a RaphaDataLoader can't be sent to another process or copied; {_WORKERS}")

    def _begin(self, number: int) -> None:
        """Begin pass `number`, each of `epochs` epochs; one that was resumed goes on where it was."""
        first = number * self.epochs
        if not self._resumed or self._place.first != first:
            self.set_epoch(first)

    def _pass(self) -> Iterator[dict[str, Any]]:
        place = self._place = self._entered()
        end = place.first + self.epochs
        while place.epoch < end:
            epoch = replace(self._epoch, number=place.epoch, start=place.position)
            for batch in self._source.batches(epoch):
                place.position += forms.records(batch)
                self._resumed = False
                yield self._handed(batch)
            place.epoch, place.position = place.epoch + 1, 0
            if self._source.capped:
                warnings.warn("max_records is used up; no further records come", RuntimeWarning, stacklevel=2)
                return

    def _entered(self) -> Place:
        """The place where a pass begins.

        Whoever takes just so many batches never comes to the end of a pass, so the next one ends its epoch.
        One that handed out nothing, such as an iterator made to look, ends nothing.
        """
        place = self._normal()
        if self._resumed:
            return place if place.epoch < place.first + self.epochs else replace(place, first=place.epoch)
        number = place.epoch + bool(place.position)
        return Place(number, number, 0)

    def _normal(self) -> Place:
        """The place, where the end of an epoch is the start of the next one."""
        place = self._place
        if place.position and place.position >= self._source.epoch_records(self._epoch):
            return replace(place, epoch=place.epoch + 1, position=0)
        return replace(place)

    def _arguments(self) -> dict[str, Any]:
        """What fixes which records come in which batch."""
        epoch, chosen = self._epoch, self._epoch.indices
        return {
            "split": self.split,
            "records": self._source.records,
            "batch_size": epoch.batch_size,
            "shuffle": epoch.shuffle,
            "seed": epoch.seed,
            "drop_last": epoch.drop_last,
            "indices": None if chosen is None else hashlib.sha256(chosen.astype("<u4").tobytes()).hexdigest(),
        }

    def _handed(self, batch: Arrays) -> dict[str, Any]:
        if self._copy:
            batch = forms.copied(batch)
        if self._as_torch:
            return forms.as_tensors(batch, self._keys)
        return forms.as_arrow(batch, self._keys)


def _check_combination(split: str, shuffle: bool, chosen: bool, num_workers: int) -> None:
    if num_workers:
        raise ValueError(f"num_workers must be 0; {_WORKERS}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, not {split!r}")
    if split == "test" and (shuffle or chosen):
        raise ValueError("the test split has a fixed order")
    if shuffle and chosen:
        raise ValueError("give either shuffle or indices")


def _keys(fields: Sequence[Field], rename: Mapping[str, str], split: str) -> dict[str, str]:
    """Each field's key in a batch."""
    if not isinstance(rename, Mapping) or not all(isinstance(name, str) for name in rename):
        raise ValueError("rename must be a mapping from a field's name to another")
    keys = {field.name: rename.get(field.name, field.name) for field in fields}
    # The test split hides labels, and the same `rename` has to do for both.
    if split == "train" and (unknown := sorted(rename.keys() - keys.keys())):
        raise ValueError(f"rename must be of fields that are there; {unknown[0]!r} is not one")
    if not all(isinstance(key, str) for key in keys.values()) or len(set(keys.values())) != len(keys):
        raise ValueError("rename must give each field a text of its own")
    return keys


def _indices(indices: Sequence[int] | NDArray[Any], records: int) -> NDArray[np.uint32]:
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in "iu"):
        raise ValueError("indices must be a list of whole numbers")
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < records:
        raise ValueError(f"indices must be from 0 to {records - 1}")
    return chosen.astype(np.uint32)
