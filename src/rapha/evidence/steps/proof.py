"""Steps 17 to 19: the quote over the receipt, the transparency log, the chain."""

from __future__ import annotations

from rapha.evidence import bundle as bundles
from rapha.evidence import checkpoint, merkle
from rapha.evidence.keys import VerifyKey
from rapha.evidence.steps.case import Case
from rapha.evidence.steps.gates import appraise_within
from rapha.spec.attestation import Posture
from rapha.spec.refusals import Refused
from rapha.spec.units import parse_time


def step_attestation(case: Case) -> str:
    """Step 17; see `rapha.evidence.verify`."""
    posture = Posture.parse(case.bundle["attestation"], "attestation")
    admitted = int(parse_time(case.receipt.times.admitted).timestamp())
    appraisal = appraise_within(case, posture, case.receipt_digest, case.receipt.nonce, admitted, 0)
    if appraisal.measurement != case.admission.measurement:
        raise Refused("posture.evidence_invalid", "the node changed before it signed the receipt")
    return f"{appraisal.kind} quote over the receipt"


def step_log(case: Case) -> str:
    """Step 18; see `rapha.evidence.verify`."""
    log, root = case.bundle["log"], case.trust.log
    salt, leaf = case.bundle["log_salt"], case.bundle["log_leaf"]
    for name, value in (("log_salt", salt), ("log_leaf", leaf)):
        _hex32(value, name)
    if leaf != bundles.leaf(case.receipt_digest, salt):
        raise Refused("schema.field_invalid", "log_leaf is not the commitment to this receipt")
    signed = checkpoint.verify(
        _text(log["checkpoint"]), origin=root.origin, key=VerifyKey.from_text(root.key)
    )
    size, index, proof = log["size"], log["index"], log["proof"]
    if not _is_count(size) or not _is_count(index) or size != signed.size or not isinstance(proof, list):
        raise Refused("schema.field_invalid", "log: size, index or proof is malformed")
    for entry in proof:
        _hex32(entry, "log.proof")
    merkle.verify_inclusion(
        merkle.leaf_hash(bytes.fromhex(leaf)), index, size, [bytes.fromhex(p) for p in proof], signed.root
    )
    case.proves.append("the receipt is in the pinned transparency log")
    return f"entry {index} of {size} in {root.origin}"


def _hex32(value: object, name: str) -> None:
    if not isinstance(value, str) or len(value) != 64 or value.strip("0123456789abcdef"):
        raise Refused("schema.field_invalid", f"{name}: expected 32 bytes in lower-case hex")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def step_anchor(_: Case) -> None:
    """Step 19; see `rapha.evidence.verify`."""
    return


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused("schema.field_invalid", "log.checkpoint: expected text")
    return value
