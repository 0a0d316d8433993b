"""One file's bytes, wherever they lie, and how much of all of them one scan reads."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

WHOLE: Final = 64 * 1024 * 1024
"""Bytes of a file that is held in memory as a whole; of a larger one, parts are read."""
PEEK: Final = 64 * 1024
TAIL: Final = 65_557
"""Bytes in which a ZIP's end record must lie (APPNOTE 4.3.16: 22, and a comment of up to 65,535)."""


class Source(Protocol):
    """What an image's file offers."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def open(self) -> BinaryIO:
        """A new seekable reader from the first byte."""
        ...


@dataclass(frozen=True, slots=True)
class Memory:
    """A file that exists only in memory: a member of an archive, or code from a command line."""

    data: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    def open(self) -> BinaryIO:
        """A new reader from the first byte."""
        return io.BytesIO(self.data)


class Blob:
    """A file with its name, read at most once as a whole."""

    def __init__(self, name: str, source: Source) -> None:
        """`name` is the path in the image; for an archive's member, its own."""
        self.name = name.rpartition("/")[2].lower()
        self.path = name
        self.size = source.size
        self._source = source

    def open(self) -> BinaryIO:
        """A new seekable reader from the first byte."""
        return self._source.open()

    @functools.cached_property
    def head(self) -> bytes:
        """The first `PEEK` bytes."""
        with self.open() as file:
            return file.read(PEEK)

    @functools.cached_property
    def tail(self) -> bytes:
        """The last `TAIL` bytes."""
        if self.size <= PEEK:
            return self.head
        with self.open() as file:
            file.seek(max(0, self.size - TAIL))
            return file.read(TAIL)

    def part(self, most: int) -> bytes:
        """The first `most` bytes."""
        if most <= len(self.head) or self.size <= len(self.head):
            return self.head[:most]
        with self.open() as file:
            return file.read(most)


@dataclass(slots=True)
class Budget:
    """What is left for the files of one image: bytes to decompress and pickle opcodes to read.

    Counted and not timed, so that the same image gives the same report on every machine.
    """

    inflated: int = 512 * 1024 * 1024
    opcodes: int = 4_000_000
    members: int = 200_000

    def take_bytes(self, most: int) -> int:
        """Up to `most` bytes, as many as are left; 0 where nothing is."""
        return max(0, min(most, self.inflated))
