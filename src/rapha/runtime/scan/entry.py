"""What an argv of the image starts: the file that Python runs, and where it imports from."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from rapha.runtime.image.model import APP
from rapha.runtime.scan.scripts import SHELLS
from rapha.runtime.scan.variables import is_plain, steers

_SLIM_PYTHON: Final = re.compile(r"(?:/usr/(?:local/)?bin/)?python(?:3(?:\.\d{1,2})?)?\Z")
_PYTHON: Final = re.compile(r"python(?:3(?:\.\d{1,2})?)?\Z")
_PLAIN_FLAGS: Final = frozenset("ubBOsSEIvqdP")
_SHELL_VALUES: Final = frozenset({"-o", "+o", "-O", "+O"})
_LOGIN: Final = ("etc/profile", "etc/bash.bashrc", "etc/profile.d/")
_MAX_HOPS: Final = 40
_STARTERS: Final = ("env", "tini", "dumb-init", "nohup")
_STARTER_FLAGS: Final = ("--", "-g", "-s", "-v", "-i", "-c")
_PATH: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_SITE: Final = re.compile(r"((?:.*/)?lib(?:64|32)?/python3(?:\.\d{1,2})?)(?:/((?:site|dist)-packages))?/")
SCRIPT_ARGUMENT: Final = "(command line).py"
"""The name under which the code of `-c` is judged."""


@dataclass(frozen=True, slots=True)
class View:
    """Where an argv is looked up.

    Attributes:
        files: the image's files and, for each, nothing but that it is there.
        links: target by path of each symbolic link.
        full: the image is a root of its own; otherwise only `/app` is the image's, and only Python runs.
        search: folders of PATH.
        own: the paths that the submitter added; what lies below them is the hospital's choice.
    """

    files: Mapping[str, object]
    links: Mapping[str, str] = field(default_factory=dict)
    full: bool = False
    search: tuple[str, ...] = _PATH
    own: Collection[str] = frozenset()

    def find(self, path: str) -> str:
        """The path, relative to the root, that `path` means after links; itself where there are none."""
        pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
        done: list[str] = []
        hops = 0
        while pending:
            part = pending.pop()
            if part == "..":
                del done[-1:]
                continue
            done.append(part)
            target = self.links.get("/".join(done))
            if target is not None and hops < _MAX_HOPS:
                hops += 1
                done = [] if target.startswith("/") else done[:-1]
                pending += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
        return "/".join(done)

    def program(self, name: str, workdir: str) -> str:
        """The file that running `name` starts; empty where there is none."""
        places = [posixpath.join(workdir, name)] if "/" in name else [f"{f}/{name}" for f in self.search]
        found = [path for place in places if (path := self.find(place)) in self.files]
        # The kernel passes over files of PATH that nobody may run (execvp(3)).
        runs = (path for path in found if getattr(self.files[path], "executable", True))
        return next(runs, found[0] if found and "/" in name else "")

    def libraries(self) -> set[str]:
        """The folders of a full image's own Python: its standard library and its site-packages."""
        if not self.full:
            return set()
        found = (_SITE.match(path) for path in self.files if "/python3" in path)
        return {folder.group().rstrip("/") for folder in found if folder is not None}


@dataclass(frozen=True, slots=True)
class Entry:
    """What starts.

    Attributes:
        path: the file, relative to the image's root; empty where `problem` says why there is none.
        root: the folder that Python puts first on the import path.
        source: the code itself where it stands on the command line.
        program: the file that the kernel runs: an interpreter or the image's own; empty in a slim image.
        script: `path` is a script for a shell, whose commands start what follows.
        before: paths of the submitter's scripts that a login shell reads first.
        search: values of PYTHONPATH that the command line sets.
        problem: rule and reason, where the argv can't be followed.
    """

    path: str = ""
    root: str = ""
    source: bytes | None = None
    program: str = ""
    script: bool = False
    before: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    problem: tuple[str, str] | None = None


def resolve(argv: Sequence[str], workdir: str, view: View) -> Entry:
    """Follow `argv` as CPython's command line does (Using Python, 1.1); in a full image, as a shell's too."""
    if not argv:
        return _problem("image.entrypoint_missing", "The image's config has no entrypoint.")
    if view.full:
        return _full(list(argv), workdir, view)
    if not _SLIM_PYTHON.match(argv[0]):
        return _problem(
            "image.subprocess", f"It starts {argv[0][:100]!r}; only `python3` is there and can be followed."
        )
    return _python(argv, workdir, view, "")


