"""From the image's argvs to everything that they start, through shell scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rapha.runtime.scan import scripts
from rapha.runtime.scan.blob import Blob, Memory
from rapha.runtime.scan.content import interpreter
from rapha.runtime.scan.entry import Entry, View, resolve
from rapha.runtime.scan.facts import Note
from rapha.runtime.scan.rules import RuleSet
from rapha.runtime.scan.shell import MAX_SCRIPT, UNKNOWN

_MAX_STARTS: Final = 64


@dataclass(slots=True)
class Starts:
    """What runs, and what was seen on the way to it.

    Attributes:
        python: the files, or the code, that Python starts with.
        programs: the files that the kernel runs.
        reached: shell scripts that run.
        notes: path (empty for the image as a whole) and note.
    """

    python: list[Entry] = field(default_factory=list)
    programs: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    notes: list[tuple[str, Note]] = field(default_factory=list)


def follow(
    argvs: Sequence[Sequence[str]], workdir: str, view: View, blobs: Mapping[str, Blob], rules: RuleSet
) -> Starts:
    """Resolve each argv, and those that a shell script on the way calls. `blobs` are the image's files."""
    starts = Starts()
    pending = [("", tuple(argv)) for argv in argvs]
    seen: set[tuple[str, ...]] = set()
    while pending:
        where, argv = pending.pop()
        if argv in seen and argv:
            continue
        seen.add(argv)
        if len(seen) > _MAX_STARTS:
            note = Note("image.dynamic_code", 0, "Its scripts start more than can be followed.")
            starts.notes.append((where, note))
            break
        pending += [(found, more) for found, more in _one(where, argv, workdir, view, blobs, rules, starts)]
    return starts


def _one(
    where: str,
    argv: tuple[str, ...],
    workdir: str,
    view: View,
    blobs: Mapping[str, Blob],
    rules: RuleSet,
    starts: Starts,
) -> Iterator[tuple[str, tuple[str, ...]]]:
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
    if entry.program == entry.path and entry.source is None and view.full:
        yield from _program(entry, argv, blobs, starts)
    elif entry.script:
        blob = Blob(entry.path, Memory(entry.source)) if entry.source is not None else blobs[entry.path]
        script = scripts.read(blob.part(4 * MAX_SCRIPT + 1).decode(errors="replace"), rules)
        starts.reached.add(entry.path)
        starts.notes += [(entry.path, note) for note in script.notes]
        yield from ((entry.path, found) for found in script.starts)
    else:
        starts.python.append(entry)


def _program(
    entry: Entry, argv: tuple[str, ...], blobs: Mapping[str, Blob], starts: Starts
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A file that runs by itself: by the interpreter that its first line names, or native."""
    kind = interpreter(blobs[entry.path])
    if kind == "python":
        starts.python.append(entry)
    elif kind == "shell":
        yield entry.path, ("/bin/sh", "/" + entry.path)
    elif kind == "other":
        starts.notes.append((entry.path, Note("image.subprocess", 1, "It is a script for another program.")))
    else:
        starts.notes.append(
            ("", Note("image.native_code", 0, f"It starts {argv[0][:100]!r}, which is no script."))
        )
