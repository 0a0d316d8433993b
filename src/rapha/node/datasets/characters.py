"""From released bytes to the characters that they may spell, whatever kind of number carries them.

A tensor can hold a text as bytes, as UTF-16 or UTF-32, or one character an element in any dtype that is
released, as its code or as a share of the largest code; and bytes can be hex or base64 of it. Each of those
is a view of the same bytes. Instead of spelling every identifier in every way, each view is read as
characters and the identifiers are looked for in those: weights spell next to nothing, so little is left to
search, however many patients there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Characters = NDArray[np.uint8]
"""One character an element; 0 is none."""
Mask = NDArray[np.bool_]
SCALES: Final = (1, 127, 128, 255, 256)
"""What codes may have been divided by."""
WIDEST: Final = 8
"""Bytes of the widest element; chunks begin at multiples of it, as released tensors do."""
VIEWS: Final = 18
"""At most so many characters a byte are read, over all views: 1 of bytes, 2 of each of three widths, 2.5 of
each half-width float, 1.25 of float32, 1 of hex and 3 of base64."""
_EMPTY: Final = np.zeros(0, dtype=np.uint8)
_HALVES: Final[tuple[np.dtype[Any], ...]] = (np.dtype(ml_dtypes.bfloat16), np.dtype("<f2"))
_NO_DIGIT: Final = 255


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The characters that count, and how many in a row.

    Attributes:
        allowed: bool [256].
        least: the shortest run that is kept.
        halves: for bfloat16 and float16 and each scale, the character of each of the 2^16 values, uint8
            [2, scales, 65536].
        spelling: for each of them, whether it is one at any scale, bool [2, 65536].
    """

    allowed: Mask
    least: int
    halves: NDArray[np.uint8]
    spelling: Mask

    @classmethod
    def of(cls, codes: frozenset[int], least: int) -> Alphabet:
        """The alphabet of `codes`, each from 1 to 255."""
        allowed = np.zeros(256, dtype=np.bool_)
        listed = np.array(sorted(codes), dtype=np.uint8)
        allowed[listed] = True
        halves = np.zeros((len(_HALVES), len(SCALES), 2**16), dtype=np.uint8)
        for table, dtype in zip(halves, _HALVES, strict=True):
            for row, scale in zip(table, SCALES, strict=True):
                row[(listed.astype(np.float32) / np.float32(scale)).astype(dtype).view(np.uint16)] = listed
        return cls(allowed, least, halves, np.asarray(halves.any(axis=1)))


def spelled(chunk: Characters, alphabet: Alphabet) -> Characters:
    """All runs of the alphabet's characters in any view of `chunk`, each behind a 0."""
    views = (_plain, _wide, _halves, _floats, _hexadecimal, _base64)
    found = [runs for view in views for runs in view(chunk, alphabet) if len(runs)]
    return np.concatenate(found) if found else _EMPTY


def _plain(chunk: Characters, alphabet: Alphabet) -> Iterator[Characters]:
    yield _runs(chunk, alphabet.allowed[chunk], alphabet.least)


def _wide(chunk: Characters, alphabet: Alphabet) -> Iterator[Characters]:
    """One character in 2, 4 or 8 bytes of either order: UTF-16 and UTF-32 of Latin-1, and integers."""
    for width in (2, 4, 8):
        for phase in range(width):
            values = _whole(chunk[phase:], width)
            one, top = values.dtype.type(1), values.dtype.type(8 * (width - 1))
            # 0 - 1 wraps round to the largest value, so zeros are no characters.
            yield _read(values, values - one < 255, values.dtype.type(0), alphabet)
            yield _read(values, (values & ((one << top) - one) == 0) & (values != 0), top, alphabet)


