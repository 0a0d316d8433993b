"""Arrow columns as the node uses them: to filter on, to serve, and with a verdict on each record.

What is missing, not finite or of the wrong size is a verdict and never an error: one bad row costs one
record. Precondition throughout: the column was validated and has the type that its field needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rapha.node.sources.filter import Column
from rapha.node.sources.interface import Array, Quarantine
from rapha.runtime.broker.store import Ragged
from rapha.spec.cohort import day_number

_FIRST_DAY: Final = day_number("0001-01-01")
_LAST_DAY: Final = day_number("9999-12-31")
_A_DAY: Final = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_ISO_DAY: Final = 10


@dataclass(frozen=True, slots=True)
class Values:
    """A field that is served.

    Attributes:
        values: length n; zeros where the verdict is not NONE.
        verdict: length n, uint8 of `Quarantine`.
    """

    values: Array | Ragged
    verdict: Array

    @property
    def column(self) -> Column:
        """The same to filter on. One that holds several values a record can only be asked to be there."""
        there = ~np.isin(self.verdict, (Quarantine.VALUE_MISSING, Quarantine.SHAPE))
        values = self.values.offsets[:-1] if isinstance(self.values, Ragged) else self.values
        return Column(values, there)


def dense(column: pa.ChunkedArray, shape: tuple[int, ...]) -> Values:
    """Numbers of one shape: [n, *shape]. A record of another shape falls out with `SHAPE`."""
    parts = [_dense(chunk, shape) for chunk in _chunks(column)]
    return Values(
        np.ascontiguousarray(np.concatenate([values for values, _ in parts])),
        np.concatenate([verdict for _, verdict in parts]),
    )


def ragged(column: pa.ChunkedArray, shape: tuple[int, ...]) -> Values:
    """Any number of values a record, each of `shape`; none is a value, null is not."""
    parts = [_ragged(chunk, shape) for chunk in _chunks(column)]
    lengths = np.concatenate([lengths for _, lengths, _ in parts])
    values = np.ascontiguousarray(np.concatenate([values for values, _, _ in parts]))
    return Values(Ragged(values, _offsets(lengths)), np.concatenate([verdict for _, _, verdict in parts]))


def take(values: Array | Ragged, positions: Array) -> Array | Ragged:
    """The records at `positions`, in that order."""
    if not isinstance(values, Ragged):
        return values[positions]
    starts, offsets = values.offsets[:-1][positions], _offsets(np.diff(values.offsets)[positions])
    at = np.repeat(starts - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
    return Ragged(values.values[at], offsets)


def text(column: pa.ChunkedArray) -> Column:
    """Text, or integers as text, as positions in its distinct words."""
    if pa.types.is_integer(column.type):
        column = pc.cast(column, pa.string())
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    encoded = column.unify_dictionaries().combine_chunks()
    valid = np.asarray(pc.is_valid(encoded).to_numpy(zero_copy_only=False), dtype=np.bool_)
    codes = np.asarray(pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False))
    listed = encoded.dictionary.to_pylist()  # a dictionary may hold a null, or a word twice
    valid &= _per_word([word is not None for word in listed], codes)
    numbers: dict[str, int] = {}
    same = [numbers.setdefault(word or "", len(numbers)) for word in listed]
    if len(numbers) < len(listed):
        codes = np.array(same, dtype=np.int64)[codes]
    return Column(codes, valid, tuple(numbers))


def identifiers(words: Column) -> Values:
    """Texts that become pseudonyms; an empty one is missing."""
    told = np.array([*(words.words or ()), ""], dtype=object)  # the last is for a column without any word
    values = told[words.values]
    return Values(values, _verdict(words.valid & (values != "")))


def coded(words: Column, codes: Mapping[str, int], dtype: str) -> Values:
    """The number that stands for each text; one that isn't listed is missing."""
    listed = words.words or ()
    known = words.valid & _per_word([word in codes for word in listed], words.values)
    numbers = np.array([*(codes.get(word, 0) for word in listed), 0], dtype=dtype)
    return Values(np.where(known, numbers[words.values], np.zeros(1, dtype=dtype)), _verdict(known))


