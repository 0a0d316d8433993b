from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rapha.evidence import canonical, dsse, hpke
from rapha.evidence.attestation.binding import report_data
from rapha.evidence.keys import SigningKey
from rapha.evidence.steps.case import AUDIENCE_NODE
from rapha.evidence.steps.gates import policy_digest
from rapha.evidence.steps.parties import check_image, open_job
from rapha.researcher.signing import check_posture, sign_job, sign_ticket
from rapha.spec.agreement import Agreement
from rapha.spec.attestation import Posture
from rapha.spec.job import Job
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust
from rapha.testing.simulated_tee import SimulatedTee

NOW = 1_800_000_000
DEV, HOSPITAL, COMPANY, NODE, ROOT, OTHER, OWNER = (SigningKey.generate() for _ in range(7))
TEE = SimulatedTee.create(ROOT, "aa" * 32)
JOB = Job.parse(
    {
        **{"kind": "train", "name": "fna", "purpose": "research", "not_after": "2030-01-01T00:00:00Z"},
        **{"nodes": ["node-1"], "entrypoint": ["python3", "train.py"], "model": {"architecture": "mlp"}},
        "dataset": {"profile": "fna", "modality": "tabular", "cohort": {"all": []}, "max_records": 10},
        "outputs": {
            "version": 1,
            "max_bytes": 1024,
            "self_reported": {
                "file": "metrics.json",
                "fields": [{"name": "loss", "type": "number", "min": 0, "max": 1, "decimals": 3}],
            },
        },
        **{"assurance": "simulated", "image": "sha256:" + "ab" * 32},
        "recipient": hpke.public_text(X25519PrivateKey.generate()),
        "compute": {"cpus": 1, "memory_bytes": 2**30, "gpus": 0, "wall_clock_s": 60},
    }
)


def text(key: SigningKey) -> str:
    return key.verify_key.to_text()


PEOPLE = [{"name": "A", "role": "DPO", "key": text(OWNER)}]
AGREEMENT = Agreement.parse(
    {
        "id": "a-1",
        "hospital": {"id": "st-marys", "name": "St Mary's", "key": text(HOSPITAL)},
        "company": {"id": "acme", "name": "Acme", "key": text(COMPANY)},
        **{"not_before": "2026-01-01T00:00:00Z", "not_after": "2030-01-01T00:00:00Z"},
        **{
            "developers": [{"name": "D", "role": "developer", "key": text(DEV)}],
            "approvers": PEOPLE,
            "reviewers": PEOPLE,
        },
        **{"approvals_required": 1, "reviews_required": 1},
        "nodes": [{"id": "node-1", "receipt_key": text(NODE)}, {"id": "node-2", "receipt_key": text(OTHER)}],
        **{"measurements": ["aa" * 32], "datasets": ["fna"], "purposes": ["research"]},
        **{"max_output_bytes": 1, "price_per_record": "0", "currency": "USDC"},
        **{"billing_bucket": 10, "least_assurance": "simulated", "documents": None},
    }
)
TRUST = Trust.parse(
    {
        **{"version": 1, "profile": "demo", "hospitals": [text(HOSPITAL)], "companies": [text(COMPANY)]},
        **{"log": {"origin": "x", "key": text(OTHER)}, "policy_bundles": ["bb" * 32]},
        **{"simulated_tee": [text(ROOT)], "least_assurance": "simulated"},
    }
)
ID, NONCE = "11" * 32, "22" * 32


def posture(node: str = "node-1", key: SigningKey = NODE, subject: str = ID) -> Posture:
    bound = {
        "nonce": NONCE,
        "signing_key": text(key),
        "hpke_key": hpke.public_text(X25519PrivateKey.generate()),
        "subject": subject,
        "policy": policy_digest(TRUST.policy_bundles),
    }
    evidence = TEE.quote(report_data(**bound), issued=NOW)
    return Posture.parse({"node": node, **bound, "evidence": evidence.dump()})


def check(found: Posture, **changed: Any) -> None:
    arguments: dict[str, Any] = {
        **{"job": JOB, "job_id": ID, "nonce": NONCE, "agreement": AGREEMENT, "trust": TRUST, "now": NOW},
        **changed,
    }
    check_posture(found, **arguments)


