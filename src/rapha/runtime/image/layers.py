"""Layers to one tree: whiteouts, links, and the checks on each entry (image-spec 1.1, layer.md)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rapha.runtime.image.model import Limits
from rapha.runtime.image.paths import clean, link_target
from rapha.runtime.image.pool import Blob, Pool
from rapha.runtime.image.stream import Budget, Stream
from rapha.runtime.image.tar import Entry, EntryKind, Reader
from rapha.runtime.image.tree import Dir, Leaf, Link, Node, Tree, below
from rapha.spec.refusals import Refused

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_SET_ID: Final = 0o6000


@dataclass(frozen=True, slots=True)
class Rules:
    """What one layer may hold.

    Attributes:
        base: it belongs to an allow-listed base. Distributions ship set-id programs, capabilities, names
            that differ by case, and repeated entries: the first two are dropped, the others taken as they
            are. A submitter's layer with them is refused.
        links: symbolic and hard links are taken, and whiteouts of nothing are tolerated.
    """

    base: bool
    links: bool


SLIM_RULES: Final = Rules(base=False, links=False)
FULL_RULES: Final = Rules(base=False, links=True)
BASE_RULES: Final = Rules(base=True, links=True)


@dataclass(slots=True)
class _Waiting:
    """An entry that was read and not yet laid."""

    path: str
    kind: EntryKind
    blob: Blob | None
    link: bytes


class Filesystem:
    """The tree that layers, applied in order, leave."""

    def __init__(self, limits: Limits, pool: Pool, budget: Budget) -> None:
        """Start empty; contents go to `pool`, and hard links are charged to `budget`."""
        self.tree = Tree(limits, pool)
        self._limits = limits
        self._pool = pool
        self._budget = budget
        self._entries = 0
        self._layer = 0
        self._rules = SLIM_RULES
        self._what = ""

    def apply(self, archive: Iterator[bytes], what: str, rules: Rules) -> None:
        """Lay one uncompressed layer, called `what`, over the ones before it.

        The whole archive is read, whatever it holds; whoever checks its digest at the end destroys the
        tree if that differs.

        Raises:
            Refused: `image.path_unsafe`, `image.file_type`, `image.too_large`, `image.layout_invalid`,
                `node.disk_full`.
        """
        self._layer += 1
        self._rules = rules
        self._what = what
        whiteouts, waiting = self._read(Reader(Stream(archive), self._limits, what))
        # Whiteouts act on lower layers only, wherever in the archive they stand: they go first.
        for path in whiteouts:
            self._hide(path)
        for entry in waiting:
            self._lay(entry)

    def _read(self, reader: Reader) -> tuple[list[str], list[_Waiting]]:
        whiteouts: list[str] = []
        waiting: list[_Waiting] = []
        seen: set[str] = set()
        for entry in reader:
            self._entries += 1
            if self._entries > self._limits.entries:
                raise Refused("image.too_large", f"{self._what}: over {self._limits.entries} entries")
            path = clean(entry.name, self._limits, exact=self._rules.base)
            self.tree.spend_names(len(entry.name) + len(entry.link))
            if path in seen and not self._rules.base:
                raise Refused("image.path_unsafe", f"path {path!r} is in {self._what} twice")
            seen.add(path)
            self._check(entry, path)
            if _is_whiteout(path):
                _check_whiteout(entry, path)
                whiteouts.append(path)
            elif path:
                waiting.append(self._keep(entry, path, reader))
        return whiteouts, waiting

    def _check(self, entry: Entry, path: str) -> None:
        if not path and entry.kind != "dir":
            raise Refused("image.path_unsafe", f"{self._what}: the root is not a folder")
        if self._rules.base:
            return
        if entry.is_attribute:
            raise Refused("image.file_type", f"{path!r} carries an extended attribute ({entry.extra})")
        if entry.extra is not None:
            raise Refused(
                "image.layout_invalid", f"{path!r}: pax record {entry.extra[:100]!r} is not supported"
            )
        if entry.mode & _SET_ID:
            raise Refused("image.file_type", f"{path!r} is setuid or setgid, and in no allow-listed base")
        if entry.kind in ("symlink", "hardlink") and not self._rules.links:
            raise _link_refusal(path, entry)

    def _keep(self, entry: Entry, path: str, reader: Reader) -> _Waiting:
        if entry.kind != "file":
            return _Waiting(path, entry.kind, None, entry.link)
        self._budget.check(entry.size, self._what)
        blob = self._pool.write(reader.contents(), entry.size, bool(entry.mode & 0o111))
        return _Waiting(path, "file", blob, b"")

    def _hide(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        found = self.tree.find(folder)
        if name == _OPAQUE and found is not None and (found is not self.tree.root or found.children):
            for child in list(found.children):
                self.tree.remove(found, child)
        elif found is not None and (hidden := name.removeprefix(_WHITEOUT)) in found.children:
            self.tree.remove(found, hidden)
        elif not self._rules.links:
            raise Refused("image.path_unsafe", f"whiteout {path!r} hides nothing in a lower layer")

    def _lay(self, entry: _Waiting) -> None:
        strict = not self._rules.base
        above, _, name = entry.path.rpartition("/")
        parent = self.tree.make(above, self._layer, strict=strict)
        old = parent.children.get(name)
        if isinstance(old, Dir) and entry.kind == "dir":
            old.layer = self._layer
            return
        if old is not None and old.layer == self._layer and (strict or isinstance(old, Dir)):
            raise Refused("image.path_unsafe", f"path {entry.path!r} is two things in {self._what}")
        if entry.kind == "dir":
            self.tree.folder(parent, name, self._layer, strict=strict)
        else:
            self.tree.put(parent, name, self._node(entry, parent), strict=strict)

    def _node(self, entry: _Waiting, parent: Dir) -> Node:
        if entry.blob is not None:
            return Leaf(entry.blob, self._layer)
        if entry.kind == "symlink":
            exact = self._rules.base
            return Link(link_target(entry.link, parent.depth, self._limits, exact=exact), self._layer)
        return self._hard_link(entry)

    def _hard_link(self, entry: _Waiting) -> Node:
        target = clean(entry.link, self._limits, exact=self._rules.base)
        folder, _, name = target.rpartition("/")
        found = self.tree.find(folder)
        node = None if found is None else found.children.get(name)
        if isinstance(node, Link):
            return Link(node.target, self._layer)
        if not isinstance(node, Leaf):
            raise Refused("image.path_unsafe", f"{entry.path!r} is a hard link to no file, {target!r}")
        self._budget.spend(node.blob.size, self._what)  # readers of the tree see a copy
        return Leaf(self._pool.link(node.blob), self._layer)


def _is_whiteout(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    if any(part.startswith(_WHITEOUT) for part in folder.split("/")):
        raise Refused("image.path_unsafe", f"path {path!r} is below a whiteout")
    return name.startswith(_WHITEOUT)


def _check_whiteout(entry: Entry, path: str) -> None:
    name = path.rpartition("/")[2]
    hidden = name.removeprefix(_WHITEOUT)
    if name != _OPAQUE and (hidden in ("", ".", "..") or hidden.startswith(_WHITEOUT)):
        raise Refused("image.path_unsafe", f"path {path!r} is a malformed whiteout")
    if entry.kind != "file" or entry.size:
        raise Refused("image.file_type", f"whiteout {path!r} is not an empty file")


def _link_refusal(path: str, entry: Entry) -> Refused:
    target = entry.link.decode("utf-8", errors="replace")
    # A hard link's target is relative to the root of the archive, a symbolic one's to its own folder.
    base = "" if entry.kind == "hardlink" else posixpath.dirname(path)
    if posixpath.normpath(posixpath.join(base, target)).startswith(("/", "..")):
        return Refused("image.path_unsafe", f"{path!r} links out of the root, to {target[:200]!r}")
    return Refused("image.file_type", f"{path!r} is a link; ship the file itself")


def listing(tree: Tree, base: int) -> tuple[dict[str, tuple[int, bool]], dict[str, str], set[str]]:
    """Size and executability of each file, target of each link, and what layers above `base` ones named."""
    files: dict[str, tuple[int, bool]] = {}
    links: dict[str, str] = {}
    added: set[str] = set()
    for folder in tree.walk():
        for name, node in folder.children.items():
            if isinstance(node, Dir):
                continue
            path = below(folder, name)
            if isinstance(node, Leaf):
                files[path] = (node.blob.size, node.blob.runs)
            else:
                links[path] = node.target
            if node.layer > base:
                added.add(path)
    return files, links, added
