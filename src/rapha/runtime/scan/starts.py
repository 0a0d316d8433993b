"""From the image's argvs to everything that they start, through shell scripts."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rapha.runtime.scan import scripts
from rapha.runtime.scan.blob import Blob, Memory
from rapha.runtime.scan.content import interpreter, shebang
from rapha.runtime.scan.entry import Entry, View, resolve
from rapha.runtime.scan.facts import Note
from rapha.runtime.scan.rules import RuleSet
from rapha.runtime.scan.shell import MAX_SCRIPT, UNKNOWN

_MAX_STARTS: Final = 64
_Start = tuple[str, str, tuple[str, ...]]
"""Where it was found, the folder in which it starts, and its argv."""


@dataclass(slots=True)
class Starts:
    """What runs, and what was seen on the way to it.

    Attributes:
        python: the files, or the code, that Python starts with.
        programs: the files that the kernel runs.
        reached: shell scripts that run.
        notes: path (empty for the image as a whole) and note.
        roots: folders that PYTHONPATH adds.
        wide: what it adds can't be told.
    """

    python: list[Entry] = field(default_factory=list)
    programs: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    notes: list[tuple[str, Note]] = field(default_factory=list)
    roots: set[str] = field(default_factory=set)
    wide: bool = False


def follow(
    argvs: Sequence[Sequence[str]], workdir: str, view: View, blobs: Mapping[str, Blob], rules: RuleSet
) -> Starts:
    """Resolve each argv, and those that a shell script on the way calls. `blobs` are the image's files."""
    starts = Starts()
    pending = [("", workdir, tuple(argv)) for argv in argvs]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while pending:
        where, folder, argv = pending.pop()
        if (folder, argv) in seen and argv:
            continue
        seen.add((folder, argv))
        if len(seen) > _MAX_STARTS:
            note = Note("image.dynamic_code", 0, "Its scripts start more than can be followed.")
            starts.notes.append((where, note))
            break
        pending += _one(where, argv, folder, view, blobs, rules, starts)
    return starts


def _one(
    where: str,
    argv: tuple[str, ...],
    workdir: str,
    view: View,
    blobs: Mapping[str, Blob],
    rules: RuleSet,
    starts: Starts,
) -> Iterator[_Start]:
    entry = resolve(argv, workdir, view)
    if entry.problem is not None:
        unknown = where and any(UNKNOWN in word for word in argv)
        rule, reason = entry.problem
        if unknown:
            rule, reason = "image.dynamic_code", "It starts a program whose name is not written out."
        starts.notes.append((where, Note(rule, 0, reason)))
        return
    if entry.program:
        starts.programs.add(entry.program)
    _search(entry.search, workdir, view, starts)
    yield from ((path, workdir, ("/bin/sh", "/" + path)) for path in entry.before)
    own = entry.program in view.own and shebang(blobs[entry.program])
    if (entry.program == entry.path and entry.source is None and view.full) or own:
        yield from _program(entry.program, argv, workdir, blobs, starts)
    elif entry.script:
        blob = Blob(entry.path, Memory(entry.source)) if entry.source is not None else blobs[entry.path]
        script = scripts.read(blob.part(4 * MAX_SCRIPT + 1).decode(errors="replace"), rules)
        starts.reached.add(entry.path)
        starts.notes += [(entry.path, note) for note in script.notes]
        _search(script.search, workdir, view, starts)
        for found in script.starts:
            folders = _folders(found, view) if script.moves else set()
            yield from ((entry.path, folder, found) for folder in sorted({workdir} | folders))
    else:
        starts.python.append(entry)


def _search(values: Sequence[str], workdir: str, view: View, starts: Starts) -> None:
    """Take up what PYTHONPATH names; its empty parts are the working folder (Using Python, 1.2)."""
    for part in (part for value in values for part in value.split(":")):
        if UNKNOWN in part:
            starts.wide = True
        else:
            starts.roots.add(view.find(posixpath.join(workdir, part)))


def _folders(argv: tuple[str, ...], view: View) -> set[str]:
    """Where a script may be that changes folders before it names files: wherever they are."""
    names = {word for word in argv[1:] if word and not word.startswith(("-", "/"))}
    tails = {f"/{name}" for name in names} | {f"/{name.replace('.', '/')}.py" for name in names}
    ends = tuple(posixpath.normpath(tail) for tail in tails)
    found = {(path, end) for path in view.own if path.endswith(ends) for end in ends if path.endswith(end)}
    return {"/" + path.removesuffix(end) for path, end in found} if ends else set()


def _program(
    path: str, argv: tuple[str, ...], workdir: str, blobs: Mapping[str, Blob], starts: Starts
) -> Iterator[_Start]:
    """A file that runs by itself: by the interpreter that its first line names, or native."""
    words, kind = shebang(blobs[path]), interpreter(blobs[path])
    if words and kind != "other":
        yield path, workdir, (*words, "/" + path)
    elif kind == "shell":
        yield path, workdir, ("/bin/sh", "/" + path)
    elif kind == "other":
        starts.notes.append((path, Note("image.subprocess", 1, "It is a script for another program.")))
    else:
        starts.notes.append(
            ("", Note("image.native_code", 0, f"It starts {argv[0][:100]!r}, which is no script."))
        )
