"""Bundles as an attacker would make them: by strangers with keys of their own, or by the node itself.

A node's operator holds the receipt key and, here, the simulated TEE and the log. What the others signed
is what stops them; each forgery names the step that must.
"""

from __future__ import annotations

import base64
import copy
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rapha.evidence import bundle as bundles
from rapha.evidence import canonical, checkpoint, dsse, merkle
from rapha.evidence.attestation.binding import report_data
from rapha.evidence.keys import SigningKey, VerifyKey
from rapha.evidence.steps.gates import policy_digest
from rapha.spec.attestation import Posture
from rapha.spec.receipt import SECTIONS
from rapha.spec.trust import Trust
from rapha.testing.simulated_tee import SimulatedTee
from rapha.testing.world import World

Parts = dict[str, Any]
Change = Callable[[Parts], None]


def _nothing(_: Parts) -> None:
    return


@dataclass(frozen=True, slots=True)
class Forgery:
    """A lie that the node's operator signs.

    Attributes:
        step: the step of `rapha.evidence.verify` that must catch it.
        sections: changes the bundle's sections before they are bound again.
        receipt: changes the receipt's predicate before it is signed again.
        subjects: changes the receipt's subjects.
    """

    name: str
    step: str
    sections: Change = _nothing
    receipt: Change = _nothing
    subjects: Change = _nothing


NOTHING: Final = Forgery("nothing", "")


def _set(*path: str | int, to: Any) -> Change:
    def change(parts: Parts) -> None:
        target: Any = parts
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = to(target[path[-1]]) if callable(to) else to

    return change


_TOLD: Final = ("surface", "artifacts", 0)
_FAILED: Final = {
    **{"outcome": "failed", "code": "job.failed", "exit_class": "failed"},
    **{"artifacts": [], "metrics": {}},
}
_SEVERED: Final = {
    **{"interface": "eth0", "waiver": None, "mode": "link"},
    **{"wan_bytes_sent": 0, "lifted": True},
}


def _weights(parts: Parts) -> Parts:
    found: Parts = next(r for r in parts["guard"]["released"] if r["name"].endswith(".safetensors"))
    return found


