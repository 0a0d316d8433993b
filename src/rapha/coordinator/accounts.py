"""Developers and nodes: who may call. Secrets are random, shown once, and kept as SHA-256 only."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import StringConstraints
from sqlalchemy import Connection, func, insert, select, update

from rapha.coordinator.schema import developers, nodes
from rapha.evidence import canonical
from rapha.evidence.keys import VerifyKey
from rapha.spec.agreement import PublicKey
from rapha.spec.base import Model, Name
from rapha.spec.refusals import Refused

API_KEY_DAYS: Final = 365
INVITATION_HOURS: Final = 72
_DAY_MS: Final = 86_400_000
_API_KEY: Final = re.compile(r"rapha_([0-9a-f]{12})_([0-9a-f]{64})_([0-9a-f]{8})")

Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$", max_length=200)]


class Unauthenticated(Refused):
    """No credentials, or wrong ones. One answer for every cause, so that trying teaches nothing."""

    def __init__(self) -> None:
        super().__init__("policy.not_authorised", "the credentials are missing, wrong, expired or revoked")


class Registration(Model):
    """What a developer says of themselves; the operator reviews it."""

    organisation: Line
    contact: Line
    purpose: Line
    public_key: PublicKey


class Invitation(Model):
    """The operator's word that a node of this name may enrol."""

    name: Name


class Enrolment(Model):
    """A node's first call, with the one-time token of its invitation."""

    token: Annotated[str, StringConstraints(pattern=r"^rapha-enrol_[0-9a-f]{64}$")]
    name: Name
    public_key: PublicKey


@dataclass(frozen=True, slots=True)
class Developer:
    """An approved developer."""

    id: str
    organisation: str
    key: VerifyKey


@dataclass(frozen=True, slots=True)
class Node:
    """An enrolled node; `profiles` are the dataset profiles of its catalogue."""

    name: str
    key: VerifyKey
    profiles: frozenset[str]


def register(db: Connection, asked: Registration, *, max_pending: int, now: int) -> dict[str, Any]:
    """Record a registration for review. The same registration again changes nothing.

    Raises:
        Refused: `policy.conflict` if the key is registered otherwise; `budget.rate` if too many wait.
    """
    identity = "dev-" + VerifyKey.from_text(asked.public_key).keyid[:16]
    found = db.execute(select(developers).where(developers.c.public_key == asked.public_key)).one_or_none()
    if found is not None:
        if Registration.parse({name: getattr(found, name) for name in Registration.model_fields}) != asked:
            raise Refused("policy.conflict", "this public key is registered with other details")
        return {"id": found.id, "status": found.status}
    waiting = select(func.count()).select_from(developers).where(developers.c.status == "pending")
    if db.execute(waiting).scalar_one() >= max_pending:
        raise Refused("budget.rate", "too many registrations wait for review")
    db.execute(insert(developers).values(id=identity, **asked.dump(), status="pending", created=now))
    return {"id": identity, "status": "pending"}


def approve(db: Connection, identity: str, *, now: int) -> str:
    """Approve a developer and return their API key, which is not kept.

    Approving again replaces the key: the earlier one stops working.

    Raises:
        Refused: `policy.not_found`.
    """
    prefix, secret = secrets.token_hex(6), secrets.token_hex(32)
    key = f"rapha_{prefix}_{secret}_{_checksum(prefix, secret)}"
    changed = db.execute(
        update(developers)
        .where(developers.c.id == identity)
        .values(
            status="approved",
            key_prefix=prefix,
            key_sha256=_sha256(key),
            key_expires=now + API_KEY_DAYS * _DAY_MS,
        )
    )
    if changed.rowcount != 1:
        raise Refused("policy.not_found", f"no developer {identity[:64]!r}")
    return key


def revoke_developer(db: Connection, identity: str) -> None:
    """Stop a developer's key at once. Raises `Refused` (`policy.not_found`)."""
    changed = db.execute(
        update(developers)
        .where(developers.c.id == identity)
        .values(status="revoked", key_prefix=None, key_sha256=None)
    )
    if changed.rowcount != 1:
        raise Refused("policy.not_found", f"no developer {identity[:64]!r}")


def authenticate(db: Connection, authorization: str | None, *, now: int) -> Developer:
    """The developer behind an `Authorization: Bearer` header.

    Raises:
        Unauthenticated: for every cause alike.
    """
    match = _API_KEY.fullmatch((authorization or "").removeprefix("Bearer "))
    if match is None or not (authorization or "").startswith("Bearer "):
        raise Unauthenticated
    if not hmac.compare_digest(_checksum(match[1], match[2]), match[3]):
        raise Unauthenticated
    query = select(developers).where(developers.c.key_prefix == match[1], developers.c.status == "approved")
    found = db.execute(query).one_or_none()
    if found is None or not hmac.compare_digest(found.key_sha256, _sha256(match[0])):
        raise Unauthenticated
    if found.key_expires <= now:
        raise Unauthenticated
    return Developer(found.id, found.organisation, VerifyKey.from_text(found.public_key))


