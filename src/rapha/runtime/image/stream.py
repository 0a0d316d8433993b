"""Layers as streams: each stored byte is read once, hashed on the way, and decompressed under limits."""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, Protocol

from rapha.runtime.image.model import Limits
from rapha.spec.refusals import Refused

Compression = Literal["none", "gzip", "zstd"]

CHUNK: Final = 256 * 1024
_SLICE: Final = 16 * 1024
"""What a decompressor is given at once: it copies the rest of it at the end of each gzip member."""
_FREE_GROWTH: Final = 64 * 1024 * 1024
_WINDOW_LOG: Final = 27
"""zstd frames may ask for a window of 128 MiB, as its own command line accepts; the memory it costs."""


def hashed(chunks: Iterator[bytes], digest: object, what: str) -> Iterator[bytes]:
    """Pass `chunks` on.

    Raises:
        Refused: `image.digest_mismatch` at the end if they are not what `digest` says; whoever uses
            the chunks destroys what it made of them.
    """
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
        yield chunk
    if "sha256:" + found.hexdigest() != digest:
        raise Refused("image.digest_mismatch", f"{what} is not what its digest says")


class Budget:
    """How much all layers of one image may still decompress to."""

    def __init__(self, limits: Limits) -> None:
        """Start with the whole of `limits`."""
        self._limits = limits
        self._room = limits.unpacked
        self._growth = _FREE_GROWTH

    def spend(self, size: int, what: str) -> None:
        """Take `size` bytes.

        Raises:
            Refused: `image.too_large`.
        """
        self._room -= size
        if self._room < 0:
            raise Refused("image.too_large", f"{what}: the layers are over {self._limits.unpacked} bytes")

    def check(self, size: int, what: str) -> None:
        """Raises `Refused` (`image.too_large`) if `size` bytes could not be spent."""
        if size > self._room + CHUNK:  # the chunk that announced them was spent
            raise Refused("image.too_large", f"{what}: the layers are over {self._limits.unpacked} bytes")

    def grow(self, stored: int, unpacked: int, what: str) -> None:
        """Note that `stored` bytes gave `unpacked`.

        Raises:
            Refused: `image.too_large` for what grows like a bomb.
        """
        self._growth += self._limits.ratio * stored - unpacked
        if self._growth < 0:
            raise Refused("image.too_large", f"{what}: grows over {self._limits.ratio} times")


def decompressed(
    compression: Compression, chunks: Iterator[bytes], budget: Budget, limits: Limits, what: str
) -> Iterator[bytes]:
    """The layer's archive, in pieces of at most `CHUNK` bytes.

    Raises:
        Refused: `image.too_large` past a limit, `image.layout_invalid` for anything malformed.
    """
    if compression == "none":
        pieces = chunks
    else:
        start = _start_gzip if compression == "gzip" else _start_zstd
        pieces = _members(start, chunks, budget, limits, what)
    for piece in pieces:
        budget.spend(len(piece), what)
        yield piece


class _Decoder(Protocol):
    """One gzip member or zstd frame."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompress; `ended` and `unused` are set where the member ends inside `data`."""

    ended: bool
    unused: bytes


def _members(
    start: Callable[[str], _Decoder], chunks: Iterator[bytes], budget: Budget, limits: Limits, what: str
) -> Iterator[bytes]:
    """Each member in turn. Empty members cost time and give nothing, so their number is bounded, too."""
    decoder: _Decoder | None = None
    members = 0
    for chunk in chunks:
        for at in range(0, len(chunk), _SLICE):
            data = chunk[at : at + _SLICE]
            budget.grow(len(data), 0, what)
            while data:
                if decoder is None:
                    members += 1
                    if members > 2 * limits.entries:
                        raise Refused("image.too_large", f"{what}: over {2 * limits.entries} members")
                    decoder = start(what)
                for piece in decoder.feed(data):
                    budget.grow(0, len(piece), what)
                    yield piece
                data = decoder.unused
                decoder = None if decoder.ended else decoder
    if decoder is not None or not members:
        raise Refused("image.layout_invalid", f"{what}: the compressed stream is cut short")


class _Gzip:
    """RFC 1952."""

    def __init__(self, what: str) -> None:
        self._stream = zlib.decompressobj(wbits=31)
        self._what = what
        self.ended = False
        self.unused = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        self.unused = b""
        while True:
            try:
                piece = self._stream.decompress(data, CHUNK)
            except zlib.error as error:
                raise Refused("image.layout_invalid", f"{self._what}: not gzip: {error}") from None
            if piece:
                yield piece
            data = self._stream.unconsumed_tail
            self.ended = self._stream.eof
            if self.ended or (not data and len(piece) < CHUNK):
                break
        self.unused = self._stream.unused_data


class _Zstd:
    """RFC 8878; a frame that needs a dictionary does not decode, since none is given."""

    def __init__(self, what: str, zstd: Any) -> None:
        self._error = zstd.ZstdError
        window = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        self._stream = zstd.ZstdDecompressor(options=window)
        self._what = what
        self.ended = False
        self.unused = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        self.unused = b""
        while True:
            try:
                piece = self._stream.decompress(data, CHUNK)
            except self._error as error:
                raise Refused("image.layout_invalid", f"{self._what}: not zstd: {error}") from None
            if piece:
                yield piece
            data = b""
            self.ended = self._stream.eof
            if self.ended or self._stream.needs_input:
                break
        self.unused = self._stream.unused_data


def _start_gzip(what: str) -> _Decoder:
    return _Gzip(what)


def _start_zstd(what: str) -> _Decoder:
    # Imported here: most images have no zstd layer, and what only looks at others need not have it.
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return _Zstd(what, zstd)


class Stream:
    """Exact reads over pieces that come one after another."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        """Nothing is read yet."""
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self.position = 0

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end. For headers; contents go through `pieces`."""
        end = self._at + size
        if end <= len(self._piece):
            data = self._piece[self._at : end]
            self._at = end
            self.position += size
            return data
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, or what there is, in pieces."""
        while size:
            if self._at == len(self._piece):
                self._piece, self._at = next(self._pieces, b""), 0
                if not self._piece:
                    return
            part = self._piece[self._at : self._at + size]
            self._at += len(part)
            self.position += len(part)
            size -= len(part)
            yield part

    def skip(self, size: int) -> int:
        """Pass over `size` bytes; how many there were."""
        return sum(len(piece) for piece in self.pieces(size))
