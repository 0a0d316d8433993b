"""A strict reader of tar archives (POSIX.1-1988 ustar, POSIX.1-2001 pax, GNU long names).

The reader gives each archive one meaning or refuses it: every byte of it is accounted for. It never
touches the file system; the standard library's extraction is not used anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from rapha.runtime.image.model import Limits
from rapha.spec.refusals import Refused

BLOCK: Final = 512
_Fail = Callable[[str], Refused]
EntryKind = Literal["file", "dir", "symlink", "hardlink"]
_MAX_EXTENSION: Final = 64 * 1024
MAX_SIZE: Final = 8**11 - 1
"""What ustar's 11 octal digits hold; larger files give their size in a pax record."""
_MAX_TAIL: Final = 1024 * 1024
"""Zero bytes after the end of an archive, which archivers write to fill a record."""
_KINDS: Final[dict[bytes, EntryKind]] = {
    b"0": "file",
    b"\0": "file",
    b"5": "dir",
    b"1": "hardlink",
    b"2": "symlink",
}
_SPECIAL: Final = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO", b"S": "a sparse file"}
# Records of a pax header that say nothing about where or what the entry is.
_PAX_IGNORED: Final = frozenset({"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"})
_PAX_READ: Final = frozenset({"path", "linkpath", "size"})
_ATTRIBUTES: Final = ("SCHILY.", "LIBARCHIVE.", "RHT.security")


@dataclass(frozen=True, slots=True)
class Entry:
    """One archive entry, its name still as the archive spells it.

    Attributes:
        name: bytes as archived.
        kind: what it is; special files are never entries.
        size: bytes of contents; 0 for all but files.
        link: target of a link.
        mode: permission bits, the set-id bits among them.
        extra: first pax record that is neither read nor meaningless, such as an extended attribute.
    """

    name: bytes
    kind: EntryKind
    size: int = 0
    link: bytes = b""
    mode: int = 0
    extra: str | None = None

    @property
    def is_attribute(self) -> bool:
        """Whether `extra` is an extended attribute, an ACL or a file flag."""
        return self.extra is not None and self.extra.startswith(_ATTRIBUTES)


