"""Labels kept beside the images: a Parquet file, pinned by digest and joined by an identifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rapha.node.sources.folder import read_pinned
from rapha.spec.dataset import DatasetManifest, Field
from rapha.spec.imaging import Imaging, LabelTable
from rapha.spec.refusals import Refused

MAX_ROWS: Final = 20_000_000
MAX_COLUMNS: Final = 4096
MAX_FILE_BYTES: Final = 2**31
_EXACT: Final = 2**53
"""Up to here columns hold every integer exactly."""
_THRIFT_LIMIT: Final = 64 * 2**20

Label = float | int | bool


@dataclass(frozen=True, slots=True)
class Labels:
    """The table: by the name of a label field, the label of each key.

    Attributes:
        key: the attribute by which a row finds its images.
        of: a key without an entry has no label.
    """

    key: str
    of: Mapping[str, Mapping[str, Label]]


def columns_of(manifest: DatasetManifest, folder: Path) -> frozenset[str]:
    """The columns of the manifest's label table, none where it has no table.

    Raises:
        Refused: as `read`.
    """
    table = _table(manifest)
    if table is None:
        return frozenset()
    with _open(table, folder) as file:
        return frozenset(file.schema_arrow.names) - {table.key}


def read(manifest: DatasetManifest, fields: tuple[Field, ...], folder: Path) -> Labels | None:
    """The labels of `fields`, each from the column that is its path.

    Raises:
        Refused: `node.dataset_missing`, `node.dataset_writable`, or `node.dataset_invalid` for a file that
            isn't the one in the manifest, can't be read, names a key twice, or has another type than a
            field. No message quotes a value.
    """
    table = _table(manifest)
    if table is None:
        return None
    import pyarrow as pa

    wanted = [table.key, *dict.fromkeys(field.where for field in fields)]
    try:
        with _open(table, folder) as file:
            _check(file, table, wanted)
            columns = file.read(columns=wanted, use_threads=False)
        keys = _keys(columns.column(table.key), table)
        found = {field.name: _labels(columns.column(field.where), field, keys, table) for field in fields}
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError):
        raise _invalid(table, "is not a readable Parquet file") from None
    return Labels(table.key, found)


def _table(manifest: DatasetManifest) -> LabelTable | None:
    return manifest.source.labels if isinstance(manifest.source, Imaging) else None


def _open(table: LabelTable, folder: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if table.file.size > MAX_FILE_BYTES:
        raise _invalid(table, f"is larger than {MAX_FILE_BYTES} bytes")
    data = read_pinned(table.path, table.file, folder)
    limits = {"thrift_string_size_limit": _THRIFT_LIMIT, "thrift_container_size_limit": _THRIFT_LIMIT}
    try:
        return pq.ParquetFile(pa.BufferReader(data), **limits)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError):
        raise _invalid(table, "is not a readable Parquet file") from None


def _check(file: Any, table: LabelTable, wanted: list[str]) -> None:
    if file.metadata.num_rows > MAX_ROWS or file.metadata.num_columns > MAX_COLUMNS:
        raise _invalid(table, f"passes {MAX_ROWS} rows or {MAX_COLUMNS} columns")
    for name in wanted:
        if len(file.schema_arrow.get_all_field_indices(name)) != 1:
            raise _invalid(table, f"has not one column {name}")


def _keys(column: Any, table: LabelTable) -> list[str | None]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (_is_text(column.type) or pa.types.is_integer(column.type)):
        raise _invalid(table, f"{table.key} is not text or an integer")
    keys = [None if key is None else str(key) for key in column.to_pylist()]
    if len(set(keys)) != len(keys) or not all(keys):
        raise _invalid(table, f"a {table.key} is missing or named twice")
    return keys


def _labels(column: Any, field: Field, keys: list[str | None], table: LabelTable) -> dict[str, Label]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if field.codes:
        if not _is_text(column.type):
            raise _invalid(table, f"{field.where} is not text, and {field.name} has codes")
        values = [field.codes.get(value) for value in column.to_pylist()]
    else:
        if not column.type.equals(_type(field)):
            raise _invalid(table, f"{field.where} is not of type {field.dtype}")
        values = column.to_pylist()
        if field.dtype == "int64" and any(abs(value or 0) > _EXACT for value in values):
            raise _invalid(table, f"{field.where} holds a number past 2^53")
    return {key: value for key, value in zip(keys, values, strict=True) if key and value is not None}


def _type(field: Field) -> Any:
    import pyarrow as pa

    return pa.bool_() if field.dtype == "bool" else pa.from_numpy_dtype(field.dtype)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _invalid(table: LabelTable, what: str) -> Refused:
    return Refused("node.dataset_invalid", f"{table.file.name} {what}")
