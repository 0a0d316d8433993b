"""Checks 3 to 5: finite values, clipped and rounded, in the one file that the plan allows.

Work goes in chunks, so that memory is the file that came in plus the file that goes out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.report import Transform
from rapha.runtime.guard.tensors import read
from rapha.spec.release_plan import RELEASED_AS, WIDTH, TensorPlan, WeightsPlan

Array = npt.NDArray[Any]
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    **{"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")},
    **{"BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype("<i8"), "I32": np.dtype("<i4")},
    **{"I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"), "BOOL": np.dtype("u1")},
}
_CHUNK: Final = 2**18
"""Elements; a chunk and its temporaries stay in the processor's cache."""
_SMALLEST_SCALE: Final = float(np.finfo(np.float32).smallest_normal)


def check(tensors: Mapping[str, memoryview], plan: WeightsPlan) -> None:
    """Check 3, before anything is changed.

    Raises:
        Finding: `guard.not_finite`, `guard.boolean`.
    """
    for tensor in plan.tensors:
        for chunk in _chunks(tensors[tensor.name], tensor.dtype):
            if tensor.floating and not np.isfinite(chunk).all():
                raise Finding("guard.not_finite", f"tensor {tensor.name}")
            if tensor.dtype == "BOOL" and (chunk > 1).any():
                raise Finding("guard.boolean", f"tensor {tensor.name}")


def rebuild(tensors: Mapping[str, memoryview], plan: WeightsPlan) -> tuple[bytearray, tuple[Transform, ...]]:
    """Checks 4 and 5: the released file, and what was done to each tensor.

    Equal values after clipping and rounding give equal bytes, whatever the input file looked like.
    """
    header = plan.released_header()
    start = 8 + len(header)
    offsets = {name: start + e["data_offsets"][0] for name, e in json.loads(header).items()}
    out = bytearray(plan.released_bytes)
    out[:start] = len(header).to_bytes(8, "little") + header
    done = tuple(_tensor(out, offsets, tensors[t.name], t, plan.release_dtype) for t in plan.tensors)
    _confirm(out, plan)
    return out, done


def _tensor(
    out: bytearray, offsets: dict[str, int], raw: memoryview, tensor: TensorPlan, release_dtype: str
) -> Transform:
    target = RELEASED_AS[release_dtype] if tensor.floating else tensor.dtype
    into = np.frombuffer(out, DTYPES[target], tensor.elements, offsets[tensor.name])
    scale = None
    if target == "I8" and tensor.floating:
        scale = _scale(raw, tensor)
        slot = np.frombuffer(out, DTYPES["F32"], 1, offsets[f"{tensor.name}.scale"])
        slot[0] = scale
    clipped, error, at = 0, 0.0, 0
    for chunk in _chunks(raw, tensor.dtype):
        work, beyond = _clip(chunk, tensor)
        piece = into[at : at + len(chunk)]
        piece[:] = _quantise(work, scale) if scale is not None else _cast(work, target)
        clipped, at = clipped + beyond, at + len(chunk)
        error = max(error, _error(work, piece, scale))
    return Transform(
        tensor=tensor.name, dtype=tensor.dtype, released_as=target, clipped=clipped, largest_error=error
    )


def _chunks(raw: memoryview, dtype: str) -> Iterator[Array]:
    array = np.frombuffer(raw, DTYPES[dtype])
    for begin in range(0, len(array), _CHUNK):
        yield array[begin : begin + _CHUNK]


def _clip(chunk: Array, tensor: TensorPlan) -> tuple[Array, int]:
    """Values in the planned range, floats as F32 or F64, and how many were moved."""
    if not tensor.floating:
        low, high = np.array([int(tensor.min), int(tensor.max)]).astype(chunk.dtype)
    else:
        chunk = chunk if tensor.dtype == "F64" else chunk.astype(np.float32)
        low, high = chunk.dtype.type(tensor.min), chunk.dtype.type(tensor.max)
    beyond = np.count_nonzero(chunk < low) + np.count_nonzero(chunk > high)
    return (np.clip(chunk, low, high) if beyond else chunk), int(beyond)


