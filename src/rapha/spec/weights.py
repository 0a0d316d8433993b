"""The weights of a release plan: which tensors, as what, and how many bits they can carry."""

from __future__ import annotations

import json
import math
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from rapha.spec.base import Model
from rapha.spec.reported import (
    LARGEST_INTEGER,
    Number,
    check_bounds,
    check_file,
    check_name,
    invalid,
    unique,
)

Dtype = Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
ReleaseDtype = Literal["f32", "bf16", "f16", "int8"]

WIDTH: Final[dict[str, int]] = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
"""Bytes of one element, by safetensors dtype."""
ORDER: Final[tuple[Dtype, ...]] = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""Order of dtypes in a file by the safetensors library: falling width, so that all data is aligned."""
FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
RELEASED_AS: Final[dict[str, Dtype]] = {"f32": "F32", "bf16": "BF16", "f16": "F16", "int8": "I8"}
"""What a floating tensor becomes; integers and booleans keep their dtype."""
LARGEST: Final = {"f32": 3.4028234663852886e38, "bf16": 3.3895313892515355e38, "f16": 65504.0}
LARGEST_INT8: Final = LARGEST["f32"] / 2
"""Half, since 127 × the rounded scale may lie above the largest value."""
BITS: Final = {"f32": 32, "bf16": 16, "f16": 16, "int8": 8}
"""Of one released floating value; int8 may have fewer."""
SCALE_BITS: Final = 32
"""Of an int8 tensor's scale, an F32."""
INTEGER_RANGE: Final[dict[str, tuple[int, int]]] = {
    # A bound on I64 can't be written beyond what RFC 8785 has as a whole number.
    "I64": (-LARGEST_INTEGER, LARGEST_INTEGER),
    "I32": (-(2**31), 2**31 - 1),
    "I16": (-(2**15), 2**15 - 1),
    "I8": (-(2**7), 2**7 - 1),
    "U8": (0, 2**8 - 1),
    "BOOL": (0, 1),
}
MAX_TENSORS: Final = 8192
MAX_RANK: Final = 16
MAX_TOTAL_BYTES: Final = 2**40
HEADER_LIMIT: Final = 2**20
"""Largest safetensors header that is read or written, bytes."""


class TensorPlan(Model):
    """One tensor: what the job must write, and the range that values are clipped to."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    min: Number
    max: Number

    @property
    def elements(self) -> int:
        """Product of `shape`; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether the tensor takes the plan's release dtype."""
        return self.dtype in FLOATS

    @model_validator(mode="after")
    def _consistent(self) -> TensorPlan:
        check_name(self.name, "tensor")
        where = f"tensor {self.name}"
        if len(self.shape) > MAX_RANK or any(n < 1 for n in self.shape):
            raise invalid(f"{where}: a shape has at most {MAX_RANK} dimensions, each 1 or more")
        if any(n > MAX_TOTAL_BYTES for n in self.shape) or self.elements > MAX_TOTAL_BYTES:
            raise invalid(f"{where}: the shape overflows")
        check_bounds(self.min, self.max, where)
        if not self.floating:
            low, high = INTEGER_RANGE[self.dtype]
            if not all(isinstance(x, int) or x.is_integer() for x in (self.min, self.max)):
                raise invalid(f"{where}: the bounds of {self.dtype} are whole numbers")
            if self.min < low or self.max > high:
                raise invalid(f"{where}: the bounds of {self.dtype} lie in [{low}, {high}]")
        return self


class Noise(Model):
    """Gaussian noise that the guard adds to every floating value, in the values' own unit."""

    std: Annotated[float, Field(gt=0, le=LARGEST["f32"])]


