"""DSSE envelopes over in-toto Statement v1: the one envelope of the system.

`securesystemslib` builds the pre-authentication encoding and checks signatures. Around it we are
stricter than the DSSE specification asks, so that no byte of an envelope is free: canonical base64 and
JSON, no unknown field, no unsigned extra, every signature valid and by a key that the caller trusts.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, Key, Signature, SSlibKey

from rapha.evidence import canonical
from rapha.evidence.keys import SigningKey, VerifyKey, b64decode
from rapha.spec.base import PROTOCOL, Profile
from rapha.spec.refusals import Refused

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
MAX_SIGNATURES: Final = 16

EnvelopeDict = dict[str, Any]
"""`{"payload": base64, "payloadType": str, "signatures": [{"keyid": str, "sig": base64}]}`"""


@dataclass(frozen=True, slots=True)
class Statement:
    """A verified in-toto statement.

    Attributes:
        predicate_type: a `urn:rapha:<kind>:v1` type.
        subjects: name → hex SHA-256.
        predicate: the claims; `profile`, `protocol` and `audience` were checked and removed.
        keyids: the keys that signed, sorted.
        digest: hex SHA-256 of the payload, which names the statement.
    """

    predicate_type: str
    subjects: Mapping[str, str]
    predicate: Mapping[str, Any]
    keyids: tuple[str, ...]
    digest: str


def sign(
    kind: str,
    subjects: Mapping[str, str],
    predicate: Mapping[str, Any],
    *,
    profile: Profile,
    audience: str,
    keys: Sequence[SigningKey],
) -> EnvelopeDict:
    """Sign a statement of `kind` (such as `job`) for `audience` with every key of `keys`.

    `profile`, the protocol version and `audience` go inside the payload.
    """
    if not keys:
        raise ValueError("at least one key must sign")
    payload = canonical.dumps(
        {
            "_type": STATEMENT_TYPE,
            "predicateType": predicate_type(kind),
            "subject": [{"name": n, "digest": {"sha256": d}} for n, d in sorted(subjects.items())],
            "predicate": {**predicate, "profile": profile, "protocol": PROTOCOL, "audience": audience},
        }
    )
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    for key in sorted(keys, key=lambda k: k.keyid):
        envelope.sign(_signer(key))
    return _to_dict(envelope)


def cosign(envelope: EnvelopeDict, key: SigningKey) -> EnvelopeDict:
    """The envelope with `key`'s signature added; the payload is not judged here."""
    parsed = _parse(envelope)
    parsed.sign(_signer(key))
    parsed.signatures = dict(sorted(parsed.signatures.items()))
    return _to_dict(parsed)


def verify(
    envelope: object,
    keys: Iterable[VerifyKey],
    *,
    kind: str,
    profile: Profile,
    audience: str,
    threshold: int = 1,
) -> Statement:
    """Verify an envelope under `keys`, which come from the caller's trust, never from the envelope.

    Every signature present must be valid and by one of `keys`, and at least `threshold` must be there.

    Raises:
        Refused: `schema.envelope` where it is malformed, `policy.signature_invalid` where a signature
            is missing, unknown or wrong, `policy.profile_mismatch` where profile, protocol version or
            audience is another.
    """
    parsed = _parse(envelope)
    trusted = {k.keyid: k for k in keys}
    if threshold < 1 or len(parsed.signatures) < threshold or not trusted:
        raise Refused("policy.signature_invalid", f"{len(parsed.signatures)} of {threshold} signatures")
    unknown = [k for k in parsed.signatures if k not in trusted]
    if unknown:
        raise Refused("policy.signature_invalid", f"key {unknown[0][:16]}… is not trusted for a {kind}")
    used: list[Key] = [_public(trusted[k]) for k in parsed.signatures]
    try:
        parsed.verify(used, threshold=len(used))
    except VerificationError:
        raise Refused("policy.signature_invalid", f"a signature on the {kind} does not verify") from None
    return _open(parsed, kind, profile, audience)


def unverified_predicate(envelope: object) -> Mapping[str, Any]:
    """What an envelope claims, before anything is checked: for routing and display only.

    Raises:
        Refused: `schema.envelope`.
    """
    return _shape(_parse(envelope).payload)["predicate"]  # type: ignore[no-any-return]


