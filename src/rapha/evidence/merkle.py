"""The Merkle tree of RFC 9162 (section 2.1) with SHA-256: roots, inclusion and consistency proofs.

Proofs are made from the hashes of complete subtrees, so a log of n leaves answers in O(log n) reads;
`Nodes` is where they come from. Verification is strict: a proof has exactly the length that index and
sizes demand, and every hash 32 bytes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from rapha.spec.refusals import Refused

HASH_BYTES: Final = 32
MAX_SIZE: Final = 2**53 - 1
"""Sizes are JSON integers."""
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


class Nodes(Protocol):
    """Hashes of complete subtrees."""

    def node(self, level: int, index: int) -> bytes:
        """Hash over the 2**level leaves from `index << level`, all of which are in the tree."""
        ...


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 ‖ data), RFC 9162 section 2.1.1."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right), RFC 9162 section 2.1.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def completed(index: int, leaf: bytes, nodes: Nodes) -> Iterator[tuple[int, int, bytes]]:
    """The complete subtrees that appending the leaf hash `leaf` at `index` adds: (level, index, hash).

    The leaf itself is first, as level 0; each parent follows when the leaf is its last.
    """
    level, current = 0, leaf
    yield level, index, current
    while index & 1:
        current = node_hash(nodes.node(level, index - 1), current)
        level, index = level + 1, index >> 1
        yield level, index, current


def root(nodes: Nodes, size: int) -> bytes:
    """MTH over the first `size` leaves."""
    return _range(nodes, 0, size) if size else EMPTY_ROOT


def inclusion_proof(nodes: Nodes, index: int, size: int) -> list[bytes]:
    """PATH(index, D[size]), RFC 9162 section 2.1.3.1.

    Raises:
        Refused: `schema.field_invalid` unless 0 <= index < size.
    """
    if not 0 <= index < size:
        raise Refused("schema.field_invalid", f"no leaf {index} in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        split = start + _split(end - start)
        if index < split:
            path.append(_range(nodes, split, end))
            end = split
        else:
            path.append(_range(nodes, start, split))
            start = split
    return path[::-1]


def consistency_proof(nodes: Nodes, first: int, second: int) -> list[bytes]:
    """PROOF(first, D[second]), RFC 9162 section 2.1.4.1.

    Raises:
        Refused: `schema.field_invalid` unless 0 < first <= second.
    """
    if not 0 < first <= second:
        raise Refused("schema.field_invalid", f"no consistency proof from size {first} to {second}")
    path: list[bytes] = []
    start, end, whole = 0, second, True
    while first < end:
        split = start + _split(end - start)
        if first <= split:
            path.append(_range(nodes, split, end))
            end = split
        else:
            path.append(_range(nodes, start, split))
            start, whole = split, False
    return ([] if whole else [_range(nodes, start, end)]) + path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes) -> None:
    """Check that the leaf hash `leaf` is at `index` of the tree of `size` leaves with root `expected`.

    RFC 9162 section 2.1.3.2.

    Raises:
        Refused: `policy.log_invalid`.
    """
    _check_shape(size, [leaf, expected, *proof])
    if not 0 <= index < size:
        raise Refused("policy.log_invalid", f"no leaf {index} in a tree of {size}")
    inner = (index ^ (size - 1)).bit_length()
    if len(proof) != inner + (index >> inner).bit_count():
        raise Refused("policy.log_invalid", f"an inclusion proof of {len(proof)} hashes has another length")
    current = leaf
    for level, sibling in enumerate(proof[:inner]):
        right = (index >> level) & 1
        current = node_hash(sibling, current) if right else node_hash(current, sibling)
    for sibling in proof[inner:]:
        current = node_hash(sibling, current)
    _check_root(current, expected, "inclusion")


def verify_consistency(
    first: int, first_root: bytes, second: int, second_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree of `second` leaves extends the one of `first`. RFC 9162 section 2.1.4.2.

    Every tree extends the empty one, whose root is `EMPTY_ROOT`, by an empty proof.

    Raises:
        Refused: `policy.log_invalid`.
    """
    _check_shape(first, [first_root])
    _check_shape(second, [second_root, *proof])
    if first > second:
        raise Refused("policy.log_invalid", f"the log shrank from {first} to {second}")
    if first in (0, second):
        if proof:
            raise Refused("policy.log_invalid", "a consistency proof here is empty")
        _check_root(first_root, second_root if first else EMPTY_ROOT, "consistency")
        if second == 0:
            _check_root(second_root, EMPTY_ROOT, "consistency")
        return
    _climb(first, first_root, second, second_root, proof)


def _climb(first: int, first_root: bytes, second: int, second_root: bytes, proof: Sequence[bytes]) -> None:
    path = list(proof) if first & (first - 1) else [first_root, *proof]  # step 2: a power of two
    trailing = (first & -first).bit_length() - 1
    node, last = (first - 1) >> trailing, (second - 1) >> trailing
    if not path:
        raise Refused("policy.log_invalid", "the consistency proof is empty")
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise Refused("policy.log_invalid", "the consistency proof is too long")
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise Refused("policy.log_invalid", "the consistency proof is too short")
    _check_root(old, first_root, "consistency")
    _check_root(new, second_root, "consistency")


class Tree:
    """A tree in memory: append leaf data, ask for roots and proofs of this or any earlier size."""

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, data: bytes) -> int:
        """Add the leaf `data`; return its index."""
        return self.append_hash(leaf_hash(data))

    def append_hash(self, leaf: bytes) -> int:
        """Add a leaf by its hash; return its index."""
        at = len(self)
        for level, _, value in completed(at, leaf, self):
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(value)
        return at

    def node(self, level: int, index: int) -> bytes:
        """`Nodes.node`. Raises `IndexError` where the subtree isn't complete."""
        return self._levels[level][index]

    def root(self, size: int | None = None) -> bytes:
        """MTH over the first `size` leaves (all, by default)."""
        return root(self, self._sized(size))

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """See `inclusion_proof`."""
        return inclusion_proof(self, index, self._sized(size))

    def consistency_proof(self, first: int, second: int | None = None) -> list[bytes]:
        """See `consistency_proof`."""
        return consistency_proof(self, first, self._sized(second))

    def _sized(self, size: int | None) -> int:
        wanted = len(self) if size is None else size
        if not 0 <= wanted <= len(self):
            raise Refused("schema.field_invalid", f"the tree has {len(self)} leaves, not {wanted}")
        return wanted


def _split(count: int) -> int:
    """The largest power of two smaller than `count` (RFC 9162's k)."""
    return 1 << ((count - 1).bit_length() - 1)


def _range(nodes: Nodes, start: int, end: int) -> bytes:
    """MTH over leaves [start, end) of a range that RFC 9162's splits produce, so it is aligned."""
    count = end - start
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return nodes.node(level, start >> level)
    split = start + _split(count)
    return node_hash(_range(nodes, start, split), _range(nodes, split, end))


def _check_shape(size: int, hashes: Sequence[bytes]) -> None:
    if not 0 <= size <= MAX_SIZE:
        raise Refused("policy.log_invalid", f"{size} is not the size of a log")
    if any(len(value) != HASH_BYTES for value in hashes):
        raise Refused("policy.log_invalid", "a hash does not have 32 bytes")


def _check_root(found: bytes, expected: bytes, proof: str) -> None:
    if not hmac.compare_digest(found, expected):
        raise Refused("policy.log_invalid", f"the {proof} proof leads to another root")
