"""A coordinator's work directory: `config.json`, the log's key, the store and the blobs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, field_validator

from rapha.coordinator.database import Database
from rapha.evidence.checkpoint import check_origin
from rapha.evidence.keys import SigningKey
from rapha.spec.base import Model, One, Profile
from rapha.spec.refusals import Refused

Bytes = Annotated[int, Field(ge=1, le=2**44)]


class Config(Model):
    """`config.json`.

    Attributes:
        origin: names this coordinator: first line of its log's checkpoints, and the audience of the
            requests that nodes sign for it.
        max_blob_bytes: largest image or artifact.
        quota_bytes: most bytes of images that one developer may keep here.
        staged_job_bytes, staged_node_bytes: most bytes of artifacts that one job, and one node over all the
            jobs that it has here, may keep.
        max_pending: most registrations that may wait for review at once.
    """

    version: One = 1
    profile: Profile
    origin: str
    max_blob_bytes: Bytes = 2**33
    quota_bytes: Bytes = 2**36
    staged_job_bytes: Bytes = 2**34
    staged_node_bytes: Bytes = 2**40
    max_pending: Annotated[int, Field(ge=1, le=10**6)] = 1000

    @field_validator("origin")
    @classmethod
    def _names_a_log(cls, value: str) -> str:
        try:
            return check_origin(value)
        except Refused as refused:
            raise ValueError(refused.detail) from None


@dataclass(frozen=True, slots=True)
class Work:
    """Paths of a work directory."""

    root: Path

    @property
    def config(self) -> Path:
        """What the operator may edit."""
        return self.root / "config.json"

    @property
    def log_key(self) -> Path:
        """The Ed25519 key that signs checkpoints."""
        return self.root / "keys" / "log.pem"

    @property
    def store(self) -> Path:
        """The SQLite file."""
        return self.root / "store.db"

    @property
    def blobs(self) -> Path:
        """Content-addressed files."""
        return self.root / "blobs"

    @property
    def lock(self) -> Path:
        """Held by the process that serves."""
        return self.root / "serve.lock"


DEFAULT_ORIGIN: Final[dict[Profile, str]] = {
    "demo": "rapha.demo/log",
    "production": "rapha.production/log",
}


def initialise(work: Work, *, profile: Profile, origin: str | None = None) -> Config:
    """Make a new work directory: log key, store, configuration. The configuration comes last.

    Raises:
        Refused: `node.config` if there is one already, `schema.field_invalid` for a bad origin.
    """
    if work.config.exists():
        raise Refused("node.config", f"{work.root} is already a coordinator's work directory")
    config = Config.parse({"profile": profile, "origin": origin or DEFAULT_ORIGIN[profile]})
    work.blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
    work.root.chmod(0o700)
    try:
        SigningKey.generate().save(work.log_key)
        Database.create(work.store).close()
    except FileExistsError as error:
        raise Refused("node.config", f"{error.filename} is left from an earlier start; remove it") from None
    write_atomic(work.config, json.dumps(config.dump(), indent=2) + "\n")
    return config


def load(work: Work) -> Config:
    """Read the configuration.

    Raises:
        Refused: `node.config` naming the field.
    """
    try:
        return Config.parse(json.loads(work.config.read_text()))
    except OSError as error:
        raise Refused("node.config", f"{work.config}: {error.strerror}") from None
    except ValueError as error:
        raise Refused("node.config", f"{work.config} is not JSON: {error}") from None
    except Refused as refused:
        raise Refused("node.config", f"{work.config}: {refused.detail}") from None


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` durably; a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
