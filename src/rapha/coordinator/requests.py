"""Signed requests: how a node proves who it is, once for each call.

The header `Rapha-Envelope` carries base64 of the canonical JSON of a DSSE envelope over a `request`
statement for this coordinator: method, path with query, SHA-256 of the body, time, nonce. A nonce is
spent durably before the call does anything, so a replay refuses, across restarts too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import StringConstraints
from sqlalchemy import Connection, delete, insert, select

from rapha.coordinator import accounts
from rapha.coordinator.accounts import Node, Unauthenticated
from rapha.coordinator.schema import nonces
from rapha.evidence import canonical, dsse
from rapha.evidence.keys import b64decode
from rapha.spec.base import Model, Profile, Sha256, Timestamp
from rapha.spec.refusals import Refused
from rapha.spec.units import parse_time

HEADER: Final = "rapha-envelope"
SKEW_S: Final = 300
MAX_HEADER: Final = 8192


class SignedRequest(Model):
    """Predicate of a `request` statement."""

    method: Annotated[str, StringConstraints(pattern=r"^(GET|PUT|POST)$")]
    path: Annotated[str, StringConstraints(pattern=r"^/[\x21-\x7e]*$", max_length=2048)]
    body_sha256: Sha256
    created: Timestamp
    nonce: Sha256


@dataclass(frozen=True, slots=True)
class Received:
    """What arrived: the request line as the node must have signed it, and the header."""

    method: str
    path: str
    header: str


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated node. `body_sha256` is what the body that follows must hash to."""

    node: Node
    body_sha256: str


def open_request(
    db: Connection, received: Received, *, profile: Profile, origin: str, now: datetime
) -> tuple[Caller, str]:
    """Verify a signed request against what arrived; return the caller and the nonce, not yet spent.

    Raises:
        Unauthenticated: the key is no enrolled node's.
        Refused: `schema.*` if the header is malformed, `policy.signature_invalid` or
            `policy.profile_mismatch` as `dsse.verify`, `policy.request_replayed` if it is too old or too
            new, `policy.not_authorised` if it was signed for another call.
    """
    envelope = _decode(received.header)
    node = accounts.node_by_key(db, _signer(envelope))
    statement = dsse.verify(envelope, [node.key], kind="request", profile=profile, audience=origin)
    asked = SignedRequest.parse(statement.predicate, "request")
    if (asked.method, asked.path) != (received.method, received.path):
        raise Refused("policy.not_authorised", "the request was signed for another method or path")
    if statement.subjects != {"body": asked.body_sha256}:
        raise Refused("schema.envelope", "the subject of a request is its body")
    if abs((now - parse_time(asked.created)).total_seconds()) > SKEW_S:
        raise Refused("policy.request_replayed", f"created {asked.created}, more than {SKEW_S} s from now")
    return Caller(node, asked.body_sha256), asked.nonce


def spend(db: Connection, caller: Caller, nonce: str, *, now_ms: int) -> None:
    """Use up a nonce. Raises `Refused` (`policy.request_replayed`) if it is spent."""
    seen = select(nonces.c.seen).where(nonces.c.node == caller.node.name, nonces.c.nonce == nonce)
    if db.execute(seen).one_or_none() is not None:
        raise Refused("policy.request_replayed", "this signed request was seen before")
    db.execute(insert(nonces).values(node=caller.node.name, nonce=nonce, seen=now_ms))


def forget_old(db: Connection, *, now_ms: int) -> None:
    """Drop nonces whose requests are too old to be accepted anyway."""
    db.execute(delete(nonces).where(nonces.c.seen < now_ms - 2 * SKEW_S * 1000 - 60_000))


def _decode(header: str) -> Any:
    if len(header) > MAX_HEADER:
        raise Refused("schema.too_large", f"the signed request is larger than {MAX_HEADER} bytes")
    return canonical.loads_canonical(b64decode(header))


def _signer(envelope: Any) -> str:
    """The key id that the envelope names, only to find the one key it is then verified under."""
    signatures = envelope.get("signatures") if isinstance(envelope, dict) else None
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise Refused("schema.envelope", "a request has one signature")
    keyid = signatures[0].get("keyid")
    if not isinstance(keyid, str):
        raise Unauthenticated
    return keyid
