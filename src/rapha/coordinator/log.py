"""The transparency log: leaves, complete subtrees and checkpoints in the coordinator's own store.

A leaf and the checkpoint over it are written in the transaction of whoever appends, so that neither is
ever acknowledged without the other. Opening recomputes the whole tree and compares it with what was
signed last: a store that doesn't lead to its own checkpoint is not served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select

from rapha.coordinator.database import Database
from rapha.coordinator.schema import log_checkpoints, log_nodes
from rapha.evidence import checkpoint, merkle
from rapha.evidence.checkpoint import Checkpoint
from rapha.evidence.keys import SigningKey
from rapha.spec.refusals import Refused

MAX_LEAVES: int = 1000
"""Most leaves that one call returns."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a leaf is, under the checkpoint that was signed when it came in."""

    checkpoint: str
    index: int
    size: int
    proof: tuple[str, ...]

    def dump(self) -> dict[str, Any]:
        """As in a bundle's `log` section."""
        return {
            "checkpoint": self.checkpoint,
            "index": self.index,
            "size": self.size,
            "proof": list(self.proof),
        }


class _Stored:
    """`merkle.Nodes` over one transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def node(self, level: int, index: int) -> bytes:
        query = select(log_nodes.c.hash).where(log_nodes.c.level == level, log_nodes.c.at == index)
        return bytes(self._db.execute(query).scalar_one())


class Log:
    """One log. Every method takes the caller's transaction; appending needs a write transaction."""

    def __init__(self, origin: str, key: SigningKey) -> None:
        self._origin = origin
        self._key = key

    def append(self, db: Connection, leaf_data: bytes) -> int:
        """Add a leaf and sign the checkpoint over it; return the leaf's index."""
        index = size(db)
        nodes = _Stored(db)
        for level, at, value in merkle.completed(index, merkle.leaf_hash(leaf_data), nodes):
            db.execute(insert(log_nodes).values(level=level, at=at, hash=value))
        head = Checkpoint(self._origin, index + 1, merkle.root(nodes, index + 1))
        note = checkpoint.sign(head, self._key)
        db.execute(insert(log_checkpoints).values(leaf=index, level=0, note=note))
        return index

    def latest(self, db: Connection) -> str:
        """The newest checkpoint; an empty log's is signed on demand."""
        at = size(db)
        if at:
            return _note(db, at - 1)
        return checkpoint.sign(Checkpoint(self._origin, 0, merkle.EMPTY_ROOT), self._key)

    def verify_store(self, database: Database) -> int:
        """Recompute the tree and compare it with every stored subtree and the last checkpoint.

        Returns:
            The number of leaves.

        Raises:
            Refused: `policy.log_invalid` if the store was altered or is not this log's.
        """
        tree = merkle.Tree()
        with database.read() as db:
            expected: list[tuple[int, int, bytes]] = []
            query = select(log_nodes.c.level, log_nodes.c.at, log_nodes.c.hash).order_by(log_nodes.c.n)
            for level, at, value in db.execute(query):
                if not expected and level == 0 and at == len(tree):
                    expected = [*merkle.completed(at, bytes(value), tree)][::-1]
                    tree.append_hash(bytes(value))
                if not expected or expected.pop() != (level, at, bytes(value)):
                    raise Refused("policy.log_invalid", f"the stored log is altered at leaf {len(tree)}")
            signed = db.execute(select(func.count()).select_from(log_checkpoints)).scalar_one()
            head = checkpoint.verify(self.latest(db), origin=self._origin, key=self._key.verify_key)
        if expected or signed != len(tree) or head != Checkpoint(self._origin, len(tree), tree.root()):
            raise Refused("policy.log_invalid", "the stored log does not lead to its last checkpoint")
        return len(tree)


def size(db: Connection) -> int:
    """Number of leaves."""
    query = select(func.max(log_nodes.c.at)).where(log_nodes.c.level == 0)
    last = db.execute(query).scalar_one()
    return 0 if last is None else last + 1


def position(db: Connection, index: int) -> Position:
    """Where leaf `index` is, with its proof under the checkpoint that was signed over it."""
    proof = merkle.inclusion_proof(_Stored(db), index, index + 1)
    return Position(_note(db, index), index, index + 1, tuple(h.hex() for h in proof))


def inclusion(db: Connection, index: int, at_size: int) -> list[str]:
    """Hex inclusion proof. Raises `Refused` (`schema.field_invalid`) outside the log."""
    _within(db, at_size)
    return [h.hex() for h in merkle.inclusion_proof(_Stored(db), index, at_size)]


def consistency(db: Connection, first: int, second: int) -> list[str]:
    """Hex consistency proof. Raises `Refused` (`schema.field_invalid`) outside the log."""
    _within(db, second)
    return [h.hex() for h in merkle.consistency_proof(_Stored(db), first, second)]


def leaves(db: Connection, start: int, end: int) -> list[str]:
    """Hex leaf hashes of [start, end), at most `MAX_LEAVES`.

    Raises:
        Refused: `schema.field_invalid` outside the log.
    """
    _within(db, end)
    if not 0 <= start <= end or end - start > MAX_LEAVES:
        raise Refused("schema.field_invalid", f"ask for 0 to {MAX_LEAVES} leaves, start <= end")
    query = (
        select(log_nodes.c.hash)
        .where(log_nodes.c.level == 0, log_nodes.c.at >= start, log_nodes.c.at < end)
        .order_by(log_nodes.c.at)
    )
    return [bytes(value).hex() for value in db.execute(query).scalars()]


def _within(db: Connection, wanted: int) -> None:
    found = size(db)
    if wanted > found:
        raise Refused("schema.field_invalid", f"the log has {found} leaves, not {wanted}")


def _note(db: Connection, leaf: int) -> str:
    query = select(log_checkpoints.c.note).where(log_checkpoints.c.leaf == leaf)
    note = db.execute(query).scalar_one_or_none()
    if note is None:
        raise Refused("policy.log_invalid", f"the stored log has no checkpoint over leaf {leaf}")
    return str(note)
