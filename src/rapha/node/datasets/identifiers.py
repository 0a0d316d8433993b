"""The known-identifier tripwire: whether released bytes spell an identifier of the job's patients.

It runs where the identifiers are, in the dataset process, and says yes or no, never which. `characters`
says in which encodings a text is found; here is what is looked for, and what chance alone would find.
A hit refuses. A pass is no evidence: any other encoding, or a key, gets by.

Chance. A text of b bits is found in n random characters with probability n · 2^-b. So few false hits are
allowed a file that a conforming job never meets one:

    certain   together at most `_FALSE`: one hit is enough
    paired    together at most sqrt(`_FALSE`): counts where two different ones are found in different places
    too short left out, and counted; so is what a table of ordinary numbers spells, such as 12345678

That is for bytes at large. What a file of digits spells anyway, `hunt` leaves out of account.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from rapha.node.datasets.characters import VIEWS, WIDEST, Alphabet, Characters, spelled
from rapha.node.datasets.control import Content
from rapha.node.datasets.hunt import LONGEST, Hunt
from rapha.spec.disclosure import Searched

_FALSE: Final = 2.5e-10
"""False hits a file, of either kind; a job has at most two rebuilt files."""
_NEWS: Final = 3
"""Unforeseen characters in a text that no table of ordinary numbers spells."""
_CHUNK: Final = 2**20
_OVERLAP: Final = 2 * LONGEST * WIDEST
"""No text is longer, in any encoding, so none is cut by every chunk that it touches."""
_GATHERED: Final = 2**26
"""Characters that are collected before they are searched."""
_DIGITS: Final = b"0123456789"
_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for: lower-case text → number of its identifier.

    Attributes:
        certain: one is enough.
        paired: it takes two, of different identifiers.
        searched, too_short: identifiers.
    """

    certain: dict[bytes, int]
    paired: dict[bytes, int]
    searched: int
    too_short: int

    @property
    def alphabet(self) -> Alphabet | None:
        """The characters of all texts; None where there is none."""
        texts = [*self.certain, *self.paired]
        if not texts:
            return None
        codes = frozenset[int]().union(*texts)
        upper = frozenset(bytes(codes).upper())
        return Alphabet.of(codes | upper, min(map(len, texts)))


def search(data: memoryview, identifiers: Iterable[str], content: Content) -> Searched:
    """Look for `identifiers` in `data`, forwards and backwards, in upper and lower case.

    Args:
        data: contiguous bytes; tensors begin at multiples of 8, or of their own width.
        identifiers: of the job's patients; each once is enough.
    """
    wanted = choose(frozenset(identifiers), len(data), content)
    alphabet = wanted.alphabet
    found = alphabet is not None and Hunt(wanted.certain, wanted.paired).finds(
        _batches(_spelled(data, alphabet, content))
    )
    return Searched(found=found, searched=wanted.searched, too_short=wanted.too_short)


def choose(identifiers: Collection[str], size: int, content: Content) -> Wanted:
    """Which of them chance would not find in `size` bytes, longest first; each identifier only once."""
    by_bits: dict[int, dict[bytes, int]] = {}
    for number, identifier in enumerate(identifiers):
        for text in texts(identifier):
            by_bits.setdefault(_bits(text, content), {}).setdefault(text, number)
    characters = max(1, 2 * size * (VIEWS if content == "numbers" else 1))  # twice: backwards too
    expected = {bits: characters * len(found) * 2.0**-bits for bits, found in by_bits.items()}
    certain = _least_bits(expected, _FALSE)
    paired = min(certain, _least_bits(expected, math.sqrt(_FALSE)))
    wanted = Wanted({}, {}, 0, 0)
    for bits, found in by_bits.items():
        if bits >= paired:
            (wanted.certain if bits >= certain else wanted.paired).update(found)
    searched = len({*wanted.certain.values(), *wanted.paired.values()})
    return Wanted(wanted.certain, wanted.paired, searched, len(identifiers) - searched)


def texts(identifier: str) -> frozenset[bytes]:
    """How `identifier` may be written, in lower case where that is ASCII; nothing where it is too plain."""
    trimmed = identifier.strip()
    if trimmed.isascii():
        written = {trimmed.encode()}
    else:
        written = {t.encode("utf-8", "surrogatepass") for t in (trimmed, trimmed.lower(), trimmed.upper())}
        if all(ord(character) < 256 for character in trimmed):
            written.add(trimmed.encode("latin-1"))
    # Of longer texts the end is looked for, which is what tells UIDs of one root apart.
    tails = {text.lower()[-LONGEST:] for text in written}
    return frozenset(text for text in tails if 0 not in text and _tells(text))


def _tells(text: bytes) -> bool:
    """Whether some characters are neither what a constant, nor a progression, nor two in turn would give, and
    the whole is no table of indices either: 01122334 is edges of a path, or 00112233 each number twice."""
    if any(_repeats(text, period) for period in (2, 3)):
        return False
    news = 0
    for at, code in enumerate(text):
        before, last = text[at - 2] if at > 1 else -1, text[at - 1] if at else -1
        news += code not in (last, before) and (before < 0 or code != 2 * last - before)
        if news >= _NEWS:
            return True
    return False


def _repeats(text: bytes, period: int) -> bool:
    """Whether every `period` characters the same number is added to each of them."""
    step = text[period] - text[0] if len(text) > period else 0
    return all(later - code == step for code, later in zip(text, text[period:], strict=False))


def _bits(text: bytes, content: Content) -> int:
    """log2 of how rare the text is among characters, rounded down: 7 bits a letter, for its two cases."""
    others = text.translate(None, _DIGITS)
    digits, letters = len(text) - len(others), len(others) - len(others.translate(None, _LETTERS))
    a_digit = math.log2(10) if content == "text" else 8.0
    return math.floor(digits * a_digit + 7 * letters + 8 * (len(text) - digits - letters))


def _least_bits(expected: Mapping[int, float], allowed: float) -> float:
    """The rarity from which on chance finds no more than `allowed`; `expected` is what it finds of each."""
    total, least = 0.0, math.inf
    for bits in sorted(expected, reverse=True):
        total += expected[bits]
        if total > allowed:
            break
        least = bits
    return least


def _spelled(data: memoryview, alphabet: Alphabet, content: Content) -> Iterator[Characters]:
    whole = np.frombuffer(data, dtype=np.uint8)
    for begin in range(0, len(whole), _CHUNK):
        chunk = whole[begin : begin + _CHUNK + _OVERLAP]
        yield spelled(chunk, alphabet) if content == "numbers" else chunk


def _batches(parts: Iterable[Characters]) -> Iterator[Characters]:
    """The parts joined, with bounds on how much is held and how often automata are made."""
    held: list[Characters] = []
    size = 0
    for part in parts:
        if len(part):
            held += [part, np.zeros(1, dtype=np.uint8)]
            size += len(part) + 1
        if size >= _GATHERED:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)
