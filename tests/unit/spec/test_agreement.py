from __future__ import annotations

import copy
from typing import Any

import pytest

from rapha.evidence.keys import SigningKey
from rapha.spec.agreement import Agreement
from rapha.spec.refusals import Refused

KEYS = [SigningKey.generate().verify_key.to_text() for _ in range(7)]
AGREEMENT: dict[str, Any] = {
    "id": "acme-st-marys-1",
    "hospital": {"id": "st-marys", "name": "St Mary's", "key": KEYS[0]},
    "company": {"id": "acme", "name": "Acme Diagnostics", "key": KEYS[1]},
    "not_before": "2026-01-01T00:00:00Z",
    "not_after": "2027-01-01T00:00:00Z",
    "developers": [{"name": "Dev", "role": "developer", "key": KEYS[2]}],
    "approvers": [
        {"name": "Ann", "role": "Caldicott Guardian", "key": KEYS[3]},
        {"name": "Ben", "role": "DPO", "key": KEYS[4]},
    ],
    "approvals_required": 2,
    "reviewers": [{"name": "Ann", "role": "Caldicott Guardian", "key": KEYS[3]}],
    "reviews_required": 1,
    "nodes": [{"id": "st-marys-1", "receipt_key": KEYS[5]}],
    "measurements": ["aa" * 32],
    "datasets": ["breast-fna"],
    "purposes": ["research/diagnosis"],
    "max_output_bytes": 1048576,
    "price_per_record": "0.05",
    "billing_bucket": 10,
    "currency": "USDC",
    "least_assurance": "simulated",
    "documents": None,
}


def code(**fields: Any) -> str:
    with pytest.raises(Refused) as caught:
        Agreement.parse({**copy.deepcopy(AGREEMENT), **fields})
    return caught.value.code


def test_an_agreement_round_trips() -> None:
    agreement = Agreement.parse(AGREEMENT)
    assert agreement.dump() == AGREEMENT


@pytest.mark.parametrize("field", sorted(AGREEMENT))
def test_every_field_is_required_and_none_is_unknown(field: str) -> None:
    with pytest.raises(Refused) as caught:
        Agreement.parse({k: v for k, v in AGREEMENT.items() if k != field})
    assert caught.value.code == "schema.field_missing"
    assert code(**{field + "_": 1}) == "schema.field_unknown"


LISTS = ["developers", "approvers", "reviewers", "nodes", "measurements", "datasets", "purposes"]


@pytest.mark.parametrize("field", LISTS)
def test_an_empty_list_refuses(field: str) -> None:
    assert code(**{field: []}) == "schema.field_invalid"


def people(*keys: str) -> list[dict[str, str]]:
    return [{"name": "A", "role": "DPO", "key": key} for key in keys]


BAD: dict[str, dict[str, Any]] = {
    "ends before it begins": {"not_before": "2027-01-01T00:00:00Z"},
    "no such day": {"not_after": "2027-02-29T00:00:00Z"},
    "a date in other digits, which would sort last": {"not_after": "٢٠٢٧-01-01T00:00:00Z"},
    "more approvals than people": {"approvals_required": 3},
    "no approvals": {"approvals_required": 0},
    "approvals: true": {"approvals_required": True},
    "more reviews than people": {"reviews_required": 2},
    "two people, one key": {"approvers": people(KEYS[3], KEYS[3])},
    "a name with a newline": {"hospital": {"id": "x", "name": "A\nB", "key": KEYS[0]}},
    "a name that moves the cursor": {"hospital": {"id": "x", "name": "A\x9bB", "key": KEYS[0]}},
    "a name that reads backwards": {"hospital": {"id": "x", "name": "A\u202eB", "key": KEYS[0]}},
    "an empty name": {"hospital": {"id": "x", "name": "", "key": KEYS[0]}},
    "a key in hexadecimal": {"developers": people("ab" * 44)},
    "a raw key": {"developers": people("A" * 43 + "=")},
    "a measurement in capitals": {"measurements": ["AA" * 32]},
    "a price as a number": {"price_per_record": 0.05},
    "a negative price": {"price_per_record": "-0.05"},
    "output bytes negative": {"max_output_bytes": -1},
    "another currency": {"currency": "EUR"},
    "a bucket of nothing": {"billing_bucket": 0},
    "one key is both parties": {"company": {"id": "acme", "name": "Acme", "key": KEYS[0]}},
    "the company approves": {"approvers": people(KEYS[1], KEYS[3])},
    "the company reviews": {"reviewers": people(KEYS[1])},
    "a developer approves": {"approvers": people(KEYS[2], KEYS[3])},
    "a developer reviews": {"reviewers": people(KEYS[2])},
    "the hospital develops": {"developers": people(KEYS[0])},
    **{
        f"a node is {who}": {"nodes": [{"id": "n", "receipt_key": KEYS[n]}]}
        for n, who in enumerate(("the hospital", "the company", "a developer", "an approver"))
    },
    "two nodes, one key": {"nodes": [{"id": n, "receipt_key": KEYS[5]} for n in ("n-1", "n-2")]},
    "two nodes, one id": {"nodes": [{"id": "n-1", "receipt_key": KEYS[n]} for n in (5, 6)]},
    "no assurance": {"least_assurance": "none"},
    "reviews without digests": {"documents": {"security_review": "", "privacy_review": "", "baa_or_dpa": ""}},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_a_bad_agreement_refuses(fields: dict[str, Any]) -> None:
    assert code(**fields) == "schema.field_invalid"