def _full(argv: list[str], workdir: str, view: View) -> Entry:
    search: list[str] = []
    while posixpath.basename(argv[0]) in _STARTERS and len(argv) > 1:
        if (program := view.program(argv[0], workdir)) in view.own:
            return Entry(program, posixpath.dirname(program), program=program)
        argv = argv[1:]
        while len(argv) > 1 and (argv[0] in _STARTER_FLAGS or "=" in argv[0]):
            variable, _, value = argv[0].partition("=")
            if steers(variable, value):
                return _problem("image.dynamic_code", f"It sets `{variable[:100]}`, which loads other code.")
            search += [value] if variable == "PYTHONPATH" else []
            argv = argv[1:]
    return replace(_started(argv, workdir, view), search=tuple(search))


def _started(argv: list[str], workdir: str, view: View) -> Entry:
    name = posixpath.basename(argv[0])
    program = view.program(argv[0], workdir)
    if not program:
        return _missing(argv[0])
    if _PYTHON.match(name) or _PYTHON.match(posixpath.basename(program)):
        return _python(argv, workdir, view, program)
    if name in SHELLS:
        return _shell(argv, workdir, view, program)
    return Entry(program, posixpath.dirname(program), program=program)


def _shell(argv: list[str], workdir: str, view: View, program: str) -> Entry:
    rest = list(argv[1:])
    before: tuple[str, ...] = ()
    while rest and rest[0].startswith(("-", "+")):
        option = rest.pop(0)
        if option in _SHELL_VALUES:
            del rest[:1]
        elif option in ("--rcfile", "--init-file"):
            return _problem("image.dynamic_code", f"The shell's option {option!r} can't be followed.")
        elif option == "--login" or (not option.startswith("--") and not {"l", "i"}.isdisjoint(option)):
            before = tuple(sorted(path for path in view.own if path.startswith(_LOGIN)))
        if option[0] == "-" and "c" in option and not option.startswith("--"):
            if not rest:
                return _problem("image.entrypoint_missing", "A shell is started without its command.")
            source = rest[0].encode("utf-8", errors="replace")
            return Entry("(command line).sh", source=source, program=program, script=True, before=before)
    if not rest:
        return _problem("image.dynamic_code", "It runs what is written to it, not a file of the image.")
    path = view.find(posixpath.join(workdir, rest[0]))
    if path not in view.files:
        return _missing(rest[0])
    return Entry(path, program=program, script=True, before=before)


def _python(argv: Sequence[str], workdir: str, view: View, program: str) -> Entry:
    rest = list(argv[1:])
    while rest and rest[0].startswith("-") and len(rest[0]) > 1:
        flag = rest.pop(0)
        if flag.startswith(("-m", "-c")):
            value = flag[2:] or (rest[0] if rest else "")
            here = view.find(workdir)
            return _module(value, here, view, program) if flag[1] == "m" else _code(value, here, program)
        if flag[:2] in ("-W", "-X"):
            value = flag[2:] or (rest.pop(0) if rest else "")
            if not is_plain(flag[1], value):
                return _problem("image.dynamic_code", f"Python's {flag[:2]} {value[:100]!r} loads code.")
        elif flag.startswith("--") or not set(flag[1:]) <= _PLAIN_FLAGS:
            return _problem("image.dynamic_code", f"Python's option {flag[:100]!r} can't be followed.")
    if not rest or rest[0] == "-":
        return _problem("image.dynamic_code", "It runs what is written to it, not a file of the image.")
    return _script(rest[0], workdir, view, program)


def _script(script: str, workdir: str, view: View, program: str) -> Entry:
    path = view.find(posixpath.join(workdir, script))
    if not view.full and not (path + "/").startswith(APP):
        return _missing(script)
    if path in view.files:
        return Entry(path, posixpath.dirname(path), program=program)
    if path + "/__main__.py" in view.files:
        return Entry(path + "/__main__.py", path, program=program)
    return _missing(script)


def _module(name: str, here: str, view: View, program: str) -> Entry:
    for root in (here, *sorted(view.libraries())):
        base = posixpath.join(root, *name.split("."))
        for path in (base + "/__main__.py", base + ".py"):
            if path in view.files and (view.full or path.startswith(APP)):
                return Entry(path, here, program=program)
    return _missing(f"-m {name}")


def _code(text: str, here: str, program: str) -> Entry:
    source = text.encode("utf-8", errors="replace")
    return Entry(posixpath.join(here, SCRIPT_ARGUMENT), here, source, program)


def _missing(what: str) -> Entry:
    return _problem("image.entrypoint_missing", f"It names {what[:200]!r}, which is not in the image's /app.")


def _problem(rule: str, reason: str) -> Entry:
    return Entry(problem=(rule, reason))
