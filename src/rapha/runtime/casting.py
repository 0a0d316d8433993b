"""Numbers as another dtype: rounded, saturated, and never an infinity that was none."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WORKED_IN_FLOAT32: Final = frozenset({"bool", "int8", "uint8", "int16", "uint16", "float16", "float32"})
"""Dtypes whose values are computed with in float32; those of the others in float64."""


def cast(value: Array, dtype: str) -> Array:
    """`value` as `dtype`: rounded to nearest, half to even; saturated at what the dtype can hold.

    A bool is the integer 0 or 1. A finite value stays finite, in floats too. The array itself where it has
    that dtype already.
    """
    target = np.dtype(dtype)
    if value.dtype == target:
        return value
    if target.kind == "f":
        return _to_float(value, target)
    low, high = (0, 1) if target.kind == "b" else (np.iinfo(target).min, np.iinfo(target).max)
    if value.dtype.kind == "b":
        return value.astype(target)
    if value.dtype.kind in "iu":
        return _held(value, low, high).astype(target)
    return _to_integer(value, target, low, high)


def _to_float(value: Array, target: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        result = value.astype(target)
    if target.itemsize <= value.dtype.itemsize and (beyond := np.isinf(result)).any():
        beyond &= np.isfinite(value)
        result[beyond] = np.copysign(np.finfo(target).max, result[beyond])
    return result


def _held(value: Array, low: int, high: int) -> Array:
    """Integers within `low … high`, without a copy where their dtype can't leave it."""
    own = np.iinfo(value.dtype)
    if own.min >= low and own.max <= high:
        return value
    return np.clip(value, max(low, own.min), min(high, own.max))


def _to_integer(value: Array, target: np.dtype[Any], low: int, high: int) -> Array:
    needed = np.float64 if target.itemsize >= 4 else np.float32  # whose steps are below 1 in its range
    wide = value.astype(np.result_type(value.dtype, needed), copy=False)
    rounded = np.nan_to_num(np.rint(wide), nan=0.0, posinf=float(high), neginf=float(low))
    if target.itemsize < 8:
        held: Array = np.clip(rounded, low, high)
        return held.astype(target)
    # 2^63 - 1 has no float64; the next one up would overflow.
    over, under = rounded >= float(high), rounded <= float(low)
    result: Array = np.where(over | under, 0.0, rounded).astype(target)
    result[over], result[under] = high, low
    return result