def code(found: Posture, **changed: Any) -> str:
    with pytest.raises(Refused) as caught:
        check(found, **changed)
    return caught.value.code


def test_a_signed_job_opens_to_the_same_job_and_id() -> None:
    signed = sign_job(JOB, DEV, "demo")
    travelled = canonical.loads(canonical.dumps(signed.dump()))
    statement = dsse.verify(
        travelled["job"], [DEV.verify_key], kind="job", profile="demo", audience=AUDIENCE_NODE
    )
    assert open_job(statement) == (JOB, signed.id)
    check_image(travelled["image"], JOB, [DEV.verify_key], "demo")
    others: list[object] = [travelled["job"], {}, None]
    for image in others:
        with pytest.raises(Refused) as caught:
            check_image(image, JOB, [DEV.verify_key], "demo")
        assert caught.value.code == "image.signature_invalid"


def test_every_signing_is_a_new_job() -> None:
    assert len({sign_job(JOB, DEV, "demo").id for _ in range(5)}) == 5


def test_good_evidence_passes_and_a_ticket_names_it() -> None:
    found = posture()
    check(found)
    ticket = sign_ticket(found, ID, DEV, "demo")
    statement = dsse.verify(ticket, [DEV.verify_key], kind="ticket", profile="demo", audience="node-1")
    assert statement.predicate == {
        "job": ID,
        "node": "node-1",
        "evidence": canonical.digest(found.dump()),
        "nonce": NONCE,
    }


def test_a_node_that_the_agreement_or_the_job_does_not_name_is_not_eligible() -> None:
    assert code(posture("node-9")) == "policy.node_not_eligible"
    assert code(posture("node-2", OTHER)) == "policy.node_not_eligible"
    anywhere = JOB.model_copy(update={"nodes": "any"})
    check(posture("node-2", OTHER), job=anywhere)
    assert code(posture("node-9"), job=anywhere) == "policy.node_not_eligible"


def test_two_nodes_of_one_name_are_none() -> None:
    twice = AGREEMENT.model_copy(update={"nodes": (AGREEMENT.nodes[0], AGREEMENT.nodes[0])})
    assert code(posture(), agreement=twice) == "policy.node_not_eligible"


WRONG: dict[str, dict[str, Any]] = {
    "another nonce": {"nonce": "23" * 32},
    "another job": {"job_id": "12" * 32},
    "stale": {"now": NOW + 301},
    "from the future": {"now": NOW - 61},
    "another build": {"agreement": AGREEMENT.model_copy(update={"measurements": ("ab" * 32,)})},
    "another policy": {"trust": TRUST.model_copy(update={"policy_bundles": ("bc" * 32,)})},
    "one more policy": {"trust": TRUST.model_copy(update={"policy_bundles": ("bb" * 32, "bc" * 32)})},
    "another root": {"trust": TRUST.model_copy(update={"simulated_tee": (text(OTHER),)})},
    "production roots": {"trust": TRUST.model_copy(update={"simulated_tee": ()})},
}


@pytest.mark.parametrize("changed", WRONG.values(), ids=WRONG.keys())
def test_evidence_that_does_not_hold_refuses(changed: dict[str, Any]) -> None:
    assert code(posture(), **changed) == "posture.evidence_invalid"


def test_evidence_with_another_receipt_key_refuses() -> None:
    assert code(posture(key=OTHER)) == "posture.evidence_invalid"


def test_a_job_that_asks_for_a_real_tee_gets_none_from_a_simulated_one() -> None:
    assert code(posture(), job=JOB.model_copy(update={"assurance": "tee"})) == "posture.assurance_low"


@pytest.mark.parametrize(("who", "terms"), [("agreement", AGREEMENT), ("trust", TRUST)])
def test_the_most_that_job_agreement_and_trust_ask_for_is_demanded(who: str, terms: Any) -> None:
    asked = terms.model_copy(update={"least_assurance": "tee"})
    assert code(posture(), **{who: asked}) == "posture.assurance_low"


def test_a_signed_job_does_not_change_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        sign_job(JOB, DEV, "demo").id = "x"  # type: ignore[misc]
