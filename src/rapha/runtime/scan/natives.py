"""Native code: what it is by its first bytes and name, and what it can call by its symbols."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator
from typing import Final

from rapha.runtime.scan.blob import Blob
from rapha.runtime.scan.elf import Elf, ElfError, parse
from rapha.runtime.scan.facts import Note
from rapha.runtime.scan.rules import RuleSet

_MAGIC: Final = (
    (b"\x7fELF", "an ELF program or library"),
    (b"\xfe\xed\xfa\xce", "a Mach-O file"),
    (b"\xfe\xed\xfa\xcf", "a Mach-O file"),
    (b"\xce\xfa\xed\xfe", "a Mach-O file"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O file"),
    (b"\xca\xfe\xba\xbe", "a Mach-O or Java file"),
    (b"\0asm", "a WebAssembly module"),
    (b"!<arch>\n", "a static library"),
)
_NAMES: Final = (".so", ".pyd", ".dll", ".dylib", ".exe", ".node", ".a")
_COMPILED: Final = range(3000, 4000)
_MAX_NAMED: Final = 12
_PLACES: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "$ORIGIN", "${ORIGIN}")
_LOADERS: Final = ("/lib/ld-", "/lib64/ld-", "/usr/lib/ld-", "/usr/lib64/ld-", "/lib/x86_64-linux-gnu/ld-")


def magic(blob: Blob) -> str | None:
    """What a file is by its first bytes, where that is native or compiled code."""
    head = blob.head
    for mark, what in _MAGIC:
        if head.startswith(mark):
            return what
    if head[:2] == b"MZ" and b"PE\0\0" in head[:4096]:
        return "a Windows program or library"
    if head[2:4] == b"\r\n" and int.from_bytes(head[:2], "little") in _COMPILED:
        return "compiled Python"
    return None


def native(blob: Blob) -> str | None:
    """What a file is by its first bytes or its name, where that is native or compiled code."""
    if (what := magic(blob)) is not None:
        return what
    if blob.name.endswith((".pyc", ".pyo")):
        return "compiled Python"
    if blob.name.endswith(_NAMES) or ".so." in blob.name:
        return "native code by its name"
    return None


def linked(blob: Blob, rules: RuleSet, libraries: Collection[str]) -> Iterator[Note]:
    """What an ELF file may do by its symbols and links. Precondition: it begins like one.

    `libraries` are the file names of the shared libraries in the image. Grave is what moves data, starts
    programs or can't be told; slight is what is odd.
    """
    try:
        with blob.open() as file:
            elf = parse(file, blob.size)
    except ElfError as error:
        yield _note(f"It is an ELF file that can't be judged: {error}.", True)
        return
    except MemoryError:
        yield _note("It is an ELF file that can't be judged: its tables are too large.", True)
        return
    if not elf.dynamic:
        yield _note("It has no dynamic section: what a static program calls can't be told.", True)
    if elf.packed:
        yield _note("It bears the mark of a packer: what it calls can't be told.", True)
    yield from _symbols(elf, rules)
    yield from _links(elf, libraries)


def _symbols(elf: Elf, rules: RuleSet) -> Iterator[Note]:
    for code, words in (
        ("image.network_module", "opens connections"),
        ("image.subprocess", "starts or changes other programs"),
        ("image.native_code", "loads other code or calls the kernel by number"),
    ):
        named = sorted(name for name in elf.imports if rules.symbols.get(name) == code)
        if named:
            listed = ", ".join(f"`{name}`" for name in named[:_MAX_NAMED])
            yield Note(code, 0, f"It is native code that {words}: {listed}.")


def _links(elf: Elf, libraries: Collection[str]) -> Iterator[Note]:
    if elf.interpreter and not posixpath.normpath(elf.interpreter).startswith(_LOADERS):
        yield _note(f"It is started by `{elf.interpreter[:100]}`, which is no system loader.", True)
    for place in elf.search:
        path = posixpath.normpath(place)
        if not path.startswith(_PLACES) or path.startswith(("$ORIGIN/../../../..", "/lib/..")):
            yield _note(f"It looks for libraries in `{place[:100]}`.", False)
    if elf.executable_stack and elf.dynamic:
        yield _note("It asks for an executable stack.", False)
    absent = [name for name in elf.needed if posixpath.basename(name) not in libraries]
    if absent:
        listed = ", ".join(f"`{name[:80]}`" for name in absent[:_MAX_NAMED])
        yield _note(f"It needs libraries that are not in the image: {listed}.", False)
    if any("/" in name for name in elf.needed):
        yield _note("It names a library by its path.", True)


def _note(reason: str, grave: bool) -> Note:
    return Note("image.native_code", 0, reason, grave)


def needed(blob: Blob) -> tuple[str, ...]:
    """The libraries that an ELF file asks for; none where it is none or can't be read."""
    if not blob.head.startswith(b"\x7fELF"):
        return ()
    try:
        with blob.open() as file:
            return parse(file, blob.size).needed
    except (ElfError, MemoryError):
        return ()
