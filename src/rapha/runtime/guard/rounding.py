"""How a value becomes one of the few that may leave: rounded once, to nearest even, and −0 to 0."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from rapha.spec.weights import WIDTH

Array = npt.NDArray[Any]
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    **{"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")},
    **{"BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype("<i8"), "I32": np.dtype("<i4")},
    **{"I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"), "BOOL": np.dtype("u1")},
}
SMALLEST_SCALE: Final = float(np.finfo(np.float32).smallest_normal)


def cast(work: Array, target: str) -> Array:
    """`work`, finite F32 or F64, as `target`; also what a tiny negative number rounds to is 0."""
    if work.dtype == DTYPES[target]:
        summed: Array = np.add(work, work.dtype.type(0))  # −0 + 0 is 0
        return summed
    if target == "BF16":
        rounded = _bfloat16(_to_odd(work) if work.dtype == np.float64 else work)
    else:
        with np.errstate(under="ignore"):
            rounded = work.astype(DTYPES[target])
    bits = rounded.view(f"<u{WIDTH[target]}")
    negative = bits == 1 << (8 * WIDTH[target] - 1)
    if negative.any():
        bits[negative] = 0
    return rounded


def _bfloat16(work: Array) -> Array:
    """The upper half of each F32, after adding half a step, or just less where the upper half is even.

    On integers, since the processor does many at once; `ml_dtypes` goes through them one by one.
    """
    bits = work.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits  # no carry out: the largest finite F32 is far enough from the end
    rounded >>= 16
    return rounded.astype(np.uint16).view(DTYPES["BF16"])


def _to_odd(work: Array) -> Array:
    """F64 to F32, rounded to odd, so that the next rounding is as good as one from F64.

    Two roundings to nearest would move values that lie just beyond a tie (Boldo and Melquiond, 2008).
    """
    with np.errstate(under="ignore", over="ignore"):
        near = work.astype(np.float32)
    wide = near.astype(np.float64)
    bits = near.view(np.uint32)
    bits -= (np.abs(wide) > np.abs(work)).astype(np.uint32)
    bits |= (wide != work).astype(np.uint32)
    return near


def quantise(work: Array, scale: float, levels: int) -> Array:
    """The nearest whole number of scales, from −`levels` to `levels`, as int8."""
    return np.clip(np.rint(work.astype(np.float64) / scale), -levels, levels).astype(np.int8)


def scale_of(largest: float, levels: int) -> float:
    """`largest` magnitude ÷ `levels`, as F32; 1 where every value would round to 0 anyway."""
    scale = float(np.float32(largest / levels))
    return scale if scale >= SMALLEST_SCALE else 1.0


def widened(rounded: Array) -> Array:
    """Floats as F32 or wider, exactly: the processor compares those."""
    if rounded.dtype == DTYPES["BF16"]:
        bits = rounded.view(np.uint16).astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    return rounded.astype(np.float32) if rounded.dtype == DTYPES["F16"] else rounded
