"""Scan one image: files by content, Python by what the entrypoints reach."""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from rapha.runtime.image import File, Image
from rapha.runtime.image.model import APP
from rapha.runtime.scan import content, natives
from rapha.runtime.scan.aliases import aliases
from rapha.runtime.scan.blob import Blob, Budget, Memory
from rapha.runtime.scan.compiled import Compiled
from rapha.runtime.scan.entry import Entry, View
from rapha.runtime.scan.facts import Note
from rapha.runtime.scan.graph import Graph
from rapha.runtime.scan.judge import Judge
from rapha.runtime.scan.library import Library
from rapha.runtime.scan.provided import Provided
from rapha.runtime.scan.report import SCANNER_VERSION, Finding, ScanReport, Severity, quotable, writable
from rapha.runtime.scan.rules import RuleSet, default_rules
from rapha.runtime.scan.scripts import read as read_script
from rapha.runtime.scan.shell import MAX_SCRIPT
from rapha.runtime.scan.standins import Standins
from rapha.runtime.scan.starts import follow
from rapha.spec.private import PREDICT, TRAIN
from rapha.spec.refusals import REGISTRY

MAX_FINDINGS: Final = 1000
_ORDER: Final[dict[Severity, int]] = {"refuse": 0, "warn": 1, "info": 2}
_KEPT: Final = 20_000


def scan(image: Image, rules: RuleSet | None = None, provided: Provided | None = None) -> ScanReport:
    """Judge `image` by `rules` (the shipped table by default). Never raises for what it finds.

    Only what the submitter added to an allow-listed base is judged; the base's files count as modules
    that are there. `provided` are the modules of the runtime; without it no import is called missing.

    Order: 1 what starts; 2 each file by its content; 3 each Python file and native library, graver where
    an entrypoint reaches it; 4 names that hide the standard library or the runtime; 5 files that never run.

    Raises:
        OSError: a file of the image's tree can't be read.
    """
    return _Scan(image, rules or default_rules(), provided).report()


