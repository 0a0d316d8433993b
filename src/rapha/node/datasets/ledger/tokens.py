"""Patients and their records as keyed tokens, and tokens as dense ordinals.

A patient's token is HMAC-SHA256 under the manifest's salt, which outlives rotations of the hospital's key:
the ledger has to know a patient again for as long as the dataset lives. A record is its patient and its rank
among that patient's records, in the order of the source: what is added or taken away of one patient doesn't
rename another's records, as a row number would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

from rapha.node.sources.interface import Array
from rapha.spec.refusals import Refused

WIDTH: Final = 16
"""Bytes of a token: two patients of 10^9 have the same one once in 10^20 datasets."""
_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that ranks below 2^64 give different tokens."""
Tokens = Array
"""uint64 [k, 2]."""


def ledger_id(salt: str, dataset: str) -> str:
    """Which ledger is the dataset's: hex, of its name and salt."""
    keyed = HMAC(bytes.fromhex(salt), hashes.SHA256())
    keyed.update(_frame(b"rapha/v1/ledger-id", dataset.encode()))
    return keyed.finalize().hex()


def tokens_of(salt: str, dataset: str, patients: Iterable[str]) -> Tokens:
    """One token a patient, in order."""
    keyed = HMAC(bytes.fromhex(salt), hashes.SHA256())
    keyed.update(_frame(b"rapha/v1/ledger-token", dataset.encode()))
    digests: list[bytes] = []
    copy, add = keyed.copy, digests.append
    for patient in patients:
        state = copy()
        state.update(patient.encode("utf-8", "surrogatepass"))
        add(state.finalize()[:WIDTH])
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def question(salt: str, dataset: str, *parts: bytes) -> str:
    """Keyed digest of what was asked: hex."""
    keyed = HMAC(bytes.fromhex(salt), hashes.SHA256())
    keyed.update(_frame(b"rapha/v1/ledger-question", dataset.encode(), *parts))
    return keyed.finalize().hex()


def ranks(patient_of: Array) -> Array:
    """Each record's rank among its patient's, int64 [n]. Precondition: no number is negative."""
    order = np.argsort(patient_of, kind="stable")
    sorted_ = patient_of[order]
    starts = np.flatnonzero(np.r_[True, sorted_[1:] != sorted_[:-1]]) if len(sorted_) else order
    lengths = np.diff(np.r_[starts, len(sorted_)])
    found = np.empty(len(patient_of), dtype=np.int64)
    found[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    return found


def of_records(tokens: Tokens, patient_of: Array, rank: Array) -> Tokens:
    """Tokens of records; that of rank 0 is the patient's own."""
    found = tokens[patient_of]  # a copy, by numpy's rule for an array as index
    found[:, 0] += rank.astype(np.uint64) * _STEP
    return found


class Dictionary:
    """Tokens by ordinal; it only ever grows."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self._order = np.argsort(tokens[:, 0])
        self._sorted = tokens[self._order, 0]

    @classmethod
    def read(cls, data: bytes, count: int, sha256: str) -> Dictionary:
        """The first `count` tokens of a file.

        Raises:
            Refused: `node.ledger_invalid` where they aren't those that were written.
        """
        kept = memoryview(data)[: count * WIDTH]
        if len(kept) != count * WIDTH or hashlib.sha256(kept).hexdigest() != sha256:
            raise Refused("node.ledger_invalid", "the file of tokens is not what the ledger says")
        return cls(np.frombuffer(kept, dtype="<u8").reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.tokens)

    def find(self, wanted: Tokens) -> Array:
        """The ordinal of each token, −1 where it has none: int64 [k].

        Raises:
            Refused: `node.internal` where two tokens share their first half: whom they stand for is unsure.
        """
        found = np.full(len(wanted), -1, dtype=np.int64)
        if not len(self) or not len(wanted):
            return found
        # In order of the tokens: a search that jumps about in memory takes five times as long.
        order = np.argsort(wanted[:, 0])
        halves = wanted[order, 0]
        places = np.minimum(np.searchsorted(self._sorted, halves), len(self) - 1)
        here = self._sorted[places] == halves
        ordinals = self._order[places[here]]
        if np.any(self.tokens[ordinals, 1] != wanted[order[here], 1]):
            raise Refused("node.internal", "two tokens of the ledger are too alike")
        found[order[here]] = ordinals
        return found

    def extended(self, wanted: Tokens) -> Dictionary:
        """With the tokens of `wanted` that are new, in an order that tells nothing of the source's.

        Raises:
            Refused: `node.internal`, as `find`.
        """
        new = np.unique(wanted[self.find(wanted) < 0], axis=0)
        if len(np.unique(new[:, 0])) != len(new):
            raise Refused("node.internal", "two tokens of the ledger are too alike")
        return Dictionary(np.concatenate([self.tokens, new])) if len(new) else self

    def dumps(self, start: int = 0) -> bytes:
        """The tokens from ordinal `start` on, as the file holds them."""
        return self.tokens[start:].astype("<u8").tobytes()

    @property
    def sha256(self) -> str:
        """Digest of all tokens."""
        return hashlib.sha256(self.dumps()).hexdigest()


def _frame(*parts: bytes) -> bytes:
    """Length-prefixed parts, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(4) + part for part in parts)
