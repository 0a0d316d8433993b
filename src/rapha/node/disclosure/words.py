"""Texts of other people, cut so that they fit on the page and stay in their place."""

from __future__ import annotations

import unicodedata
from typing import Final

from rapha.spec.surface import printable

NAME: Final = 32
"""Most characters of a name that a job chose."""
MARKS: Final = 3
"""Most combining marks on one letter; no script's names need more."""


def short(text: str, most: int = NAME) -> str:
    """At most so many characters, the middle left out; what is not printable is `?`.

    So is each mark beyond `MARKS` on one letter: a pile of them would cover the lines above and below.
    """
    if len(text) > most:
        text = f"{text[: most - most // 3 - 1]}…{text[-(most // 3) :]}"
    shown, marks = "", 0
    for character in printable(text):
        marks = marks + 1 if unicodedata.category(character).startswith("M") else 0
        shown += "?" if marks > MARKS else character
    return shown


def in_full(text: str) -> str:
    """All of it, with the same signs for what is not printable."""
    return short(text, len(text))


def more(count: int, what: str) -> str:
    """`and N more`, of what; nothing for 0."""
    return f"and {count:,} more {what}" if count > 0 else ""
