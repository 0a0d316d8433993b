"""The one way to open an agreement: for the node, the researcher and the verifier alike."""

from __future__ import annotations

from dataclasses import dataclass

from rapha.evidence import dsse
from rapha.evidence.keys import VerifyKey
from rapha.evidence.steps.case import AUDIENCE_ALL, keys_of
from rapha.spec.agreement import Agreement
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust


@dataclass(frozen=True, slots=True)
class Opened:
    """A verified agreement; `digest` is the hex SHA-256 of what was signed."""

    terms: Agreement
    digest: str


def open_agreement(envelope: object, trust: Trust) -> Opened:
    """An agreement that exactly its two parties signed, each pinned in its own role.

    Raises:
        Refused: `policy.agreement`, or as `dsse.verify` and `Model.parse`.
    """
    statement = dsse.verify(
        envelope,
        keys_of(trust.hospitals) + keys_of(trust.companies),
        kind="agreement",
        profile=trust.profile,
        audience=AUDIENCE_ALL,
        threshold=2,
    )
    terms = Agreement.parse(statement.predicate, "agreement")
    if terms.hospital.key not in trust.hospitals or terms.company.key not in trust.companies:
        raise Refused("policy.agreement", "a party is not pinned in the role that it has")
    parties = {VerifyKey.from_text(p.key).keyid for p in (terms.hospital, terms.company)}
    if set(statement.keyids) != parties or len(parties) != 2:
        raise Refused("policy.agreement", "not signed by exactly the two parties it names")
    return Opened(terms, statement.digest)
