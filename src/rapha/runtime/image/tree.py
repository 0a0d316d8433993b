"""The root of an image while its layers are laid over each other: a tree in memory that has no host.

Links are followed here and only here, so that what a name means is decided inside the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from rapha.runtime.image.model import Limits
from rapha.runtime.image.paths import ambiguous, fold
from rapha.runtime.image.pool import Blob, Pool
from rapha.spec.refusals import Refused

_MAX_HOPS: Final = 40
"""Links in one path, as Linux has it (path_resolution(7))."""


@dataclass(slots=True, eq=False)
class Leaf:
    """A file: its contents, and the number of the layer that named it."""

    blob: Blob
    layer: int


@dataclass(slots=True, eq=False)
class Link:
    """A symbolic link, its target as the archive spells it."""

    target: str
    layer: int


@dataclass(slots=True, eq=False)
class Dir:
    """A folder; `layer` is the last one that put something below it."""

    path: str
    depth: int
    layer: int
    parent: Dir | None
    children: dict[str, Node] = field(default_factory=dict)
    folds: dict[str, str] | None = None


Node = Leaf | Link | Dir


def below(folder: Dir, name: str) -> str:
    """The path of `name` in `folder`."""
    return f"{folder.path}/{name}" if folder.path else name


class Tree:
    """Nodes by name. Whatever leaves it gives its contents back to the pool."""

    def __init__(self, limits: Limits, pool: Pool) -> None:
        """An empty root."""
        self.root = Dir("", 0, 0, None)
        self._limits = limits
        self._pool = pool
        # Implied folders come on top of the entries that the archive names.
        self._nodes = limits.entries + limits.entries // 4
        self._steps = 64 * limits.entries
        self._names = limits.names

    def spend_names(self, size: int) -> None:
        """Count bytes of names held in memory. Raises `Refused` (`image.too_large`)."""
        self._names -= size
        if self._names < 0:
            raise Refused("image.too_large", f"names are over {self._limits.names} bytes together")

    def find(self, path: str) -> Dir | None:
        """The folder that `path` means, links followed; None where there is none."""
        return self._walk(path, None, strict=False)

    def make(self, path: str, layer: int, *, strict: bool) -> Dir:
        """The folder that `path` means, links followed, with what is missing of it made.

        As in containerd, a dangling link is followed to where it points and the folder is made there. A
        file of a lower layer gives way.

        Raises:
            Refused: `image.path_unsafe` for loops, twins and files of this layer; `image.too_large`.
        """
        found = self._walk(path, layer, strict=strict)
        assert found is not None  # noqa: S101  with a layer, what is missing is made
        return found

    def put(self, parent: Dir, name: str, node: Node, *, strict: bool) -> None:
        """Set `name` in `parent`, replacing what is there; `strict` refuses twins of its spelling.

        Raises:
            Refused: `image.path_unsafe`, `image.too_large`.
        """
        path = below(parent, name)
        if strict:
            _claim(parent, name, path)
        old = parent.children.get(name)
        if old is None:
            self._spend_node(path, parent.depth + 1)
        else:
            self._drop(old)
        parent.children[name] = node

    def folder(self, parent: Dir, name: str, layer: int, *, strict: bool) -> Dir:
        """Make the folder `name` in `parent`, replacing what is there."""
        made = Dir(below(parent, name), parent.depth + 1, layer, parent)
        self.put(parent, name, made, strict=strict)
        return made

    def remove(self, parent: Dir, name: str) -> None:
        """Take `name` and all below it out of `parent`."""
        self._nodes += 1
        self._drop(parent.children.pop(name))
        if parent.folds is not None and parent.folds.get(fold(name)) == name:
            del parent.folds[fold(name)]

    def walk(self) -> Iterator[Dir]:
        """Each folder, parents first."""
        pending = [self.root]
        while pending:
            yield (folder := pending.pop())
            pending += [node for node in folder.children.values() if isinstance(node, Dir)]

    def _walk(self, path: str, layer: int | None, *, strict: bool) -> Dir | None:
        here, hops = self.root, 0
        pending = path.split("/")[::-1]
        while pending:
            self._spend_step()
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":  # of a link's target; the root is its own parent
                here = here.parent or here
                continue
            node = here.children.get(part)
            if isinstance(node, Link):
                hops += 1
                if hops > _MAX_HOPS:
                    raise Refused("image.path_unsafe", f"path {path!r} goes through too many links")
                pending += node.target.split("/")[::-1]
                here = self.root if node.target.startswith("/") else here
            elif isinstance(node, Dir):
                here = node
            elif layer is None:
                return None
            elif isinstance(node, Leaf) and node.layer == layer:
                raise Refused("image.path_unsafe", f"path {below(here, part)!r} is both a file and a folder")
            else:
                here = self.folder(here, part, layer, strict=strict)
            if layer is not None:
                here.layer = layer
        return here

    def _spend_step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise Refused("image.too_large", "links are followed too often")

    def _spend_node(self, path: str, depth: int) -> None:
        size = len(path.encode())
        if size > self._limits.path or depth > self._limits.depth:
            raise Refused("image.too_large", f"path {path[:60]!r}…: too long or deep once links are followed")
        self.spend_names(size)
        self._nodes -= 1
        if self._nodes < 0:
            raise Refused("image.too_large", f"over {self._limits.entries} files and folders")

    def _drop(self, node: Node) -> None:
        pending = [node]
        while pending:
            gone = pending.pop()
            if isinstance(gone, Leaf):
                self._pool.drop(gone.blob)
            elif isinstance(gone, Dir):
                self._nodes += len(gone.children)
                pending += gone.children.values()
                gone.children.clear()


def _claim(parent: Dir, name: str, path: str) -> None:
    """A spelling that is taken in a folder binds what submitters' layers add there."""
    if parent.folds is None:
        parent.folds = {fold(taken): taken for taken in parent.children}
    if name in parent.children:
        return
    taken = parent.folds.setdefault(fold(name), name)
    if taken != name:
        raise ambiguous(path, below(parent, taken))
