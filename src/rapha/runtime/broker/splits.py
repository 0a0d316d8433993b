"""Which records a session may ask for, and in which order an epoch walks through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from rapha.spec.refusals import Refused

NAMES: Final = ("train", "test")
"""The position of a name is its code on the wire and in the journal."""


@dataclass(frozen=True, slots=True)
class Split:
    """Distinct dense indices, with the sets of their records and patients."""

    code: int
    dense: NDArray[np.int64]
    records: BitMap
    patients: BitMap

    def __len__(self) -> int:
        return len(self.dense)


@dataclass(frozen=True, slots=True)
class Order:
    """One walk through a split, each record at most once: as stored, or permuted."""

    split: Split
    permutation: NDArray[np.int64] | None
    length: int

    def dense(self, start: int, stop: int) -> NDArray[np.int64]:
        """Dense indices at positions start … stop-1 of the walk."""
        if self.permutation is None:
            return self.split.dense[start:stop]
        return self.split.dense[self.permutation[start:stop]]

    def walked(self, cursor: int) -> BitMap:
        """The set of records at positions before `cursor`."""
        total = len(self.split)
        if cursor > total // 2:
            # Building a bitmap is what costs, so build the smaller side.
            return self.split.records - bitmap(self.dense(cursor, total))
        return bitmap(self.dense(0, cursor))


def bitmap(indices: NDArray[Any]) -> BitMap:
    """A Roaring bitmap of `indices`, each in 0 … 2^32-1."""
    return BitMap(np.ascontiguousarray(indices, dtype=np.uint32))


def indices_of(members: BitMap) -> NDArray[np.int64]:
    """The members of a bitmap, rising."""
    return np.array(members.to_array(), dtype=np.int64)


def shuffled(records: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of 0 … records-1 for an epoch; `rapha_trainer.home` draws the same one."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(records)


def make_splits(split: Mapping[str, NDArray[Any]], patients: NDArray[np.int64]) -> dict[str, Split]:
    """Check and index the splits.

    Raises:
        Refused: `node.dataset_invalid` for an unknown name, an index that is out of range or repeated, and a
            record or patient on both sides (a later job could train on an earlier job's test labels).
    """
    if set(split) != set(NAMES):
        raise Refused("node.dataset_invalid", "the splits are exactly train and test")
    result = {name: _make(name, np.asarray(split[name]), patients) for name in NAMES}
    train, test = (result[name] for name in NAMES)
    if not train.records.isdisjoint(test.records) or not train.patients.isdisjoint(test.patients):
        raise Refused("node.dataset_invalid", "a record or patient is in both splits")
    return result


def _make(name: str, indices: NDArray[Any], patients: NDArray[np.int64]) -> Split:
    if indices.ndim != 1 or (len(indices) and indices.dtype.kind not in "iu"):
        raise Refused("node.dataset_invalid", f"split {name}: not a list of indices")
    dense = np.array(indices, dtype=np.int64)
    if len(dense) and (dense.min() < 0 or dense.max() >= len(patients)):
        raise Refused("node.dataset_invalid", f"split {name}: an index is out of range")
    records = bitmap(dense)
    if len(records) != len(dense):
        raise Refused("node.dataset_invalid", f"split {name}: an index is there twice")
    return Split(NAMES.index(name), dense, records, bitmap(patients[dense]))