def list_developers(db: Connection) -> list[dict[str, Any]]:
    """Everyone, oldest first, without secrets."""
    shown = (c for c in developers.c if c.name not in ("key_sha256",))
    return [dict(row._mapping) for row in db.execute(select(*shown).order_by(developers.c.created))]


def invite(db: Connection, name: str, *, now: int) -> str:
    """Invite a node and return its one-time enrolment token, which is not kept.

    Inviting a node that hasn't enrolled yet replaces its token.

    Raises:
        Refused: `schema.field_invalid` for the name, `policy.conflict` if it has enrolled.
    """
    token = f"rapha-enrol_{secrets.token_hex(32)}"
    Invitation.parse({"name": name})
    secret = {"token_sha256": _sha256(token), "token_expires": now + INVITATION_HOURS * 3_600_000}
    status = db.execute(select(nodes.c.status).where(nodes.c.name == name)).scalar_one_or_none()
    if status not in (None, "invited"):
        raise Refused("policy.conflict", f"node {name} is {status}")
    if status is None:
        db.execute(insert(nodes).values(name=name, **secret, status="invited", catalogue=b"[]", created=now))
    else:
        db.execute(update(nodes).where(nodes.c.name == name).values(**secret))
    return token


def enrol(db: Connection, asked: Enrolment, *, now: int) -> None:
    """Bind an invited node to its public key. The same enrolment again changes nothing.

    Raises:
        Unauthenticated: for a wrong, used or expired token, and a name it isn't for.
        Refused: `policy.conflict` if another node has the key.
    """
    key = VerifyKey.from_text(asked.public_key)
    found = db.execute(select(nodes).where(nodes.c.token_sha256 == _sha256(asked.token))).one_or_none()
    if found is None or found.name != asked.name or found.status == "revoked":
        raise Unauthenticated
    if found.status == "enrolled":
        if found.public_key != asked.public_key:
            raise Unauthenticated
        return
    if found.token_expires <= now:
        raise Unauthenticated
    if db.execute(select(nodes.c.name).where(nodes.c.keyid == key.keyid)).one_or_none() is not None:
        raise Refused("policy.conflict", "another node has this public key")
    db.execute(
        update(nodes)
        .where(nodes.c.name == asked.name)
        .values(status="enrolled", public_key=asked.public_key, keyid=key.keyid)
    )


def revoke_node(db: Connection, name: str) -> None:
    """Refuse a node from now on. Raises `Refused` (`policy.not_found`)."""
    changed = db.execute(update(nodes).where(nodes.c.name == name).values(status="revoked"))
    if changed.rowcount != 1:
        raise Refused("policy.not_found", f"no node {name[:64]!r}")


def enrolled_nodes(db: Connection) -> list[Node]:
    """Every enrolled node, by name."""
    query = select(nodes).where(nodes.c.status == "enrolled").order_by(nodes.c.name)
    return [_node(row) for row in db.execute(query)]


def node_by_key(db: Connection, keyid: str) -> Node:
    """The enrolled node that has a key. Raises `Unauthenticated`."""
    query = select(nodes).where(nodes.c.keyid == keyid, nodes.c.status == "enrolled")
    found = db.execute(query).one_or_none()
    if found is None:
        raise Unauthenticated
    return _node(found)


def store_catalogue(db: Connection, name: str, catalogue: bytes) -> None:
    """Replace a node's catalogue: canonical `[{"envelope", "profile"}]`."""
    db.execute(update(nodes).where(nodes.c.name == name).values(catalogue=catalogue))


def catalogues(db: Connection) -> list[dict[str, Any]]:
    """Every enrolled node's signed catalogue entries."""
    query = select(nodes).where(nodes.c.status == "enrolled").order_by(nodes.c.name)
    return [
        {
            "node": row.name,
            "public_key": row.public_key,
            "entries": [entry["envelope"] for entry in canonical.loads(row.catalogue)],
        }
        for row in db.execute(query)
    ]


def list_nodes(db: Connection) -> list[dict[str, Any]]:
    """Every node, by name, without secrets."""
    shown = (nodes.c.name, nodes.c.status, nodes.c.keyid, nodes.c.created)
    return [dict(row._mapping) for row in db.execute(select(*shown).order_by(nodes.c.name))]


def _node(row: Any) -> Node:
    entries = canonical.loads(row.catalogue)
    return Node(row.name, VerifyKey.from_text(row.public_key), frozenset(e["profile"] for e in entries))


def _checksum(prefix: str, secret: str) -> str:
    """Tells a mistyped key from a wrong one, and lets secret scanners recognise keys."""
    return _sha256(f"{prefix}_{secret}")[:8]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
