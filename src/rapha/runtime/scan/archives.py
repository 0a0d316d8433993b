"""What archives and compressed files hold, member by member, under a budget.

Readers of archives disagree where headers do, and a scanner that trusts one reading misses another's.
Every such contradiction is therefore a finding of its own.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from rapha.runtime.scan.blob import Blob, Budget, Memory

MEMBER: Final = 16 * 1024 * 1024
"""Bytes of one member that are looked at."""
_MAX_MEMBERS: Final = 20_000
_SLACK: Final = 24
_PART: Final = 256 * 1024
_LOCAL: Final = b"PK\x03\x04"
_END: Final = b"PK\x05\x06"
_ZIP_NAMES: Final = (".zip", ".pt", ".pth", ".npz", ".keras", ".mar", ".whl", ".egg", ".pyz", ".jar")
_OPAQUE: Final = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x04\x22\x4d\x18", "an LZ4 frame"),
    (b"MSCF\0\0\0\0", "a cabinet archive"),
    (b"xar!", "a XAR archive"),
    (b"hsqs", "a SquashFS image"),
    (b"SQLite format 3\0", "an SQLite database"),
)


class ArchiveError(Exception):
    """The archive contradicts itself or can't be read to its end."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside another.

    Attributes:
        name: as the archive writes it; the outer name without its suffix for a compressed file.
        blob: its first `MEMBER` bytes.
        whole: nothing of it was left out.
    """

    name: str
    blob: Blob
    whole: bool


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def is_zip(blob: Blob) -> bool:
    """Whether Python or PyTorch would open it as a ZIP archive, wherever the archive starts."""
    if blob.head[:4] in (_LOCAL, _END):
        return True
    position = blob.tail.rfind(_END)
    if position < 0:
        return False
    if blob.name.endswith(_ZIP_NAMES):
        return True
    with blob.open() as file:
        return zipfile.is_zipfile(file)


def is_tar(blob: Blob) -> bool:
    """Whether it is a tar archive (POSIX.1-1988 and later write `ustar`)."""
    if blob.head[257:262] == b"ustar":
        return True
    return blob.name.endswith(".tar") and len(blob.head) >= 512


def opaque(blob: Blob) -> str | None:
    """The kind of a container that is not opened here, or None."""
    return next((what for magic, what in _OPAQUE if blob.head.startswith(magic)), None)


def members(blob: Blob, budget: Budget) -> Iterator[Member]:
    """What is inside, one level deep. Nothing where the file is no container.

    Raises:
        ArchiveError: the container is broken, contradicts itself or passes the budget.
    """
    if is_zip(blob):
        yield from _zip(blob, budget)
    elif is_tar(blob):
        yield from _tar(blob, budget)
    else:
        yield from _compressed(blob, budget)


def _zip(blob: Blob, budget: Budget) -> Iterator[Member]:
    with blob.open() as file:
        try:
            with zipfile.ZipFile(file) as archive:
                listed = archive.infolist()
                _check_listing(listed, blob, file)
                for info in listed:
                    if not info.is_dir():
                        yield _zip_member(archive, info, budget)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error) as error:
            raise ArchiveError(f"it can't be read: {error}") from None
        except (ValueError, OverflowError, NotImplementedError, RuntimeError, OSError) as error:
            # Encrypted members, unknown methods, and sizes that no file has.
            raise ArchiveError(f"it can't be read: {error}") from None


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> Member:
    _count(budget)
    with archive.open(info) as member:
        # Reading to the end makes zipfile compare the CRC.
        data = member.read(budget.take_bytes(MEMBER))
        budget.inflated -= len(data)
        whole = not member.read(1)
    return Member(info.filename, Blob(info.filename, Memory(data)), whole)


def _check_listing(listed: list[zipfile.ZipInfo], blob: Blob, file: BinaryIO) -> None:
    if len(listed) > _MAX_MEMBERS:
        raise ArchiveError(f"it has more than {_MAX_MEMBERS} members")
    if len({info.filename for info in listed}) != len(listed):
        raise ArchiveError("two of its members have the same name")
    end = 0
    for info in sorted(listed, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise ArchiveError("its members overlap")
        if _hides(file, end, info.header_offset):
            raise ArchiveError("it holds a member that its directory does not list")
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != _LOCAL:
            raise ArchiveError(f"no header stands where its directory says, for {info.filename[:80]!r}")
        flags, method = struct.unpack_from("<HH", header, 6)
        if (flags ^ info.flag_bits) & 0x2041 or method != info.compress_type:
            raise ArchiveError(f"two headers of {info.filename[:80]!r} disagree")
        named, extra = struct.unpack_from("<HH", header, 26)
        end = info.header_offset + 30 + named + extra + info.compress_size
    if end > blob.size:
        raise ArchiveError("a member reaches past its end")


def _hides(file: BinaryIO, start: int, end: int) -> bool:
    """Whether a local header stands in a gap between members; what precedes the first one may be anything."""
    if start == 0 or end - start <= _SLACK:
        return False
    file.seek(start)
    return _LOCAL in file.read(min(end - start, MEMBER))


def _tar(blob: Blob, budget: Budget) -> Iterator[Member]:
    if blob.size > 4 * MEMBER:
        # tarfile holds extended headers in memory, and they may be as large as the file.
        raise ArchiveError("it is a tar archive too large to be looked into")
    with blob.open() as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for number, info in enumerate(archive):
                    if number >= _MAX_MEMBERS:
                        raise ArchiveError(f"it has more than {_MAX_MEMBERS} members")
                    _count(budget)
                    if not info.isfile():
                        continue
                    opened = archive.extractfile(info)
                    data = b"" if opened is None else opened.read(budget.take_bytes(MEMBER))
                    budget.inflated -= len(data)
                    yield Member(info.name, Blob(info.name, Memory(data)), len(data) >= info.size)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise ArchiveError(f"it can't be read: {error}") from None


def _compressed(blob: Blob, budget: Budget) -> Iterator[Member]:
    inflater, error = _inflater(blob)
    if inflater is None:
        return
    _count(budget)
    most, inside = budget.take_bytes(MEMBER), b""
    with blob.open() as file:
        try:
            while not inflater.eof and len(inside) < most and (data := file.read(_PART)):
                inside += inflater.decompress(data, most - len(inside))
        except error as broken:
            if not inside:
                return
            raise ArchiveError(f"it breaks off: {broken}") from None
    budget.inflated -= len(inside)
    name = blob.path.rpartition(".")[0] or blob.path
    yield Member(name, Blob(name, Memory(inside)), len(inside) < most)


def _inflater(blob: Blob) -> tuple[_Inflater | None, tuple[type[Exception], ...]]:
    head = blob.head
    if head[:2] == b"\x1f\x8b":
        return zlib.decompressobj(wbits=31), (zlib.error,)
    if head[:3] == b"BZh":
        return bz2.BZ2Decompressor(), (OSError, ValueError, EOFError)
    if head[:6] == b"\xfd7zXZ\0" or head[:3] == b"\x5d\0\0":
        return lzma.LZMADecompressor(memlimit=128 * 1024 * 1024), (lzma.LZMAError, EOFError)
    if head[:4] == b"\x28\xb5\x2f\xfd":
        from backports import zstd

        # A frame may ask for a window of gigabytes (RFC 8878, 3.1.1.1.2).
        options = {int(zstd.DecompressionParameter.window_log_max): 27}
        return zstd.ZstdDecompressor(options=options), (zstd.ZstdError, EOFError)
    if head[:1] == b"\x78" and len(head) > 2 and int.from_bytes(head[:2]) % 31 == 0:
        return zlib.decompressobj(), (zlib.error,)
    return None, ()


def _count(budget: Budget) -> None:
    budget.members -= 1
    if budget.members < 0 or budget.inflated <= 0:
        raise ArchiveError("the image's archives hold more than is looked at")
