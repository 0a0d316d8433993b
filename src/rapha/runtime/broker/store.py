"""What the broker serves from: fields of fixed shape over densely numbered records."""

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
MAX_RECORDS: Final = 2**32
"""Dense indices and patients are 32 bits in the bitmaps and the journal."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of every record: `dtype` is numpy's name, `shape` that of one record."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    label: bool

    @property
    def record_bytes(self) -> int:
        """Bytes of this field in one record."""
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
        """Copy the records `indices` (all within 0 … len-1) into `out`, C-contiguous [k, *shape]."""
        ...


class TableStore:
    """A columnar table in memory.

    Args:
        columns: one array [n, *shape] a field, of a dtype in `DTYPES`.
        patients: int64[n], dense patient index of each record.
        labels: names of the fields that are labels.

    Raises:
        Refused: `node.dataset_invalid` when the table is not of that form.
    """

    def __init__(
        self, columns: Mapping[str, NDArray[Any]], patients: NDArray[Any], labels: Collection[str] = ()
    ) -> None:
        self.patients = checked_patients(patients)
        self._columns = {
            name: _checked_column(name, column, len(self.patients)) for name, column in columns.items()
        }
        if unknown := set(labels) - set(columns):
            raise Refused("node.dataset_invalid", f"no column for the label {sorted(unknown)[0]!a}")
        self.fields = tuple(
            Field(name, column.dtype.name, column.shape[1:], name in labels)
            for name, column in self._columns.items()
        )

    def __len__(self) -> int:
        return len(self.patients)

    def gather(self, field: str, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """As `RecordStore.gather`."""
        # `clip` writes straight into `out`, where `raise` would go through a buffer; the broker has
        # checked the range.
        np.take(self._columns[field], indices, axis=0, out=out, mode="clip")


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


def _checked_column(name: str, column: NDArray[Any], records: int) -> NDArray[Any]:
    if column.dtype.name not in DTYPES or not column.dtype.isnative:
        raise Refused("node.dataset_invalid", f"column {name!a} has dtype {column.dtype}, not a plain number")
    if column.ndim < 1 or len(column) != records or 0 in column.shape[1:]:
        raise Refused(
            "node.dataset_invalid", f"column {name!a} has shape {column.shape} for {records} records"
        )
    return np.ascontiguousarray(column)
