"""What several people signed alike: owners their approval, reviewers their verdict."""

from __future__ import annotations

from typing import TypeVar

from rapha.evidence import dsse
from rapha.evidence.steps.case import Case, people_keys
from rapha.spec.agreement import Person
from rapha.spec.receipt import Approval, Review
from rapha.spec.refusals import Refused

Claims = TypeVar("Claims", Approval, Review)


def first_claim(envelopes: object, claim: str) -> str:
    """A claim of the first signature, before it is verified.

    What stays in the hospital can only be compared: everybody must have signed what the first one did.

    Raises:
        Refused: `policy.approval_missing`, `policy.approval_invalid`.
    """
    if not isinstance(envelopes, list) or not envelopes:
        raise Refused("policy.approval_missing", "nobody signed")
    found = dsse.unverified_predicate(envelopes[0]).get(claim)
    if not isinstance(found, str):
        raise Refused("policy.approval_invalid", f"a signature does not cover {claim!r}")
    return found


def signed_by(
    case: Case,
    section: str,
    people: tuple[Person, ...],
    required: int,
    expected: Claims,
) -> list[Claims]:
    """What at least `required` different `people` signed: `expected` in all but the verdict.

    The caller judges the verdicts.

    Raises:
        Refused: `policy.approval_missing`, `policy.approval_invalid`, `policy.signature_invalid`, `schema.*`.
    """
    envelopes, kind = case.bundle[section], section.removesuffix("s")
    if not isinstance(envelopes, list):
        raise Refused("schema.field_invalid", f"{section}: expected a list")
    signed: dict[str, Claims] = {}
    for envelope in envelopes:
        statement = dsse.verify(
            envelope, people_keys(people), kind=kind, profile=case.trust.profile, audience=case.receipt.node
        )
        claims = type(expected).parse(statement.predicate, kind)
        alike = expected.model_copy(update={"verdict": claims.verdict})
        if claims != alike or dict(statement.subjects) != {"job": case.job_id}:
            raise Refused("policy.approval_invalid", f"an {kind} covers something else")
        if len(statement.keyids) != 1 or statement.keyids[0] in signed:
            raise Refused("policy.approval_invalid", f"an {kind} is counted twice")
        signed[statement.keyids[0]] = claims
    if len(signed) < required:
        raise Refused("policy.approval_missing", f"{len(signed)} of {required} signatures")
    return list(signed.values())
