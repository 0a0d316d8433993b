"""A writer of ustar archives (POSIX.1-1988) whose bytes depend on paths and contents alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rapha.runtime.image.tar import BLOCK, MAX_SIZE
from rapha.spec.refusals import Refused


def write(files: Iterable[tuple[str, bytes]], folders: Iterable[str] = ()) -> bytes:
    """`stream` of contents in memory, as one value."""
    return b"".join(stream(((name, len(data), iter((data,))) for name, data in files), folders))


def stream(files: Iterable[tuple[str, int, Iterable[bytes]]], folders: Iterable[str] = ()) -> Iterator[bytes]:
    """A ustar archive of `folders` and `files` (name, size, contents) in the order given, and nothing else.

    Times, owners and device numbers are 0; modes are 0644 and 0755.

    Raises:
        Refused: `image.too_large` for a path that ustar's 155 + 100 bytes can't hold, or 8 GiB;
            `image.digest_mismatch` where contents are not of the size given.
    """
    for folder in folders:
        yield _header(folder + "/", 0, b"5", 0o755)
    for name, size, contents in files:
        if size > MAX_SIZE:
            raise Refused("image.too_large", f"{name[:200]!r} is over {MAX_SIZE} bytes")
        yield _header(name, size, b"0", 0o644)
        written = 0
        for piece in contents:
            written += len(piece)
            yield piece
        if written != size:
            raise Refused("image.digest_mismatch", f"{name[:200]!r} changed while it was read")
        yield bytes(-size % BLOCK)
    yield bytes(2 * BLOCK)


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
