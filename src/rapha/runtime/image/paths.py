"""Which archive paths are taken: only those that mean one thing on every system."""

from __future__ import annotations

import unicodedata
from typing import Final, Literal

from rapha.runtime.image.model import Limits
from rapha.spec.refusals import Refused

Kind = Literal["file", "dir"]

_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def clean(raw: bytes, limits: Limits) -> str:
    """The relative path that an entry's name means; empty for the root itself.

    One leading `./` and one trailing `/` are how archivers write a root and a folder; any other
    redundancy is refused, since two readers may resolve it differently.

    Raises:
        Refused: `image.path_unsafe`, or `image.too_large` for length and depth.
    """
    text = _decode(raw)
    body = "" if text in (".", "./") else text.removeprefix("./").removesuffix("/")
    if not body and text not in (".", "./"):
        raise _unsafe(text, "is empty or absolute")
    if len(raw) > limits.path:
        raise Refused("image.too_large", f"path {text[:60]!r}…: over {limits.path} bytes")
    parts = body.split("/") if body else []
    if len(parts) > limits.depth:
        raise Refused("image.too_large", f"path {text[:60]!r}…: deeper than {limits.depth} folders")
    for part in parts:
        _check_component(part, text, limits)
    return body


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("image.path_unsafe", f"path {raw[:60]!r} is not UTF-8") from None


def _check_component(part: str, whole: str, limits: Limits) -> None:
    if part in ("", ".", ".."):
        raise _unsafe(whole, "is absolute, leaves the root or has an empty component")
    if "\\" in part:
        raise _unsafe(whole, "has a backslash")
    if len(part.encode()) > limits.component:
        raise Refused("image.too_large", f"path {whole[:60]!r}…: a name over {limits.component} bytes")
    if part.isascii() and part.isprintable():
        return
    if any(unicodedata.category(char) in _INVISIBLE for char in part):
        raise _unsafe(whole, "has an invisible or control character")
    if unicodedata.normalize("NFC", part) != part:
        raise _unsafe(whole, "is not in Unicode normalisation form C")


def _unsafe(path: str, why: str) -> Refused:
    return Refused("image.path_unsafe", f"path {path[:200]!r} {why}")


class Tree:
    """Every path claimed so far, so that no two differ only by case or by Unicode compatibility.

    Shared by all layers of one image: a spelling that a lower layer used binds the upper ones.
    """

    def __init__(self) -> None:
        self._spelling: dict[str, str] = {"": ""}

    def claim(self, path: str) -> None:
        """Take `path` and its parents.

        Raises:
            Refused: `image.path_unsafe` where another spelling of one of them is taken.
        """
        while path:
            key = unicodedata.normalize("NFKC", path).casefold()
            taken = self._spelling.setdefault(key, path)
            if taken != path:
                raise _unsafe(path, f"is ambiguous: {taken!r} differs only by case or Unicode form")
            path = path.rpartition("/")[0]


def parents(path: str) -> list[str]:
    """Folders above `path`, nearest first, without the root."""
    found = []
    while path := path.rpartition("/")[0]:
        found.append(path)
    return found
