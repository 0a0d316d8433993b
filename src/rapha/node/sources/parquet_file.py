"""One Parquet file, read as hostile: only the columns that a manifest needs, of the types that it says.

pyarrow's own messages quote values, so none is passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rapha.spec.dataset import DatasetManifest, DType, Field
from rapha.spec.refusals import Refused
from rapha.spec.transforms import ITEM_BYTES

MAX_COLUMNS: Final = 8192
MAX_DECODED_BYTES: Final = 16 * 2**30
_ROWS_AT_ONCE: Final = 65536
_THRIFT_LIMIT: Final = 64 * 2**20
_A_PLAIN_VALUE: Final = 8

_TYPES: Final[dict[DType, Any]] = {
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "bool": pa.bool_(),
}
_COUNTS_DAYS: Final = frozenset({"int32", "int64", "float32", "float64"})
"""Dtypes that hold every distance between two days."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What every file of a dataset has to look like.

    Attributes:
        patient: column of the patients' identifiers.
        dated: columns that a `date` field reads: text in them is a date.
    """

    patient: str
    fields: tuple[Field, ...]
    dated: frozenset[str]

    @classmethod
    def of(cls, manifest: DatasetManifest) -> Self:
        """The layout that a manifest describes.

        Raises:
            Refused: `node.dataset_invalid` for a field that no table can hold.
        """
        for field in manifest.fields:
            if 0 in field.shape:
                raise Refused(
                    "node.dataset_invalid", f"{field.name}: a table's lists need sizes, or `ragged`"
                )
            if field.codes and not _codes_fit(field):
                raise Refused("node.dataset_invalid", f"{field.name}: a code does not fit {field.dtype}")
        dated = frozenset(field.where for field in manifest.fields if field.dtype == "date")
        return cls(manifest.patient_id, manifest.fields, dated)

    @property
    def nested(self) -> Mapping[str, Field]:
        """Columns of lists."""
        return {field.where: field for field in self.fields if field.shape or field.ragged}

    @property
    def flat(self) -> Sequence[str]:
        """All other columns that are needed, each once."""
        names = dict.fromkeys([self.patient, *(field.where for field in self.fields)])
        return [name for name in names if name not in self.nested]

    @property
    def row_bytes(self) -> int:
        """Of one decoded row, as far as it is known before it is decoded."""
        lists = sum(f.form.nbytes for f in self.nested.values() if not f.ragged)
        return lists + _A_PLAIN_VALUE * len(self.fields) + _A_PLAIN_VALUE


def parse(data: bytes, name: str, layout: Layout, rows_left: int) -> pa.Table:
    """The needed columns of the file `data`, called `name`.

    Raises:
        Refused: `node.dataset_invalid`, naming the file and the column.
    """
    try:
        with _file(data) as file:
            _check(file, name, layout, rows_left)
        # A dictionary in memory wherever text may be: each word once, however many rows there are.
        with _file(data, read_dictionary=list(layout.flat)) as file:
            table = file.read(columns=list(layout.flat), use_threads=False).select(list(layout.flat))
        for column, field in layout.nested.items():
            table = table.append_column(column, _lists(data, name, column, field))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError):
        raise Refused("node.dataset_invalid", f"{name} is not a readable Parquet file") from None
    return table


def _lists(data: bytes, name: str, column: str, field: Field) -> pa.ChunkedArray:
    """A column of lists, a part at a time: its footer may understate how much it decodes to."""
    size, chunks = 0, []
    with _file(data) as file:
        kind = file.schema_arrow.field(column).type
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column], use_threads=False):
            chunk = batch.column(column)
            size += chunk.nbytes
            if size > MAX_DECODED_BYTES:
                raise Refused("node.dataset_invalid", f"{name}: {field.name} decodes to too many bytes")
            chunks.append(chunk)
    return pa.chunked_array(chunks, kind)


def _file(data: bytes, **options: Any) -> pq.ParquetFile:
    limits = {"thrift_string_size_limit": _THRIFT_LIMIT, "thrift_container_size_limit": _THRIFT_LIMIT}
    return pq.ParquetFile(pa.BufferReader(data), **limits, **options)


def _check(file: pq.ParquetFile, name: str, layout: Layout, rows_left: int) -> None:
    rows, columns = file.metadata.num_rows, file.metadata.num_columns
    if rows > rows_left or columns > MAX_COLUMNS:
        raise Refused("node.dataset_invalid", f"{name} passes the limit of rows or {MAX_COLUMNS} columns")
    if max(rows * layout.row_bytes, _told_bytes(file, layout)) > MAX_DECODED_BYTES:
        raise Refused("node.dataset_invalid", f"{name} decodes to more than {MAX_DECODED_BYTES} bytes")
    schema = file.schema_arrow
    identifier = _type_of(schema, layout.patient, name)
    if not (is_text(identifier) or pa.types.is_integer(identifier)):
        raise Refused("node.dataset_invalid", f"{name}: {layout.patient} is not text or an integer")
    for field in layout.fields:
        if not _fits(_type_of(schema, field.where, name), field, layout.dated):
            raise Refused("node.dataset_invalid", f"{name}: {field.name} is not of type {field.dtype}")


def _told_bytes(file: pq.ParquetFile, layout: Layout) -> int:
    """What the footer says that the needed columns decode to: texts and lists are as long as they are."""
    items = {name: ITEM_BYTES[field.dtype] for name, field in layout.nested.items()}
    needed = {*layout.flat, *items}
    total = 0
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        for number in range(row_group.num_columns):
            chunk = row_group.column(number)
            column = _root(chunk.path_in_schema, needed)
            if column is not None:
                total += max(chunk.total_uncompressed_size, chunk.num_values * items.get(column, 0))
    return total


def _root(path: str, needed: set[str]) -> str | None:
    """The needed column that a leaf such as `labs.list.element` is in; a name may have dots of its own."""
    parts = path.split(".")
    return next((name for n in range(len(parts)) if (name := ".".join(parts[: n + 1])) in needed), None)


def _type_of(schema: pa.Schema, column: str, name: str) -> Any:
    found = schema.get_all_field_indices(column)
    if len(found) != 1:
        raise Refused("node.dataset_invalid", f"{name}: {column} is there {len(found)} times, not once")
    return schema.field(found[0]).type


def _fits(kind: Any, field: Field, dated: frozenset[str]) -> bool:
    match field.dtype:
        case "string":
            return is_text(kind)
        case "date":
            return is_text(kind) or is_date(kind)
        case "pseudonym":
            return is_text(kind) or bool(pa.types.is_integer(kind))
    if field.codes:
        return is_text(kind)
    for _ in range(len(field.shape) + field.ragged):
        if not _is_list(kind):
            return False
        kind = kind.value_type
    if kind.equals(_TYPES[field.dtype]):
        return True
    plain = not (field.shape or field.ragged)
    return (
        plain and field.dtype in _COUNTS_DAYS and (is_date(kind) or (is_text(kind) and field.where in dated))
    )


def is_text(kind: Any) -> bool:
    """Whether a column of this Arrow type holds text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_date(kind: Any) -> bool:
    """Whether a column of this Arrow type holds dates or points in time."""
    return bool(pa.types.is_date32(kind) or pa.types.is_timestamp(kind))


def _is_list(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _codes_fit(field: Field) -> bool:
    codes = np.array(list(field.codes.values()), dtype=np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.all(codes.astype(field.dtype).astype(np.float64) == codes))
