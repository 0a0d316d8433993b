"""What an argv of the image starts: the file that Python runs, and where it imports from."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rapha.runtime.image.model import APP

_PYTHON: Final = re.compile(r"(?:/usr/(?:local/)?bin/)?python(?:3(?:\.\d{1,2})?)?\Z")
_PLAIN_FLAGS: Final = frozenset("ubBOsSEIvqdP")
_VALUE_FLAGS: Final = ("-W", "-X")
SCRIPT_ARGUMENT: Final = "(command line).py"
"""The name under which the code of `-c` is judged."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What starts.

    Attributes:
        path: the file, relative to the image's root; empty where `problem` says why there is none.
        root: the folder that Python puts first on the import path.
        source: the code itself where it stands on the command line.
        problem: rule and reason, where the argv can't be followed.
    """

    path: str = ""
    root: str = ""
    source: bytes | None = None
    problem: tuple[str, str] | None = None


def resolve(argv: Sequence[str], workdir: str, files: Mapping[str, bytes]) -> Entry:
    """Follow `argv` as CPython's command line does (Using Python, 1.1)."""
    if not argv:
        return _problem("image.entrypoint_missing", "The image's config has no entrypoint.")
    if not _PYTHON.match(argv[0]):
        return _problem(
            "image.subprocess", f"It starts {argv[0][:100]!r}; only `python3` is there and can be followed."
        )
    rest = list(argv[1:])
    here = workdir.lstrip("/")
    while rest and rest[0].startswith("-") and len(rest[0]) > 1:
        flag = rest.pop(0)
        if flag.startswith(("-m", "-c")):
            value = flag[2:] or (rest[0] if rest else "")
            return _module(value, here, files) if flag[1] == "m" else _code(value, here)
        if flag[:2] in _VALUE_FLAGS:
            if len(flag) == 2 and rest:
                rest.pop(0)
        elif flag.startswith("--") or not set(flag[1:]) <= _PLAIN_FLAGS:
            return _problem("image.dynamic_code", f"Python's option {flag[:100]!r} can't be followed.")
    if not rest or rest[0] == "-":
        return _problem("image.dynamic_code", "It runs what is written to it, not a file of the image.")
    return _script(rest[0], workdir, files)


def _script(script: str, workdir: str, files: Mapping[str, bytes]) -> Entry:
    path = posixpath.normpath(posixpath.join(workdir, script)).lstrip("/")
    if not (path + "/").startswith(APP):
        return _missing(script)
    if path in files:
        return Entry(path, posixpath.dirname(path))
    if path + "/__main__.py" in files:
        return Entry(path + "/__main__.py", path)
    return _missing(script)


def _module(name: str, here: str, files: Mapping[str, bytes]) -> Entry:
    base = posixpath.join(here, *name.split("."))
    for path in (base + "/__main__.py", base + ".py"):
        if path in files and path.startswith(APP):
            return Entry(path, here)
    return _missing(f"-m {name}")


def _code(text: str, here: str) -> Entry:
    return Entry(posixpath.join(here, SCRIPT_ARGUMENT), here, text.encode("utf-8", errors="replace"))


def _missing(what: str) -> Entry:
    return _problem("image.entrypoint_missing", f"It names {what[:200]!r}, which is not in the image's /app.")


def _problem(rule: str, reason: str) -> Entry:
    return Entry(problem=(rule, reason))
