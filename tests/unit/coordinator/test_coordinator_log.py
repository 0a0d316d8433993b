"""The durable log: proofs as the in-memory tree gives them, and a store that was tampered with."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rapha.coordinator import log
from rapha.coordinator.database import Database
from rapha.coordinator.log import Log
from rapha.evidence import checkpoint, merkle
from rapha.evidence.keys import SigningKey
from rapha.evidence.merkle import Tree
from rapha.spec.refusals import Refused

KEY = SigningKey.generate()
ORIGIN = "log.example/rapha"
COUNT = 13


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    database = Database.create(tmp_path / "store.db")
    with database.write() as db:
        for n in range(COUNT):
            assert Log(ORIGIN, KEY).append(db, bytes([n])) == n
    yield database
    database.close()


def tree() -> Tree:
    made = Tree()
    for n in range(COUNT):
        made.append(bytes([n]))
    return made


def test_every_proof_and_checkpoint_is_the_trees(store: Database) -> None:
    expected = tree()
    with store.read() as db:
        assert log.size(db) == COUNT
        for index in range(COUNT):
            place = log.position(db, index)
            head = checkpoint.verify(place.checkpoint, origin=ORIGIN, key=KEY.verify_key)
            assert (head.size, head.root) == (index + 1, expected.root(index + 1))
            proof = [bytes.fromhex(h) for h in place.proof]
            merkle.verify_inclusion(expected.node(0, index), index, place.size, proof, head.root)
            assert log.inclusion(db, index, COUNT) == [h.hex() for h in expected.inclusion_proof(index)]
            found = log.consistency(db, index + 1, COUNT)
            assert found == [h.hex() for h in expected.consistency_proof(index + 1)]
        assert log.leaves(db, 3, 6) == [expected.node(0, n).hex() for n in (3, 4, 5)]
        assert log.leaves(db, 0, 0) == []


def test_positions_outside_the_log_are_refused(store: Database) -> None:
    with store.read() as db:
        calls: list[Callable[[], object]] = [
            lambda: log.inclusion(db, 0, COUNT + 1),
            lambda: log.inclusion(db, COUNT, COUNT),
            lambda: log.consistency(db, 0, COUNT),
            lambda: log.consistency(db, 1, COUNT + 1),
            lambda: log.leaves(db, 0, COUNT + 1),
            lambda: log.leaves(db, 3, 2),
        ]
        for call in calls:
            with pytest.raises(Refused, match=r"schema\.field_invalid"):
                call()


def test_a_whole_store_is_served_and_an_empty_one_too(store: Database, tmp_path: Path) -> None:
    assert Log(ORIGIN, KEY).verify_store(store) == COUNT
    empty = Database.create(tmp_path / "empty.db")
    try:
        assert Log(ORIGIN, KEY).verify_store(empty) == 0
        with empty.read() as db:
            note = Log(ORIGIN, KEY).latest(db)
        assert checkpoint.verify(note, origin=ORIGIN, key=KEY.verify_key).size == 0
    finally:
        empty.close()


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE log_nodes SET hash = zeroblob(32) WHERE level = 0 AND at = 5",
        "UPDATE log_nodes SET hash = zeroblob(32) WHERE level = 2 AND at = 1",
        "DELETE FROM log_nodes WHERE level = 0 AND at = 12",
        "DELETE FROM log_nodes WHERE level = 3",
        "INSERT INTO log_nodes (level, at, hash) VALUES (0, 13, zeroblob(32))",
        "INSERT INTO log_nodes (level, at, hash) VALUES (9, 0, zeroblob(32))",
        "DELETE FROM log_checkpoints WHERE leaf = 12",
        "DELETE FROM log_checkpoints WHERE leaf = 3",
        "UPDATE log_checkpoints SET note = replace(note, char(10) || '13', char(10) || '12') WHERE leaf = 12",
    ],
)
def test_a_store_that_was_changed_is_not_served(store: Database, tampering: str) -> None:
    with closing(sqlite3.connect(store.path, isolation_level=None)) as intruder:
        assert intruder.execute(tampering).rowcount == 1
    with pytest.raises(Refused, match=r"policy\.log_invalid"):
        Log(ORIGIN, KEY).verify_store(store)


def test_a_store_of_another_log_or_key_is_not_served(store: Database) -> None:
    for other in (Log("other.example", KEY), Log(ORIGIN, SigningKey.generate())):
        with pytest.raises(Refused, match=r"policy\.log_invalid"):
            other.verify_store(store)


def test_an_append_that_is_rolled_back_leaves_nothing(store: Database) -> None:
    with pytest.raises(RuntimeError), store.write() as db:
        Log(ORIGIN, KEY).append(db, b"lost")
        raise RuntimeError
    assert Log(ORIGIN, KEY).verify_store(store) == COUNT
