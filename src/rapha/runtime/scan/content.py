"""What a file is by its first bytes and its name, whatever imports it."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Final

from rapha.runtime.image import secrets
from rapha.runtime.scan.facts import Note
from rapha.runtime.scan.rules import RuleSet

_NATIVE: Final = (
    (b"\x7fELF", "an ELF program or library"),
    (b"\xfe\xed\xfa\xce", "a Mach-O file"),
    (b"\xfe\xed\xfa\xcf", "a Mach-O file"),
    (b"\xce\xfa\xed\xfe", "a Mach-O file"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O file"),
    (b"\xca\xfe\xba\xbe", "a Mach-O or Java file"),
    (b"\0asm", "a WebAssembly module"),
    (b"!<arch>\n", "a static library"),
)
_NATIVE_NAMES: Final = (".so", ".pyd", ".dll", ".dylib", ".exe", ".node", ".a")
_PICKLE_NAMES: Final = (".pkl", ".pickle", ".joblib", ".dill", ".pt", ".ckpt", ".p", ".pck", ".pcl")
_CODE_NAMES: Final = (".py", ".pyc", ".pyo", ".so", ".pyd", ".pth", ".dll", ".jar", ".class")
_STARTUP: Final = ("sitecustomize", "usercustomize")
_COMPILED: Final = range(3000, 4000)
_PEEK: Final = 64 * 1024
_OBJECT_DTYPE: Final = re.compile(rb"['\"][|<>=]?O\d*['\"]")
# Opcodes that call something or name it (pickletools, protocols 0 to 5).
_CALLING: Final = frozenset(
    {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"}
)


def judge(path: str, data: bytes) -> Iterator[Note]:
    """What refuses a file by its presence: native code, pickles, start-up hooks, secrets."""
    yield from (
        Note("image.secret", secret.line, f"It has what looks like {secret.kind}.")
        for secret in secrets.find(path, data)
    )
    name = path.rpartition("/")[2].lower()
    native, pickled = _native(name, data), _pickled(name, data)
    if native:
        yield Note("image.native_code", 0, f"It is {native}.")
    if pickled:
        yield Note("image.pickle", 0, f"It is {pickled}.")
    if not pickled and (name.endswith((".pth", "._pth")) or name == "pyvenv.cfg"):
        yield Note("image.startup_hook", 0, "It is a file that Python reads when it starts.")
    if any(part.partition(".")[0] in _STARTUP for part in path.split("/")):
        yield Note("image.startup_hook", 0, "Python imports a module of this name when it starts.")
    yield from _zipped(data)


def commands(name: str, data: bytes, rules: RuleSet) -> Note | None:
    """A script for another program than Python, with the first network program that it calls."""
    head = data[:_PEEK]
    first = head.partition(b"\n")[0]
    if first.startswith(b"#!"):
        if b"python" in first:
            return None
    elif not name.lower().endswith((".sh", ".bash", ".zsh", ".ksh")):
        return None
    for number, line in enumerate(head.decode("utf-8", errors="replace").splitlines(), 1):
        words = line.partition("#")[0].replace("|", " ").replace(";", " ").replace("$(", " ").split()
        for word in words:
            if word.rpartition("/")[2] in rules.shell_network:
                return Note("image.subprocess", number, f"It is a script that calls `{word[:100]}`.")
    return Note("image.subprocess", 1, "It is a script for another program.")


def _native(name: str, data: bytes) -> str | None:
    for magic, what in _NATIVE:
        if data.startswith(magic):
            return what
    if data[:2] == b"MZ" and b"PE\0\0" in data[:4096]:
        return "a Windows program or library"
    if name.endswith(_NATIVE_NAMES) or ".so." in name:
        return "native code by its name"
    if name.endswith((".pyc", ".pyo")) or (
        data[2:4] == b"\r\n" and int.from_bytes(data[:2], "little") in _COMPILED
    ):
        return "compiled Python"
    return None


def _pickled(name: str, data: bytes, depth: int = 0) -> str | None:
    if data[:1] == b"\x80" and data[1:2] in (b"\2", b"\3", b"\4", b"\5") and _opcodes(data):
        return "a pickle"
    if _has_objects(data):
        return "a NumPy array of objects, which is a pickle"
    if name.endswith(_PICKLE_NAMES) or (name.endswith((".pth", ".bin")) and _is_zip(data)):
        return "a pickle by its name"
    if (
        len(data) < 1024 * 1024
        and data[-1:] == b"."
        and not name.endswith(".py")
        and _CALLING & _opcodes(data)
    ):
        return "a pickle (protocol 0 or 1)"
    if data[:2] == b"\x1f\x8b" and depth == 0:
        inside = zlib.decompressobj(wbits=31)
        try:
            return _pickled(name.removesuffix(".gz"), inside.decompress(data, _PEEK), 1)
        except zlib.error:
            return None
    return None


def _opcodes(data: bytes) -> set[str]:
    """The opcode names of a pickle; empty where the bytes are none. What is cut off is not missed."""
    import pickletools

    found: set[str] = set()
    try:
        for opcode, _, position in pickletools.genops(data[: 1024 * 1024]):
            found.add(opcode.name)
            if (position or 0) > _PEEK:
                return found
    except (ValueError, OverflowError, UnicodeError) as error:
        # A binary pickle that breaks off has called what stands before; text may only begin like one.
        broken = len(found) > 1 and (found & _CALLING or "opcode" not in str(error))
        return found if data[:1] == b"\x80" and broken else set()
    return found


def _has_objects(data: bytes) -> bool:
    """Whether the dtype in an .npy header holds Python objects (NumPy's format, NEP 1)."""
    return data[:6] == b"\x93NUMPY" and _OBJECT_DTYPE.search(data[:_PEEK]) is not None


def _is_zip(data: bytes) -> bool:
    return data[:4] == b"PK\x03\x04" or b"PK\x05\x06" in data[-65_557:]


def _zipped(data: bytes) -> Iterator[Note]:
    """Code in a ZIP archive: Python imports from one wherever in a file it starts."""
    if not _is_zip(data):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [info.filename.lower() for info in archive.infolist()]
    except (
        zipfile.BadZipFile,
        ValueError,
        OverflowError,
        NotImplementedError,
        UnicodeError,
        EOFError,
    ) as error:
        yield Note("image.dynamic_code", 0, f"It is a ZIP archive that can't be read: {error}.")
        return
    if any(name.endswith(_PICKLE_NAMES) for name in names):
        yield Note("image.pickle", 0, "It is an archive with a pickle inside, such as PyTorch writes.")
    elif any(name.endswith(_CODE_NAMES) for name in names):
        yield Note("image.dynamic_code", 0, "It is an archive with code inside.")
