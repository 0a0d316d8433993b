"""Check 7: marks of another format or of a random payload. A hit refuses; a pass shows nothing.

Identifiers of the job's patients are not searched here: this process is given none.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

import numpy as np

from rapha.runtime.guard.codes import Finding
from rapha.spec.release_plan import WIDTH, WeightsPlan

MARKS: Final[tuple[tuple[str, bytes, int, int], ...]] = (
    # Format, magic, and the offsets between which readers look for it. Each is long enough not to
    # occur by chance; formats whose magic is at offset 0 can't be a safetensors file as well.
    ("DICOM", b"DICM", 128, 128),
    ("tar", b"ustar", 257, 257),
    ("ISO 9660", b"\x01CD001\x01", 32768, 32768),
    ("PDF", b"%PDF-", 0, 1023),
    ("RAR", b"Rar!\x1a\x07", 0, 2**20),
    ("7-Zip", b"7z\xbc\xaf\x27\x1c", 0, 2**20),
)
_ZIP_END: Final = struct.Struct("<4s4H2LH")
_ENTROPY_FROM: Final = 4096
_ENTROPY_SAMPLE: Final = 2**20
_ENTROPY_LIMIT: Final = 7.5
"""Bits in the byte that holds the sign and the high exponent bits. Trained weights stay below 6."""


def check_polyglot(name: str, data: bytearray) -> None:
    """Raises `Finding` (`guard.polyglot`) where `data` also reads as another format."""
    for kind, magic, first, last in MARKS:
        if data.find(magic, first, last + len(magic)) >= 0:
            raise Finding("guard.polyglot", f"{name} also reads as {kind}")
    if _is_zip(data):
        raise Finding("guard.polyglot", f"{name} also reads as ZIP")


def _is_zip(data: bytearray) -> bool:
    # Readers search backwards for the end record, whose comment may be 64 KiB; a lone signature is chance.
    at, first = len(data), max(0, len(data) - 2**16 - _ZIP_END.size)
    while (at := data.rfind(b"PK\x05\x06", first, at + 3)) >= 0:
        if at + _ZIP_END.size <= len(data):
            *_, size, _, comment = _ZIP_END.unpack_from(data, at)
            directory = data[at - size : at - size + 4] if size <= at else b""
            if at + _ZIP_END.size + comment <= len(data) and directory in (b"PK\x01\x02", b"PK\x05\x06"):
                return True
    return False


def check_entropy(tensors: Mapping[str, memoryview], plan: WeightsPlan) -> None:
    """Raises `Finding` (`guard.entropy`) where a tensor's exponents are spread like ciphertext."""
    for tensor in plan.tensors:
        if tensor.floating and tensor.elements >= _ENTROPY_FROM:
            width = WIDTH[tensor.dtype]
            step = 1 + tensor.elements // _ENTROPY_SAMPLE
            high = np.frombuffer(tensors[tensor.name], np.uint8)[width - 1 :: width * step]
            share = np.bincount(high, minlength=256) / len(high)
            entropy = float(-(share[share > 0] * np.log2(share[share > 0])).sum())
            if entropy > _ENTROPY_LIMIT:
                raise Finding("guard.entropy", f"tensor {tensor.name}: {entropy:.2f} bits of 8")
