"""What every request handler works with: configuration, store, blobs, log, clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection

from rapha.coordinator import blobs, config
from rapha.coordinator.blobs import BlobStore
from rapha.coordinator.config import Config, Work
from rapha.coordinator.database import Database, WriterLock
from rapha.coordinator.log import Log
from rapha.coordinator.notify import Notifier
from rapha.evidence.keys import SigningKey
from rapha.spec.refusals import Refused

T = TypeVar("T")


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Service:
    """One coordinator, opened for serving."""

    config: Config
    database: Database
    blobs: BlobStore
    log: Log
    log_key: str
    lock: WriterLock
    notifier: Notifier = field(default_factory=Notifier)
    clock: Callable[[], datetime] = _now

    @classmethod
    def open(cls, work: Work, clock: Callable[[], datetime] = _now) -> Service:
        """Take the writer lock, open everything and check the log against its last checkpoint.

        Raises:
            Refused: `node.config`, `node.busy`, `node.key_unsafe`, `policy.log_invalid`.
        """
        settings = config.load(work)
        if settings.profile == "production":
            raise Refused("node.config", "the production profile needs PostgreSQL; this store is SQLite")
        lock = WriterLock(work.lock)
        try:
            key = SigningKey.load(work.log_key)
            database = Database.open(work.store)
        except Refused:
            lock.close()
            raise
        service = cls(
            settings,
            database,
            BlobStore(work.blobs),
            Log(settings.origin, key),
            key.verify_key.to_text(),
            lock,
            clock=clock,
        )
        try:
            service.log.verify_store(database)
            with database.read() as db:
                kept = blobs.referenced(db)
            service.blobs.sweep(kept)
        except Refused:
            service.close()
            raise
        return service

    def close(self) -> None:
        """Close the store and let another process serve."""
        self.database.close()
        self.lock.close()

    def now_ms(self) -> int:
        """One reading of the clock, in Unix milliseconds."""
        return int(self.clock().timestamp() * 1000)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` in a read transaction, off the event loop."""

        def _run() -> T:
            with self.database.read() as db:
                return query(db)

        return await run_in_threadpool(_run)

    async def write(self, change: Callable[[Connection, int], T], *topics: str) -> T:
        """Run `change` with one clock reading in a durable transaction; then wake `topics`."""

        def _run() -> T:
            now = self.now_ms()
            with self.database.write() as db:
                return change(db, now)

        result = await run_in_threadpool(_run)
        self.notifier.publish(topics)
        return result

    def is_named(self, sha256: str) -> bool:
        """Whether some table names a blob; to be called off the event loop."""
        with self.database.read() as db:
            return blobs.named(db, sha256)

    def poll(
        self, topic: str, seconds: float, query: Callable[[Connection], T | None]
    ) -> Awaitable[T | None]:
        """Long-poll a read."""
        return self.notifier.wait(topic, seconds, lambda: self.read(query))
