"""What could be left in /rapha/out to be read, followed or run by whoever collects it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from typing import Final

from rapha.runtime.sandbox.probe.attempts.kit import Catalogue, Try, World

OUTPUTS: Final = Catalogue()
NAMES: Final[dict[str, str]] = {}
"""Attempt to what it leaves."""
Leave = Callable[[str, World], object]
PROGRAM: Final = "outputs.program"
"""May be collected, as data; what counts is whether it still runs as its owner."""


def _leave(name: str, act: Leave) -> Try:
    def attempt(world: World) -> str:
        act(f"{world.out}/{name}", world)
        return f"left {name}"

    return attempt


def _add(id: str, name: str, what: str, act: Leave, **more: bool) -> None:  # noqa: A002
    NAMES[f"outputs.{id}"] = name
    OUTPUTS.add(f"outputs.{id}", f"have the node collect {what}", _leave(name, act), **more)


def _write(path: str, text: str = "x") -> None:
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)


def _two(path: str, _: World) -> None:
    _write(path + "-first")
    os.link(path + "-first", path)


def _sparse(path: str, _: World) -> None:
    with open(path, "wb") as file:  # noqa: PTH123
        file.truncate(1 << 20)


def _socket(path: str, _: World) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path)


def _program(path: str, _: World) -> None:
    _write(path)
    os.chmod(path, stat.S_ISUID | 0o755)  # noqa: PTH101, S103


def _attribute(path: str, _: World) -> None:
    _write(path)
    os.setxattr(path, "user.rapha", b"hidden")


_add("link", "link", "a symbolic link to a file of the host", lambda path, w: os.symlink(w.secret, path))  # noqa: PTH211
_add(
    "link_up",
    "link-up",
    "a symbolic link upwards",
    lambda path, w: os.symlink(f"{'../' * 20}{w.secret}", path),  # noqa: PTH211
)
_add(
    "link_proc",
    "link-proc",
    "a link to whoever reads it",
    lambda path, _: os.symlink("/proc/self/environ", path),  # noqa: PTH211
)
_add("hard_link", "two", "one file under two names", _two)
_add("fifo", "fifo", "a FIFO, which never ends", lambda path, _: os.mkfifo(path))
_add("socket", "socket", "a socket", _socket)
_add("folder", "folder", "a folder", lambda path, _: os.mkdir(path))  # noqa: PTH102
_add("sparse", "sparse", "a file larger than what it holds", _sparse)
_add("program", "program", "a set-user-id program", _program)
_add("attribute", "attribute", "a file with words in its attributes", _attribute)
_add("control", "clear\033[2J", "a name that drives a terminal", lambda path, _: _write(path))
_add("newline", "two\nlines", "a name of two lines", lambda path, _: _write(path))
_add("hidden", ".hidden", "a name that begins with a dot", lambda path, _: _write(path))
_add(
    "device",
    "device",
    "a device node",
    lambda path, _: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    root=True,
)
