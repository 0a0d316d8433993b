"""One attempt to smuggle: a payload is encoded, the guard rebuilds, and what came out is decoded and counted.

The measure is the capacity of the channel that the attempt turned out to be: over binary places that arrive
with an error rate p, 1 - H2(p) bits each (Shannon, 1948). What the guard refuses carries nothing.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rapha.runtime.guard.inspection import inspect
from rapha.spec.release_plan import ReleasePlan

Array = NDArray[Any]
Bits = NDArray[np.uint8]
"""Bits as 0 and 1. One row a place: all that was sent by the lowest bit of a value, say."""
WEIGHTS: Final = "model.safetensors"
REPORTED: Final = "reported.json"
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    **{"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)},
    **{"I8": np.dtype("i1"), "U8": np.dtype("u1"), "BOOL": np.dtype("u1")},
}
_SIGMA: Final = 3.5
"""Error rates nearer to a half than so many standard deviations count as a half: chance is no channel."""


@dataclass(frozen=True, slots=True)
class Release:
    """How floating values leave: a dtype, for int8 with how many bits, and the noise that the guard adds."""

    name: str
    dtype: str
    bits: int | None = None
    noise: float = 0.0

    def terms(self, floating: bool) -> dict[str, Any]:
        """Its part of a weights plan; noise is for floating tensors only."""
        bits = {} if self.bits is None else {"bits": self.bits}
        noise = {"noise": {"std": self.noise}} if self.noise and floating else {}
        return {"release_dtype": self.dtype, **bits, **noise}


RELEASES: Final = (
    Release("f32", "f32"),
    Release("bf16", "bf16"),
    Release("f16", "f16"),
    Release("int8", "int8"),
    Release("int4", "int8", bits=4),
    Release("int2", "int8", bits=2),
    Release("bf16-noise", "bf16", noise=0.02),
    Release("int8-noise", "int8", noise=0.02),
)


@dataclass(frozen=True, slots=True)
class Shot:
    """One output folder.

    Attributes:
        files: what the job writes, in this order.
        sent: the payload.
        finish: what else the job does to the folder.
    """

    files: Mapping[str, bytes]
    sent: Bits
    finish: Callable[[Path], None] | None = None


class Released:
    """What the receiver gets of one shot."""

    def __init__(self, folder: Path, plan: ReleasePlan) -> None:
        self.folder = folder
        self.plan = plan

    def bytes(self, name: str) -> bytes:
        """A released file."""
        return (self.folder / name).read_bytes()

    def stored(self) -> dict[str, Array]:
        """Tensors by name as they are in the file, scales among them."""
        data = self.bytes(WEIGHTS)
        start = 8 + int.from_bytes(data[:8], "little")
        return {
            name: np.frombuffer(
                data,
                _DTYPES[entry["dtype"]],
                math.prod(entry["shape"]),
                start + entry["data_offsets"][0],
            ).reshape(entry["shape"])
            for name, entry in json.loads(data[8:start]).items()
        }

    def values(self, name: str = "w") -> NDArray[np.float32]:
        """A floating tensor as float32, with its scale where it has one."""
        stored = self.stored()
        scale = stored.get(f"{name}.scale", np.float32(1))
        return (stored[name].astype(np.float32) * scale).astype(np.float32)

    def reported(self) -> dict[str, Any]:
        """The self-reported values."""
        return dict(json.loads(self.bytes(REPORTED)))


Reader = Callable[[Released], Bits]
"""Reads a payload back, in the form in which the shot sent it."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An encoded payload and how to read it back.

    Attributes:
        plan: what the researcher had agreed to.
        use: what the model is still good for, in words.
    """

    plan: ReleasePlan
    shots: Sequence[Shot]
    read: Reader
    use: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an attempt, in bits a parameter.

    Attributes:
        sent, survives: of the payload.
        bound: what the release plan says can leave at most.
        refused: the guard's code, where it said no.
    """

    sent: float
    survives: float
    bound: float
    refused: str | None
    use: str


