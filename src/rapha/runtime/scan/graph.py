"""Which files an entrypoint can import, and which file a dotted name comes from."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from rapha.runtime.image.paths import parents
from rapha.runtime.scan.facts import Facts

_WIDENING: Final = (".sys.path.", ".site.addsitedir.", ".pkgutil.extend_path.", ".__path__.")


@dataclass(frozen=True, slots=True)
class Located:
    """Where a dotted name leads inside the image.

    Attributes:
        loaded: the files that importing it runs, packages first.
        rest: what of the name is left after the last file: an attribute of that module.
    """

    loaded: tuple[str, ...]
    rest: tuple[str, ...]


class Graph:
    """The image's Python files as modules, seen from the folders that are on the import path."""

    def __init__(self, facts: Mapping[str, Facts], roots: Iterable[str], *, wide: bool = False) -> None:
        """`roots` are folders relative to the image's root, without a trailing slash.

        `wide`: every folder of the image is a place to import from.
        """
        self._facts = facts
        self._roots = set(roots)
        self._dirs = {parent for path in facts for parent in parents(path)} | {""}
        self._tops: dict[str, list[str]] = defaultdict(list)
        for path in facts:
            folder, _, name = path.rpartition("/")
            if not name.endswith(".py"):
                continue
            if name == "__init__.py":
                folder, _, name = folder.rpartition("/")
            self._tops[name.removesuffix(".py")].append(folder)
        for folder in self._dirs - {""}:
            above, _, name = folder.rpartition("/")
            self._tops[name].append(above)
        self._wide = wide

    def reach(self, starts: Iterable[str]) -> set[str]:
        """Every file that `starts` may import, directly or not, themselves included.

        Code that changes `sys.path` makes every folder of the image a place to import from.
        """
        starts = tuple(starts)
        reached = self._closure(starts)
        if not self._wide and any(self._widens(self._facts[path]) for path in reached):
            self._wide = True
            reached = self._closure(starts)
        return reached

    def holds(self, module: str) -> bool:
        """Whether a top-level module of this name, or a folder of it, is on the import path."""
        return any(self._wide or folder in self._roots for folder in self._tops.get(module, ()))

    def locate(self, path: str, name: str) -> list[Located]:
        """The files that `name`, as written in the file at `path`, may lead to."""
        body = name.lstrip(".")
        parts = tuple(body.split(".")) if body else ()
        if level := len(name) - len(body):
            folder = posixpath.dirname(path)
            for _ in range(level - 1):
                folder = posixpath.dirname(folder)
            found = self._walk(folder, parts)
            return [found] if found.loaded or level else []
        folders = dict.fromkeys(self._tops.get(parts[0], ())) if parts else {}
        places = [folder for folder in folders if self._wide or folder in self._roots]
        return [found for folder in places if (found := self._walk(folder, parts)).loaded]

    def places(self, path: str, name: str) -> set[str]:
        """Where, without a suffix, an import of `name` in the file at `path` may load from besides source."""
        body = name.lstrip(".")
        parts = body.split(".") if body else []
        if level := len(name) - len(body):
            folder = posixpath.dirname(path)
            for _ in range(level - 1):
                folder = posixpath.dirname(folder)
            folders = {folder}
        else:
            folders = self._dirs if self._wide else self._roots
        lengths = range(1, len(parts) + 1)
        return {posixpath.join(folder, *parts[:n]) for folder in folders for n in lengths}

    def _walk(self, folder: str, parts: tuple[str, ...]) -> Located:
        loaded: list[str] = []
        if (package := posixpath.join(folder, "__init__.py")) in self._facts and folder not in self._roots:
            loaded.append(package)
        for index, part in enumerate(parts):
            below = posixpath.join(folder, part)
            if below + "/__init__.py" in self._facts:
                loaded.append(below + "/__init__.py")
            elif below + ".py" in self._facts:
                return Located((*loaded, below + ".py"), parts[index + 1 :])
            elif below not in self._dirs:
                return Located(tuple(loaded), parts[index:])
            folder = below
        return Located(tuple(loaded), ())

    def _closure(self, starts: Iterable[str]) -> set[str]:
        reached: set[str] = set()
        pending = [path for path in starts if path in self._facts]
        asked: set[tuple[str, str]] = set()
        while pending:
            path = pending.pop()
            if path in reached:
                continue
            reached.add(path)
            for name, _ in self._facts[path].imports:
                # Absolute names mean the same in every file; they are followed once.
                question = (path if name.startswith(".") else "", name)
                if question not in asked:
                    asked.add(question)
                    pending += [file for found in self.locate(path, name) for file in found.loaded]
        return reached

    @staticmethod
    def _widens(facts: Facts) -> bool:
        return any(part in f".{use.name}." for use in facts.uses for part in _WIDENING)