def _cast(work: Array, target: str) -> Array:
    """Round to nearest even in one step, and −0 to 0: also what a tiny negative number rounds to."""
    if work.dtype == DTYPES[target]:
        summed: Array = np.add(work, work.dtype.type(0))  # −0 + 0 is 0
        return summed
    if target == "BF16" and work.dtype == np.float64:
        work = _to_odd(work)
    with np.errstate(under="ignore"):
        rounded = work.astype(DTYPES[target])
    bits = rounded.view(f"<u{WIDTH[target]}")
    bits[bits == 1 << (8 * WIDTH[target] - 1)] = 0
    return rounded


def _to_odd(work: Array) -> Array:
    """F64 to F32, rounded to odd, so that the next rounding is as good as one from F64.

    Two roundings to nearest would move values that lie just beyond a tie (Boldo and Melquiond, 2008).
    """
    with np.errstate(under="ignore"):
        near = work.astype(np.float32)
    wide = near.astype(np.float64)
    bits = near.view(np.uint32)
    bits -= (np.abs(wide) > np.abs(work)).astype(np.uint32)
    bits |= (wide != work).astype(np.uint32)
    return near


def _scale(raw: memoryview, tensor: TensorPlan) -> float:
    """Largest magnitude ÷ 127, as F32; 1 where every value would round to 0 anyway."""
    largest = max(float(np.abs(_clip(c, tensor)[0]).max()) for c in _chunks(raw, tensor.dtype))
    scale = float(np.float32(largest / 127))
    return scale if scale >= _SMALLEST_SCALE else 1.0


def _quantise(work: Array, scale: float) -> Array:
    return np.clip(np.rint(work.astype(np.float64) / scale), -127, 127).astype(np.int8)


def _error(work: Array, piece: Array, scale: float | None) -> float:
    if work.dtype.kind not in "f" or piece.dtype == work.dtype:
        return 0.0
    back = piece.astype(work.dtype)
    if scale is not None:
        back *= work.dtype.type(scale)
    back -= work
    return float(np.abs(back, out=back).max())


def _confirm(out: bytearray, plan: WeightsPlan) -> None:
    """Check 5: our own file, read by our own reader, is what the plan says."""
    written = {name: (dtype, shape) for name, dtype, shape in plan.released}
    tensors = read(out, [(name, *rest) for name, rest in written.items()])
    for tensor in plan.tensors:
        dtype = written[tensor.name][0]
        for chunk in _chunks(tensors[tensor.name], dtype):
            if not _in_range(chunk, dtype, tensor):
                raise Finding("guard.rebuild", f"tensor {tensor.name}")
    for name in written.keys() - {t.name for t in plan.tensors}:
        scale = np.frombuffer(tensors[name], DTYPES["F32"])[0]
        if not _SMALLEST_SCALE <= scale < math.inf:
            raise Finding("guard.rebuild", f"tensor {name}")


def _in_range(chunk: Array, dtype: str, tensor: TensorPlan) -> bool:
    if dtype not in ("F32", "BF16", "F16"):
        symmetric = tensor.floating
        low, high = (-127, 127) if symmetric else (int(tensor.min), int(tensor.max))
        return bool(chunk.min() >= low and chunk.max() <= high)
    # The bounds round as the values do, so half a step beyond the written bound is in range.
    low, high = np.array([tensor.min, tensor.max], np.float64).astype(chunk.dtype).astype(np.float32)
    wide = chunk.astype(np.float32)  # exact, and the processor compares it
    negative_zero = (chunk.view(f"<u{WIDTH[dtype]}") == 1 << (8 * WIDTH[dtype] - 1)).any()
    return bool(wide.min() >= low and wide.max() <= high and not negative_zero)
