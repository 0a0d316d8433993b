"""A read-only folder of Parquet files: one row a record, one column a field.

Every file is read whole, checked against its digest and parsed from memory (`folder.read_files`). A file
that does not fit the manifest refuses the dataset; a row that can't be used is quarantined with a reason.

A field's path is its column. Beside plain numbers, texts and truth values, a column may hold

- lists of one size (a field with a `shape`) or of any (a `ragged` one)
- dates, timestamps or ISO 8601 text: a `date` field, or in a numeric one the days from the first date that
  the record's patient has in that column; text counts as dates where a `date` field reads the same column
- text for which a numeric field has `codes`, or that a `pseudonym` field stands for
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as attribute
from itertools import accumulate
from typing import Final, overload

import numpy as np
import pyarrow as pa

from rapha.node.sources import columns
from rapha.node.sources.columns import Values
from rapha.node.sources.filter import Column, matches
from rapha.node.sources.folder import read_files
from rapha.node.sources.identifiers import judge_identifier
from rapha.node.sources.interface import (
    Array,
    Aside,
    Index,
    Mask,
    Quarantine,
    Render,
    Rendered,
    Sink,
    Surroundings,
)
from rapha.node.sources.parquet_file import Layout, is_date, is_text, parse
from rapha.runtime.broker.store import Ragged
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest, Field, FolderSource
from rapha.spec.refusals import Refused

MAX_ROWS: Final = 20_000_000


class ParquetSource:
    """Opens what `DatasetManifest.source` of format `parquet` describes."""

    def open(self, manifest: DatasetManifest, around: Surroundings) -> ParquetRecords:
        """See `RecordSource.open`. Columns that the manifest doesn't name are never decoded."""
        source = manifest.source
        if not isinstance(source, FolderSource):
            raise Refused("node.internal", "not a folder of tables")
        layout = Layout.of(manifest)
        files = read_files(source, around.folder)
        names = [file.name for file in source.files]
        rows = 0
        tables = []
        for done, name in enumerate(names):
            around.tell("index", done, len(names))
            table = parse(files.pop(name), name, layout, MAX_ROWS - rows)
            rows += table.num_rows
            tables.append(table)
        if rows == 0:
            raise Refused("node.dataset_invalid", "the files hold no record")
        around.tell("index", len(names), len(names))
        digests = tuple(file.sha256 for file in source.files)
        locators = Locators(digests, tuple(table.num_rows for table in tables))
        return ParquetRecords(_unified(tables), manifest, locators)


class ParquetRecords:
    """Records held in memory, by column."""

    def __init__(self, table: pa.Table, manifest: DatasetManifest, locators: Locators) -> None:
        self._length = table.num_rows
        patients = columns.text(table.column(manifest.patient_id))
        names, quarantine = _identify(patients)
        self._columns: dict[str, Column] = {}
        self._served: dict[str, Array | Ragged] = {}
        for field in manifest.fields:
            column = table.column(field.where)
            if field.served:
                found = _values(column, field, patients)
                _judge(field, found, quarantine)
                self._served[field.name], self._columns[field.name] = found.values, found.column
            else:
                self._columns[field.name] = _filtered(column, field)
        self._index = Index(names, quarantine, locators)

    @property
    def index(self) -> Index:
        """Who each record belongs to and whether it can be read."""
        return self._index

    @property
    def aside(self) -> Sequence[Aside]:
        """Nothing: whatever the manifest does not list refuses the folder."""
        return ()

    def select(self, cohort: Node) -> Mask:
        """See `Records.select`."""
        return matches(cohort, self._columns, self._length)

    @property
    def rendered(self) -> tuple[str, ...]:
        """Nothing: a table is held whole."""
        return ()

    def read(self, positions: Array) -> Mapping[str, Array | Ragged]:
        """See `Records.read`."""
        return {name: columns.take(values, positions) for name, values in self._served.items()}

    def render(self, positions: Array, renders: Sequence[Render], sink: Sink) -> Rendered:
        """See `Records.render`."""
        return Rendered(np.zeros(len(positions), dtype=np.uint8), [b""] * len(positions))

    def close(self) -> None:
        """Drop the columns and the index."""
        self._columns, self._served = {}, {}
        self._index = Index([], np.zeros(0, dtype=np.uint8), ())


@dataclass(frozen=True, slots=True)
class Locators(Sequence[str]):
    """`<sha256 of the file>:<row>` of each record, computed when asked for."""

    digests: tuple[str, ...]
    rows: tuple[int, ...]
    ends: tuple[int, ...] = attribute(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(self.rows)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[str]: ...
    def __getitem__(self, position: int | slice) -> str | Sequence[str]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not 0 <= position < len(self):
            raise IndexError(position)
        file = bisect_right(self.ends, position)
        return f"{self.digests[file]}:{position - self.ends[file] + self.rows[file]}"

    def __iter__(self) -> Iterator[str]:
        for digest, rows in zip(self.digests, self.rows, strict=True):
            for row in range(rows):
                yield f"{digest}:{row}"


def _unified(tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()
    except (pa.ArrowException, MemoryError):
        raise Refused("node.dataset_invalid", "the files do not have the same columns") from None


def _filtered(column: pa.ChunkedArray, field: Field) -> Column:
    return _days(column, field) if field.dtype == "date" else columns.text(column)


def _values(column: pa.ChunkedArray, field: Field, patients: Column) -> Values:
    if field.dtype == "pseudonym":
        return columns.identifiers(columns.text(column))
    if field.codes:
        return columns.coded(columns.text(column), field.codes, field.dtype)
    if field.ragged:
        return columns.ragged(column, field.shape)
    if is_text(column.type) or is_date(column.type):
        return columns.since_first(_days(column, field), patients, field.dtype)
    return columns.dense(column, field.shape)


def _days(column: pa.ChunkedArray, field: Field) -> Column:
    try:
        return columns.days(column)
    except pa.ArrowException:  # its words may quote a value
        raise Refused("node.dataset_invalid", f"{field.where} is in a time zone nobody knows") from None


def _identify(patients: Column) -> tuple[list[str], Array]:
    """Each record's patient, and a first quarantine for those without a usable one."""
    words = [*(patients.words or ()), ""]  # the last is for a column without any word
    verdicts = np.array([judge_identifier(word) for word in words], dtype=np.uint8)
    quarantine = np.where(patients.valid, verdicts[patients.values], np.uint8(Quarantine.PATIENT_MISSING))
    told = [word if not verdict else "" for word, verdict in zip(words, verdicts, strict=True)]
    usable = np.array(told, dtype=object)  # as numpy's own text, each would take the bytes of the longest
    names = np.where(quarantine == Quarantine.NONE, usable[patients.values], "")
    return names.tolist(), quarantine


def _judge(field: Field, found: Values, quarantine: Array) -> None:
    """Quarantine rows with an unusable input; refuse the dataset for an unusable label."""
    if field.label and found.verdict.any():
        raise Refused("node.dataset_invalid", f"{field.name} is a label and is missing in some records")
    fresh = quarantine == Quarantine.NONE
    quarantine[fresh] = found.verdict[fresh]
