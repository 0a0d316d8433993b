"""Where a loader's records come from: the node's broker, or a file at home."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Ragged(NamedTuple):
    """A field of variable length: record i of a batch holds `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: [m, *shape].
        offsets: int32[k + 1], rising from 0 to m.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int32]


Arrays = dict[str, "NDArray[Any] | Ragged"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of every record: `dtype` is numpy's name, `shape` that of one record.

    Where `ragged`, a record holds any number of values and `shape` is that of one of them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    label: bool
    ragged: bool = False


@dataclass(frozen=True, slots=True)
class Epoch:
    """What to read: in the order of `indices` if given, else shuffled by (seed, number), else as stored.

    The first `start` records of that order are passed over: they were read before the loader was resumed.
    """

    batch_size: int
    shuffle: bool
    seed: int
    number: int
    drop_last: bool
    indices: NDArray[np.uint32] | None
    prefetch: int | None
    start: int = 0


class Source(Protocol):
    """Records of one split."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a batch holds; without labels for the test split."""
        ...

    @property
    def records(self) -> int:
        """How many records there are."""
        ...

    @property
    def capped(self) -> bool:
        """Whether records were withheld because the job's `max_records` is used up."""
        ...

    def batches(self, epoch: Epoch) -> Iterator[Arrays]:
        """Read-only arrays [k, *shape], each valid until the next batch is asked for."""
        ...

    def epoch_records(self, epoch: Epoch) -> int:
        """How many records `epoch` has."""
        ...


def open_source(split: str) -> Source:
    """The broker's socket if the node gave one, else the file at home.

    Raises:
        RuntimeError: neither is there, or the node serves another split in this run.
    """
    if "RAPHA_BROKER_FD" in os.environ:
        from rapha_trainer.session import connect

        return connect(int(os.environ["RAPHA_BROKER_FD"]), split)
    if "RAPHA_HOME_DATA" in os.environ:
        from rapha_trainer.home import HomeSource

        return HomeSource(os.environ["RAPHA_HOME_DATA"], split)
    raise RuntimeError(
        "no records here: in a job the node sets RAPHA_BROKER_FD; at home set RAPHA_HOME_DATA to a .npz file"
    )


def length(records: int, epoch: Epoch) -> int:
    """Records of an epoch over `records`, after `drop_last`."""
    total = records if epoch.indices is None else len(epoch.indices)
    return total - total % epoch.batch_size if epoch.drop_last else total
