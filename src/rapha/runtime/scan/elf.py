"""What an ELF file imports and how it is linked, by its program headers, dynamic section and symbols.

Read as hostile: every offset and count comes from the file, so each read is bounded by the file's size
and each table by a fixed number of entries. Source: System V ABI, gABI 4.1, chapters 4 and 5.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

_MAX_HEADERS: Final = 512
_MAX_DYNAMIC: Final = 8192
_MAX_SYMBOLS: Final = 500_000
_MAX_STRINGS: Final = 32 * 1024 * 1024
_MAX_TEXT: Final = 512
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_GNU_STACK = 1, 2, 3, 0x6474E551
_DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ = 1, 4, 5, 6, 10
_DT_RPATH, _DT_RUNPATH, _DT_GNU_HASH = 15, 29, 0x6FFFFEF5
_SHT_DYNSYM: Final = 11
_EXECUTABLE: Final = 1


class ElfError(Exception):
    """The file says something about itself that can't be so, or can't be followed."""


@dataclass(frozen=True, slots=True)
class Elf:
    """What is known of one file.

    Attributes:
        imports: undefined dynamic symbols, without their version.
        needed: DT_NEEDED, the libraries that the loader is asked for.
        interpreter: PT_INTERP, or empty.
        search: DT_RPATH and DT_RUNPATH, split at colons.
        dynamic: it has a dynamic section, so that `imports` says what it calls through the loader.
        executable_stack: it asks for one; a missing PT_GNU_STACK asks, too.
        packed: it bears the mark of a packer.
    """

    imports: frozenset[str]
    needed: tuple[str, ...]
    interpreter: str
    search: tuple[str, ...]
    dynamic: bool
    executable_stack: bool
    packed: bool


def parse(file: BinaryIO, size: int) -> Elf:
    """Read the headers of a file of `size` bytes.

    Raises:
        ElfError: it is cut off, contradicts itself or passes a limit.
    """
    return _Reader(file, size).elf()


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    flags: int
    offset: int
    address: int
    size: int


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        ident = self._bytes(0, 20)
        if ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise ElfError("its identification is none of the ABI's")
        self._wide = ident[4] == 2
        self._order = "<" if ident[5] == 1 else ">"
        self._segments = self._program_headers()

    def elf(self) -> Elf:
        entries = self._dynamic_entries()
        values = dict(reversed(entries))
        strings = self._strings(values) if entries else b""
        stacks = [s for s in self._segments if s.kind == _PT_GNU_STACK]
        return Elf(
            imports=self._imports(values, strings) if entries else frozenset(),
            needed=tuple(_text(strings, v) for tag, v in entries if tag == _DT_NEEDED),
            interpreter=self._interpreter(),
            search=tuple(
                part
                for tag, v in entries
                if tag in (_DT_RPATH, _DT_RUNPATH)
                for part in _text(strings, v).split(":")
            ),
            dynamic=bool(entries),
            executable_stack=not stacks or any(s.flags & _EXECUTABLE for s in stacks),
            packed=b"UPX!" in self._bytes(0, min(self._size, 4096)),
        )

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset < 0 or count < 0 or offset + count > self._size:
            raise ElfError("an offset leads out of the file")
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) != count:
            raise ElfError("it is cut off")
        return data

    def _unpack(self, form: str, offset: int) -> tuple[int, ...]:
        form = self._order + form
        return struct.unpack(form, self._bytes(offset, struct.calcsize(form)))

    def _program_headers(self) -> list[_Segment]:
        if self._wide:
            (start,), (entry, count) = self._unpack("Q", 32), self._unpack("HH", 54)
            form, least = "IIQQQQ", 56
        else:
            (start,), (entry, count) = self._unpack("I", 28), self._unpack("HH", 42)
            form, least = "IIIIIII", 32
        if count > _MAX_HEADERS or (count and entry < least):
            raise ElfError("its program headers can't be read")
        found = []
        for index in range(count):
            fields = self._unpack(form, start + index * entry)
            if self._wide:
                kind, flags, offset, address, _, size = fields
            else:
                kind, offset, address, _, size, _, flags = fields
            found.append(_Segment(kind, flags, offset, address, size))
        return found

    def _interpreter(self) -> str:
        for segment in self._segments:
            if segment.kind == _PT_INTERP:
                return _text(self._bytes(segment.offset, min(segment.size, _MAX_TEXT)), 0)
        return ""

    def _dynamic_entries(self) -> list[tuple[int, int]]:
        """Tag and value of each entry up to DT_NULL."""
        segments = [s for s in self._segments if s.kind == _PT_DYNAMIC]
        if not segments:
            return []
        if len(segments) > 1:
            raise ElfError("it has more than one dynamic section")
        form, width = ("qQ", 16) if self._wide else ("iI", 8)
        # The loader reads it in memory, where PT_LOAD may lay other bytes than the file offset says.
        start = self._offset(segments[0].address)
        found: list[tuple[int, int]] = []
        for index in range(_MAX_DYNAMIC):
            tag, value = self._unpack(form, start + index * width)
            if tag == 0:
                return found
            found.append((tag, value))
        raise ElfError(f"its dynamic section has more than {_MAX_DYNAMIC} entries")

    def _offset(self, address: int) -> int:
        """Where in the file an address of the loaded program comes from."""
        places = {
            address - s.address + s.offset
            for s in self._segments
            if s.kind == _PT_LOAD and s.address <= address < s.address + s.size
        }
        if len(places) != 1:
            raise ElfError("an address lies in no segment, or in two")
        return places.pop()

    def _strings(self, values: Mapping[int, int]) -> bytes:
        if _DT_STRTAB not in values or _DT_STRSZ not in values:
            raise ElfError("its dynamic section has no string table")
        if values[_DT_STRSZ] > _MAX_STRINGS:
            raise ElfError("its string table is too large")
        return self._bytes(self._offset(values[_DT_STRTAB]), values[_DT_STRSZ])

    def _imports(self, values: Mapping[int, int], strings: bytes) -> frozenset[str]:
        if _DT_SYMTAB not in values:
            raise ElfError("its dynamic section has no symbol table")
        start = self._offset(values[_DT_SYMTAB])
        form, width = ("IBBHQQ", 24) if self._wide else ("IIIBBH", 16)
        count = self._symbol_count(values, start, width)
        if count > _MAX_SYMBOLS:
            raise ElfError(f"it has more than {_MAX_SYMBOLS} dynamic symbols")
        table = self._bytes(start, count * width)
        found = set()
        for fields in struct.iter_unpack(self._order + form, table):
            section = fields[3] if self._wide else fields[5]
            if section == 0 and fields[0]:
                found.add(_text(strings, fields[0]).partition("@")[0])
        return frozenset(found)

    def _symbol_count(self, values: Mapping[int, int], start: int, width: int) -> int:
        """The largest number of symbols that any table of the file claims (gABI 5: chains; GNU hash)."""
        counts = [self._section_count(start, width)]
        if _DT_HASH in values:
            counts.append(self._unpack("II", self._offset(values[_DT_HASH]))[1])
        if _DT_GNU_HASH in values:
            counts.append(self._gnu_count(self._offset(values[_DT_GNU_HASH])))
        if _DT_STRTAB in values and values[_DT_STRTAB] > values[_DT_SYMTAB]:
            # Linkers lay the names behind the symbols: a hash table that claims fewer hides some.
            counts.append((values[_DT_STRTAB] - values[_DT_SYMTAB]) // width)
        best = max(counts)
        if not best:
            raise ElfError("the number of its dynamic symbols can't be told")
        return min(best, (self._size - start) // width)

    def _gnu_count(self, offset: int) -> int:
        buckets, first, bloom, _ = self._unpack("IIII", offset)
        if buckets > _MAX_SYMBOLS or bloom > _MAX_SYMBOLS:
            raise ElfError("its hash table is too large")
        chains = offset + 16 + bloom * (8 if self._wide else 4)
        last = max(struct.unpack(f"{self._order}{buckets}I", self._bytes(chains, 4 * buckets)), default=0)
        if last < first:
            return first
        chains += 4 * buckets
        while not self._unpack("I", chains + 4 * (last - first))[0] & 1:
            last += 1
            if last > _MAX_SYMBOLS:
                raise ElfError(f"it has more than {_MAX_SYMBOLS} dynamic symbols")
        return last + 1

    def _section_count(self, start: int, width: int) -> int:
        """Symbols that a section header gives to the table at `start`; 0 without one."""
        if self._wide:
            (table,), (entry, count) = self._unpack("Q", 40), self._unpack("HH", 58)
            form, least = "IIQQQQ", 64
        else:
            (table,), (entry, count) = self._unpack("I", 32), self._unpack("HH", 46)
            form, least = "IIIIII", 40
        if not table or entry < least or table + entry * count > self._size:
            # Section headers are for linkers; the loader, and so a hostile file, does without.
            return 0
        for index in range(min(count, 0xFFFF)):
            fields = self._unpack(form, table + index * entry)
            if fields[1] == _SHT_DYNSYM and fields[4] == start:
                return fields[5] // width
        return 0


def _text(strings: bytes, offset: int) -> str:
    """The string at `offset` of a table. Raises ElfError where there is none."""
    if offset >= len(strings):
        raise ElfError("a name lies outside its table")
    end = strings.find(b"\0", offset, offset + _MAX_TEXT)
    if end < 0:
        end = min(len(strings), offset + _MAX_TEXT)
    return strings[offset:end].decode("ascii", errors="backslashreplace")
