"""Policy sets: a folder of Rego modules and one data document, named by digest.

The digest is over every byte that the engine is given, and over nothing else: tests and the example input
lie beside the rules and are not part of it. A file that would be neither refuses, since someone put it
there believing that it counts.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapha.evidence import canonical
from rapha.spec.refusals import Refused

DEFAULT: Final = Path(__file__).parent / "bundles" / "default"
"""The set that ships with the package, with its tests."""
DATA: Final = "data.json"
EXAMPLE: Final = "admissible.json"
"""An input that the set admits; its tests change one fact of it at a time."""
TEST_SUFFIX: Final = "_test.rego"
MAX_FILES: Final = 256
MAX_FILE_BYTES: Final = 2**20

_BESIDE: Final = frozenset({EXAMPLE, "README.md"})
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\.rego")
_PACKAGE: Final = re.compile(r"(?m)^[ \t]*package[ \t]+([A-Za-z0-9_.]+)[ \t]*(?:#.*)?\r?$")
_IMPURE: Final = re.compile(
    r"\b(?:http\s*\.\s*send|net\s*\.\s*lookup_ip_addr|opa\s*\.\s*runtime|rand\s*\.\s*intn"
    r"|time\s*\.\s*now_ns|uuid\s*\.\s*rfc4122)\b"
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """One policy set. `modules` are (file name, source) in name order; `data` is JSON text."""

    modules: tuple[tuple[str, str], ...]
    data: str
    digest: str

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read a set from `folder`.

        Raises:
            Refused: `policy.error` for a folder that can't be read, an entry that is neither rule, data,
                test nor example, text that is not plain UTF-8, a package outside `rapha`, data inside it,
                or a rule whose answer would depend on more than set and input.
        """
        files = {name: text for name, text in _files(folder) if not _beside(name)}
        data = files.pop(DATA, "{}")
        if not files:
            raise _broken(f"{folder.name} has no rule")
        for name, source in files.items():
            _check_module(name, source)
        _check_data(data)
        return cls.of(files, data)

    @classmethod
    def of(cls, modules: dict[str, str], data: str) -> Bundle:
        """Name a set by SHA-256 of the canonical manifest {file name: SHA-256 of the file}."""
        parts = {**modules, DATA: data}
        manifest = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()}
        return cls(tuple(sorted(modules.items())), data, canonical.digest(manifest))


def read_text(path: Path) -> str:
    """A regular file as text, without following a link.

    Raises:
        Refused: `policy.error`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _broken(f"{path.name} is not a regular file")
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _broken(f"{path.name}: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise _broken(f"{path.name} is larger than {MAX_FILE_BYTES} bytes")
    return _text(path.name, raw)


def _text(name: str, raw: bytes) -> str:
    # The engine takes C strings: what follows a NUL would be in the digest and not in force.
    if b"\x00" in raw:
        raise _broken(f"{name} has a NUL byte")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _broken(f"{name} is not UTF-8") from None


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise _broken(f"{folder}: {error.strerror}") from None
    if len(names) > MAX_FILES:
        raise _broken(f"{folder.name} has more than {MAX_FILES} files")
    for name in names:
        if name != DATA and not _beside(name) and not _NAME.fullmatch(name):
            raise _broken(f"{name!r} is not part of a policy set: rules are lower-case .rego files")
        yield name, read_text(folder / name)


def _beside(name: str) -> bool:
    return name in _BESIDE or name.endswith(TEST_SUFFIX)


def _check_module(name: str, source: str) -> None:
    found = _PACKAGE.search(source)
    if found is None or found[1].split(".")[0] != "rapha":
        raise _broken(f"{name}: a rule's package must be `rapha.admission` or another under `rapha`")
    impure = _IMPURE.search(source)
    if impure is not None:
        raise _broken(f"{name}: {impure[0]} would make the answer depend on more than set and input")


def _check_data(text: str) -> None:
    try:
        data = canonical.loads(text.encode(), limit=MAX_FILE_BYTES)
    except Refused as refused:
        raise _broken(f"{DATA}: {refused.detail}") from None
    if not isinstance(data, dict):
        raise _broken(f"{DATA} must be an object")
    if "rapha" in data:
        # Data and rules share one tree: {"rapha": {"admission": {"allow": true}}} would overrule them.
        raise _broken(f"{DATA} may not have the key `rapha`, where the rules are")


def _broken(detail: str) -> Refused:
    return Refused("policy.error", detail)
