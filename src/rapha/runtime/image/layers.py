"""Layers to one file tree: decompression under a limit, whiteouts, and the checks on each entry."""

from __future__ import annotations

import posixpath
import zlib
from collections.abc import Mapping
from typing import Final

from rapha.runtime.image.model import Limits
from rapha.runtime.image.paths import Tree, clean, parents
from rapha.runtime.image.tar import Entry, Reader
from rapha.spec.refusals import Refused

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_CHUNK: Final = 64 * 1024


def gunzip(data: bytes, size: int, members: int, what: str) -> bytes:
    """Decompress a gzip file (RFC 1952) to at most `size` bytes, from at most `members` members.

    Raises:
        Refused: `image.too_large` past a limit, `image.layout_invalid` for anything malformed.
    """
    out = bytearray()
    at = 0
    for _ in range(members):
        stream = zlib.decompressobj(wbits=31)
        while not stream.eof:
            chunk = data[at : at + _CHUNK]
            if not chunk:
                raise Refused("image.layout_invalid", f"{what}: the gzip stream is cut short")
            try:
                out += stream.decompress(chunk, size - len(out) + 1)
            except zlib.error as error:
                raise Refused("image.layout_invalid", f"{what}: not gzip: {error}") from None
            if len(out) > size:
                raise Refused("image.too_large", f"{what}: over {size} bytes once decompressed")
            at += len(chunk) - len(stream.unused_data)
        if at == len(data):
            return bytes(out)
    raise Refused("image.too_large", f"{what}: over {members} gzip members")


class Filesystem:
    """The tree that layers, applied in order, leave (image-spec 1.1, layer.md)."""

    def __init__(self, limits: Limits) -> None:
        """Start empty."""
        self.files: dict[str, bytes] = {}
        self._limits = limits
        self._tree = Tree()
        self._dirs: set[str] = set()
        self._entries = 0

    def apply(self, archive: bytes, what: str) -> None:
        """Lay one uncompressed layer, called `what`, over the ones before it.

        Raises:
            Refused: `image.path_unsafe`, `image.file_type`, `image.too_large`, `image.layout_invalid`.
        """
        layer = self._read(archive, what)
        hidden: set[str] = set()
        opaque: set[str] = set()
        # Whiteouts act on lower layers only, wherever in the archive they stand: they go first.
        for path in [p for p in layer if _name(p).startswith(_WHITEOUT)]:
            (opaque if _name(path) == _OPAQUE else hidden).add(self._hides(path, layer.pop(path)))
        filled = {parent for path in layer for parent in parents(path)}
        for path, entry in layer.items():
            _check(path, entry, filled)
        hidden |= {path for path, entry in layer.items() if entry.kind == "file"}
        hidden |= filled & self.files.keys()
        self._remove(hidden, opaque)
        self._dirs |= filled | {path for path, entry in layer.items() if entry.kind == "dir"}
        self._add(layer)

    def _read(self, archive: bytes, what: str) -> dict[str, Entry]:
        layer: dict[str, Entry] = {}
        for entry in Reader(archive, self._limits, what):
            self._entries += 1
            if self._entries > self._limits.entries:
                raise Refused("image.too_large", f"{what}: over {self._limits.entries} entries")
            path = clean(entry.name, self._limits)
            if path in layer:
                raise Refused("image.path_unsafe", f"path {path!r} is in {what} twice")
            self._tree.claim(path)
            layer[path] = entry
        if "" in layer and layer.pop("").kind != "dir":
            raise Refused("image.path_unsafe", f"{what}: the root is not a folder")
        return layer

    def _hides(self, path: str, entry: Entry) -> str:
        """The lower path that a whiteout removes, or whose contents it does."""
        folder, _, name = path.rpartition("/")
        hidden = name.removeprefix(_WHITEOUT)
        if name != _OPAQUE and (hidden in ("", ".", "..") or hidden.startswith(_WHITEOUT)):
            raise Refused("image.path_unsafe", f"path {path!r} is a malformed whiteout")
        if entry.kind != "file" or len(entry.data):
            raise Refused("image.file_type", f"whiteout {path!r} is not an empty file")
        target = folder if name == _OPAQUE else posixpath.join(folder, hidden)
        if target not in self.files and target not in self._dirs:
            raise Refused("image.path_unsafe", f"whiteout {path!r} hides nothing in a lower layer")
        return target

    def _remove(self, hidden: set[str], opaque: set[str]) -> None:
        """Drop what is hidden and what is under it, in one pass whatever the number of whiteouts."""
        if not hidden and not opaque:
            return

        def gone(path: str) -> bool:
            return path in hidden or any(p in hidden or p in opaque for p in parents(path))

        self.files = {path: data for path, data in self.files.items() if not gone(path)}
        self._dirs = {path for path in self._dirs if not gone(path)}

    def _add(self, layer: Mapping[str, Entry]) -> None:
        for path, entry in layer.items():
            if entry.kind == "dir":
                self.files.pop(path, None)
            else:
                self.files[path] = bytes(entry.data)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _check(path: str, entry: Entry, filled: set[str]) -> None:
    if entry.kind == "link":
        raise _link_refusal(path, entry)
    if entry.kind == "file" and path in filled:
        raise Refused("image.path_unsafe", f"path {path!r} is both a file and a folder")


def _link_refusal(path: str, entry: Entry) -> Refused:
    target = entry.link.decode("utf-8", errors="replace")
    # A hard link's target is relative to the root of the archive, a symbolic one's to its own folder.
    base = "" if entry.hard else posixpath.dirname(path)
    if posixpath.normpath(posixpath.join(base, target)).startswith(("/", "..")):
        return Refused("image.path_unsafe", f"{path!r} links out of the root, to {target[:200]!r}")
    return Refused("image.file_type", f"{path!r} is a link; ship the file itself")
