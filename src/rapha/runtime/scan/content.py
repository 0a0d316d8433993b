"""What a file is by its bytes and its name, whatever imports it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rapha.runtime.image import secrets
from rapha.runtime.scan import models
from rapha.runtime.scan.blob import WHOLE, Blob, Budget
from rapha.runtime.scan.facts import Note
from rapha.runtime.scan.natives import native
from rapha.runtime.scan.rules import RuleSet

_STARTUP: Final = ("sitecustomize", "usercustomize")
_CHUNK: Final = 16 * 1024 * 1024
_OVERLAP: Final = 64 * 1024
_SHELL_NAMES: Final = (".sh", ".bash", ".zsh", ".ksh")


def judge(blob: Blob, rules: RuleSet, budget: Budget) -> Iterator[Note]:
    """What refuses (grave) or warns by a file's presence: models, start-up hooks, secrets."""
    yield from _secrets(blob)
    pickled = False
    if native(blob) is None:
        for note in models.judge(blob, rules, budget):
            pickled = pickled or note.rule == "image.pickle"
            yield note
    is_path_file = blob.name.endswith((".pth", "._pth", ".egg-link")) or blob.name == "pyvenv.cfg"
    if is_path_file and not pickled:
        yield _hook("It is a file that Python reads when it starts.")
    if any(part.partition(".")[0] in _STARTUP for part in blob.path.split("/")):
        yield _hook("Python imports a module of this name when it starts.")


def interpreter(blob: Blob) -> str | None:
    """`python`, `shell` or `other` for a script, by its first line or its name; None for anything else."""
    first = blob.head[:256].partition(b"\n")[0]
    if first.startswith(b"#!"):
        words = first[2:].replace(b"/", b" ").split()
        if any(word.startswith(b"python") for word in words):
            return "python"
        return "shell" if any(word.endswith((b"sh",)) for word in words) else "other"
    return "shell" if blob.name.endswith(_SHELL_NAMES) else None


def shebang(blob: Blob) -> tuple[str, ...]:
    """The words of a script's first line, as the kernel gives them to its interpreter (execve(2))."""
    first = blob.head[:256].partition(b"\n")[0]
    if not first.startswith(b"#!"):
        return ()
    words = first[2:].decode(errors="replace").split(maxsplit=1)
    if len(words) == 2 and words[0].endswith("/env") and words[1].startswith("-S"):
        return (words[0], *words[1][2:].split())
    return tuple(word.strip() for word in words)


def _secrets(blob: Blob) -> Iterator[Note]:
    if blob.size <= WHOLE:
        yield from (_secret(found) for found in secrets.find(blob.path, blob.part(WHOLE)))
        return
    # Lines of so large a file mean nothing; what lies across two parts is seen in their overlap.
    kinds: dict[str, None] = {}
    with blob.open() as file:
        part = file.read(_CHUNK)
        while part:
            kinds |= dict.fromkeys(found.kind for found in secrets.find(blob.path, part))
            more = file.read(_CHUNK)
            part = part[-_OVERLAP:] + more if more else b""
    yield from (_secret(secrets.Secret(0, kind)) for kind in kinds)


def _secret(found: secrets.Secret) -> Note:
    return Note("image.secret", found.line, f"It has what looks like {found.kind}.")


def _hook(reason: str) -> Note:
    return Note("image.startup_hook", 0, reason)