FORGERIES: Final = (
    Forgery("another job id", "receipt", receipt=_set("job", "id", to="0" * 64)),
    Forgery("another company", "receipt", receipt=_set("job", "company", to="somebody-else")),
    Forgery("another purpose", "receipt", receipt=_set("job", "purpose", to="marketing")),
    Forgery("another image", "receipt", receipt=_set("image", to="sha256:" + "0" * 64)),
    Forgery("another node's name", "receipt", receipt=_set("node", to="other-node")),
    Forgery("another dataset", "receipt", receipt=_set("dataset", "id", to="other-dataset")),
    Forgery("higher assurance", "posture", receipt=_set("assurance", to="tee+tpm")),
    Forgery(
        "finished before it began", "receipt", receipt=_set("times", "finished", to="2020-01-01T00:00:00Z")
    ),
    Forgery("admitted long ago", "receipt", receipt=_set("times", "admitted", to="2020-01-01T00:00:00Z")),
    Forgery("an unknown claim", "receipt", receipt=_set("also", to="true")),
    Forgery("more records than the cap", "metering", receipt=_set("usage", "records", to=10**9)),
    Forgery("a higher cap", "metering", receipt=_set("usage", "cap", to=10**9)),
    Forgery("a count outside the buckets", "metering", receipt=_set("usage", "records", to=lambda n: n - 1)),
    Forgery("more patients than records", "metering", receipt=_set("usage", "patients", to=10**6)),
    Forgery("counts called attested", "metering", receipt=_set("usage", "counts", to="attested")),
    Forgery("nothing probed", "seal", receipt=_set("airgap", "probes", to={})),
    Forgery("a smaller covert bound", "guard", receipt=_set("covert_bound_bits", to=1)),
    Forgery("another cohort", "approval", receipt=_set("dataset", "cohort", to="0" * 64)),
    Forgery("no word of the ledger", "receipt", receipt=lambda r: r["dataset"].pop("ledger")),
    Forgery("another manifest", "approval", receipt=_set("dataset", "manifest", to="0" * 64)),
    Forgery("a section not bound", "sections", receipt=_set("sections", "scan", to="0" * 64)),
    Forgery("a section left out", "sections", receipt=lambda r: r["sections"].pop("reviews")),
    Forgery("another policy input", "approval", sections=_set("policy", "input", to="0" * 64)),
    Forgery("other policy bundles", "policy", sections=_set("policy", "bundles", to=["0" * 64])),
    Forgery("a policy that says no", "policy", sections=_set("policy", "allow", to=False)),
    Forgery("a scan of another image", "scan", sections=_set("scan", "image", to="sha256:" + "0" * 64)),
    Forgery("a scan with refusals", "scan", sections=_set("scan", "refusals", to=1)),
    Forgery("one owner's approval missing", "approval", sections=lambda p: p["approvals"].pop()),
    Forgery("one owner counted twice", "approval", sections=_set("approvals", to=lambda a: [a[0], a[0]])),
    Forgery("no approvals", "approval", sections=_set("approvals", to=[])),
    Forgery("no reviews", "review", sections=_set("reviews", to=[])),
    Forgery("a review as an approval", "approval", sections=lambda p: p["approvals"].append(p["reviews"][0])),
    Forgery("another disclosure report", "review", sections=_set("guard", "report", to="0" * 64)),
    Forgery("a failed guard check", "guard", sections=_set("guard", "checks", 0, "verdict", to="not_run")),
    Forgery("a guard check left out", "guard", sections=lambda p: p["guard"]["checks"].pop(0)),
    Forgery("another released file", "guard", sections=_set("guard", "released", 0, "sha256", to="0" * 64)),
    Forgery("another artifact", "guard", subjects=_set("artifact:model.safetensors", to="0" * 64)),
    Forgery("an artifact more", "guard", subjects=_set("artifact:records.csv", to="0" * 64)),
    Forgery("a subject of another kind", "guard", subjects=_set("record:1", to="0" * 64)),
    Forgery("the ticket of another evidence", "posture", sections=_set("admission", "nonce", to="0" * 64)),
    Forgery("the seal's evidence twice", "posture", sections=lambda p: p.update(admission=p["seal"])),
    Forgery("no second look", "seal", sections=lambda p: p.update(seal=p["admission"])),
    Forgery("an unknown field in a section", "guard", sections=_set("guard", "note", to="x")),
    # The surface is what the researcher was told.
    Forgery("a surface of free text", "surface", sections=_set("surface", to={"anything": "AUROC 0.999"})),
    Forgery("another job's surface", "surface", sections=_set("surface", "job_id", to="0" * 64)),
    Forgery("a surface that failed", "surface", sections=lambda p: p["surface"].update(_FAILED)),
    Forgery("a surface with a detail", "surface", sections=_set("surface", "detail", to="patient 7")),
    Forgery("another metric told", "surface", sections=_set("surface", "metrics", "auroc", to=0.123)),
    Forgery("a metric not planned", "surface", sections=lambda p: p["surface"]["metrics"].update(rmse=0.5)),
    Forgery("text as self-reported", "surface", sections=_set("surface", "self_reported", to={"note": "x"})),
    Forgery("no artifacts told", "surface", sections=_set("surface", "artifacts", to=[])),
    Forgery("another ciphertext told", "surface", sections=_set(*_TOLD, "cipher_sha256", to="0" * 64)),
    Forgery("another digest told", "surface", sections=_set(*_TOLD, "sha256", to="0" * 64)),
    Forgery("another size told", "surface", sections=_set(*_TOLD, "bytes", to=lambda n: n + 1)),
    Forgery("other records told", "surface", sections=_set("surface", "records_bucket", to=lambda n: n - 10)),
    Forgery("other patients told", "surface", sections=_set("surface", "patients_bucket", to=10)),
    # Exactly the plan's files, at the plan's sizes, under a bound that the plan itself needs.
    Forgery("nothing released", "guard", sections=_set("guard", "released", to=[]), subjects=dict.clear),
    Forgery(
        "a file that is not planned",
        "guard",
        sections=lambda p: p["guard"]["released"].append({"name": "r.csv", "sha256": "0" * 64, "bytes": 9}),
        subjects=lambda s: s.update({"artifact:r.csv": "0" * 64, "ciphertext:r.csv": "0" * 64}),
    ),
    Forgery("weights of another size", "guard", sections=lambda p: _weights(p).update(bytes=1)),
    Forgery("metrics too large", "guard", sections=_set("guard", "released", 0, "bytes", to=10**5)),
    Forgery(
        "no covert bound", "guard", _set("guard", "covert_bound_bits", to=0), _set("covert_bound_bits", to=0)
    ),
    Forgery("a larger bound than the guard's", "guard", receipt=_set("covert_bound_bits", to=2**50)),
    Forgery("no records", "metering", receipt=lambda r: r["usage"].update(records=0, patients=0)),
    Forgery("no patients", "metering", receipt=_set("usage", "patients", to=0)),
    Forgery("patients outside the buckets", "metering", receipt=_set("usage", "patients", to=7)),
    Forgery("a lower cap", "metering", receipt=lambda r: r["usage"].update(cap=r["usage"]["records"])),
    Forgery("other buckets", "metering", receipt=lambda r: r["usage"].update(bucket=1000, records=1000)),
    Forgery("buckets of one", "metering", receipt=_set("usage", "bucket", to=1)),
    Forgery("invented probes", "seal", receipt=_set("airgap", "probes", to={"fine": "unreachable"})),
    Forgery("one probe more", "seal", receipt=_set("airgap", "probes", "wifi", to="unreachable")),
    Forgery("one probe less", "seal", receipt=lambda r: r["airgap"]["probes"].pop("ipv6")),
    Forgery("neither interface nor waiver", "receipt", receipt=_set("airgap", "waiver", to=None)),
    Forgery("interface and waiver", "receipt", receipt=_set("airgap", "interface", to="eth0")),
    Forgery("bytes that left while sealed", "receipt", receipt=_set("airgap", "wan_bytes_sent", to=1)),
    Forgery("a severed WAN that nobody probed", "seal", receipt=lambda r: r["airgap"].update(_SEVERED)),
    Forgery("no walls", "seal", receipt=_set("sandbox", "walls", to={})),
    Forgery("no known sandbox", "seal", receipt=lambda r: r.update(sandbox={"driver": "none", "walls": {}})),
    Forgery("a wall that is empty", "seal", receipt=_set("sandbox", "walls", "seccomp", to="")),
    Forgery("the walls of another sandbox", "seal", receipt=_set("sandbox", "walls", "driver", to="none")),
)


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
