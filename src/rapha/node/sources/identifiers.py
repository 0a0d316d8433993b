"""What a usable patient identifier is, whichever source it comes from."""

from __future__ import annotations

import unicodedata
from typing import Final

from rapha.node.sources.interface import Quarantine

MAX_IDENTIFIER: Final = 128
_UNREADABLE: Final = "\ufffd"
"""What decoders leave where bytes did not fit the character set: two people could come out alike."""


def is_identifier(word: str) -> bool:
    """Whether two systems would agree on these characters; a stray blank would defeat an opt-out."""
    return (
        0 < len(word) <= MAX_IDENTIFIER
        and word.isprintable()
        and word == word.strip()
        and _UNREADABLE not in word
        and unicodedata.is_normalized("NFC", word)
    )


def judge_identifier(word: str) -> Quarantine:
    """NONE for a usable identifier, else why it isn't one."""
    if not word:
        return Quarantine.PATIENT_MISSING
    return Quarantine.NONE if is_identifier(word) else Quarantine.PATIENT_INVALID
