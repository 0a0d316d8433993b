"""A strict reader and writer of tar archives (POSIX.1-1988 ustar, POSIX.1-2001 pax, GNU long names).

The reader gives each archive one meaning or refuses it: every byte of it is accounted for. It never
touches the file system; the standard library's extraction is not used anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from rapha.runtime.image.model import Limits
from rapha.spec.refusals import Refused

BLOCK: Final = 512
_Fail = Callable[[str], Refused]
_MAX_EXTENSION: Final = 64 * 1024
_KINDS: Final[dict[bytes, Literal["file", "dir", "link"]]] = {
    b"0": "file",
    b"\0": "file",
    b"5": "dir",
    b"1": "link",
    b"2": "link",
}
_SPECIAL: Final = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO", b"S": "a sparse file"}
# Records of a pax header that say nothing about where or what the entry is.
_PAX_IGNORED: Final = frozenset({"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"})
_SET_ID: Final = 0o6000


@dataclass(frozen=True, slots=True)
class Entry:
    """One archive entry, its name still as the archive spells it."""

    name: bytes
    kind: Literal["file", "dir", "link"]
    data: memoryview
    link: bytes = b""
    hard: bool = False


def write(files: Iterable[tuple[str, bytes]], folders: Iterable[str] = ()) -> bytes:
    """A ustar archive of `folders` and `files` in the order given, that depends on nothing else.

    Times, owners and device numbers are 0; modes are 0644 and 0755.

    Raises:
        Refused: `image.too_large` for a path that ustar's 155 + 100 bytes can't hold.
    """
    out = bytearray()
    for folder in folders:
        out += _header(folder + "/", 0, b"5", 0o755)
    for name, data in files:
        out += _header(name, len(data), b"0", 0o644)
        out += data
        out += bytes(-len(data) % BLOCK)
    out += bytes(2 * BLOCK)
    return bytes(out)


def _header(name: str, size: int, flag: bytes, mode: int) -> bytes:
    prefix, short = _split(name.encode())
    fields = [
        short.ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"%07o\0" % 0,
        b"%07o\0" % 0,
        b"%011o\0" % size,
        b"%011o\0" % 0,
        b" " * 8,
        flag,
        bytes(100),
        b"ustar\x0000",
        bytes(64),
        b"%07o\0" % 0,
        b"%07o\0" % 0,
        prefix.ljust(155, b"\0"),
        bytes(12),
    ]
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _split(name: bytes) -> tuple[bytes, bytes]:
    if len(name) <= 100:
        return b"", name
    for cut in range(len(name) - 101, min(len(name) - 1, 156)):
        if name[cut : cut + 1] == b"/":
            return name[:cut], name[cut + 1 :]
    raise Refused("image.too_large", f"path {name[:60].decode(errors='replace')!r}… is too long; shorten it")


class Reader:
    """Iterate over the entries of one archive that is already in memory."""

    def __init__(self, data: bytes, limits: Limits, what: str) -> None:
        """Read `data`, called `what` in refusals."""
        self._data = memoryview(data)
        self._limits = limits
        self._what = what
        self._at = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield each entry.

        Raises:
            Refused: `image.layout_invalid` for an archive that is malformed or ambiguous,
                `image.file_type` for special files, `image.too_large` past a limit.
        """
        extension: dict[str, bytes] = {}
        count = 0
        while (header := self._next_header()) is not None:
            count += 1
            if count > 2 * self._limits.entries:
                raise Refused("image.too_large", f"{self._what}: over {self._limits.entries} entries")
            flag = header[156:157].tobytes()
            data = self._take(_octal(header[124:136], self._fail))
            if flag in (b"x", b"L", b"K"):
                self._extend(extension, flag, data)
                continue
            yield self._entry(header, flag, data, extension)
            extension = {}
        if extension:
            raise self._fail("an extended header without its entry")

    def _fail(self, why: str) -> Refused:
        return Refused("image.layout_invalid", f"{self._what}, byte {self._at}: {why}")

    def _next_header(self) -> memoryview | None:
        block = self._read(BLOCK)
        if not any(block):
            # POSIX ends an archive with two zero blocks; what follows them would be read by some tools only.
            if bytes(self._data[self._at :]).strip(b"\0") or len(self._data) - self._at < BLOCK:
                raise self._fail("the end of the archive is missing, or something follows it")
            return None
        said = _octal(block[148:156], self._fail)
        if said != sum(block[:148]) + 8 * 32 + sum(block[156:]):
            raise self._fail("a header's checksum is wrong")
        if block[257:265].tobytes() not in (b"ustar\x0000", b"ustar  \0"):
            raise self._fail("not a ustar, pax or GNU header")
        return block

    def _read(self, size: int) -> memoryview:
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise self._fail("the archive is cut short")
        self._at += size
        return part

    def _take(self, size: int) -> memoryview:
        part = self._read(size)
        if any(self._read(-size % BLOCK)):
            raise self._fail("an entry's padding is not zero")
        return part

    def _extend(self, extension: dict[str, bytes], flag: bytes, data: memoryview) -> None:
        if len(data) > _MAX_EXTENSION:
            raise Refused("image.too_large", f"{self._what}: an extended header over {_MAX_EXTENSION} bytes")
        new = self._pax(bytes(data)) if flag == b"x" else self._gnu(flag, bytes(data))
        if flag == b"x":
            new["(pax)"] = b""
        if extension.keys() & new.keys():
            raise self._fail("an entry's extended header is given twice")
        extension.update(new)

    def _gnu(self, flag: bytes, data: bytes) -> dict[str, bytes]:
        text = data.removesuffix(b"\0")
        if b"\0" in text:
            raise self._fail("a GNU long name with a NUL in it")
        return {"path" if flag == b"L" else "linkpath": text}

    def _pax(self, data: bytes) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        while data:
            digits, _, _ = data.partition(b" ")
            if not digits.isdigit() or digits[:1] == b"0" or len(digits) > 6:
                raise self._fail("a pax record's length is malformed")
            record, data = data[: int(digits)], data[int(digits) :]
            key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
            if len(record) != int(digits) or record[-1:] != b"\n" or not equals or b"\0" in value:
                raise self._fail("a pax record is malformed")
            name = key.decode("utf-8", errors="replace")
            if name in found:
                raise self._fail(f"pax record {name!r} is given twice")
            found[name] = value
        return found

    def _entry(self, header: memoryview, flag: bytes, data: memoryview, extension: dict[str, bytes]) -> Entry:
        name = extension.get("path", self._short_name(header))
        shown = name[:200].decode(errors="replace")
        if flag not in _KINDS:
            raise Refused(
                "image.file_type", f"{shown!r} is {_SPECIAL.get(flag, f'of unknown type {flag!r}')}"
            )
        self._check_records(extension, shown, len(data))
        # GNU headers and some writers keep file type bits in the mode; only the set-id bits matter here.
        if _octal(header[100:108], self._fail) & _SET_ID:
            raise Refused("image.file_type", f"{shown!r} is setuid or setgid")
        kind = _KINDS[flag]
        if (kind != "file" and len(data)) or (kind == "file" and name.endswith(b"/")):
            raise self._fail(f"{shown!r}: its type contradicts its name or size")
        link = extension.get("linkpath", _text(header[157:257], self._fail)) if kind == "link" else b""
        return Entry(name, kind, data, link, flag == b"1")

    def _short_name(self, header: memoryview) -> bytes:
        name = _text(header[0:100], self._fail)
        if header[257:265].tobytes() != b"ustar\x0000":
            return name
        prefix = _text(header[345:500], self._fail)
        return prefix + b"/" + name if prefix else name

    def _check_records(self, extension: dict[str, bytes], shown: str, size: int) -> None:
        for key, value in extension.items():
            if key.startswith(("SCHILY.", "LIBARCHIVE.", "RHT.security")):
                raise Refused("image.file_type", f"{shown!r} carries an extended attribute ({key})")
            if key == "size" and value != str(size).encode():
                raise self._fail(f"{shown!r} has two sizes")
            if key.startswith("GNU.sparse"):
                raise Refused("image.file_type", f"{shown!r} is a sparse file")
            if key not in _PAX_IGNORED and key not in ("path", "linkpath", "size", "(pax)"):
                raise self._fail(f"{shown!r}: pax record {key!r} is not supported")


def _octal(field: memoryview, fail: _Fail) -> int:
    digits = field.tobytes().strip(b" \0")
    if not digits or any(byte not in b"01234567" for byte in digits):
        raise fail("a number is not octal")
    return int(digits, 8)


def _text(field: memoryview, fail: _Fail) -> bytes:
    text, _, rest = field.tobytes().partition(b"\0")
    if rest.strip(b"\0"):
        raise fail("a name has bytes after its end")
    return text
