"""A read-only folder of Parquet files: one row a record, one column a field.

Every file is read whole, checked against its digest and parsed from memory (`folder.read_files`). A file
that does not fit the manifest refuses the dataset; a row that can't be used is quarantined with a reason.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rapha.node.sources.filter import Column, matches
from rapha.node.sources.folder import read_files
from rapha.node.sources.interface import Array, Index, Mask, Quarantine
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest, DType, Field
from rapha.spec.refusals import Refused

MAX_ROWS: Final = 20_000_000
MAX_COLUMNS: Final = 8192
MAX_DECODED_BYTES: Final = 16 * 2**30
MAX_IDENTIFIER: Final = 128
_THRIFT_LIMIT: Final = 64 * 2**20

_TYPES: Final[dict[DType, Any]] = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "bool": pa.bool_(),
}


class ParquetSource:
    """Opens what `DatasetManifest.source` of format `parquet` describes."""

    def open(self, manifest: DatasetManifest, manifest_folder: Path) -> ParquetRecords:
        """See `RecordSource.open`. Columns that the manifest doesn't name are never decoded."""
        files = read_files(manifest.source, manifest_folder)
        names = [file.name for file in manifest.source.files]
        rows = 0
        tables = []
        for name in names:
            table = _parse(files.pop(name), name, manifest, MAX_ROWS - rows)
            rows += table.num_rows
            tables.append(table)
        if rows == 0:
            raise Refused("node.dataset_invalid", "the files hold no record")
        digests = tuple(file.sha256 for file in manifest.source.files)
        locators = Locators(digests, tuple(table.num_rows for table in tables))
        return ParquetRecords(_unified(tables), manifest, locators)


class ParquetRecords:
    """Records held in memory, by column."""

    def __init__(self, table: pa.Table, manifest: DatasetManifest, locators: Locators) -> None:
        self._length = table.num_rows
        self._served = tuple(field.name for field in manifest.fields if field.served)
        self._columns = {f.name: _column(table.column(f.name), f) for f in manifest.fields}
        patients, quarantine = _identify(_text(table.column(manifest.patient_id)))
        for field in manifest.fields:
            _judge(field, self._columns[field.name], quarantine)
        self._index = Index(patients, quarantine, locators)

    @property
    def index(self) -> Index:
        """Who each record belongs to and whether it can be read."""
        return self._index

    def select(self, cohort: Node) -> Mask:
        """See `Records.select`."""
        return matches(cohort, self._columns, self._length)

    def read(self, positions: Array) -> Mapping[str, Array]:
        """See `Records.read`."""
        return {name: self._columns[name].values[positions] for name in self._served}

    def close(self) -> None:
        """Drop the columns and the index."""
        self._columns = {}
        self._index = Index([], np.zeros(0, dtype=np.uint8), ())


@dataclass(frozen=True, slots=True)
class Locators(Sequence[str]):
    """`<sha256 of the file>:<row>` of each record, computed when asked for."""

    digests: tuple[str, ...]
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.rows)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[str]: ...
    def __getitem__(self, position: int | slice) -> str | Sequence[str]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        left = position
        for digest, rows in zip(self.digests, self.rows, strict=True):
            if 0 <= left < rows:
                return f"{digest}:{left}"
            left -= rows
        raise IndexError(position)

    def __iter__(self) -> Iterator[str]:
        for digest, rows in zip(self.digests, self.rows, strict=True):
            for row in range(rows):
                yield f"{digest}:{row}"


def _parse(data: bytes, name: str, manifest: DatasetManifest, rows_left: int) -> pa.Table:
    """One file's wanted columns. pyarrow's own messages quote values, so none is passed on."""
    texts = [manifest.patient_id, *(field.name for field in manifest.fields if not field.served)]
    wanted = [manifest.patient_id, *(field.name for field in manifest.fields)]
    try:
        with _file(data) as file:
            _check_shape(file, name, manifest, rows_left)
        with _file(data, read_dictionary=texts) as file:
            table = file.read(columns=wanted, use_threads=False).select(wanted)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError):
        raise Refused("node.dataset_invalid", f"{name} is not a readable Parquet file") from None
    return table


def _file(data: bytes, **options: Any) -> pq.ParquetFile:
    limits = {"thrift_string_size_limit": _THRIFT_LIMIT, "thrift_container_size_limit": _THRIFT_LIMIT}
    return pq.ParquetFile(pa.BufferReader(data), **limits, **options)


