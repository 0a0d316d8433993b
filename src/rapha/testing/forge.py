"""Bundles as an attacker would make them: by strangers with keys of their own, or by the node itself.

A node's operator holds the receipt key and, here, the simulated TEE and the log. What the others signed
is what stops them; each of `FORGERIES` names the step that must.
"""

from __future__ import annotations

import base64
import copy
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from rapha.evidence import bundle as bundles
from rapha.evidence import canonical, checkpoint, dsse, merkle
from rapha.evidence.attestation.binding import report_data
from rapha.evidence.keys import SigningKey, VerifyKey
from rapha.evidence.steps.gates import policy_digest
from rapha.spec.attestation import Posture
from rapha.spec.receipt import SECTIONS
from rapha.spec.trust import Trust
from rapha.testing.forgeries import FORGERIES, NOTHING, Forgery, Parts
from rapha.testing.simulated_tee import SimulatedTee
from rapha.testing.world import World

__all__ = ["FORGERIES", "NOTHING", "Forgery", "by_the_node", "resigned_by_strangers"]


def by_the_node(world: World, data: bytes, forgery: Forgery) -> bytes:
    """Change what `forgery` says, then bind, sign, quote and log it all again with the node's own keys."""
    parts = canonical.loads(data)
    forgery_parts = copy.deepcopy(parts)
    forgery.sections(forgery_parts)
    body = _payload(parts["receipt"])
    receipt = {k: v for k, v in body["predicate"].items() if k not in ("profile", "protocol", "audience")}
    receipt["sections"] = {name: canonical.digest(forgery_parts[name]) for name in SECTIONS}
    forgery.receipt(receipt)
    subjects = {s["name"]: s["digest"]["sha256"] for s in body["subject"]}
    forgery.subjects(subjects)
    key = SigningKey.load(world.node / "keys" / "receipt.pem")
    forgery_parts["receipt"] = dsse.sign(
        "receipt", subjects, receipt, profile="demo", audience="rapha", keys=[key]
    )
    trust = Trust.parse(canonical.loads(world.trust.read_bytes()))
    log_key = SigningKey.load(world.root / "coordinator" / "keys" / "log.pem")
    tee = SimulatedTee.load(world.node / "keys", _measurement(parts))
    return _finish(forgery_parts, tee, trust.log.origin, log_key)


def resigned_by_strangers(data: bytes) -> tuple[bytes, Trust]:
    """The same bundle with every signature by keys that a stranger made, and the roots it is right under."""
    parts = canonical.loads(data)
    terms = _payload(parts["agreement"])["predicate"]
    keys: dict[str, SigningKey] = {}

    def swap(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: swap(v) for k, v in value.items()}
        if isinstance(value, list):
            return [swap(v) for v in value]
        if isinstance(value, str) and len(value) == 60 and value.startswith("MCowBQYDK2Vw"):
            return keys.setdefault(value, SigningKey.generate()).verify_key.to_text()
        return value

    swap(terms)
    by_keyid = {VerifyKey.from_text(old).keyid: new for old, new in keys.items()}

    def resign(envelope: Mapping[str, Any]) -> dict[str, Any]:
        body = _payload(envelope)
        predicate = {
            k: swap(v) for k, v in body["predicate"].items() if k not in ("profile", "protocol", "audience")
        }
        return dsse.sign(
            body["predicateType"].split(":")[2],
            {s["name"]: s["digest"]["sha256"] for s in body["subject"]},
            predicate,
            profile="demo",
            audience=body["predicate"]["audience"],
            keys=[by_keyid[s["keyid"]] for s in envelope["signatures"]],
        )

    for name in ("agreement", "job", "image"):
        parts[name] = resign(parts[name])
    tee_root, log_key = SigningKey.generate(), SigningKey.generate()
    tee = SimulatedTee.create(tee_root, _measurement(parts))
    for name in ("admission", "seal"):
        parts[name] = _requote(swap(parts[name]), tee)
    parts["ticket"] = _reticket(parts, by_keyid)
    for name in ("approvals", "reviews"):
        parts[name] = [resign(e) for e in parts[name]]
    receipt = _payload(parts["receipt"])
    claims = {k: v for k, v in receipt["predicate"].items() if k not in ("profile", "protocol", "audience")}
    claims["sections"] = {name: canonical.digest(parts[name]) for name in SECTIONS}
    subjects = {s["name"]: s["digest"]["sha256"] for s in receipt["subject"]}
    signer = by_keyid[parts["receipt"]["signatures"][0]["keyid"]]
    parts["receipt"] = dsse.sign("receipt", subjects, claims, profile="demo", audience="rapha", keys=[signer])
    parts["attestation"] = swap(parts["attestation"])
    origin = "stranger.example/log"
    trust = Trust.parse(
        {
            "version": 1,
            "profile": "demo",
            "hospitals": [keys[terms["hospital"]["key"]].verify_key.to_text()],
            "companies": [keys[terms["company"]["key"]].verify_key.to_text()],
            "log": {"origin": origin, "key": log_key.verify_key.to_text()},
            "policy_bundles": parts["policy"]["bundles"],
            "simulated_tee": [tee_root.verify_key.to_text()],
            "least_assurance": "simulated",
        }
    )
    return _finish(parts, tee, origin, log_key), trust


def _finish(parts: Parts, tee: SimulatedTee, origin: str, log_key: SigningKey) -> bytes:
    body = _payload(parts["receipt"])
    digest = canonical.digest(body)
    posture = {
        **parts["attestation"],
        "subject": digest,
        "nonce": body["predicate"]["nonce"],
        "policy": policy_digest(tuple(parts["policy"]["bundles"]))
        if len(parts["policy"]["bundles"]) == 1
        else parts["attestation"]["policy"],
    }
    parts["attestation"] = _requote(posture, tee)
    parts["log_salt"] = secrets.token_hex(32)
    parts["log_leaf"] = bundles.leaf(digest, parts["log_salt"])
    root = merkle.leaf_hash(bytes.fromhex(parts["log_leaf"]))
    signed = checkpoint.sign(checkpoint.Checkpoint(origin, 1, root), log_key)
    core = {k: v for k, v in parts.items() if k != "log"}
    return bundles.assemble(core, {"checkpoint": signed, "index": 0, "size": 1, "proof": []})


def _requote(posture: Parts, tee: SimulatedTee) -> Parts:
    bound = {k: posture[k] for k in ("nonce", "signing_key", "hpke_key", "subject", "policy")}
    issued = _payload(posture["evidence"]["quote"])["predicate"]["issued"]
    evidence = tee.quote(report_data(**bound), issued=min(issued, int(time.time())))
    return Posture.parse({**posture, "evidence": evidence.dump()}).dump()


def _reticket(parts: Parts, by_keyid: Mapping[str, SigningKey]) -> dsse.EnvelopeDict:
    body = _payload(parts["ticket"])
    ticket = {k: v for k, v in body["predicate"].items() if k not in ("profile", "protocol", "audience")}
    ticket["evidence"] = canonical.digest(parts["admission"])
    signer = by_keyid[parts["ticket"]["signatures"][0]["keyid"]]
    subjects = {s["name"]: s["digest"]["sha256"] for s in body["subject"]}
    audience = body["predicate"]["audience"]
    return dsse.sign("ticket", subjects, ticket, profile="demo", audience=audience, keys=[signer])


def _measurement(parts: Parts) -> str:
    return str(_payload(parts["admission"]["evidence"]["quote"])["predicate"]["measurement"])


def _payload(envelope: Mapping[str, Any]) -> Parts:
    body: Parts = json.loads(base64.b64decode(envelope["payload"]))
    return body