def _whole(chunk: Characters, width: int) -> NDArray[Any]:
    return chunk[: len(chunk) // width * width].view(f"<u{width}")


def _read(values: NDArray[Any], candidates: Mask, shift: Any, alphabet: Alphabet) -> Characters:
    # Few runs of weights pass this, so that the characters of most need not be looked at.
    if not _eroded(candidates, alphabet.least).any():
        return _EMPTY
    characters = (values >> shift).astype(np.uint8)
    return _runs(characters, candidates & alphabet.allowed[characters], alphabet.least)


def _halves(chunk: Characters, alphabet: Alphabet) -> Iterator[Characters]:
    values = _whole(chunk, 2)
    for tables, spelling in zip(alphabet.halves, alphabet.spelling, strict=True):
        if _eroded(spelling[values], alphabet.least).any():
            for table in tables:
                characters = table[values]
                yield _runs(characters, characters != 0, alphabet.least)


def _floats(chunk: Characters, alphabet: Alphabet) -> Iterator[Characters]:
    values = _whole(chunk, 4).view("<f4")
    for scale in map(np.float32, SCALES):
        with np.errstate(all="ignore"):  # whatever the bytes are, here they are read as float32
            codes = np.rint(values * scale)
            candidates = (codes / scale == values) & (codes > 0) & (codes < 256)
            if _eroded(candidates, alphabet.least).any():
                characters = np.where(candidates, codes, np.float32(0)).astype(np.uint8)
                yield _runs(characters, alphabet.allowed[characters], alphabet.least)


def _hexadecimal(chunk: Characters, alphabet: Alphabet) -> Iterator[Characters]:
    nibbles = _digits(_HEX, chunk, 2 * alphabet.least)
    for phase in range(2):
        pairs = nibbles[phase : phase + (len(nibbles) - phase) // 2 * 2].reshape(-1, 2)
        characters = np.where((pairs != _NO_DIGIT).all(axis=1), pairs[:, 0] << 4 | pairs[:, 1] & 15, 0)
        yield _runs(characters, alphabet.allowed[characters], alphabet.least)


def _base64(chunk: Characters, alphabet: Alphabet) -> Iterator[Characters]:
    """Both alphabets of RFC 4648, at every alignment of the text and of the digits."""
    # A text that begins inside a group of three bytes shares its first and last digit with its neighbours.
    sixes = _digits(_BASE64, chunk, (8 * alphabet.least + 5) // 6)
    if not len(sixes):
        return
    sixes = np.concatenate([sixes, np.full(3, _NO_DIGIT, dtype=np.uint8)])  # the last group may be short
    for phase in range(4):
        fours = sixes[phase : phase + (len(sixes) - phase) // 4 * 4].reshape(-1, 4)
        known = fours != _NO_DIGIT
        fours = np.where(known, fours, 0)
        bytes_ = np.stack(
            [
                fours[:, 0] << 2 | fours[:, 1] >> 4,
                fours[:, 1] << 4 | fours[:, 2] >> 2,
                fours[:, 2] << 6 | fours[:, 3],
            ],
            axis=1,
        )
        characters = np.where(known[:, :3] & known[:, 1:], bytes_, 0).reshape(-1)
        yield _runs(characters, alphabet.allowed[characters], alphabet.least)


def _digits(table: Characters, chunk: Characters, least: int) -> Characters:
    """Values of the digits in runs of `least`; 255 parts them."""
    digits = table[chunk]
    runs = _runs(digits + np.uint8(1), digits != _NO_DIGIT, least)  # 0 parts runs, so digits are moved by one
    return runs - np.uint8(1)


def _runs(characters: Characters, mask: Mask, least: int) -> Characters:
    """The runs of at least `least` characters where `mask` is true, each behind a 0."""
    starts = np.flatnonzero(_eroded(mask, least))
    if not len(starts):
        return _EMPTY
    change = np.zeros(len(mask) + 1, dtype=np.int32)
    change[starts] = 1
    change[starts + least] -= 1
    covered = np.cumsum(change) > 0
    # A place in front of each run parts it from the last; what is there is masked, or the run were longer.
    kept = covered.copy()
    kept[1:] |= covered[:-1]
    parted = np.concatenate([np.zeros(1, dtype=np.uint8), np.where(mask, characters, 0).astype(np.uint8)])
    return parted[kept]


def _eroded(mask: Mask, length: int) -> Mask:
    """Where a run of `length` begins, bool [n - length + 1]."""
    done, runs = 1, mask
    while done < length and len(runs):
        step = min(done, length - done)
        runs = runs[:-step] & runs[step:]
        done += step
    return runs


def _table(*alphabets: bytes) -> Characters:
    table = np.full(256, _NO_DIGIT, dtype=np.uint8)
    for alphabet in alphabets:
        table[np.frombuffer(alphabet, dtype=np.uint8)] = np.arange(len(alphabet))
    return table


_LETTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BASIC: Final = _LETTERS + _LETTERS.lower() + b"0123456789"
_BASE64: Final = _table(_BASIC + b"+/", _BASIC + b"-_")
_HEX: Final = _table(b"0123456789abcdef", b"0123456789ABCDEF")
