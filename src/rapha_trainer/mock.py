"""Synthetic records to try a job on: the shapes of real ones, drawn from a seed, and no patient behind them.

    from rapha_trainer import Field, mock

    schema = [Field("pixels", "float32", (64, 64), label=False), Field("y", "int64", (), label=True)]
    mock.write("home.npz", mock.draw(schema, records=200, seed=1), labels=["y"])

Values are plausible in range, not in meaning: fields are drawn one by one, so what a model learns here is
noise, and so are its metrics. `rapha job mock` draws from a catalogue entry and applies a job's transforms.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from rapha_trainer.home import OFFSETS
from rapha_trainer.source import Field

NOTE: Final = "synthetic: drawn at random by rapha_trainer.mock; no patient is in here"
"""What the file says of itself, as `__synthetic__`."""
MEAN_LENGTH: Final = 6
"""Of a field of variable length, in values a record."""
_MOST: Final = 100
"""Of a count: what every integer holds."""
_COLOURS: Final = (3, 4)
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""A zip member's date: the same seed gives the same bytes."""


class Column(NamedTuple):
    """A field of variable length: record i has `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: [m, *shape].
        offsets: int64[n + 1], rising from 0 to m.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]


Values = NDArray[Any] | Column
Columns = dict[str, Values]


def draw(fields: Iterable[Field], records: int, seed: int) -> Columns:
    """A column for each field, of its dtype and shape; a field's values don't depend on the other fields.

    Raises:
        ValueError: a dtype that is not a plain number.
    """
    return {field.name: column(field, records, generator(seed, field.name)) for field in fields}


def generator(seed: int, name: str) -> Generator:
    """The random numbers of field `name`."""
    return Generator(PCG64([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])]))


def column(field: Field, records: int, rng: Generator) -> Values:
    """`records` values of one field: images where it has two axes or more, else numbers, or lists of them.

    Raises:
        ValueError: the dtype is not a plain number.
    """
    dtype = np.dtype(field.dtype)
    if dtype.kind not in "biuf":
        raise ValueError(f"{field.name}: {field.dtype} is not a plain number")
    if field.ragged:
        counts = rng.poisson(MEAN_LENGTH, records)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return Column(_numbers(dtype, (int(offsets[-1]), *field.shape), rng), offsets)
    if field.label:
        return _outcomes(dtype, records, rng)
    if len(field.shape) < 2:
        return _numbers(dtype, (records, *field.shape), rng)
    result = np.empty((records, *field.shape), dtype)
    for one in result:
        one[...] = value(dtype, field.shape, rng)
    return result


def value(dtype: np.dtype[Any], shape: tuple[int, ...], rng: Generator) -> NDArray[Any]:
    """One record's value. An image or volume is a bright ellipse with noise on a dark ground, over the range
    that scanners use; its plane is the last two axes, or the two before the last where that is of colours.
    """
    if len(shape) < 2:
        return _numbers(dtype, shape, rng)
    plane = -3 if len(shape) > 2 and shape[-1] in _COLOURS else -2
    rows, columns = shape[plane], shape[plane + 1]
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in (rows, columns))
    centre, radius = rng.uniform(-0.2, 0.2, 2), rng.uniform(0.4, 0.8, 2)
    inside = ((y[:, None] - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1
    level = (inside * np.float32(rng.uniform(0.4, 0.8))).reshape((rows, columns) + (1,) * (-2 - plane))
    if dtype.kind == "b":
        return np.broadcast_to(level > 0, shape)
    values = level + rng.normal(0.1, 0.03, shape).astype(np.float32)
    low, high = _range(dtype)
    scaled: NDArray[Any] = np.clip(values, 0, 1) * (high - low) + low
    return scaled.astype(dtype)


def write(
    path: str | Path, columns: Mapping[str, Values], labels: Collection[str], test: float = 0.2
) -> None:
    """Write a file for `RAPHA_HOME_DATA`, replacing an earlier one. The last records are the test split.

    Args:
        columns: all of the same length; at least one.
        labels: names of the columns that the test split hides.
        test: the share of records in the test split, 0 … 1.

    Raises:
        ValueError: two names would be one in the file.
        OSError: the file can't be written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, values in columns.items():
        if name.endswith(OFFSETS) or name.startswith("__"):
            raise ValueError(f"{name}: the file keeps such names for itself")
        if isinstance(values, Column):
            arrays |= {name: values.values, name + OFFSETS: values.offsets}
        else:
            arrays[name] = values
    first = next(iter(columns.values()))
    records = len(first.offsets) - 1 if isinstance(first, Column) else len(first)
    arrays["__labels__"] = np.array(sorted(labels), dtype=np.str_)
    arrays["__test__"] = np.arange(records - round(records * test), records)
    arrays["__synthetic__"] = np.array(NOTE)
    _save(Path(path), arrays)


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """As `np.savez`, for any field's name, and the same bytes each time."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        # `replace` would put a file in the place of a device, such as /dev/null.
        raise FileExistsError(errno.EEXIST, "there is something else than a file", str(path))
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as file:
            for name, array in arrays.items():
                with file.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _outcomes(dtype: np.dtype[Any], records: int, rng: Generator) -> NDArray[Any]:
    if dtype.kind == "f":
        return rng.gamma(2.0, 1.0, records).astype(dtype)
    return rng.integers(0, 2, records).astype(dtype)


def _numbers(dtype: np.dtype[Any], shape: tuple[int, ...], rng: Generator) -> NDArray[Any]:
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "f":
        return rng.gamma(4.0, 2.5, shape).astype(dtype)
    return np.minimum(rng.poisson(20, shape), _MOST).astype(dtype)


def _range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """From air to bone in Hounsfield units, 12 stored bits, a byte, or 0 to 1."""
    if dtype.kind == "f":
        return 0.0, 1.0
    if dtype.itemsize == 1:
        return 0.0, float(np.iinfo(dtype).max)
    return (-1024.0, 3071.0) if dtype.kind == "i" else (0.0, 4095.0)