def days(column: pa.ChunkedArray) -> Column:
    """Dates, timestamps (the date at their own place) or ISO 8601 text, as days from 1970-01-01.

    What is no day of the years 1 to 9999 is missing.

    Raises:
        pa.ArrowInvalid: a time zone that nobody knows.
    """
    if pa.types.is_timestamp(column.type):
        found, valid = _integers(column, pa.int64())
        a_day = _A_DAY[column.type.unit]
        if column.type.tz is not None:
            valid &= _plausible(found // a_day)  # others overflow below
            masked = pc.if_else(pa.array(valid), column, pa.scalar(None, column.type))
            found, valid = _integers(pc.local_timestamp(masked), pa.int64())
        found = found // a_day
    elif pa.types.is_date32(column.type):
        found, valid = _integers(column, pa.int32())
    else:
        words = text(column)
        parsed = [_day_of(word) for word in words.words or ()]
        found = np.array([*(day or 0 for day in parsed), 0])[words.values]
        valid = words.valid & _per_word([day is not None for day in parsed], words.values)
    valid &= _plausible(found)
    return Column(np.where(valid, found, 0).astype(np.int32), valid, dates=True)


def since_first(dates: Column, patients: Column, dtype: str) -> Values:
    """Days from the first date that each record's patient has in this column, in the whole table."""
    first = np.full(max(1, len(patients.words or ())), np.iinfo(np.int32).max, dtype=np.int64)
    there = dates.valid & patients.valid
    np.minimum.at(first, patients.values[there], dates.values[there])
    values = np.where(there, dates.values - first[patients.values], 0).astype(dtype)
    return Values(values, _verdict(there))


def _dense(array: pa.Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    if not shape:
        return _plain(array)
    valid, lengths = _lengths(array)
    fits = valid & (lengths == shape[0])
    verdict = np.where(valid, Quarantine.SHAPE, Quarantine.VALUE_MISSING).astype(np.uint8)
    kept = array if bool(fits.all()) else array.filter(pa.array(fits))
    inner, inside = _dense(kept.flatten(), shape[1:])
    verdict[fits] = inside.reshape(-1, shape[0]).max(axis=1)
    values = np.zeros((len(array), *shape), dtype=inner.dtype)
    values[fits] = inner.reshape(-1, *shape)
    return values, verdict


def _ragged(array: pa.Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    valid, lengths = _lengths(array)
    values, inside = _dense(array.flatten(), shape)
    verdict = _verdict(valid)
    bad = np.flatnonzero(inside)
    np.maximum.at(verdict, np.searchsorted(np.cumsum(lengths), bad, side="right"), inside[bad])
    return values, lengths, verdict


def _plain(array: pa.Array) -> tuple[Array, Array]:
    valid = np.asarray(pc.is_valid(array).to_numpy(zero_copy_only=False), dtype=np.bool_)
    filler = pa.scalar(False) if pa.types.is_boolean(array.type) else pa.scalar(0).cast(array.type)
    values = np.asarray(pc.fill_null(array, filler).to_numpy(zero_copy_only=False))
    verdict = _verdict(valid)
    if values.dtype.kind == "f":
        verdict[np.isnan(values)] = Quarantine.VALUE_MISSING
        verdict[np.isinf(values)] = Quarantine.VALUE_NOT_FINITE
    return values, verdict


def _lengths(array: pa.Array) -> tuple[Array, Array]:
    """Of each list, 0 for null, whose bytes `flatten` leaves out."""
    valid = np.asarray(pc.is_valid(array).to_numpy(zero_copy_only=False), dtype=np.bool_)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return valid, np.asarray(lengths, dtype=np.int64)


def _integers(column: pa.ChunkedArray, kind: pa.DataType) -> tuple[Array, Array]:
    valid = np.asarray(pc.is_valid(column).to_numpy(), dtype=np.bool_)
    return np.asarray(pc.fill_null(pc.cast(column, kind), 0).to_numpy(), dtype=np.int64), valid


def _chunks(column: pa.ChunkedArray) -> list[Any]:
    return list(column.chunks) or [pa.array([], column.type)]


def _offsets(lengths: Array) -> Array:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def _per_word(verdicts: list[bool], codes: Array) -> Array:
    """Spread a verdict on words over records; a column without any word has no valid record."""
    return np.array([*verdicts, False], dtype=np.bool_)[codes]


def _verdict(valid: Array) -> Array:
    return np.where(valid, Quarantine.NONE, Quarantine.VALUE_MISSING).astype(np.uint8)


def _plausible(found: Array) -> Array:
    return np.asarray((found >= _FIRST_DAY) & (found <= _LAST_DAY))


def _day_of(word: str) -> int | None:
    """The day of an ISO 8601 date, or of a date and time; None for anything else."""
    try:
        if len(word) > _ISO_DAY:
            datetime.fromisoformat(word)
        return day_number(word[:_ISO_DAY])
    except ValueError:
        return None
