"""Axes at another size: area averaging where one shrinks, linear interpolation where it grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rapha.runtime.casting import WORKED_IN_FLOAT32, cast

Array = NDArray[Any]
_MANY: Final = 16
"""Above so many float32, rounding would add up to more than one rounding: their sum is made in float64."""


@dataclass(frozen=True, slots=True)
class _Taps:
    """How each of m outputs is made of k inputs along one axis: int64[k, m], float64[k, m]."""

    inputs: NDArray[np.int64]
    weights: NDArray[np.float64]


def resized(column: Array, sizes: tuple[int, ...]) -> Array:
    """The last axes at `sizes`: pixel centres stay in proportion, edges are held."""
    dtype = column.dtype.name
    first = column.ndim - len(sizes)
    if column.shape[first:] == sizes:
        return column
    if 0 in column.shape[first:]:
        raise ValueError("an empty axis has no values to resize")
    values = column.astype(np.float32 if dtype in WORKED_IN_FLOAT32 else np.float64, copy=False)
    changes = [(size / column.shape[first + i], first + i, size) for i, size in enumerate(sizes)]
    for _, axis, size in sorted(changes):  # what shrinks most comes first: the rest has less to do
        if values.shape[axis] != size:
            values = _along(values, axis, _taps(values.shape[axis], size))
    return cast(values, dtype)


def _taps(old: int, new: int) -> _Taps:
    """Area averaging where it shrinks, linear interpolation where it grows."""
    if new < old:
        return _areas(old, new)
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    low = np.floor(centre)
    share = centre - low
    inputs = np.clip(np.stack([low, low + 1]), 0, old - 1).astype(np.int64)
    weights = np.stack([1 - share, share])
    return _Taps(_used(inputs, weights), weights)


def _areas(old: int, new: int) -> _Taps:
    """Output j covers [j, j+1) * old / new; exact integers, so that the weights of whole pixels agree."""
    start = np.arange(new, dtype=np.int64) * old
    first = start // new
    inputs = first + np.arange(old // new + 2, dtype=np.int64)[:, np.newaxis]
    overlap = np.minimum((inputs + 1) * new, start + old) - np.maximum(inputs * new, start)
    weights = np.maximum(overlap, 0) / old
    return _Taps(_used(np.minimum(inputs, old - 1), weights), weights)


def _used(inputs: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Inputs without weight point at one that has: 0 times an infinity or NaN elsewhere would be NaN."""
    heaviest = np.take_along_axis(inputs, weights.argmax(axis=0)[np.newaxis], axis=0)
    return np.where(weights > 0, inputs, heaviest)


def _along(values: Array, axis: int, taps: _Taps) -> Array:
    result = _summed(values, axis, taps, np.float64 if len(taps.inputs) > _MANY else values.dtype)
    if result.dtype == np.float32 and np.isinf(result).any():  # rounded up, weights make more than 1 of it
        result = _summed(values, axis, taps, np.float64)
    return cast(result, values.dtype.name)


def _summed(values: Array, axis: int, taps: _Taps, work: DTypeLike) -> Array:
    shape = [1] * values.ndim
    shape[axis] = taps.inputs.shape[1]
    result: Array | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        for inputs, weights in zip(taps.inputs, taps.weights.astype(values.dtype), strict=True):
            if not weights.any():
                continue
            part = np.take(values, inputs, axis=axis)
            part *= weights.reshape(shape)
            result = part.astype(work, copy=False) if result is None else np.add(result, part, out=result)
    if result is None:
        raise ValueError("no input has weight")
    return result
