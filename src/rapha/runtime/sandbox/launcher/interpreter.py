"""The node's Python at private paths of the sandbox, to run `lock` whatever distribution the root is.

It is started through its own loader, which is told where its libraries lie, and under an empty environment:
no file of the root has a say in it.
"""

from __future__ import annotations

import os
import sys
from typing import Final, NamedTuple

from rapha.runtime.sandbox.launcher import system

HOME: Final = "/rapha/node"
_SOURCES: Final = f"{HOME}/src"
_LIBRARIES: Final = f"{HOME}/lib"
_PYTHON: Final = f"{HOME}/python/bin/python3"
LOADER: Final = f"{HOME}/loader"
_PACKAGE: Final = "rapha/runtime/sandbox/launcher"
_PRELOAD: Final = b"/etc/ld.so.preload\0"
"""The one file that a loader obeys whatever it is told; the root's is the job's."""
_NO_PRELOAD: Final = f"{HOME}/none".encode()
_PACKAGES: Final = ("site-packages", "dist-packages")
_START: Final = (
    f"import sys; sys.path.append({_SOURCES!r}); "
    "from rapha.runtime.sandbox.launcher import lock; lock.main(*map(int, sys.argv[1:]))"
)


class Part(NamedTuple):
    """A file or directory of the host, and where it lies inside; an empty source is an empty directory."""

    source: str
    dest: str


class LayoutError(Exception):
    """This Python, or its C library, is not laid out in a way that is known."""


def parts() -> list[Part]:
    """All that `command` needs beside the loader.

    Raises:
        LayoutError: this process was not started by a loader of the GNU C library.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = f"{sys.base_prefix}/{sys.platlibdir}/{version}"
    inside = f"{HOME}/python/{sys.platlibdir}/{version}"
    found = [
        Part(os.path.realpath(f"{sys.base_prefix}/bin/{version}"), _PYTHON),
        Part(library, inside),
        Part(os.path.dirname(__file__), f"{_SOURCES}/{_PACKAGE}"),  # noqa: PTH120  pathlib takes 10 ms
    ]
    found += [Part("", f"{inside}/{name}") for name in _PACKAGES if os.path.isdir(f"{library}/{name}")]  # noqa: PTH112
    _, libraries = _libraries()
    own = f"{library}/"
    return found + [
        Part(path, f"{_LIBRARIES}/{name}") for name, path in libraries.items() if not path.startswith(own)
    ]


def loader() -> bytes:
    """The loader, made to look for its list of preloaded libraries where nothing is.

    Raises:
        LayoutError: it does not name that list exactly once.
    """
    path, _ = _libraries()
    with open(path, "rb") as file:  # noqa: PTH123
        content = file.read()
    if content.count(_PRELOAD) != 1 or len(_NO_PRELOAD) >= len(_PRELOAD):
        raise LayoutError(f"{path}: not the loader of a known C library")
    return content.replace(_PRELOAD, _NO_PRELOAD.ljust(len(_PRELOAD), b"\0"))


def command(order: int, report: int, tcp: int) -> list[str]:
    """What bubblewrap starts, with the three descriptors that `lock.main` takes."""
    start = [LOADER, "--inhibit-cache", "--library-path", _LIBRARIES, _PYTHON]
    return [*start, "-I", "-S", "-X", "utf8", "-c", _START, *map(str, (order, report, tcp))]


def _libraries() -> tuple[str, dict[str, str]]:
    """The loader's path, and the other libraries' by the names that they are looked up by."""
    found = {os.path.basename(path): path for path in system.loaded_libraries()}  # noqa: PTH119
    loaders = [name for name in found if name.startswith(("ld-linux", "ld64", "ld.so"))]
    if len(loaders) != 1:
        raise LayoutError("no loader of the GNU C library in this process")
    return found.pop(loaders[0]), found
