"""Looks for texts in characters, and asks of what it found whether the characters alone explain it.

How rare a text is among all bytes is known beforehand. What isn't known is what a file is made of: int8
weights near one another, or a table of ages, are digits and nothing else, and spell eight-digit numbers all
the time. So a hit counts against its own surroundings. Of the characters that were read, less what was found,
each is drawn by its share; if that gives so many hits more often than `_LIKELY`, they are no evidence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

import numpy as np
from ahocorasick_rs import BytesAhoCorasick
from numpy.typing import NDArray

from rapha.node.datasets.characters import Characters

LONGEST: Final = 64
"""Bytes of a text, at most."""
_LIKELY: Final = 1e-3
"""What a file's own characters may give, of files that are full of them: others have nothing to give."""
_SPARED: Final = 16
"""Identifiers that are taken out before the rest is counted as surroundings. Where more were found, all of
them as surroundings explain but few."""
_PLENTY: Final = 100
"""Identifiers: with so many, the rest of a file need not be read before its surroundings are known."""
_KNOWN: Final = 2**16
"""Runs that are counted once however often they recur: the same record a thousand times explains nothing."""
_CHUNK: Final = 2**20
_BLOCK: Final = 2**20
"""Bytes of texts in one automaton, which takes about a hundred times as much memory."""


class Hunt:
    """Looks for texts, each with the number of its identifier, in one batch of characters after another.

    Args:
        certain: one is enough.
        paired: it takes two, of different identifiers, in different places.
    """

    def __init__(self, certain: Mapping[bytes, int], paired: Mapping[bytes, int]) -> None:
        self._certain = certain
        self._paired = paired
        self._found: tuple[set[int], set[int]] = (set(), set())
        self._spared: set[int] = set()
        self._around = Surroundings()

    def finds(self, batches: Iterable[Characters]) -> bool:
        """Whether they spell identifiers that neither chance nor their own characters explain."""
        for batch in batches:
            self._look(batch)
            if len(self._found[0] | self._found[1]) >= _PLENTY and self._tells():
                return True
        return self._tells()

    def _tells(self) -> bool:
        certain, paired = self._found
        if certain and self._around.unlikely(len(certain), [self._certain]):
            return True
        both = len(certain | paired)
        return both > 1 and self._around.unlikely(both, [self._certain, self._paired])

    def _look(self, batch: Characters) -> None:
        forwards = batch.tobytes().lower()
        taken, rest = bytearray(len(forwards)), bytearray(forwards)
        ways = (forwards, forwards[::-1])
        # Longer ones first: what lies inside one of them is no second.
        for texts, found in zip((self._certain, self._paired), self._found, strict=True):
            for number, begin, end in _places(texts, ways):
                # One place may well hold two, one inside the other.
                if number not in found and not any(taken[begin:end]):
                    found.add(number)
                    taken[begin:end] = b"\x01" * (end - begin)
                    if len(self._spared) < _SPARED:
                        self._spared.add(number)
                if number in self._spared:
                    rest[begin:end] = bytes(end - begin)
        self._around.add(rest)


class Surroundings:
    """The characters that a file spells, and how often texts are found among as many, drawn by chance."""

    def __init__(self) -> None:
        self._counts = np.zeros(256, dtype=np.int64)
        self._runs: Counter[int] = Counter()
        self._known: set[int] = set()

    def add(self, characters: bytearray) -> None:
        """Count runs of characters, which zeros part."""
        begin = 0
        while begin < len(characters):
            end = characters.find(0, begin + _CHUNK)
            piece = bytes(characters[begin : end if end >= 0 else None])
            begin += len(piece) + 1
            new = {hash(run): run for run in piece.split(b"\x00") if run}
            for known in new.keys() & self._known:
                del new[known]
            self._known.update(islice(new, _KNOWN - len(self._known)))
            self._runs.update(map(len, new.values()))
            self._counts += _counted(b"".join(new.values()))

    def unlikely(self, hits: int, texts: Iterable[Mapping[bytes, int]]) -> bool:
        """Whether chance finds so many of `texts` in fewer than `_LIKELY` of such files."""
        expected = self._expected([block for some in texts for block in _blocks(some)])
        if expected == 0:
            return True
        log = math.log(expected)
        fewer = math.fsum(math.exp(n * log - expected - math.lgamma(n + 1)) for n in range(hits))
        return 1 - fewer <= _LIKELY

    def _expected(self, blocks: list[list[bytes]]) -> float:
        """Hits that are expected, forwards and backwards."""
        places = np.array([self._places(size) for size in range(LONGEST + 1)], dtype=np.float64)
        if not places[1:].any():
            return 0.0
        alphabet = list(frozenset[int]().union(*(b"".join(block) for block in blocks)))
        counts = np.zeros(256)
        counts[alphabet] = self._counts[alphabet] + 1.0  # what did not occur yet still may
        with np.errstate(divide="ignore"):
            shares = np.log(counts / counts.sum())
        return math.fsum(2 * _found_by_chance(block, places, shares) for block in blocks)

    def _places(self, size: int) -> int:
        """Where a text of `size` characters could begin."""
        return sum(count * (run - size + 1) for run, count in self._runs.items() if run >= size)


def _counted(characters: bytes) -> NDArray[np.int64]:
    """How often each of them occurs, in pieces: numpy makes eight bytes of each."""
    whole = np.frombuffer(characters, dtype=np.uint8)
    counts = np.zeros(256, dtype=np.int64)
    for begin in range(0, len(whole), _CHUNK):
        counts += np.bincount(whole[begin : begin + _CHUNK], minlength=256)
    return counts


def _found_by_chance(block: list[bytes], places: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    sizes = np.array([len(text) for text in block])
    logs = shares[np.frombuffer(b"".join(block), dtype=np.uint8)]
    each = np.add.reduceat(logs, np.cumsum(sizes) - sizes)
    return float((places[sizes] * np.exp(each)).sum())


def _places(texts: Mapping[bytes, int], ways: tuple[bytes, bytes]) -> Iterator[tuple[int, int, int]]:
    """Whose text, where from and where to, as places of the first way."""
    size = len(ways[0])
    for block in _blocks(texts):
        automaton = BytesAhoCorasick(block)
        for backwards, way in enumerate(ways):
            for which, begin, end in _matches(automaton, way):
                place = (size - end, size - begin) if backwards else (begin, end)
                yield texts[block[which]], *place


def _blocks(texts: Mapping[bytes, int]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _matches(automaton: BytesAhoCorasick, characters: bytes) -> Iterator[tuple[int, int, int]]:
    """Which text, where from and where to; in pieces, so that a file full of hits makes no long list."""
    view = memoryview(characters)
    for begin in range(0, len(view), _CHUNK):
        piece = view[begin : begin + _CHUNK + LONGEST]
        for which, first, last in automaton.find_matches_as_indexes(piece):
            yield which, begin + first, begin + last
