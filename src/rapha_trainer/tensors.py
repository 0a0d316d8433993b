"""A writer for safetensors files: planned tensors in planned order, nothing else.

Format: header length u64 little-endian, the header as JSON padded with spaces to 8 bytes, then the data.
https://huggingface.co/docs/safetensors (BF16 is the upper half of an IEEE 754 single).
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

DTYPES: Final = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "<i1", "U8": "<u1", "BOOL": "?",
}  # fmt: skip
"""numpy's type for each; BF16 is kept as its bits."""


def cast(name: str, array: NDArray[Any], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """`array` in the planned dtype and C order; BF16 as bits. Floats round to nearest even.

    NaN and infinity are kept, with a `RuntimeWarning`: the guard refuses them.

    Raises:
        ValueError: another shape, a value too large for the dtype, or one that an integer dtype doesn't
            hold exactly.
    """
    if array.shape != shape:
        raise ValueError(f"{name}: the shape is {array.shape}, the release plan says {shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: {array.dtype} is not a numeric dtype")
    if dtype not in DTYPES:
        raise ValueError(f"{name}: the plan's dtype {dtype} is not known here")
    if not np.isfinite(array).all():
        if DTYPES[dtype][1:2] != "f" and dtype != "BF16":
            raise ValueError(f"{name}: has NaN or infinity, which {dtype} can't hold")
        # Written all the same: the guard's `job.outputs` says more than a crash after records may.
        warnings.warn(f"{name}: has NaN or infinity, which is never released", RuntimeWarning, stacklevel=3)
    if dtype == "BF16":
        return _bfloat16(name, _float(name, array, "<f4"))
    if DTYPES[dtype][1:2] == "f":
        return _float(name, array, DTYPES[dtype])
    return _integer(name, array, dtype)


def write(path: Path, arrays: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str]) -> None:
    """Write `arrays` (as `cast` returns them) in their order.

    The file is written in place: the output folder has room for one copy only.
    """
    header, offset = {}, 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        header[name] = {"dtype": dtypes[name], "shape": array.shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(array.tobytes())


def _float(name: str, array: NDArray[Any], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        result = np.array(array, dtype=dtype, order="C")
    if (np.isfinite(array) & ~np.isfinite(result)).any():
        raise ValueError(f"{name}: a value is too large for the planned dtype")
    return result


def _bfloat16(name: str, array: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = array.view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    finite = np.isfinite(array)
    if (finite & ((rounded & 0x7F80) == 0x7F80)).any():
        raise ValueError(f"{name}: a value is too large for the planned dtype")
    return np.where(finite, rounded, 0x7FC0).astype("<u2")


def _integer(name: str, array: NDArray[Any], dtype: str) -> NDArray[Any]:
    with np.errstate(invalid="ignore"):
        result = np.array(array, dtype=DTYPES[dtype], order="C")
    if not np.array_equal(result, array):
        raise ValueError(f"{name}: a value is not exact in the planned dtype {dtype}")
    return result
