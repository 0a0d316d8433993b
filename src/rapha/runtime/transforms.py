"""Declared transforms, carried out: the same numbers at the hospital and at home.

`rapha.spec.transforms` says what each step means; here each is a few numpy calls over a whole column.
Values are computed in float32 where the input has at most 16 bits or is float32 itself, else in float64.
Infinities and NaN stay what they are in a float; in an integer, infinities saturate and NaN is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.store import Ragged
from rapha.runtime.casting import WORKED_IN_FLOAT32, cast
from rapha.runtime.resizing import resized
from rapha.spec.transforms import Clip, Form, Length, Normalise, Step, Window, form_after, forms_through

Array = NDArray[Any]
_AT_ONCE: Final = 2**27
"""Bytes of a column that are worked on at a time: what lies between two steps is never held whole."""
_SHARE: Final = 2.0**-22
"""Of a scale: what an origin may lose in float32, as much as a result of 4 loses there itself."""
_LARGEST: Final = float(np.finfo(np.float64).max)


def apply_one(value: Array, form: Form, steps: tuple[Step, ...]) -> Array:
    """One record's value after `steps`: of the form that `form_after` says, C-contiguous.

    Args:
        value: [*form.shape], an axis of 0 being of any length; where the form is ragged, [m, *form.shape].

    Raises:
        ValueError: `value` is not of that form.
        Refused: `schema.transform`, as `form_after`.
    """
    after = form_after("value", form, steps)
    if form.ragged:
        _check(value.shape[1:], form.shape)
        column = _ragged(Ragged(value, np.array([0, len(value)], dtype=np.int64)), form, steps)
        return np.asarray(column.values if isinstance(column, Ragged) else column[0], order="C")
    _check(value.shape, form.shape)
    result = _fixed(cast(value[np.newaxis], form.dtype), steps)[0]
    _check(result.shape, after.shape)
    return np.asarray(result, order="C")


def apply_column(column: Array | Ragged, form: Form, steps: tuple[Step, ...]) -> Array | Ragged:
    """n records' values after `steps`, all of one form: [n, *shape], or `Ragged` as long as it is ragged.

    Args:
        column: [n, *form.shape], or `Ragged` with values [m, *form.shape] where the form is ragged.

    Raises:
        ValueError: `column` is not of that form.
        Refused: `schema.transform`, as `form_after`.
    """
    after = form_after("column", form, steps)
    if isinstance(column, Ragged) != form.ragged:
        raise ValueError("a ragged form needs a ragged column, and no other does")
    given = column.values if isinstance(column, Ragged) else column
    _check(given.shape[1:], form.shape)
    if after.ragged or not steps:
        return _block(column, form, steps)
    count = len(column.offsets) - 1 if isinstance(column, Ragged) else len(column)
    result = np.empty((count, *after.shape), dtype=after.dtype)
    for first, end in _blocks(count, form, steps):
        part = _block(_rows(column, first, end), form, steps)
        if isinstance(part, Ragged) or part.shape[1:] != after.shape:
            raise ValueError("the steps gave another form than they announced")
        result[first:end] = part
    return result


def _block(column: Array | Ragged, form: Form, steps: tuple[Step, ...]) -> Array | Ragged:
    if isinstance(column, Ragged):
        return _ragged(column, form, steps)
    return np.asarray(_fixed(cast(column, form.dtype), steps), order="C")


def _rows(column: Array | Ragged, first: int, end: int) -> Array | Ragged:
    if not isinstance(column, Ragged):
        return column[first:end]
    offsets = column.offsets[first : end + 1]
    return Ragged(column.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def _blocks(count: int, form: Form, steps: tuple[Step, ...]) -> Iterator[tuple[int, int]]:
    """First and end of as many records at a time as `_AT_ONCE` holds after every step, at 8 bytes an item."""
    passed = forms_through("column", form, steps)
    most = max(math.prod(side or 1 for side in each.shape) for each in passed if not each.ragged)
    size = max(1, _AT_ONCE // (8 * most))
    return pairwise([*range(0, count, size), count])


def _fixed(column: Array, steps: tuple[Step, ...]) -> Array:
    """What comes before the first resize is done within it: only then are all records of one size."""
    first = next((n for n, step in enumerate(steps) if step.resize is not None), 0)
    before, rest = steps[:first], steps[first:]
    for step in rest:
        if step.resize is not None:
            column, before = resized(column, step.resize, partial(_each, steps=before)), ()
        else:
            column = _pointwise(column, step)
    return column


def _each(values: Array, steps: tuple[Step, ...]) -> Array:
    for step in steps:
        values = _pointwise(values, step)
    return values


def _ragged(column: Ragged, form: Form, steps: tuple[Step, ...]) -> Array | Ragged:
    values = cast(column.values, form.dtype)
    for number, step in enumerate(steps):
        if step.length is not None:
            filled = _filled(Ragged(values, column.offsets), step.length)
            return np.asarray(_fixed(filled, steps[number + 1 :]), order="C")
        values = _pointwise(values, step)
    return Ragged(np.asarray(values, order="C"), column.offsets)


def _pointwise(values: Array, step: Step) -> Array:
    if step.window is not None:
        return _windowed(values, step.window)
    if step.clip is not None:
        return _clipped(values, step.clip)
    if step.normalise is not None:
        return _normalised(values, step.normalise)
    if step.dtype is None:
        raise ValueError(f"{step.kind} is not a step for one value at a time")
    return cast(values, step.dtype)


def _windowed(values: Array, window: Window) -> Array:
    low = window.center - window.width / 2
    scaled = _scaled(values, low, window.width)
    return np.clip(scaled, np.float32(0), np.float32(1), out=scaled)


def _normalised(values: Array, normalise: Normalise) -> Array:
    return _scaled(values, normalise.mean, normalise.scale)


def _scaled(values: Array, origin: float, scale: float) -> Array:
    """`(values - origin) / scale` as float32."""
    least = 1.0 if values.dtype == np.float32 else 1e-15  # below it, float32 could overflow on the way
    small = values.dtype.name in WORKED_IN_FLOAT32 and least <= scale < 1e15 and abs(origin) < 1e15
    # Close to an origin that float32 has to round, the difference would be mostly that rounding.
    small = small and abs(float(np.float32(origin)) - origin) <= scale * _SHARE
    work = np.dtype(np.float32 if small else np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        result: Array = np.subtract(values, work.type(origin), dtype=work)
        np.divide(result, work.type(scale), out=result)
    if not small and (beyond := np.isinf(result)).any():
        beyond &= np.isfinite(values)
        result[beyond] = np.copysign(_LARGEST, result[beyond])
    return cast(result, "float32")


def _clipped(values: Array, clip: Clip) -> Array:
    low, high = cast(np.array([clip.min, clip.max]), values.dtype.name)
    return np.clip(values, low, high)


def _filled(column: Ragged, length: Length) -> Array:
    """[n, size, *shape]: each record's first `size` values, then `pad`."""
    counts = np.diff(column.offsets)
    pad = cast(np.array(length.pad), column.values.dtype.name)
    result: Array = np.full((len(counts), length.size, *column.values.shape[1:]), pad)
    kept = np.minimum(counts, length.size)
    rows = np.repeat(np.arange(len(counts)), kept)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(kept) - kept, kept)
    result[rows, within] = column.values[np.repeat(column.offsets[:-1], kept) + within]
    return result


def _check(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """An axis of 0 is of any length."""
    fits = len(shape) == len(wanted) and all(b in (0, a) for a, b in zip(shape, wanted, strict=True))
    if not fits:
        raise ValueError(f"a value of shape {shape} where {wanted} is declared")
