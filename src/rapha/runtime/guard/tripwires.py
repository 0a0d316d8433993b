"""Check 7: marks of another format or of a random payload. A hit refuses; a pass shows nothing.

Identifiers of the job's patients are not searched here: this process is given none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.reading import Source, part
from rapha.spec.weights import WIDTH, TensorPlan

if TYPE_CHECKING:
    import numpy.typing as npt

MARKS: Final[tuple[tuple[str, bytes, int, int], ...]] = (
    # Format, magic, and the offsets between which readers look for it. Each is long enough not to
    # occur by chance; formats whose magic is at offset 0 can't be a safetensors file as well.
    ("DICOM", b"DICM", 128, 128),
    ("tar", b"ustar", 257, 257),
    ("GPT", b"EFI PART", 512, 512),
    ("ISO 9660", b"\x01CD001\x01", 32768, 32768),
    ("UDF", b"\x00BEA01\x01", 32768, 32768),
    ("Btrfs", b"_BHRfS_M", 65600, 65600),
    ("PDF", b"%PDF-", 0, 1023),
    ("RAR", b"Rar!\x1a\x07", 0, 2**20),
    ("7-Zip", b"7z\xbc\xaf\x27\x1c", 0, 2**20),
    ("HDF5", b"\x89HDF\r\n\x1a\n", 0, 0),
    # The user block before an HDF5 superblock is 512 bytes or a power of two more.
    *(("HDF5", b"\x89HDF\r\n\x1a\n", 512 << k, 512 << k) for k in range(32)),
)
TAILS: Final[tuple[tuple[str, bytes, int], ...]] = (
    # Format, magic, and its distance from the end.
    ("disk image (VHD)", b"conectix", 512),
    ("disk image (DMG)", b"koly\x00\x00\x00\x04", 512),
)
STARTS: Final[tuple[tuple[str, bytes], ...]] = (
    # A tensor that begins so is a file. By chance one in 2^32 does, or fewer.
    ("ZIP", b"PK\x03\x04"),
    ("gzip", b"\x1f\x8b\x08\x00"),
    ("gzip", b"\x1f\x8b\x08\x08"),
    ("Zstandard", b"\x28\xb5\x2f\xfd"),
    ("xz", b"\xfd7zXZ\x00"),
    *(("bzip2", b"BZh%d1AY&SY" % level) for level in range(1, 10)),
    ("LZ4", b"\x04\x22\x4d\x18"),
    ("HDF5", b"\x89HDF\r\n\x1a\n"),
    ("ELF", b"\x7fELF"),
    ("SQLite", b"SQLite format 3\x00"),
    ("GGUF", b"GGUF"),
    ("PDF", b"%PDF-"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("JPEG", b"\xff\xd8\xff\xe0"),
    ("JPEG", b"\xff\xd8\xff\xe1"),
    ("JPEG 2000", b"\xff\x4f\xff\x51"),
    ("TIFF", b"II*\x00\x08\x00\x00\x00"),
    ("NumPy", b"\x93NUMPY"),
    ("Parquet", b"PAR1"),
    ("Arrow", b"ARROW1"),
    *(("pickle", b"\x80%c%bq\x00" % (n, kind)) for n in (2, 3) for kind in (b"}", b"]", b")")),
    ("PEM", b"-----BEGIN "),
    ("XML", b"<?xml "),
    ("FHIR", b'{"resourceType"'),
    ("HL7 v2", b"MSH|^~\\&"),
    ("VCF", b"##fileformat=VCF"),
    ("safetensors", b'{"__metadata__"'),
)
_FRAMED_PICKLES: Final = (b"\x80\x04\x95", b"\x80\x05\x95")
"""Protocols 4 and 5; a frame's length follows, of which nobody needs the upper half."""
START: Final = 132
"""Bytes of a tensor that `check_start` looks at."""
TAIL: Final = 2**20
"""Bytes at the end of a file that are looked at for a ZIP directory: its comment may take 64 KiB of them."""
HEAD: Final = 2**20 + 64
_ZIP_END: Final = struct.Struct("<4s4H2LH")
_ZIP_SIGNS: Final = (b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06")
_ENTROPY_FROM: Final = 4096
_ENTROPY_LIMIT: Final = 7.5
"""Bits in the byte that holds the sign and the high exponent bits. Trained weights stay below 6."""
_SPREAD_FROM: Final = {"F64": 2.0**417, "F32": 2.0**53, "BF16": 2.0**53, "F16": 192.0}
"""The smallest magnitude whose highest byte, without the sign, is 90."""


def check_polyglot(name: str, source: Source) -> None:
    """Raises `Finding` (`guard.polyglot`) where `source` also reads as another format."""
    for kind, magic, first, last in MARKS:
        if part(source, first, last - first + len(magic)).find(magic) >= 0:
            raise Finding("guard.polyglot", f"{name} also reads as {kind}")
    for kind, magic, distance in TAILS:
        if part(source, source.size - distance, len(magic)) == magic:
            raise Finding("guard.polyglot", f"{name} also reads as {kind}")
    if _is_zip(source):
        raise Finding("guard.polyglot", f"{name} also reads as ZIP")


def _is_zip(source: Source) -> bool:
    # Readers search backwards for the end record, whose comment may be 64 KiB; a lone signature is chance.
    begin = max(0, source.size - TAIL)
    tail = part(source, begin, TAIL)
    at, first = len(tail), max(0, len(tail) - 2**16 - _ZIP_END.size)
    while (at := tail.rfind(b"PK\x05\x06", first, at + 3)) >= 0:
        if at + _ZIP_END.size <= len(tail):
            *_, size, offset, comment = _ZIP_END.unpack_from(tail, at)
            far = size > at and size + offset <= begin + at
            zip64 = tail[max(0, at - 20) : at].startswith(b"PK\x06\x07")
            sign = tail[at - size : at - size + 4] if size <= at else b""
            ends = at + _ZIP_END.size + comment <= len(tail)
            if zip64 or (ends and (far or sign in _ZIP_SIGNS)):
                return True
    return False


def check_start(name: str, data: bytes) -> None:
    """Raises `Finding` (`guard.polyglot`) where `data`, which begins a released tensor, begins a file."""
    for kind, magic in STARTS:
        if data.startswith(magic):
            raise Finding("guard.polyglot", f"tensor {name} begins like {kind}")
    if data[128:132] == b"DICM":
        raise Finding("guard.polyglot", f"tensor {name} begins like DICOM")
    if data[:3] in _FRAMED_PICKLES and data[7:11] == bytes(4):
        raise Finding("guard.polyglot", f"tensor {name} begins like pickle")


def may_be_random(tensor: TensorPlan, largest: float) -> bool:
    """Whether `check_entropy` can find anything in `tensor`, whose largest magnitude is known.

    Below the one in `_SPREAD_FROM` the byte that it counts has at most 180 values: log2(180) = 7.49 bits.
    """
    return tensor.floating and tensor.elements >= _ENTROPY_FROM and largest >= _SPREAD_FROM[tensor.dtype]


def check_entropy(tensor: TensorPlan, parts: Iterable[npt.NDArray[Any]]) -> None:
    """Raises `Finding` (`guard.entropy`) where a tensor's exponents are spread like ciphertext."""
    import numpy as np

    count = np.zeros(256)
    for raw in parts:
        width = WIDTH[tensor.dtype]
        count += np.bincount(raw.view(np.uint8)[width - 1 :: width], minlength=256)
    share = count[count > 0] / tensor.elements
    entropy = float(-(share * np.log2(share)).sum())
    if entropy > _ENTROPY_LIMIT:
        raise Finding("guard.entropy", f"tensor {tensor.name}: {entropy:.2f} bits of 8")