def _check_shape(file: pq.ParquetFile, name: str, manifest: DatasetManifest, rows_left: int) -> None:
    rows, columns = file.metadata.num_rows, file.metadata.num_columns
    if rows > rows_left or columns > MAX_COLUMNS:
        raise Refused("node.dataset_invalid", f"{name} passes {MAX_ROWS} rows or {MAX_COLUMNS} columns")
    if rows * 8 * (len(manifest.fields) + 1) > MAX_DECODED_BYTES:
        raise Refused("node.dataset_invalid", f"{name} decodes to more than {MAX_DECODED_BYTES} bytes")
    schema = file.schema_arrow
    identifier = _type_of(schema, manifest.patient_id, name)
    if not (_is_text(identifier) or pa.types.is_integer(identifier)):
        raise Refused("node.dataset_invalid", f"{name}: {manifest.patient_id} is not text or an integer")
    for field in manifest.fields:
        found = _type_of(schema, field.name, name)
        fits = found.equals(_TYPES[field.dtype]) if field.served else _is_text(found)
        if not fits:
            raise Refused("node.dataset_invalid", f"{name}: {field.name} is not of type {field.dtype}")


def _type_of(schema: pa.Schema, column: str, name: str) -> Any:
    found = schema.get_all_field_indices(column)
    if len(found) != 1:
        raise Refused("node.dataset_invalid", f"{name}: {column} is there {len(found)} times, not once")
    return schema.field(found[0]).type


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _unified(tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()
    except (pa.ArrowException, MemoryError):
        raise Refused("node.dataset_invalid", "the files do not have the same columns") from None


def _column(column: pa.ChunkedArray, field: Field) -> Column:
    if not field.served:
        return _text(column)
    valid = np.asarray(pc.is_valid(column).to_numpy(), dtype=np.bool_)
    filler = pa.scalar(False) if field.dtype == "bool" else pa.scalar(0, type=column.type)
    values = np.ascontiguousarray(pc.fill_null(column, filler).to_numpy())
    if values.dtype.kind == "f":
        valid &= ~np.isnan(values)
    return Column(values, valid)


def _text(column: pa.ChunkedArray) -> Column:
    """Text, or integers as text, as positions in its distinct words."""
    if pa.types.is_integer(column.type):
        column = pc.cast(column, pa.string())
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    encoded = column.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # what combine_chunks gives depends on the number of chunks
        encoded = encoded.chunk(0)
    valid = np.asarray(pc.is_valid(encoded).to_numpy(zero_copy_only=False), dtype=np.bool_)
    codes = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
    words = encoded.dictionary.to_pylist()  # a dictionary may hold a null of its own
    valid &= np.array([word is not None for word in words] or [False], dtype=np.bool_)[codes]
    return Column(np.asarray(codes), valid, tuple(word or "" for word in words))


def _identify(column: Column) -> tuple[list[str], Array]:
    """Each record's patient, and a first quarantine for those without a usable one."""
    words = column.words or ("",)
    usable = np.array([_is_identifier(word) for word in words], dtype=np.bool_)[column.values]
    quarantine = np.where(usable, Quarantine.NONE, Quarantine.PATIENT_INVALID).astype(np.uint8)
    empty = np.array([not word for word in words], dtype=np.bool_)[column.values]
    quarantine[empty | ~column.valid] = Quarantine.PATIENT_MISSING
    patients = [words[c] if q == 0 else "" for c, q in zip(column.values, quarantine, strict=True)]
    return patients, quarantine


def _is_identifier(word: str) -> bool:
    """Whether two systems would agree on these characters; a stray blank would defeat an opt-out."""
    return (
        0 < len(word) <= MAX_IDENTIFIER
        and word.isprintable()
        and word == word.strip()
        and unicodedata.is_normalized("NFC", word)
    )


def _judge(field: Field, column: Column, quarantine: Array) -> None:
    """Quarantine rows with an unusable input; refuse the dataset for an unusable label."""
    if not field.served:
        return
    infinite = np.isinf(column.values) if column.values.dtype.kind == "f" else ~column.valid & False
    if field.label and not bool(np.all(column.valid & ~infinite)):
        raise Refused("node.dataset_invalid", f"{field.name} is a label and is missing in some records")
    fresh = quarantine == Quarantine.NONE
    quarantine[fresh & ~column.valid] = Quarantine.VALUE_MISSING
    quarantine[fresh & infinite] = Quarantine.VALUE_NOT_FINITE