class Source(Protocol):
    """Bytes in order."""

    position: int

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, or what there is, in pieces."""

    def skip(self, size: int) -> int:
        """Pass over `size` bytes; how many there were."""


class Reader:
    """Iterate over the entries of one archive; `contents` gives the present entry's bytes."""

    def __init__(self, source: Source, limits: Limits, what: str) -> None:
        """Read `source`, called `what` in refusals."""
        self._source = source
        self._limits = limits
        self._what = what
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield each entry. What was not taken of its contents is passed over.

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
            flag = header[156:157]
            size = _octal(header[124:136], self._fail)
            if flag in (b"x", b"L", b"K"):
                self._extend(extension, flag, size)
                continue
            entry = self._entry(header, flag, size, extension)
            self._left, self._padding = entry.size, -entry.size % BLOCK
            yield entry
            self._finish()
            extension = {}
        if extension:
            raise self._fail("an extended header without its entry")

    def contents(self) -> Iterator[bytes]:
        """What is left of the present entry's contents.

        Raises:
            Refused: `image.layout_invalid` if the archive ends within them.
        """
        for piece in self._source.pieces(self._left):
            self._left -= len(piece)
            yield piece
        if self._left:
            raise self._fail("the archive is cut short")

    def _finish(self) -> None:
        if self._source.skip(self._left) != self._left:
            raise self._fail("the archive is cut short")
        self._left = 0
        if any(self._exactly(self._padding)):
            raise self._fail("an entry's padding is not zero")

    def _fail(self, why: str) -> Refused:
        return Refused("image.layout_invalid", f"{self._what}, byte {self._source.position}: {why}")

    def _next_header(self) -> bytes | None:
        block = self._exactly(BLOCK)
        if block == bytes(BLOCK):
            self._check_end()
            return None
        said = _octal(block[148:156], self._fail)
        if said != sum(block[:148]) + 8 * 32 + sum(block[156:]):
            raise self._fail("a header's checksum is wrong")
        if block[257:265] not in (b"ustar\x0000", b"ustar  \0"):
            raise self._fail("not a ustar, pax or GNU header")
        return block

    def _check_end(self) -> None:
        # POSIX ends an archive with two zero blocks; what follows them would be read by some tools only.
        tail = self._source.read(_MAX_TAIL + 1)
        if not BLOCK <= len(tail) <= _MAX_TAIL or tail.strip(b"\0"):
            raise self._fail("the end of the archive is missing, or something follows it")

    def _exactly(self, size: int) -> bytes:
        part = self._source.read(size)
        if len(part) != size:
            raise self._fail("the archive is cut short")
        return part

    def _extend(self, extension: dict[str, bytes], flag: bytes, size: int) -> None:
        if size > _MAX_EXTENSION:
            raise Refused("image.too_large", f"{self._what}: an extended header over {_MAX_EXTENSION} bytes")
        data = self._exactly(size)
        if any(self._exactly(-size % BLOCK)):
            raise self._fail("an entry's padding is not zero")
        new = self._pax(data) if flag == b"x" else self._gnu(flag, data)
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
        at = 0
        while at < len(data):
            digits = data[at : at + 7].partition(b" ")[0]
            if not digits.isdigit() or digits[:1] == b"0" or len(digits) > 6:
                raise self._fail("a pax record's length is malformed")
            record = data[at : at + int(digits)]
            key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
            name = key.decode("utf-8", errors="replace")
            # Attributes are binary; names are text, and NUL would end them early elsewhere.
            unsafe = b"\0" in key or (b"\0" in value and not name.startswith(_ATTRIBUTES))
            if len(record) != int(digits) or record[-1:] != b"\n" or not equals or unsafe:
                raise self._fail("a pax record is malformed")
            if name in found:
                raise self._fail(f"pax record {name[:100]!r} is given twice")
            found[name] = value
            at += len(record)
        return found

    def _entry(self, header: bytes, flag: bytes, size: int, extension: Mapping[str, bytes]) -> Entry:
        name = extension.get("path", self._short_name(header))
        shown = name[:200].decode(errors="replace")
        if flag not in _KINDS:
            raise Refused(
                "image.file_type", f"{shown!r} is {_SPECIAL.get(flag, f'of unknown type {flag!r}')}"
            )
        kind = _KINDS[flag]
        size = self._size(extension, size, shown)
        extra = self._extra(extension, shown)
        if (kind != "file" and size) or (kind == "file" and name.endswith(b"/")):
            raise self._fail(f"{shown!r}: its type contradicts its name or size")
        is_link = kind in ("symlink", "hardlink")
        link = extension.get("linkpath", _text(header[157:257], self._fail)) if is_link else b""
        return Entry(name, kind, size, link, _octal(header[100:108], self._fail), extra)

    def _short_name(self, header: bytes) -> bytes:
        name = _text(header[0:100], self._fail)
        if header[257:265] != b"ustar\x0000":
            return name
        prefix = _text(header[345:500], self._fail)
        return prefix + b"/" + name if prefix else name

    def _size(self, extension: Mapping[str, bytes], size: int, shown: str) -> int:
        said = extension.get("size")
        if said is None or said == b"%d" % size:
            return size
        # Only what the header can't hold is told by the record alone (POSIX.1-2001, pax, size).
        if not said.isdigit() or len(said) > 15 or said[:1] == b"0" or int(said) <= MAX_SIZE or size:
            raise self._fail(f"{shown!r} has two sizes")
        return int(said)

    def _extra(self, extension: Mapping[str, bytes], shown: str) -> str | None:
        if any(key.startswith("GNU.sparse") for key in extension):
            raise Refused("image.file_type", f"{shown!r} is a sparse file")
        known = _PAX_IGNORED | _PAX_READ | {"(pax)"}
        extra = [key for key in extension if key not in known]
        return min(extra, key=lambda key: not key.startswith(_ATTRIBUTES)) if extra else None


def _octal(field: bytes, fail: _Fail) -> int:
    digits = field.strip(b" \0")
    if not digits or any(byte not in b"01234567" for byte in digits):
        raise fail("a number is not octal")
    return int(digits, 8)


def _text(field: bytes, fail: _Fail) -> bytes:
    text, _, rest = field.partition(b"\0")
    if rest.strip(b"\0"):
        raise fail("a name has bytes after its end")
    return text
