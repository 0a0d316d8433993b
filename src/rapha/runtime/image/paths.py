"""Which archive paths are taken: only those that mean one thing on every system."""

from __future__ import annotations

import unicodedata
from typing import Final

from rapha.runtime.image.model import Limits
from rapha.spec.refusals import Refused

_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def clean(raw: bytes, limits: Limits, *, exact: bool = False) -> str:
    """The relative path that an entry's name means; empty for the root itself.

    One leading `./` and one trailing `/` are how archivers write a root and a folder; any other
    redundancy is refused, since two readers may resolve it differently.

    Args:
        raw: the name as the archive spells it.
        limits: of length and depth.
        exact: take the names that distributions use as they are: backslashes (systemd's escapes),
            invisible characters, any normalisation form, and one leading slash. Never a control
            character, `..`, or what is not UTF-8.

    Raises:
        Refused: `image.path_unsafe`, or `image.too_large` for length and depth.
    """
    text = _decode(raw)
    body = "" if text in (".", "./", "/") else text.removeprefix("./").removesuffix("/")
    if exact and text.startswith("/"):
        body = body.removeprefix("/")
    if not body and text not in (".", "./", *(["/"] if exact else [])):
        raise _unsafe(text, "is empty or absolute")
    if len(raw) > limits.path:
        raise Refused("image.too_large", f"path {text[:60]!r}…: over {limits.path} bytes")
    parts = body.split("/") if body else []
    if len(parts) > limits.depth:
        raise Refused("image.too_large", f"path {text[:60]!r}…: deeper than {limits.depth} folders")
    for part in parts:
        _check_component(part, text, limits, exact)
    return body


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("image.path_unsafe", f"path {raw[:60]!r} is not UTF-8") from None


def _check_component(part: str, whole: str, limits: Limits, exact: bool) -> None:
    if part in ("", ".", ".."):
        raise _unsafe(whole, "is absolute, leaves the root or has an empty component")
    if len(part.encode()) > limits.component:
        raise Refused("image.too_large", f"path {whole[:60]!r}…: a name over {limits.component} bytes")
    if "\\" in part and not exact:
        raise _unsafe(whole, "has a backslash")
    if part.isascii() and part.isprintable():
        return
    if any(unicodedata.category(char) == "Cc" for char in part):
        raise _unsafe(whole, "has a control character")
    if exact:
        return
    if any(unicodedata.category(char) in _INVISIBLE for char in part):
        raise _unsafe(whole, "has an invisible character")
    if unicodedata.normalize("NFC", part) != part:
        raise _unsafe(whole, "is not in Unicode normalisation form C")


def _unsafe(path: str, why: str) -> Refused:
    return Refused("image.path_unsafe", f"path {path[:200]!r} {why}")


def fold(name: str) -> str:
    """What a name is to file systems that ignore case and Unicode compatibility forms."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFKC", name).casefold()


class Spellings:
    """Every path claimed so far, so that no two differ only by case or by Unicode compatibility."""

    def __init__(self) -> None:
        self._spelling: dict[str, str] = {"": ""}

    def claim(self, path: str) -> None:
        """Take `path` and its parents.

        Raises:
            Refused: `image.path_unsafe` where another spelling of one of them is taken.
        """
        while path:
            taken = self._spelling.setdefault(fold(path), path)
            if taken != path:
                raise ambiguous(path, taken)
            path = path.rpartition("/")[0]


def ambiguous(path: str, taken: str) -> Refused:
    """The refusal of `path` where `taken` is a twin of it."""
    return _unsafe(path, f"is ambiguous: {taken!r} differs only by case or Unicode form")


def parents(path: str) -> list[str]:
    """Folders above `path`, nearest first, without the root."""
    found = []
    while path := path.rpartition("/")[0]:
        found.append(path)
    return found


def link_target(raw: bytes, depth: int, limits: Limits, *, exact: bool = False) -> str:
    """What a symbolic link in a folder `depth` below the root points to.

    Absolute targets start at the image's root. With `exact`, `..` beyond the root stays there, as the
    kernel has it for a process whose root this is; otherwise it is refused as an attempt.

    Raises:
        Refused: `image.path_unsafe`, `image.too_large`.
    """
    text = _decode(raw)
    if not text:
        raise _unsafe(text, "is an empty link target")
    if len(raw) > limits.path:
        raise Refused("image.too_large", f"link target {text[:60]!r}…: over {limits.path} bytes")
    forbidden = {"Cc"} if exact else _INVISIBLE
    if not (text.isascii() and text.isprintable()) and any(
        unicodedata.category(char) in forbidden for char in text
    ):
        raise _unsafe(text, "is a link target with an invisible or control character")
    level = 0 if text.startswith("/") else depth
    for part in text.split("/"):
        level += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if level < 0 and not exact:
            raise _unsafe(text, "is a link target out of the root")
    return text
