"""Prepared records: built value by value as they are decoded, then served by position.

They are held in anonymous memory, or, where that would be more than the node may spend, in encrypted files
without a name. Nothing decoded is ever written in clear.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.memory import anonymous, wipe
from rapha.runtime.broker.shards import Sealer, ShardColumn
from rapha.runtime.broker.store import MAX_RECORDS, Field, Ragged, TableStore
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Form

Confinement = Literal["memory", "encrypted-shards"]


class Column(Protocol):
    """The values of one rendered field, by ordinal."""

    def put(self, ordinal: int, value: memoryview) -> None:
        """Keep one value, of exactly the right length."""
        ...

    @property
    def missing(self) -> NDArray[np.bool_]:
        """bool[records]: never put."""
        ...

    def gather(self, ordinals: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy values into `out`, C-contiguous [k, *shape]."""
        ...

    def close(self) -> None:
        """Wipe. Idempotent."""
        ...


class MemoryColumn:
    """All values in anonymous memory.

    Raises:
        Refused: `node.internal` when the host has no room.
    """

    def __init__(self, form: Form, records: int) -> None:
        self._bytes, self.missing = form.nbytes, np.ones(records, dtype=np.bool_)
        try:
            self._memory = anonymous(records * form.nbytes)
        except MemoryError:
            raise Refused("node.internal", "no memory for the prepared records") from None
        flat = np.frombuffer(self._memory, np.uint8)[: records * form.nbytes]
        self._raw = flat.reshape(records, form.nbytes)
        self._values = flat.view(form.dtype).reshape(records, *form.shape)

    def put(self, ordinal: int, value: memoryview) -> None:
        """As `Column.put`."""
        self._raw[ordinal] = np.frombuffer(value, np.uint8)
        self.missing[ordinal] = False

    def gather(self, ordinals: NDArray[np.int64], out: NDArray[Any]) -> None:
        """As `Column.gather`."""
        # `clip` writes straight into `out`; the broker has checked the range.
        np.take(self._values, ordinals, axis=0, out=out, mode="clip")

    def close(self) -> None:
        """As `Column.close`."""
        wipe(self._memory)