def predicate_type(kind: str) -> str:
    """The in-toto predicate type of `kind`."""
    return f"urn:rapha:{kind}:v{PROTOCOL}"


def _open(envelope: Envelope, kind: str, profile: Profile, audience: str) -> Statement:
    body = _shape(envelope.payload)
    if body["predicateType"] != predicate_type(kind):
        raise Refused("schema.envelope", f"expected a {kind}, found {body['predicateType']!r}")
    predicate = dict(body["predicate"])
    found = (predicate.pop("profile", None), predicate.pop("protocol", None), predicate.pop("audience", None))
    if found != (profile, PROTOCOL, audience) or isinstance(found[1], bool):  # True == 1
        raise Refused(
            "policy.profile_mismatch",
            f"{kind} is for (profile, protocol, audience) {found}, here {(profile, PROTOCOL, audience)}",
        )
    subjects = {s["name"]: s["digest"]["sha256"] for s in body["subject"]}
    return Statement(
        body["predicateType"],
        subjects,
        predicate,
        tuple(sorted(envelope.signatures)),
        canonical.digest(body),
    )


def _shape(payload: bytes) -> dict[str, Any]:
    body = canonical.loads_canonical(payload)
    if (
        not isinstance(body, dict)
        or set(body) != {"_type", "predicateType", "subject", "predicate"}
        or body["_type"] != STATEMENT_TYPE
        or not isinstance(body["predicateType"], str)
        or not isinstance(body["predicate"], dict)
        or not isinstance(body["subject"], list)
        or not all(_is_subject(s) for s in body["subject"])
        or len({s["name"] for s in body["subject"]}) != len(body["subject"])
    ):
        raise Refused("schema.envelope", "not an in-toto Statement v1")
    return body


def _is_subject(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"name", "digest"} or not isinstance(value["name"], str):
        return False
    digest = value["digest"]
    return isinstance(digest, dict) and set(digest) == {"sha256"} and isinstance(digest["sha256"], str)


def _parse(envelope: object) -> Envelope:
    if (
        not isinstance(envelope, dict)
        or set(envelope) != {"payload", "payloadType", "signatures"}
        or envelope["payloadType"] != PAYLOAD_TYPE
        or not isinstance(envelope["payload"], str)
        or not isinstance(envelope["signatures"], list | tuple)
        or len(envelope["signatures"]) > MAX_SIGNATURES
    ):
        raise Refused("schema.envelope", "not a DSSE envelope of an in-toto statement")
    signatures: dict[str, Signature] = {}
    for entry in envelope["signatures"]:
        if (
            not isinstance(entry, dict)
            or set(entry) != {"keyid", "sig"}
            or not all(isinstance(v, str) for v in entry.values())
        ):
            raise Refused("schema.envelope", "a signature has the wrong fields")
        if entry["keyid"] in signatures:
            raise Refused("schema.envelope", "two signatures by one key")
        signatures[entry["keyid"]] = Signature(entry["keyid"], _b64(entry["sig"]).hex())
    if list(signatures) != sorted(signatures):
        raise Refused("schema.envelope", "signatures are not in the order of their key ids")
    return Envelope(_b64(envelope["payload"]), PAYLOAD_TYPE, signatures)


def _b64(text: str) -> bytes:
    try:
        return b64decode(text)
    except Refused as refused:
        raise Refused("schema.envelope", refused.detail) from None


def _to_dict(envelope: Envelope) -> EnvelopeDict:
    return {
        "payload": base64.b64encode(envelope.payload).decode(),
        "payloadType": envelope.payload_type,
        "signatures": [
            {"keyid": keyid, "sig": base64.b64encode(bytes.fromhex(s.signature)).decode()}
            for keyid, s in envelope.signatures.items()
        ],
    }


def _signer(key: SigningKey) -> CryptoSigner:
    return CryptoSigner(key.private, _public(key.verify_key))


def _public(key: VerifyKey) -> SSlibKey:
    return SSlibKey.from_crypto(key.public, key.keyid)
