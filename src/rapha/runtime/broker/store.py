"""What the broker serves from: fields of fixed shape or of varying length over densely numbered records."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from rapha.spec.refusals import Refused

DTYPES: Final = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
"""Plain numbers only: an object array would carry pointers, and text carries identifiers."""
_LONG: Final = 64
"""Values a record, on average, from which a copy of each costs less than a list of positions."""
_CHUNK: Final = 1 << 17
MAX_RECORDS: Final = 2**32
"""Dense indices and patients are 32 bits in the bitmaps and the journal."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """A column of variable length: record i holds `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: [m, *shape], C-contiguous.
        offsets: int64[n + 1], rising from 0 to m.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]


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

    @property
    def record_bytes(self) -> int:
        """Bytes of this field in one record, or of one value where it is ragged."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class RecordStore(Protocol):
    """Records by dense index 0 … len-1, all readable when the broker starts."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """In the order in which the job sees them."""
        ...

    @property
    def patients(self) -> NDArray[np.int64]:
        """int64[n]: the dense patient index of each record."""
        ...

    def __len__(self) -> int: ...

    def gather(self, field: str, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy the records `indices` (all within 0 … len-1) into `out`, C-contiguous [k, *shape].

        Precondition: the field has a fixed shape.
        """
        ...

    def lengths(self, field: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[k]: how many values each of the records `indices` holds. Precondition: it is ragged."""
        ...

    def gather_values(self, field: str, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy the values of the records `indices`, one record after the other, into `out`.

        `out` is C-contiguous [sum(lengths), *shape]. Precondition: the field is ragged.
        """
        ...


class TableStore:
    """A columnar table in memory.

    Args:
        columns: one array [n, *shape] a field, or a `Ragged` of n records, of a dtype in `DTYPES`.
        patients: int64[n], dense patient index of each record.
        labels: names of the fields that are labels.

    Raises:
        Refused: `node.dataset_invalid` when the table is not of that form.
    """

    def __init__(
        self,
        columns: Mapping[str, NDArray[Any] | Ragged],
        patients: NDArray[Any],
        labels: Collection[str] = (),
    ) -> None:
        self.patients = checked_patients(patients)
        if unknown := set(labels) - set(columns):
            raise Refused("node.dataset_invalid", f"no column for the label {sorted(unknown)[0]!a}")
        self._columns: dict[str, NDArray[Any]] = {}
        self._ragged: dict[str, Ragged] = {}
        fields = []
        for name, column in columns.items():
            if isinstance(column, Ragged):
                self._ragged[name] = checked = checked_ragged(name, column, len(self.patients))
                values = checked.values
            else:
                self._columns[name] = values = _checked_column(name, column, len(self.patients))
            fields.append(
                Field(name, values.dtype.name, values.shape[1:], name in labels, name in self._ragged)
            )
        self.fields = tuple(fields)

    def __len__(self) -> int:
        return len(self.patients)

    def gather(self, field: str, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """As `RecordStore.gather`."""
        # `clip` writes straight into `out`, where `raise` would go through a buffer; the broker has
        # checked the range.
        np.take(self._columns[field], indices, axis=0, out=out, mode="clip")

    def lengths(self, field: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `RecordStore.lengths`."""
        offsets = self._ragged[field].offsets
        return offsets[indices + 1] - offsets[indices]

    def gather_values(self, field: str, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """As `RecordStore.gather_values`."""
        gather_ragged(self._ragged[field], indices, out)


def gather_ragged(column: Ragged, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
    """Copy the values of the records `indices` of `column`, one record after the other, into `out`.

    Precondition: every index is within the column, and `out` has room for exactly their values.
    """
    starts = column.offsets[indices]
    lengths = column.offsets[indices + 1] - starts
    ends = np.cumsum(lengths)
    if len(out) >= _LONG * len(indices):
        # Long records are copied one by one; the list of positions below would be larger than they are.
        for start, length, end in zip(starts.tolist(), lengths.tolist(), ends.tolist(), strict=True):
            out[end - length : end] = column.values[start : start + length]
        return
    chosen = np.repeat(starts - (ends - lengths), lengths)
    chosen += np.arange(len(chosen))
    np.take(column.values, chosen, axis=0, out=out, mode="clip")


def checked_patients(patients: NDArray[Any]) -> NDArray[np.int64]:
    """`patients` as int64[n], each in 0 … 2^32-1, without a copy where it has that dtype.

    Raises:
        Refused: `node.dataset_invalid`.
    """
    if patients.ndim != 1 or patients.dtype.kind not in "iu" or len(patients) >= MAX_RECORDS:
        raise Refused("node.dataset_invalid", "patients must be one integer for each record")
    if len(patients) and (patients.min() < 0 or patients.max() >= MAX_RECORDS):
        raise Refused("node.dataset_invalid", "a patient index is out of range")
    return np.asarray(patients, dtype=np.int64)


def checked_ragged(name: str, column: Ragged, records: int) -> Ragged:
    """`column` with contiguous values.

    Raises:
        Refused: `node.dataset_invalid` where it isn't a column of `records` records.
    """
    values, offsets = column.values, column.offsets
    _check_values(name, values)
    if offsets.ndim != 1 or offsets.dtype != np.int64 or len(offsets) != records + 1:
        raise Refused("node.dataset_invalid", f"column {name!a} has no int64 offset for each record")
    falls = any(
        (np.diff(offsets[start : start + _CHUNK + 1]) < 0).any() for start in range(0, records, _CHUNK)
    )
    if falls or offsets[0] != 0 or offsets[-1] != len(values):
        raise Refused("node.dataset_invalid", f"column {name!a} has offsets that don't rise to its values")
    return Ragged(np.ascontiguousarray(values), np.ascontiguousarray(offsets))


def _checked_column(name: str, column: NDArray[Any], records: int) -> NDArray[Any]:
    _check_values(name, column)
    if len(column) != records:
        raise Refused("node.dataset_invalid", f"column {name!a} has {len(column)} of {records} records")
    return np.ascontiguousarray(column)


def _check_values(name: str, values: NDArray[Any]) -> None:
    if values.dtype.name not in DTYPES or not values.dtype.isnative:
        raise Refused("node.dataset_invalid", f"column {name!a} has dtype {values.dtype}, not a plain number")
    if values.ndim < 1 or 0 in values.shape[1:]:
        raise Refused("node.dataset_invalid", f"column {name!a} has shape {values.shape}")
