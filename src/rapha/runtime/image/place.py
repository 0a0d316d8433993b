"""Write the finished tree into its folder: first folders, then files, links last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapha.runtime.image.model import MOUNT_POINTS
from rapha.runtime.image.pool import Pool, room
from rapha.runtime.image.tree import Dir, Leaf, Link, Node, Tree
from rapha.runtime.sandbox.launcher.system import open_beneath
from rapha.spec.refusals import Refused


def place(tree: Tree, pool: Pool, into: Path) -> None:
    """Make `into` the root that `tree` describes; folders have mode 0755, files what the pool gave them.

    A link is made only when nothing is opened any more, and no open follows one (openat2(2) with
    RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), so that no name of the image reaches beyond `into`.

    Raises:
        Refused: `node.disk_full`, `image.path_unsafe` for a name that the disk can't hold.
    """
    root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in tree.walk():
            with _opened(root, folder) as fd:
                os.fchmod(fd, 0o755)
                for name in _names(folder, Dir):
                    with room():
                        os.mkdir(name, 0o755, dir_fd=fd)
        for folder in tree.walk():
            with _opened(root, folder) as fd:
                for name, node in folder.children.items():
                    if isinstance(node, Leaf):
                        pool.place(node.blob, fd, name)
        for folder in tree.walk():
            with _opened(root, folder) as fd:
                for name, node in folder.children.items():
                    if isinstance(node, Link):
                        with room():
                            os.symlink(node.target, name, dir_fd=fd)
    finally:
        os.close(root)


def add_mount_points(tree: Tree) -> None:
    """Give a full image the empty folders that the sandbox covers.

    Raises:
        Refused: `image.path_unsafe` where the image has something there: it would be hidden from the
            job, and not from those who look at the image.
    """
    for path in MOUNT_POINTS:
        here = tree.root
        for part in path.split("/"):
            node = here.children.get(part)
            if node is not None and not isinstance(node, Dir):
                raise Refused("image.path_unsafe", f"/{path} is not a folder in the image")
            here = node or tree.folder(here, part, 0, strict=False)
        if here.children:
            raise Refused("image.path_unsafe", f"the image has files in /{path}, which the sandbox covers")


def _names(folder: Dir, kind: type[Node]) -> Iterator[str]:
    return (name for name, node in folder.children.items() if isinstance(node, kind))


@contextmanager
def _opened(root: int, folder: Dir) -> Iterator[int]:
    fd = open_beneath(root, folder.path or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
