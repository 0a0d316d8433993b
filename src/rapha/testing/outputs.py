"""A job's output folder with one tensor, to put tricks into, and what every refusal has in common."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np

from rapha.runtime.guard.codes import CODES
from rapha.runtime.guard.inspection import inspect
from rapha.spec.release_plan import ReleasePlan

WEIGHTS: Final = "w.safetensors"
NUMBERS: Final = "m.json"
BYTES: Final = 2**17
"""Of one U8 tensor, through which every byte leaves as it came: what marks there are, tripwires must see."""


def plan_of(dtype: str = "U8", count: int = BYTES, release: str = "f32", limit: float = 1e30) -> ReleasePlan:
    """A plan of one tensor, `w`; floats lie between −`limit` and `limit`."""
    low, high = (0, 255) if dtype == "U8" else (-limit, limit)
    tensor = {"name": "w", "dtype": dtype, "shape": [count], "min": low, "max": high}
    weights = {"file": WEIGHTS, "release_dtype": release, "tensors": [tensor]}
    return ReleasePlan.parse({"version": 1, "max_bytes": 2**22, "weights": weights})


def packed(header: bytes, data: bytes) -> bytes:
    """A safetensors file."""
    return struct.pack("<Q", len(header)) + header + data


def header_of(dtype: str, count: int, size: int) -> bytes:
    """Its header, of one tensor that has `size` bytes, as writers make it."""
    entry: dict[str, Any] = {"w": {"dtype": dtype, "shape": [count], "data_offsets": [0, size]}}
    text = json.dumps(entry, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def holding(data: bytes) -> bytes:
    """A conforming file whose tensor begins with `data`, and is not much else."""
    fill = np.random.default_rng(5).integers(0, 255, BYTES, "u1").tobytes()
    return packed(header_of("U8", BYTES, BYTES), (data + fill)[:BYTES])


def ending(data: bytes) -> bytes:
    """A conforming file whose tensor, and with it the file, ends with `data`."""
    return packed(header_of("U8", BYTES, BYTES), data.rjust(BYTES, b"\x07"))


def at(offset: int, mark: bytes) -> bytes:
    """A conforming file with `mark` at `offset` of the file."""
    raw = bytearray(holding(b"\x01\x02"))
    raw[offset : offset + len(mark)] = mark
    return bytes(raw)


def refused(folder: Path, plan: ReleasePlan) -> str:
    """The code of the guard's no to `folder`, after all that every no has in common."""
    out = folder.parent / "out"
    report = inspect(folder, plan, out)
    failed = [check for check in report.checks if check.verdict == "fail"]
    common = {
        "a no": not report.ok,
        "believed": report.agrees_with(plan),
        "nothing is released": (report.released, report.transforms, report.self_reported) == ((), (), {}),
        "nothing is left": not out.exists() or not any(out.iterdir()),
        "one check failed": [check.n for check in failed] == [CODES.get(report.code or "", (0, ""))[0]],
        "fit for a terminal": all(check.reason.isprintable() for check in failed),
        "the verdict's bits": report.covert_bound_bits <= 4,
    }
    if report.code is None or not all(common.values()):
        raise AssertionError(f"{[what for what, holds in common.items() if not holds]}: {report}")
    return report.code
