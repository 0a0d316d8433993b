"""What the submitter added that the base loads by itself, though nothing of the submitter names it.

The base's own code is not judged. What it imports and links is found by name: a file that stands where the
base's would, or under a name that the base's packages ask for, runs as if the submitter's code had named it.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from rapha.runtime.scan.blob import Blob, Source
from rapha.runtime.scan.facts import Note
from rapha.runtime.scan.natives import needed

_PACKAGES: Final = ("site-packages", "dist-packages")
_MODULES: Final = (".py", ".pyc", ".so")
_OWN: Final = frozenset({"rapha", "rapha_trainer"})
_ZIPPED: Final = re.compile(r"python3\d{1,2}\.zip\Z")
_PRELOAD: Final = "etc/ld.so.preload"
_CACHE: Final = "etc/ld.so.cache"
_PAIR: Final = re.compile(rb"([^\0/]+\.so[^\0/]*)\0(/[^\0]+)\0")
_IMPORT: Final = re.compile(
    rb"\b(?:from|import|import_module|__import__|find_spec|try_import|optional_import)\b"
    rb"[\s('\"]+([A-Za-z_]\w*)([\w., \t]*)"
)
# What the C library and its loader are, and what it opens by name itself.
_ALWAYS: Final = (
    *("ld-linux", "ld-musl", "libc.so.", "libc.musl", "libm.so.", "libpthread.so.", "libdl.so."),
    *("librt.so.", "libnss_", "libgcc_s.so."),
)
_MAX_BASE: Final = 192 * 1024 * 1024
_MAX_FILE: Final = 2 * 1024 * 1024


class Standins:
    """The submitter's files of a full image, as its base sees them."""

    def __init__(self, files: Mapping[str, Source], own: Collection[str], libraries: Iterable[str]) -> None:
        """`own` are the submitter's paths; `libraries` the folders of the image's Python."""
        self._files = files
        self._own = own
        self._standard = {folder for folder in libraries if posixpath.basename(folder) not in _PACKAGES}
        self._sites = {folder for folder in libraries if posixpath.basename(folder) in _PACKAGES}
        self._populated = {
            f for f in self._standard if any(p.startswith(f + "/") and p not in own for p in files)
        }
        self._room = _MAX_BASE
        self._base: dict[str, list[str]] = {}
        self._added: dict[str, list[str]] = {}
        self._plugins: dict[str, set[str]] = {}
        for path in files:
            if path in own and path.endswith("-info/entry_points.txt"):
                self._plug(Blob(path, files[path]))
            if top := self._top(path):
                (self._added if path in own else self._base).setdefault(top, []).append(path)

    def _plug(self, listed: Blob) -> None:
        """Note which modules a package loads as its plug-ins, as torch does when it is imported."""
        group = ""
        for line in listed.part(_MAX_FILE).decode(errors="replace").splitlines():
            if line.strip().startswith("["):
                group = line.strip().strip("[] ").partition(".")[0]
            elif "=" in line and group not in ("console_scripts", "gui_scripts"):
                module = re.split(r"[.:\s\[]", line.partition("=")[2].strip())[0]
                self._plugins.setdefault(group, set()).add(module)

    def notes(self) -> Iterator[tuple[str, Note]]:
        """Paths that replace what the interpreter and the loader take first, whatever the entrypoint is."""
        for path in self._own:
            if path not in self._files:
                continue
            if module := self._standard_module(path):
                yield path, Note("image.shadowing", 0, f"It stands in for Python's own module `{module}`.")
            elif self._top(path) in _OWN:
                yield path, Note("image.shadowing", 0, f"It hides the node's `{self._top(path)}`.")
            elif _ZIPPED.match(posixpath.basename(path)):
                yield path, Note("image.startup_hook", 0, "Python imports its own modules from there first.")
            elif path == _PRELOAD and self._files[path].size:
                yield path, Note("image.startup_hook", 0, "Every program loads the libraries that it names.")
            elif path == _CACHE and (name := _renamed(Blob(path, self._files[path]))):
                reason = f"It gives programs another file for the library `{name}`."
                yield path, Note("image.startup_hook", 0, reason)

    def imported(self, names: Iterable[str]) -> set[str]:
        """The submitter's files that the base's packages load, once top-level `names` are imported.

        Those are all that lie in a package of the base, and all of a package that the base asks for.
        """
        seen: set[str] = set()
        found: set[str] = set()
        pending = [(name, False) for name in names]
        asked: set[str] = set()
        while pending:
            top, by_base = pending.pop()
            if by_base or top in self._base:
                found.update(self._added.get(top, ()))
            if top not in seen:
                seen.add(top)
                more = {name for path in self._base.get(top, ()) for name in self._asked(path)}
                more |= self._plugins.get(top, set())
                pending += [(name, True) for name in more - asked]
                asked |= more
        return found

    def libraries(self, programs: Collection[str], links: Mapping[str, str]) -> set[str]:
        """The submitter's files and links with the name of a library that the base's programs load.

        `programs` are the files that the kernel runs.
        """
        places: dict[str, list[str]] = {}
        for path in (*self._files, *links):
            if ".so" in path:
                places.setdefault(posixpath.basename(path), []).append(path)
        if not any(path in self._own for listed in places.values() for path in listed):
            return set()
        folders = tuple(folder + "/" for folder in (*self._standard, *self._sites))
        base = (path for path in self._files if path not in self._own)
        pending = [path for path in base if path in programs or (".so" in path and path.startswith(folders))]
        names: set[str] = set()
        while pending:
            path = pending.pop()
            for name in needed(Blob(path, self._files[path])) if path in self._files else ():
                if name not in names:
                    names.add(name)
                    listed = places.get(posixpath.basename(name), [])
                    pending += [place for place in listed if place not in self._own]
                    pending += [other for place in listed if (other := self._behind(place, links))]
        wanted = {posixpath.basename(name) for name in names}
        return {
            path
            for name, listed in places.items()
            for path in listed
            if path in self._own and (name in wanted or name.startswith(_ALWAYS) or "/gconv/" in path)
        }

    def _behind(self, link: str, links: Mapping[str, str]) -> str:
        target = links.get(link, "")
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(link), target)).lstrip("/")
        return path if target and path in self._files and path not in self._own else ""

    def _asked(self, path: str) -> set[str]:
        """Top-level modules that a file of the base imports, as its text says."""
        if not path.endswith(".py") or not self._added:
            return set()
        blob = Blob(path, self._files[path])
        self._room -= blob.size
        if self._room < 0:  # no more is read: whatever was added may be asked for
            return set(self._added)
        found: set[str] = set()
        for first, more in _IMPORT.findall(blob.part(_MAX_FILE)):
            parts = (first + more).decode().split(",")
            found |= {words[0].partition(".")[0] for part in parts if (words := part.split())}
        return found & (self._added.keys() | self._base.keys())

    def _standard_module(self, path: str) -> str:
        """The module of the base's standard library whose place the file takes, or ''."""
        folder = next((f for f in self._standard if path.startswith(f + "/")), None)
        if folder is None or folder not in self._populated or not path.endswith(_MODULES):
            return ""
        parts = path[len(folder) + 1 :].split("/")
        if parts[0] in _PACKAGES:
            return ""
        name = parts[1] if parts[0] in ("lib-dynload", "__pycache__") and len(parts) > 1 else parts[0]
        module = name.partition(".")[0]
        return module if module in sys.stdlib_module_names or parts[0] == "lib-dynload" else ""

    def _top(self, path: str) -> str:
        """The top-level module in a folder of packages that a Python or native file belongs to, or ''."""
        if not path.endswith(_MODULES):
            return ""
        marker = next((m for m in _PACKAGES if f"/{m}/" in path), None)
        if marker is None:
            return ""
        folder, _, rest = path.partition(f"/{marker}/")
        return rest.partition("/")[0].partition(".")[0] if f"{folder}/{marker}" in self._sites else ""


def _renamed(cache: Blob) -> str:
    """A library's name for which the loader's cache has a file of another name (ld.so(8)); '' if none."""
    for name, path in _PAIR.findall(cache.part(_MAX_FILE)):
        if posixpath.basename(path) != name:
            return str(name[:80].decode(errors="replace"))
    return ""