class Builder:
    """Takes the rendered values of `records` records, in any order.

    Args:
        forms: of the rendered fields, in the order in which a job sees them.
        records: how many ordinals there are.
        shards: a folder for encrypted files, used where the values don't fit; made if it is absent.
        memory_bytes: of rendered values that may be held decrypted at a time.

    Raises:
        Refused: `node.disk_full`; `node.internal` where there is no room in memory, or no such folder;
            `node.dataset_invalid` for a form that isn't settled.
    """

    def __init__(self, forms: Mapping[str, Form], records: int, *, shards: Path, memory_bytes: int) -> None:
        if not 0 <= records < MAX_RECORDS:
            raise Refused("node.dataset_invalid", f"{records} records can't be numbered")
        for name, form in forms.items():
            if form.ragged or not form.settled:
                raise Refused("node.dataset_invalid", f"{name}: a rendered field has one size")
        total = records * sum(form.nbytes for form in forms.values())
        self.confinement: Confinement = "memory" if total <= memory_bytes else "encrypted-shards"
        self._forms, self._records = dict(forms), records
        self._columns: dict[str, Column] = {}
        sealer = Sealer()
        try:
            for number, (name, form) in enumerate(forms.items()):
                if self.confinement == "memory":
                    self._columns[name] = MemoryColumn(form, records)
                    continue
                share = memory_bytes * records * form.nbytes // total
                self._columns[name] = ShardColumn(
                    sealer,
                    number,
                    record_bytes=form.nbytes,
                    records=records,
                    folder=shards,
                    cache_bytes=share,
                )
        except BaseException:
            self.close()
            raise

    def put(self, ordinal: int, field: str, value: memoryview) -> None:
        """As `rapha.node.sources.interface.Sink.put`; a second value of the same place replaces the first.

        Raises:
            Refused: `node.disk_full`; `node.internal` for a value that is not of the field's form, a place
                that there isn't, or after `close`.
        """
        column = self._columns.get(field)
        if column is None or not 0 <= ordinal < self._records or value.nbytes != self._forms[field].nbytes:
            raise Refused("node.internal", f"{field}: a rendered value has no place")
        column.put(ordinal, value.cast("B") if value.contiguous else memoryview(value.tobytes()))

    def finish(
        self,
        keep: NDArray[np.int64],
        columns: Mapping[str, NDArray[Any] | Ragged],
        patients: NDArray[np.int64],
        labels: Collection[str],
        *,
        order: Sequence[str] = (),
    ) -> PreparedStore:
        """The records with the ordinals `keep`, in that order; this object is then spent.

        Args:
            keep: each ordinal once at most, all of them put in every field.
            columns: the other fields of those records, in that order.
            patients: int64[len(keep)], dense patient index.
            labels: names of the fields that are labels, all among `columns`.
            order: of all fields, as a job sees them; by default the rendered ones come first.

        Raises:
            Refused: `node.dataset_invalid` for columns that don't fit; `node.internal` where a kept record
                was not rendered.
        """
        keep = np.ascontiguousarray(keep, dtype=np.int64)
        self._check(keep)
        table = TableStore(columns, patients, labels)
        if len(table) != len(keep) or set(columns) & set(self._forms):
            raise Refused("node.dataset_invalid", "the columns are not of the kept records")
        rendered = {name: Field(name, form.dtype, form.shape, False) for name, form in self._forms.items()}
        every = rendered | {field.name: field for field in table.fields}
        if order and (set(order) != set(every) or len(order) != len(every)):
            raise Refused("node.internal", "the order of the fields is not an order of all of them")
        fields = tuple(every[name] for name in order or every)
        held, self._columns = self._columns, {}
        return PreparedStore(fields, held, keep, self._records, table, self.confinement)

    def close(self) -> None:
        """Wipe what was put and not handed over by `finish`. Idempotent."""
        while self._columns:
            self._columns.popitem()[1].close()

    def _check(self, keep: NDArray[np.int64]) -> None:
        inside = keep.ndim == 1 and not np.any((keep < 0) | (keep >= self._records))
        if not inside or len(np.unique(keep)) != len(keep):
            raise Refused("node.internal", "the kept records are not among those rendered")
        if self._columns.keys() != self._forms.keys():
            raise Refused("node.internal", "the records were handed over already")
        for name, column in self._columns.items():
            if column.missing[keep].any():
                raise Refused("node.internal", f"{name}: a record was kept and never rendered")


class PreparedStore:
    """A `RecordStore` of rendered fields and a table. Not for two threads at a time.

    Attributes:
        fields, patients: as `RecordStore`.
        confinement: where the rendered values are.
    """

    def __init__(
        self,
        fields: tuple[Field, ...],
        columns: dict[str, Column],
        keep: NDArray[np.int64],
        records: int,
        table: TableStore,
        confinement: Confinement,
    ) -> None:
        self.fields, self.patients, self.confinement = fields, table.patients, confinement
        self._columns, self._table, self._closed = columns, table, False
        # None: every record was kept, in its own place, and no detour is needed.
        same = len(keep) == records and bool(np.all(keep == np.arange(records)))
        self._keep = None if same else keep

    def __len__(self) -> int:
        return len(self.patients)

    def gather(self, field: str, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """As `RecordStore.gather`.

        Raises:
            Refused: `node.internal` where a shard does not verify, or after `close`.
        """
        self._open()
        column = self._columns.get(field)
        if column is None:
            self._table.gather(field, indices, out)
        else:
            column.gather(indices if self._keep is None else self._keep[indices], out)

    def lengths(self, field: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `RecordStore.lengths`."""
        self._open()
        return self._table.lengths(field, indices)

    def gather_values(self, field: str, indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """As `RecordStore.gather_values`."""
        self._open()
        self._table.gather_values(field, indices, out)

    def close(self) -> None:
        """Wipe the rendered values, and the files with them. Idempotent."""
        self._closed = True
        while self._columns:
            self._columns.popitem()[1].close()

    def _open(self) -> None:
        if self._closed:
            raise Refused("node.internal", "the prepared records are closed")
