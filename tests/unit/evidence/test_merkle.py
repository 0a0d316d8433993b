from __future__ import annotations

import hashlib

import pymerkle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.evidence import merkle
from rapha.evidence.merkle import EMPTY_ROOT, Tree
from rapha.spec.refusals import Refused

INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
"""The leaves of the Certificate Transparency reference tests (RFC 6962's trees, which RFC 9162 keeps)."""
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
SIZES = st.integers(1, 70)


def tree_of(count: int) -> Tree:
    tree = Tree()
    for n in range(count):
        tree.append(str(n).encode())
    return tree


def oracle_of(count: int) -> pymerkle.InmemoryTree:
    oracle = pymerkle.InmemoryTree(algorithm="sha256")
    for n in range(count):
        oracle.append_entry(str(n).encode())
    return oracle


def hexes(values: list[bytes]) -> list[str]:
    return [value.hex() for value in values]


def test_the_roots_are_the_published_ones() -> None:
    tree = Tree()
    assert tree.root() == EMPTY_ROOT == hashlib.sha256(b"").digest()
    for n, (data, expected) in enumerate(zip(INPUTS, ROOTS, strict=True)):
        assert tree.append(data) == n
        assert tree.root().hex() == expected
    assert [tree.root(n + 1).hex() for n in range(8)] == ROOTS


def test_the_proofs_are_the_published_ones() -> None:
    tree = Tree()
    for data in INPUTS:
        tree.append(data)
    for (index, size), expected in INCLUSION.items():
        assert hexes(tree.inclusion_proof(index, size)) == expected
    for (first, second), expected in CONSISTENCY.items():
        assert hexes(tree.consistency_proof(first, second)) == expected


@given(SIZES, st.data())
@settings(max_examples=60)
def test_roots_and_inclusion_proofs_agree_with_pymerkle(count: int, data: st.DataObject) -> None:
    tree, oracle = tree_of(count), oracle_of(count)
    size = data.draw(st.integers(1, count))
    index = data.draw(st.integers(0, size - 1))
    assert tree.root(size) == oracle.get_root(size)
    proof = tree.inclusion_proof(index, size)
    theirs = oracle.prove_inclusion(index + 1, size)
    assert hexes(proof) == theirs.serialize()["path"][1:]
    merkle.verify_inclusion(tree.node(0, index), index, size, proof, tree.root(size))


@given(SIZES, st.data())
@settings(max_examples=60)
def test_every_earlier_tree_is_shown_to_be_a_beginning(count: int, data: st.DataObject) -> None:
    tree, oracle = tree_of(count), oracle_of(count)
    first = data.draw(st.integers(1, count))
    proof = tree.consistency_proof(first, count)
    merkle.verify_consistency(first, oracle.get_root(first), count, oracle.get_root(count), proof)


@given(SIZES, st.data())
@settings(max_examples=100)
def test_an_inclusion_proof_shows_nothing_else(count: int, data: st.DataObject) -> None:
    tree = tree_of(count)
    index = data.draw(st.integers(0, count - 1))
    proof = tree.inclusion_proof(index)
    leaf, root = tree.node(0, index), tree.root()
    other = data.draw(st.integers(0, count + 2).filter(lambda n: n != index))
    wrong = [
        (merkle.leaf_hash(b"other"), index, count, proof),
        (leaf, other, count, proof),
        (leaf, index, count, [*proof, root]),
        (leaf, index, count, proof[:-1] if proof else [leaf]),
        *((leaf, index, count, _flipped(proof, n)) for n in range(len(proof))),
    ]
    for bad_leaf, at, size, path in wrong:
        with pytest.raises(Refused, match=r"policy\.log_invalid"):
            merkle.verify_inclusion(bad_leaf, at, size, path, root)


@given(SIZES, st.data())
@settings(max_examples=100)
def test_a_consistency_proof_shows_nothing_else(count: int, data: st.DataObject) -> None:
    tree = tree_of(count)
    first = data.draw(st.integers(1, count))
    proof = tree.consistency_proof(first)
    old, new = tree.root(first), tree.root()
    fork = merkle.leaf_hash(b"fork")
    wrong = [
        (first, fork, count, new, proof),
        (first, old, count, fork, proof),
        (first, old, count, new, [*proof, new]),
        (count + 1, old, count, new, proof),
        *((first, old, count, new, _flipped(proof, n)) for n in range(len(proof))),
    ]
    if proof:
        wrong.append((first, old, count, new, proof[:-1]))
    for a, old_root, b, new_root, path in wrong:
        with pytest.raises(Refused, match=r"policy\.log_invalid"):
            merkle.verify_consistency(a, old_root, b, new_root, path)


def _flipped(proof: list[bytes], at: int) -> list[bytes]:
    changed = bytes([proof[at][0] ^ 1]) + proof[at][1:]
    return [*proof[:at], changed, *proof[at + 1 :]]


def test_every_tree_extends_the_empty_one() -> None:
    root = tree_of(3).root()
    merkle.verify_consistency(0, EMPTY_ROOT, 3, root, [])
    merkle.verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    bad: list[tuple[bytes, int, bytes, list[bytes]]] = [
        (root, 3, root, []),
        (EMPTY_ROOT, 0, root, []),
        (EMPTY_ROOT, 3, root, [root]),
    ]
    for old, second, new, proof in bad:
        with pytest.raises(Refused, match=r"policy\.log_invalid"):
            merkle.verify_consistency(0, old, second, new, proof)


@pytest.mark.parametrize(
    ("index", "size", "proof"),
    [(-1, 1, []), (0, 0, []), (0, -1, []), (0, 2**53, [b"x" * 32] * 53), (0, 2, [b"short"])],
)
def test_impossible_positions_are_refused(index: int, size: int, proof: list[bytes]) -> None:
    leaf = merkle.leaf_hash(b"")
    with pytest.raises(Refused, match=r"policy\.log_invalid"):
        merkle.verify_inclusion(leaf, index, size, proof, leaf)


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0), (0, 4), (0, -1)])
def test_no_inclusion_proof_outside_the_tree(index: int, size: int) -> None:
    with pytest.raises(Refused, match=r"schema\.field_invalid"):
        tree_of(3).inclusion_proof(index, size)


@pytest.mark.parametrize(("first", "second"), [(0, 3), (3, 2), (1, 4), (-1, 2)])
def test_no_consistency_proof_outside_the_tree(first: int, second: int) -> None:
    with pytest.raises(Refused, match=r"schema\.field_invalid"):
        tree_of(3).consistency_proof(first, second)


def test_a_leaf_is_never_taken_for_a_node() -> None:
    left, right = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    assert merkle.node_hash(left, right) != merkle.leaf_hash(left + right)
