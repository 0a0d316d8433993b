"""The coordinator's SQLite store: durable before acknowledged, one log writer, short write transactions."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from rapha.coordinator import schema
from rapha.spec.refusals import Refused

BUSY_MS: Final = 10_000
_WRITES: Final = "rapha_writes"


class Database:
    """Connections to one store file.

    `read` and `write` are transactions; a write holds SQLite's write lock from its start (BEGIN
    IMMEDIATE), so what it reads can't change before it commits, and is on disk (WAL, synchronous=FULL)
    when the block has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = _engine(path)
        self._writing = self._engine.execution_options(**{_WRITES: True})
        self._turn = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open an existing store.

        Raises:
            Refused: `node.config` if it is missing or of another schema version.
        """
        if not path.is_file():
            raise Refused("node.config", f"{path} is missing; run `rapha coordinator init`")
        database = cls(path)
        with database.read() as db:
            found = db.exec_driver_sql("PRAGMA user_version").scalar_one()
        if found != schema.VERSION:
            database.close()
            raise Refused(
                "node.config",
                f"{path} has schema {found}, this program {schema.VERSION}; run `rapha coordinator migrate`",
            )
        return database

    @classmethod
    def create(cls, path: Path) -> Database:
        """Make a new, empty store. Raises `FileExistsError`."""
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        database = cls(path)
        with database.write() as db:
            schema.metadata.create_all(db)
            db.exec_driver_sql(f"PRAGMA user_version = {schema.VERSION}")
        return database

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent snapshot."""
        with self._engine.begin() as db:
            yield db

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One atomic, durable change; rolled back if the block raises.

        Raises:
            Refused: `policy.unavailable` if another process holds the write lock for too long, or
                `budget.storage` if the disk is full.
        """
        try:
            with self._turn, self._writing.begin() as db:
                yield db
        except OperationalError as error:
            said = str(error.orig)
            if "locked" in said or "busy" in said:
                raise Refused("policy.unavailable", "the store is busy") from error
            if "full" in said:
                raise Refused("budget.storage", "the coordinator's disk is full") from error
            raise

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


class WriterLock:
    """The one process that serves a work directory. Released when it closes or dies."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            Refused: `node.busy` if another process has it.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Refused("node.busy", f"another coordinator serves {path.parent}") from None

    def close(self) -> None:
        """Let another process serve."""
        os.close(self._fd)


def migrate(path: Path) -> int:
    """Bring a store to this program's schema and return its version.

    There is one schema so far: a store of any other version is refused, never guessed at.
    """
    Database.open(path).close()
    return schema.VERSION


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", pool_size=8, max_overflow=40)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            f"busy_timeout = {BUSY_MS}",
            "foreign_keys = ON",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
