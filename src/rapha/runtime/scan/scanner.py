"""Scan one image: files by content, Python by what the entrypoints reach."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Final

from rapha.runtime.image import Image
from rapha.runtime.image.model import APP
from rapha.runtime.scan import content, entry
from rapha.runtime.scan.facts import Facts, Note, collect
from rapha.runtime.scan.graph import Graph
from rapha.runtime.scan.judge import Judge
from rapha.runtime.scan.report import SCANNER_VERSION, Finding, ScanReport, Severity
from rapha.runtime.scan.rules import RuleSet, default_rules
from rapha.spec.refusals import REGISTRY

MAX_FINDINGS: Final = 1000
MAX_REASON: Final = 400
_ORDER: Final[dict[Severity, int]] = {"refuse": 0, "warn": 1, "info": 2}


def scan(image: Image, rules: RuleSet | None = None) -> ScanReport:
    """Judge `image` by `rules` (the shipped table by default). Never raises for what it finds.

    Order: 1 what starts; 2 each file by its content; 3 each Python file, graver where an entrypoint
    reaches it; 4 names that hide the standard library or the runtime; 5 files that never run.
    """
    return _Scan(image, rules or default_rules()).report()


class _Scan:
    def __init__(self, image: Image, rules: RuleSet) -> None:
        self._image = image
        self._rules = rules
        self._entries = [entry.resolve(argv, image.workdir, image.files) for argv in _entries(image)]
        self._facts = _python(image.files, self._entries, rules)
        self._roots = {e.root for e in self._entries if e.problem is None}
        graph = Graph(self._facts, self._roots)
        self._reached = graph.reach(e.path for e in self._entries)
        self._judge = Judge(self._facts, graph, rules)

    def report(self) -> ScanReport:
        """The findings, gravest first, at most `MAX_FINDINGS`."""
        found = list(dict.fromkeys(self._findings()))
        found.sort(key=lambda f: (_ORDER[f.severity], f.path, f.line or 0, f.rule, f.reason))
        return ScanReport(
            ok=all(finding.severity != "refuse" for finding in found),
            digest=self._image.digest,
            findings=tuple(found[:MAX_FINDINGS]),
            scanner_version=f"{SCANNER_VERSION}/{self._rules.version}",
            files=len(self._image.files),
        )

    def _findings(self) -> Iterator[Finding]:
        for started in self._entries:  # 1
            if started.problem is not None:
                yield _finding(Note(started.problem[0], 0, started.problem[1]), "", "refuse")
        for path, data in self._image.files.items():  # 2
            yield from (_finding(note, path, "refuse") for note in content.judge(path, data))
            if (note := content.commands(path, data, self._rules)) is not None:
                yield _finding(note, path, "warn")
        for path in self._facts:  # 3
            grave: Severity = "refuse" if path in self._reached else "warn"
            for judged in self._judge.judge(path):
                yield _finding(judged.note, path, grave if judged.grave else "warn")
        yield from self._shadows()  # 4
        outside = sum(not path.startswith(APP) for path in self._image.files)
        if outside:  # 5
            note = Note("image.layout_invalid", 0, f"{outside} files outside /app are not part of what runs.")
            yield _finding(note, "", "info")

    def _shadows(self) -> Iterator[Finding]:
        # The working folder counts as a root, too: `python3 -c` and `-m` put it first.
        roots = self._roots | {APP.rstrip("/")}
        for path in self._image.files:
            folder, _, name = path.rpartition("/")
            module = name.partition(".")[0]
            if name == "__init__.py":
                folder, _, module = folder.rpartition("/")
            importable = name.endswith((".py", ".so", ".pyc", ".pyd"))
            if importable and module != "__init__" and self._rules.is_taken(module):
                severity: Severity = "refuse" if folder in roots or path in self._reached else "info"
                yield _finding(Note("image.shadowing", 0, f"It hides the module `{module}`."), path, severity)


def _entries(image: Image) -> list[tuple[str, ...]]:
    return [image.entrypoint, *([image.predict] if image.predict is not None else [])]


def _python(files: Mapping[str, bytes], entries: list[entry.Entry], rules: RuleSet) -> dict[str, Facts]:
    started = {e.path for e in entries if e.problem is None}
    facts = {
        path: collect(data, rules)
        for path, data in files.items()
        if posixpath.splitext(path)[1] in (".py", ".pyw") or path in started or _runs_python(data)
    }
    for e in entries:
        if e.source is not None:
            facts[e.path] = collect(e.source, rules)
    return facts


def _runs_python(data: bytes) -> bool:
    return data[:2] == b"#!" and b"python" in data[:128].partition(b"\n")[0]


def _finding(note: Note, path: str, severity: Severity) -> Finding:
    return Finding(
        rule=note.rule,
        severity=severity,
        path=path,
        line=note.line or None,
        reason=_quotable(note.reason),
        fix=REGISTRY[note.rule].fix,
    )


def _quotable(text: str) -> str:
    """Reasons quote the image's code, which may hold lone surrogates and be of any length."""
    return text.encode("utf-8", errors="backslashreplace").decode()[:MAX_REASON]