def run(attempt: Attempt) -> Result:
    """Write every shot, have the guard inspect it, and decode what it rebuilt."""
    parameters = max(1, attempt.plan.parameters) * len(attempt.shots)
    sent = sum(shot.sent.size for shot in attempt.shots) / parameters
    bound = attempt.plan.released_bits() * len(attempt.shots) / parameters
    arrived: list[tuple[Bits, Bits]] = []
    for shot in attempt.shots:
        with tempfile.TemporaryDirectory() as scratch:
            written, released = Path(scratch, "written"), Path(scratch, "released")
            write(shot, written)
            report = inspect(written, attempt.plan, released)
            if not report.ok:
                return Result(sent, 0.0, bound, report.code, attempt.use)
            arrived.append((shot.sent, attempt.read(Released(released, attempt.plan))))
    return Result(sent, capacity(arrived) / parameters, bound, None, attempt.use)


def write(shot: Shot, folder: Path) -> None:
    """Make the folder that the job leaves."""
    folder.mkdir()
    for name, data in shot.files.items():
        (folder / name).write_bytes(data)
    if shot.finish:
        shot.finish(folder)


def capacity(arrived: Iterable[tuple[Bits, Bits]]) -> float:
    """Bits that all shots together carried: the places of one row share one error rate."""
    pairs = list(arrived)
    sent = np.concatenate([np.atleast_2d(one) for one, _ in pairs], axis=1)
    got = np.concatenate([np.atleast_2d(other) for _, other in pairs], axis=1)
    if sent.shape != got.shape:
        raise ValueError(f"{sent.shape} places were sent, {got.shape} were read")
    places = sent.shape[1]
    rates: list[float] = (sent != got).mean(axis=1).tolist()
    return math.fsum(places * _per_bit(rate, places) for rate in rates)


def _per_bit(rate: float, places: int) -> float:
    if abs(rate - 0.5) <= _SIGMA * 0.5 / math.sqrt(places):
        return 0.0
    return 1.0 + math.fsum(p * math.log2(p) for p in (rate, 1 - rate) if p > 0)


def plan(
    release: Release,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    limit: float = 1.0,
    dtype: str = "F32",
    reported: Sequence[Mapping[str, Any]] = (),
) -> ReleasePlan:
    """A release plan for tensors of `shapes`, each within ±`limit`."""
    low = 0 if dtype in ("U8", "BOOL") else -limit
    tensors = [
        {"name": name, "dtype": dtype, "shape": list(shape), "min": low, "max": limit}
        for name, shape in shapes.items()
    ]
    terms: dict[str, Any] = {
        "version": 1,
        "weights": {"file": WEIGHTS, "tensors": tensors, **release.terms(dtype.startswith("F"))},
        "max_bytes": 2**24,
    }
    if reported:
        terms["self_reported"] = {"file": REPORTED, "fields": [dict(field) for field in reported]}
    return ReleasePlan.parse(terms)


def pack(tensors: Mapping[str, Array], **fields: Any) -> bytes:
    """A safetensors file as an honest writer makes it; `fields` are added to the header."""
    header: dict[str, Any] = dict(fields)
    offset = 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {
            "dtype": dtype_of(array),
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    return frame(json.dumps(header, separators=(",", ":")).encode(), b"".join(map(_raw, tensors.values())))


def frame(header: bytes, data: bytes) -> bytes:
    """A header, padded to 8 bytes, and what follows it."""
    padded = header + b" " * (-len(header) % 8)
    return len(padded).to_bytes(8, "little") + padded + data


def dtype_of(array: Array) -> str:
    """The safetensors name of its dtype."""
    return {"float64": "F64", "float32": "F32", "uint8": "U8", "int64": "I64", "bool": "BOOL"}[
        str(array.dtype)
    ]


def _raw(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def payload(rng: np.random.Generator, *shape: int) -> Bits:
    """Random bits."""
    return rng.integers(0, 2, shape, dtype=np.uint8)


def number(bits: Bits) -> Array:
    """Rows of bits, the lowest first, as whole numbers: uint64 [n]."""
    powers = np.arange(len(bits), dtype=np.uint64)[:, None]
    return np.asarray((bits.astype(np.uint64) << powers).sum(axis=0, dtype=np.uint64))


def bits_of(numbers: Array, count: int) -> Bits:
    """The lowest `count` bits of each number, one row a bit."""
    rows = numbers.reshape(-1).astype(np.uint64)[None, :] >> np.arange(count, dtype=np.uint64)[:, None]
    return (rows & np.uint64(1)).astype(np.uint8)
