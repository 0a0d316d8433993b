"""The coordinator's tables. Times are Unix milliseconds; digests are lower-case hex SHA-256."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

VERSION: Final = 1
"""Kept in SQLite's `user_version`; a store of another version is not opened."""

metadata: Final = MetaData()

developers: Final = Table(
    "developers",
    metadata,
    Column("id", String, primary_key=True),
    Column("organisation", String, nullable=False),
    Column("contact", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("public_key", String, nullable=False, unique=True),
    Column("status", String, nullable=False),  # pending | approved | revoked
    Column("key_prefix", String, unique=True),
    Column("key_sha256", String, unique=True),
    Column("key_expires", Integer),
    Column("created", Integer, nullable=False),
)

nodes: Final = Table(
    "nodes",
    metadata,
    Column("name", String, primary_key=True),
    Column("keyid", String, unique=True),
    Column("public_key", String, unique=True),
    Column("token_sha256", String, nullable=False, unique=True),
    Column("token_expires", Integer, nullable=False),
    Column("status", String, nullable=False),  # invited | enrolled | revoked
    Column("catalogue", LargeBinary, nullable=False),
    Column("created", Integer, nullable=False),
)

nonces: Final = Table(
    "nonces",
    metadata,
    Column("node", ForeignKey("nodes.name"), primary_key=True),
    Column("nonce", String, primary_key=True),
    Column("seen", Integer, nullable=False),
    Index("nonces_by_age", "seen"),
)

jobs: Final = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", ForeignKey("developers.id"), nullable=False),
    Column("submission", LargeBinary, nullable=False),  # canonical {"image", "image_blob", "job"}
    Column("name", String, nullable=False),
    Column("image_blob", String, nullable=False),
    Column("nodes", LargeBinary, nullable=False),  # canonical "any" or list of names
    Column("dataset_profile", String, nullable=False),
    Column("not_after", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("node", ForeignKey("nodes.name")),
    Column("lease_key", String),
    Column("lease_until", Integer),
    Column("surface", LargeBinary),  # canonical; what the node said at the end
    Column("created", Integer, nullable=False),
    Index("jobs_by_owner", "owner", "created"),
    Index("jobs_by_state", "state", "created"),
    Index("jobs_by_node", "node", "state"),
)

events: Final = Table(
    "events",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("state", String, nullable=False),
    Column("code", String),
    Column("detail", String),
    Column("actor", String, nullable=False),
    Column("time", Integer, nullable=False),
)

exchange: Final = Table(
    "exchange",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True),
    Column("slot", String, primary_key=True),
    Column("message", LargeBinary, nullable=False),
)

blobs: Final = Table(
    "blobs",
    metadata,
    Column("owner", ForeignKey("developers.id"), primary_key=True),
    Column("sha256", String, primary_key=True),
    Column("size", Integer, nullable=False),
)

artifacts: Final = Table(
    "artifacts",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("sha256", String, nullable=False),
    Column("size", Integer, nullable=False),
)

receipts: Final = Table(
    "receipts",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True),
    Column("body_sha256", String, nullable=False),
    Column("bundle", LargeBinary, nullable=False),
    Column("leaf", ForeignKey("log_checkpoints.leaf"), nullable=False, unique=True),
)

log_nodes: Final = Table(
    "log_nodes",
    metadata,
    Column("n", Integer, primary_key=True),  # order of appending; a leaf, then the subtrees it completes
    Column("level", Integer, nullable=False),
    Column("at", Integer, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    UniqueConstraint("level", "at"),
)

log_checkpoints: Final = Table(
    "log_checkpoints",
    metadata,
    Column("leaf", Integer, primary_key=True),  # the checkpoint's size is leaf + 1
    Column("level", Integer, nullable=False, default=0),
    Column("note", String, nullable=False),
    ForeignKeyConstraint(["level", "leaf"], ["log_nodes.level", "log_nodes.at"]),
)