class _Scan:
    def __init__(self, image: Image, rules: RuleSet, provided: Provided | None) -> None:
        self._image = image
        self._rules = rules
        self._provided = provided
        self._budget = Budget()
        self._full = image.kind == "full"
        listed = image.added if image.base else image.files
        self._paths = [path for path in image.files if path in listed]
        self._kinds: dict[str, str | None] = {}
        search = {"search": image.path} if image.path else {}
        view = View(image.files, image.links, self._full, own=frozenset(listed), **search)
        self._starts = follow(_argvs(image), image.workdir, view, _Blobs(image), rules)
        self._libraries = view.libraries()
        self._roots = {entry.root for entry in self._starts.python} | self._starts.roots
        self._aliases, self._followed = aliases(image.links, view.own, view.find)
        self._library = Library(self._python(self._starts.python), rules)
        self._graph = Graph(self._library, self._roots | self._libraries, wide=self._starts.wide)
        own = view.own if image.base else frozenset()
        self._standins = Standins(image.files, own, self._libraries)
        self._carried: set[str] = set()
        self._reached = self._reach()
        self._judge = Judge(self._library, self._graph, rules)

    def report(self) -> ScanReport:
        """The findings, gravest first, at most `MAX_FINDINGS`."""
        kept: dict[Finding, None] = {}
        refused = 0
        for finding in self._findings():
            refused += finding.severity == "refuse"
            # Warnings beyond what is shown are dropped at once; one more refusal is always kept.
            if len(kept) < _KEPT or (finding.severity == "refuse" and refused <= MAX_FINDINGS):
                kept[finding] = None
        found = sorted(kept, key=lambda f: (_ORDER[f.severity], f.path, f.line or 0, f.rule, f.reason))
        return ScanReport(
            ok=not refused,
            digest=self._image.digest,
            findings=tuple(found[:MAX_FINDINGS]),
            scanner_version=f"{SCANNER_VERSION}/{self._rules.version}",
            files=len(self._image.files),
            base=self._image.base,
        )

    def _findings(self) -> Iterator[Finding]:
        for path, note in self._starts.notes:  # 1
            yield _finding(note, path, "refuse" if note.grave else "warn")
        for path in self._paths:  # 2
            yield from self._file(path)
        for path, note in self._standins.notes():
            yield _finding(note, path, "refuse")
        if not self._followed:
            note = Note("image.dynamic_code", 0, "Its links give its files more names than can be followed.")
            yield _finding(note, "", "refuse")
        for path in self._library:  # 3
            if path in self._reached or (path not in self._aliases and self._library.telling(path)):
                for note in self._judge.judge(path):
                    yield _finding(note, path, "refuse" if note.grave and path in self._reached else "warn")
        yield from self._missing()
        yield from self._native()
        yield from self._shadows()  # 4
        outside = sum(not path.startswith(APP) for path in self._image.files)
        if outside and not self._full:  # 5
            note = Note("image.layout_invalid", 0, f"{outside} files outside /app are not part of what runs.")
            yield _finding(note, "", "info")

    def _file(self, path: str) -> Iterator[Finding]:
        blob = Blob(path, self._image.files[path])
        try:
            for note in content.judge(blob, self._rules, self._budget):
                yield _finding(note, path, "refuse" if note.grave else "warn")
        except MemoryError:
            yield _finding(Note("image.unjudged", 0, "It takes too much memory to judge."), path, "refuse")
        kind = self._kinds[path]
        if path in self._starts.reached or path in self._starts.programs:
            return
        if kind == "other":
            note = Note("image.subprocess", 1, "It is a script for another program.")
            yield _finding(note, path, "warn")
        elif kind == "shell":
            text = blob.part(4 * MAX_SCRIPT + 1).decode(errors="replace")
            yield from (_finding(note, path, "warn") for note in read_script(text, self._rules).notes)

    def _python(self, entries: Iterable[Entry]) -> dict[str, Blob]:
        """What is read as Python: by its suffix, by its first line, or because it starts."""
        started = {entry.path for entry in entries}
        found: dict[str, Blob] = {}
        for path in self._paths:
            suffix = posixpath.splitext(path)[1]
            if suffix in (".py", ".pyw", ".ipynb"):
                self._kinds[path] = None
                found[path] = Blob(path, self._image.files[path])
                continue
            blob = Blob(path, self._image.files[path])
            self._kinds[path] = content.interpreter(blob)
            if path in started or self._kinds[path] == "python":
                found[path] = blob
        for path, real in self._aliases.items():
            if path.endswith((".py", ".pyw")) or path in started:
                found[path] = Blob(path, self._image.files[real])
        for entry in entries:
            if entry.source is not None:
                found[entry.path] = Blob(entry.path, Memory(entry.source))
        return found

    def _reach(self) -> set[str]:
        """What the entrypoints import, and what the packages of the base import of the submitter's."""
        starts = {entry.path for entry in self._starts.python}
        while True:
            reached = self._graph.reach(starts | self._carried)
            names = (name for path in reached for name, _ in self._library[path].imports)
            tops = {name.partition(".")[0] for name in names if not name.startswith(".")}
            more = self._standins.imported(tops)
            if more <= self._carried:
                return reached
            self._carried |= more

    def _missing(self) -> Iterator[Finding]:
        """Imports of modules that are nowhere; what a rule names is found without them."""
        if self._provided is None:
            return
        started = {entry.path for entry in self._starts.python}
        there = sys.stdlib_module_names | self._provided.modules | self._base_modules()
        for path in self._reached:
            for name, line, guarded in self._library[path].loads:
                top = name.partition(".")[0]
                if top and top not in there and not self._graph.holds(top) and not self._rules.match(name):
                    note = Note("image.unresolved_import", line, f"No module `{top}` is there.")
                    certain = self._provided.certain and not guarded and path in started
                    yield _finding(note, path, "refuse" if certain else "warn")

    def _base_modules(self) -> set[str]:
        """Top-level modules in the folders of a full image's Python."""
        found: set[str] = set()
        for path in self._image.files if self._libraries else ():
            for folder in (posixpath.dirname(path), posixpath.dirname(posixpath.dirname(path))):
                if folder in self._libraries or folder in self._roots:
                    found.add(path[len(folder) :].lstrip("/").partition("/")[0].partition(".")[0])
        return found

    def _native(self) -> Iterator[Finding]:
        """Native and compiled code. A slim image has none; a full one's counts where it is reached."""
        files: dict[str, File] = {path: self._image.files[path] for path in self._paths}
        files |= {path: self._image.files[real] for path, real in self._aliases.items()}
        compiled = Compiled(tuple(files), files)
        names = {posixpath.basename(p) for p in (*self._image.files, *self._image.links) if ".so" in p}
        blobs = {path: Blob(path, files[path]) for path in compiled}
        imported = self._imported() if blobs and self._full else set()
        replaced = self._standins.libraries(self._starts.programs, self._image.links)
        for path in replaced:
            reason = "It stands in for a library that the base's programs load."
            yield _finding(Note("image.native_code", 0, reason), path, "refuse")
        reached = compiled.reached(blobs, imported, self._starts.programs | replaced | self._carried)
        for path, blob in blobs.items():
            what = natives.native(blob)
            if what is None or (path in self._aliases and path not in reached):
                continue
            severity: Severity = "refuse" if not self._full or path in reached else "warn"
            if not self._full or what == "compiled Python":
                yield _finding(Note("image.native_code", 0, f"It is {what}."), path, severity)
            elif not blob.head.startswith(b"\x7fELF"):
                yield _finding(
                    Note("image.native_code", 0, f"It is {what}, and can't be judged."), path, severity
                )
            if blob.head.startswith(b"\x7fELF"):
                for note in natives.linked(blob, self._rules, names):
                    yield _finding(note, path, severity if note.grave else "warn")

    def _imported(self) -> set[str]:
        """Places, without a suffix, that an import in a reached file may load from."""
        found = {posixpath.splitext(path)[0] for path in self._reached}
        for path in self._reached:
            for name, _ in self._library[path].imports:
                found |= self._graph.places(path, name)
        return found

    def _shadows(self) -> Iterator[Finding]:
        # The working folder counts as a root, too: `python3 -c` and `-m` put it first.
        roots = self._roots | {APP.rstrip("/")}
        known = self._libraries - self._roots
        for path in self._paths:
            folder, _, name = path.rpartition("/")
            if not name.endswith((".py", ".so", ".pyc", ".pyd")) or folder in known:
                continue
            module = name.partition(".")[0]
            if name == "__init__.py":
                folder, _, module = folder.rpartition("/")
            if module != "__init__" and self._rules.is_taken(module) and folder not in known:
                severity: Severity = "refuse" if folder in roots or path in self._reached else "info"
                yield _finding(Note("image.shadowing", 0, f"It hides the module `{module}`."), path, severity)


class _Blobs(Mapping[str, Blob]):
    """The image's files, opened as they are asked for."""

    def __init__(self, image: Image) -> None:
        self._files = image.files

    def __getitem__(self, path: str) -> Blob:
        return Blob(path, self._files[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _argvs(image: Image) -> list[tuple[str, ...]]:
    # The hospital's own program is no file of the image: only a private job may name it, and shows no image.
    commands = (image.entrypoint, *([image.predict] if image.predict is not None else []))
    return [argv for argv in commands if argv not in (TRAIN, PREDICT)]


def _finding(note: Note, path: str, severity: Severity) -> Finding:
    return Finding(
        rule=note.rule,
        severity=severity,
        path=writable(path),
        line=note.line or None,
        reason=quotable(note.reason),
        fix=REGISTRY[note.rule].fix,
    )