class WeightsPlan(Model):
    """The weights file. `tensors` is in the order in which `rapha_trainer` writes it.

    Attributes:
        int8_bits: `bits` in JSON, 2 to 8: 2 leaves −1, 0 and 1; None, as 8, leaves −127 to 127.
        noise: drawn by the guard, after clipping; clipped again, then rounded. None adds none. It makes no
            stated bound smaller.
    """

    file: str
    release_dtype: ReleaseDtype
    tensors: tuple[TensorPlan, ...]
    int8_bits: Annotated[int, Field(ge=2, le=8)] | None = Field(default=None, alias="bits")
    noise: Noise | None = None

    @model_validator(mode="after")
    def _consistent(self) -> WeightsPlan:
        check_file(self.file, ".safetensors")
        if not 1 <= len(self.tensors) <= MAX_TENSORS:
            raise invalid(f"weights name 1 to {MAX_TENSORS} tensors")
        unique([t.name for t in self.tensors], "tensor")
        if self.int8_bits is not None and self.release_dtype != "int8":
            raise invalid("bits is for release_dtype int8")
        if self.noise is not None and not any(t.floating for t in self.tensors):
            raise invalid("noise is for floating tensors, and the plan has none")
        largest = LARGEST.get(self.release_dtype, LARGEST_INT8)
        for tensor in self.tensors:
            if tensor.floating and max(abs(tensor.min), abs(tensor.max)) > largest:
                raise invalid(f"tensor {tensor.name}: the bounds are beyond {self.release_dtype}")
        released = [name for name, _, _ in self.released]
        for name in released:
            check_name(name, "released tensor")
        unique(released, "released tensor")
        # A quarter is left for what a writer may add to the job's own header: spaces, wider offsets.
        if len(self.released_header()) > HEADER_LIMIT * 3 // 4:
            raise invalid("the names and shapes don't fit a header of 768 KiB")
        return self

    @property
    def element_bits(self) -> int:
        """Bits of one released floating value."""
        return self.int8_bits or BITS[self.release_dtype]

    @property
    def levels(self) -> int:
        """Largest magnitude of a released int8 value; its opposite is the smallest value."""
        return int(2 ** ((self.int8_bits or BITS["int8"]) - 1) - 1)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the guard's noise; 0 for none."""
        return self.noise.std if self.noise else 0.0

    @property
    def released(self) -> list[tuple[str, Dtype, tuple[int, ...]]]:
        """Name, dtype and shape of everything in the released file, in plan order."""
        result: list[tuple[str, Dtype, tuple[int, ...]]] = []
        for t in self.tensors:
            result.append((t.name, RELEASED_AS[self.release_dtype] if t.floating else t.dtype, t.shape))
            if t.floating and self.release_dtype == "int8":
                result.append((f"{t.name}.scale", "F32", ()))
        return result

    @property
    def laid_out(self) -> list[tuple[str, Dtype, tuple[int, ...]]]:
        """`released` in the order of the file: by falling width, dtype and name, as the library does."""
        return sorted(self.released, key=lambda r: (ORDER.index(r[1]), r[0]))

    def released_header(self) -> bytes:
        """The one safetensors header that is released: no free byte, data aligned to its own width."""
        entries, offset = {}, 0
        for name, dtype, shape in self.laid_out:
            end = offset + math.prod(shape) * WIDTH[dtype]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, end)}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)

    @property
    def input_bytes(self) -> int:
        """Exact size of the tensor data that the job must write."""
        return sum(t.elements * WIDTH[t.dtype] for t in self.tensors)

    @property
    def released_bytes(self) -> int:
        """Exact size of the file that is released: length, header and data."""
        data = sum(math.prod(shape) * WIDTH[dtype] for _, dtype, shape in self.released)
        return 8 + len(self.released_header()) + data

    def bits(self) -> float:
        """log2 of the number of files that can be released under this plan, at most."""
        int8 = self.release_dtype == "int8"
        each = math.log2(2 * self.levels + 1) if int8 else float(BITS[self.release_dtype])
        total = 0.0
        for t in self.tensors:
            if t.floating:
                total += t.elements * each + (SCALE_BITS if int8 else 0)
            else:
                total += t.elements * math.log2(int(t.max) - int(t.min) + 1)
        return total
