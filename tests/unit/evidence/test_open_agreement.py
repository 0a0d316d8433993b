from __future__ import annotations

from typing import Any

import pytest

from rapha.evidence import dsse
from rapha.evidence.agreement import open_agreement
from rapha.evidence.keys import SigningKey
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust

HOSPITAL, HOSPITAL_2, COMPANY, STRANGER, DEVELOPER, OWNER, NODE = (SigningKey.generate() for _ in range(7))


def text(key: SigningKey) -> str:
    return key.verify_key.to_text()


TRUST = Trust.parse(
    {
        **{"version": 1, "profile": "demo"},
        **{"hospitals": [text(HOSPITAL), text(HOSPITAL_2)], "companies": [text(COMPANY)]},
        **{"log": {"origin": "log.example/1", "key": text(STRANGER)}, "policy_bundles": ["aa" * 32]},
        **{"simulated_tee": [text(STRANGER)], "least_assurance": "simulated"},
    }
)


def terms(hospital: SigningKey = HOSPITAL, company: SigningKey = COMPANY) -> dict[str, Any]:
    owners = [{"name": "A", "role": "DPO", "key": text(OWNER)}]
    return {
        "id": "a-1",
        "hospital": {"id": "st-marys", "name": "St Mary's", "key": text(hospital)},
        "company": {"id": "acme", "name": "Acme", "key": text(company)},
        **{"not_before": "2026-01-01T00:00:00Z", "not_after": "2027-01-01T00:00:00Z"},
        "developers": [{"name": "D", "role": "developer", "key": text(DEVELOPER)}],
        **{"approvers": owners, "reviewers": owners, "approvals_required": 1, "reviews_required": 1},
        "nodes": [{"id": "st-marys-1", "receipt_key": text(NODE)}],
        **{"measurements": ["aa" * 32], "datasets": ["fna"], "purposes": ["research"]},
        **{"max_output_bytes": 1, "price_per_record": "0", "billing_bucket": 10, "currency": "USDC"},
        **{"least_assurance": "simulated", "documents": None},
    }


def signed(claims: dict[str, Any], *keys: SigningKey) -> dsse.EnvelopeDict:
    return dsse.sign("agreement", {}, claims, profile="demo", audience="rapha", keys=keys)


def test_both_parties_signed_and_each_is_pinned_in_its_role() -> None:
    envelope = signed(terms(), HOSPITAL, COMPANY)
    opened = open_agreement(envelope, TRUST)
    assert (opened.terms.id, len(opened.digest)) == ("a-1", 64)


BAD: dict[str, dsse.EnvelopeDict] = {
    "the company never signed": signed(terms(), HOSPITAL, HOSPITAL_2),
    "a second hospital signed too": signed(terms(), HOSPITAL, HOSPITAL_2, COMPANY),
    "roles swapped": signed(terms(COMPANY, HOSPITAL), HOSPITAL, COMPANY),
    "a hospital as the company": signed(terms(company=HOSPITAL_2), HOSPITAL, HOSPITAL_2),
    "other parties than it names": signed(terms(HOSPITAL_2), HOSPITAL, COMPANY),
    "a stranger as the company": signed(terms(company=STRANGER), HOSPITAL, COMPANY),
}


@pytest.mark.parametrize("envelope", BAD.values(), ids=BAD.keys())
def test_anything_else_refuses(envelope: dsse.EnvelopeDict) -> None:
    with pytest.raises(Refused) as caught:
        open_agreement(envelope, TRUST)
    assert caught.value.code == "policy.agreement"


@pytest.mark.parametrize("keys", [(HOSPITAL,), (COMPANY,), (HOSPITAL, STRANGER)])
def test_too_few_or_unknown_signatures_refuse(keys: tuple[SigningKey, ...]) -> None:
    with pytest.raises(Refused) as caught:
        open_agreement(signed(terms(), *keys), TRUST)
    assert caught.value.code == "policy.signature_invalid"
