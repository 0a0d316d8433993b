"""What the operator does on the coordinator's own store, whether or not it is being served."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rapha.coordinator import accounts, database
from rapha.coordinator.config import Work
from rapha.coordinator.database import Database, WriterLock


def approve(work: Path, developer: str) -> str:
    """Approve a developer; returns the API key, which is not kept. See `accounts.approve`."""
    with _store(work) as store, store.write() as db:
        return accounts.approve(db, developer, now=_now())


def revoke_developer(work: Path, developer: str) -> None:
    """Stop a developer's key at once. Raises `Refused` (`policy.not_found`)."""
    with _store(work) as store, store.write() as db:
        accounts.revoke_developer(db, developer)


def developers(work: Path) -> list[dict[str, Any]]:
    """Every registration, oldest first, without secrets."""
    with _store(work) as store, store.read() as db:
        return accounts.list_developers(db)


def invite(work: Path, node: str) -> str:
    """Invite a node; returns its one-time token, which is not kept. See `accounts.invite`."""
    with _store(work) as store, store.write() as db:
        return accounts.invite(db, node, now=_now())


def revoke_node(work: Path, node: str) -> None:
    """Refuse a node from now on. Raises `Refused` (`policy.not_found`)."""
    with _store(work) as store, store.write() as db:
        accounts.revoke_node(db, node)


def nodes(work: Path) -> list[dict[str, Any]]:
    """Every node, by name, without secrets."""
    with _store(work) as store, store.read() as db:
        return accounts.list_nodes(db)


def migrate(work: Path) -> int:
    """Bring the store to this program's schema while nobody serves it; returns the version.

    Raises:
        Refused: `node.busy` while it is being served, `node.config`.
    """
    paths = Work(work)
    lock = WriterLock(paths.lock)
    try:
        return database.migrate(paths.store)
    finally:
        lock.close()


@contextmanager
def _store(work: Path) -> Iterator[Database]:
    store = Database.open(Work(work).store)
    try:
        yield store
    finally:
        store.close()


def _now() -> int:
    return time.time_ns() // 1_000_000
