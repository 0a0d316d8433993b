"""Axes at another size: area averaging where one shrinks, linear interpolation where it grows.

How large a column is may differ by what a record is; how much memory it takes beyond that must not. So it is
worked on in blocks, of which only what is left of them is kept. The numbers are those of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rapha.runtime.casting import WORKED_IN_FLOAT32, cast

Array = NDArray[Any]
Pointwise = Callable[[Array], Array]
_AT_ONCE: Final = 2**21
"""Values in a block."""
_MANY: Final = 16
"""Above so many float32, rounding would add up to more than one rounding: their sum is made in float64."""


@dataclass(frozen=True, slots=True)
class _Taps:
    """How each of m outputs is made of k inputs along one axis: int64[k, m], float64[k, m]."""

    inputs: NDArray[np.int64]
    weights: NDArray[np.float64]


def resized(column: Array, sizes: tuple[int, ...], before: Pointwise = lambda values: values) -> Array:
    """The last axes at `sizes`: pixel centres stay in proportion, edges are held.

    Args:
        before: what is done to each value first.
    """
    first = column.ndim - len(sizes)
    if column.shape[first:] == sizes:
        return before(column)
    if 0 in column.shape[first:]:
        raise ValueError("an empty axis has no values to resize")
    changes = [(size / column.shape[first + i], first + i, size) for i, size in enumerate(sizes)]
    *early, late = sorted(changes)  # what shrinks most comes first: the rest has less to do
    along = late[1] if early else _longest(column.shape[:first])
    dtype = before(column[:0]).dtype

    def part(block: slice) -> Array:
        values = _worked(before(column[_at(along, block)]))
        for change in early or [late]:
            values = _changed(values, change)
        return values

    values = _in_blocks(column.shape, along, part)
    if early:
        values = _changed(values, late)
    if values.dtype == dtype:
        return values
    return _cast_in_blocks(values, dtype.name)


def _cast_in_blocks(values: Array, dtype: str) -> Array:
    along = _longest(values.shape)
    return _in_blocks(values.shape, along, lambda block: cast(values[_at(along, block)], dtype))


def _longest(shape: tuple[int, ...]) -> int:
    return max(range(len(shape)), key=lambda axis: shape[axis])


def _worked(values: Array) -> Array:
    small = values.dtype.name in WORKED_IN_FLOAT32
    return values.astype(np.float32 if small else np.float64, copy=False)


def _changed(values: Array, change: tuple[float, int, int]) -> Array:
    _, axis, size = change
    return values if values.shape[axis] == size else _along(values, axis, _taps(values.shape[axis], size))


def _at(axis: int, block: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, block)


def _in_blocks(shape: tuple[int, ...], axis: int, part: Callable[[slice], Array]) -> Array:
    """What `part` makes of the blocks of an array, side by side along `axis`."""
    count = shape[axis]
    step = max(1, _AT_ONCE * count // max(1, math.prod(shape)))
    if step >= count:
        return part(slice(None))
    result: Array | None = None
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        made = part(block)
        if result is None:
            result = np.empty((*made.shape[:axis], count, *made.shape[axis + 1 :]), made.dtype)
        result[_at(axis, block)] = made
    return part(slice(None)) if result is None else result


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
    if result.dtype == np.float32 and (beyond := np.isinf(result)).any():
        # Rounded up, weights make more than 1 of it. Each value by itself, whatever else is in its block.
        wide = cast(_summed(values, axis, taps, np.float64), "float32")
        np.copyto(result, wide, where=beyond)
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
