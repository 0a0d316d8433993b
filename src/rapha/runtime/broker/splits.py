"""Which records a session may ask for, and in which order an epoch walks through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from rapha.runtime.broker.order import positions
from rapha.spec.refusals import Refused

NAMES: Final = ("train", "test")
"""The position of a name is its code on the wire and in the journal."""
CHUNK: Final = 1 << 17
"""Indices handled at a time where a whole split is gone through: 1 MiB as int64."""

Indices = NDArray[np.int64]
Given = Mapping[str, "NDArray[Any] | range"]
"""Dense indices by split; a range stands for its numbers and takes no memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Distinct dense indices, with the sets of their records and patients.

    Consecutive indices are held as a range: a split of any size then costs nothing beside its two sets.
    """

    code: int
    dense: NDArray[np.uint32] | range
    records: BitMap
    patients: BitMap

    def __len__(self) -> int:
        return len(self.dense)

    def at(self, chosen: Indices) -> Indices:
        """Dense indices of the records at the positions `chosen`, each in 0 … len-1."""
        if isinstance(self.dense, range):
            return chosen + self.dense.start
        return self.dense[chosen].astype(np.int64)

    def between(self, start: int, stop: int) -> Indices:
        """Dense indices of the records at positions start … stop-1."""
        if isinstance(self.dense, range):
            return np.arange(self.dense.start + start, self.dense.start + stop, dtype=np.int64)
        return self.dense[start:stop].astype(np.int64)

    def same(self, other: Split) -> bool:
        """Whether both list the same records in the same order."""
        if self.code != other.code or len(self) != len(other):
            return False
        if isinstance(self.dense, range) or isinstance(other.dense, range):
            return self.dense == other.dense if type(self.dense) is type(other.dense) else False
        return np.array_equal(self.dense, other.dense)


@dataclass(frozen=True, slots=True)
class Shuffle:
    """What determines the order of a shuffled epoch; both 0 … 2^64-1."""

    seed: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Order:
    """One walk through a split, each record at most once: as stored, or shuffled.

    Nothing of it is held: each position is computed when it is reached.
    """

    split: Split
    shuffle: Shuffle | None

    def dense(self, start: int, stop: int) -> Indices:
        """Dense indices at positions start … stop-1 of the walk."""
        if self.shuffle is None:
            return self.split.between(start, stop)
        seed, epoch = self.shuffle.seed, self.shuffle.epoch
        return self.split.at(positions(len(self.split), seed, epoch, start, stop))

    def chunks(self, start: int, stop: int) -> Iterator[Indices]:
        """As `dense`, in pieces of at most `CHUNK`."""
        for first in range(start, stop, CHUNK):
            yield self.dense(first, min(first + CHUNK, stop))


def bitmap(indices: NDArray[Any]) -> BitMap:
    """A Roaring bitmap of `indices`, each in 0 … 2^32-1."""
    # Sorted first, since neighbours share a container: it halves the time.
    return BitMap(np.sort(indices.astype(np.uint32)))


def make_splits(split: Given, patients: Indices) -> dict[str, Split]:
    """Check and index the splits.

    Raises:
        Refused: `node.dataset_invalid` for an unknown name, an index that is out of range or repeated, and a
            record or patient on both sides (a later job could train on an earlier job's test labels).
    """
    if set(split) != set(NAMES):
        raise Refused("node.dataset_invalid", "the splits are exactly train and test")
    result = {name: _make(name, split[name], patients) for name in NAMES}
    train, test = (result[name] for name in NAMES)
    if not train.records.isdisjoint(test.records) or not train.patients.isdisjoint(test.patients):
        raise Refused("node.dataset_invalid", "a record or patient is in both splits")
    return result


def index_split(code: int, dense: NDArray[np.uint32] | range, patients: Indices) -> Split:
    """A split of these dense indices, which are within the records.

    Raises:
        Refused: `node.dataset_invalid` when one is there twice.
    """
    if isinstance(dense, range):
        records = BitMap(dense)
    else:
        records = BitMap()
        for start in range(0, len(dense), CHUNK):
            records |= bitmap(dense[start : start + CHUNK])
    records.run_optimize()
    if len(records) != len(dense):
        raise Refused("node.dataset_invalid", f"split {NAMES[code]}: an index is there twice")
    split = Split(code, dense, records, BitMap())
    for chunk in Order(split, None).chunks(0, len(split)):
        split.patients.update(bitmap(patients[chunk]))
    split.patients.run_optimize()
    return split


def _make(name: str, given: NDArray[Any] | range, patients: Indices) -> Split:
    if isinstance(given, range) and given.step == 1:
        ends: tuple[int, ...] = (given.start, given.stop - 1)
        # An empty one may lie anywhere, and the journal would say where.
        dense: NDArray[np.uint32] | range = given or range(0)
    else:
        listed = np.asarray(given)
        if listed.ndim != 1 or (len(listed) and listed.dtype.kind not in "iu"):
            raise Refused("node.dataset_invalid", f"split {name}: not a list of indices")
        ends = (int(listed.min()), int(listed.max())) if len(listed) else ()
        dense = _compact(listed)
    if len(dense) and (min(ends) < 0 or max(ends) >= len(patients)):
        raise Refused("node.dataset_invalid", f"split {name}: an index is out of range")
    return index_split(NAMES.index(name), dense, patients)


def _compact(dense: NDArray[Any]) -> NDArray[np.uint32] | range:
    """The same indices in the least memory, as far as each is within 32 bits."""
    if not len(dense):
        return range(0)
    first = int(dense[0])
    for start in range(0, len(dense), CHUNK):
        piece = dense[start : start + CHUNK]
        if not np.array_equal(piece, np.arange(first + start, first + start + len(piece))):
            return np.ascontiguousarray(dense, dtype=np.uint32)
    return range(first, first + len(dense))
