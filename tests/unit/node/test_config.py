from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapha.evidence import dsse
from rapha.evidence.keys import SigningKey
from rapha.node import config
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust

CONFIG: dict[str, Any] = {
    "version": 1,
    "profile": "demo",
    "node": "st-marys-1",
    "coordinator": {"url": "https://rapha.example", "audience": "rapha.example"},
    "datasets": ["datasets/fna"],
    "policy_bundles": ["policy"],
    "runtime": ["numpy"],
    "runtime_name": "python-torch",
}
HOSPITAL, COMPANY, OTHER_HOSPITAL, OTHER, OWNER, NODE = (SigningKey.generate() for _ in range(6))


def text(key: SigningKey) -> str:
    return key.verify_key.to_text()


TRUST_FILE: dict[str, Any] = {
    "version": 1,
    "profile": "demo",
    "hospitals": [text(HOSPITAL), text(OTHER_HOSPITAL)],
    "companies": [text(COMPANY)],
    "log": {"origin": "log.example/1", "key": text(OTHER)},
    "policy_bundles": ["aa" * 32],
    "simulated_tee": [text(OTHER)],
    "least_assurance": "simulated",
}
TRUST = Trust.parse(TRUST_FILE)


def agreement(hospital: SigningKey = HOSPITAL, company: SigningKey = COMPANY) -> dict[str, Any]:
    people = [{"name": "A", "role": "DPO", "key": text(OWNER)}]
    developers = [{"name": "D", "role": "developer", "key": text(OTHER)}]
    return {
        "id": "a-1",
        "hospital": {"id": "st-marys", "name": "St Mary's", "key": text(hospital)},
        "company": {"id": "acme", "name": "Acme", "key": text(company)},
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2027-01-01T00:00:00Z",
        **{"developers": developers, "approvers": people, "reviewers": people},
        **{"approvals_required": 1, "reviews_required": 1},
        "nodes": [{"id": "st-marys-1", "receipt_key": text(NODE)}],
        **{"measurements": ["aa" * 32], "datasets": ["fna"], "purposes": ["research"]},
        **{"max_output_bytes": 1, "price_per_record": "0", "currency": "USDC"},
        **{"billing_bucket": 10, "least_assurance": "simulated", "documents": None},
    }


def sign(terms: dict[str, Any], *keys: SigningKey, **changed: Any) -> dsse.EnvelopeDict:
    context: dict[str, Any] = {"profile": "demo", "audience": "rapha", **changed}
    return dsse.sign("agreement", {}, terms, keys=keys or [HOSPITAL, COMPANY], **context)


def code(call: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.code


def test_a_configuration_is_read_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    path.write_text(json.dumps(CONFIG))
    found = config.load(path)
    assert (found.node, found.quantum_s, found.waits.ticket_s) == ("st-marys-1", 60, 120)
    path.write_text(json.dumps(found.dump()))
    assert config.load(path) == found


BAD: dict[str, dict[str, Any]] = {
    "unknown field": {"verbose": True},
    "version true": {"version": True},
    "profile": {"profile": "test"},
    "node with a path": {"node": "../x"},
    "url of another scheme": {"coordinator": {"url": "file:///etc", "audience": "x"}},
    "url with a space": {"coordinator": {"url": "https://a b", "audience": "x"}},
    "no runtime": {"runtime": []},
    "another sandbox": {"sandbox": "none"},
    "no quantum": {"quantum_s": 0},
    "wait for ever": {"waits": {"approval_s": 10**9}},
    "interface that is a path": {"wan_interface": "../eth0"},
    "empty waiver": {"wan_waiver": ""},
    "a range of a link that is down": {"air_gap": {"mode": "link", "lan": ["10.0.0.0/8"]}},
    "a range with host bits": {"air_gap": {"lan": ["10.0.0.1/8"]}},
    "a range that is a name": {"air_gap": {"lan": ["pacs.local/32"]}},
    "another way to sever": {"air_gap": {"mode": "unplug"}},
    "a runtime without layers": {"images": [{"name": "torch", "layers": []}]},
    "a layer by name": {"images": [{"name": "torch", "layers": ["torch:latest"]}]},
    "datasets is text": {"datasets": "x"},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_a_wrong_field_refuses(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = tmp_path / "node.json"
    path.write_text(json.dumps({**CONFIG, **fields}))
    assert code(lambda: config.load(path)) == "node.config"


FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "not UTF-8": lambda path: path.write_bytes(b"\xff"),
    "list": lambda path: path.write_bytes(b"[]"),
    "duplicate key": lambda path: path.write_bytes(b'{"version":1,"version":1}'),
    "deep": lambda path: path.write_bytes(b"[" * 50_000),
    "NaN": lambda path: path.write_bytes(b'{"quantum_s":NaN}'),
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES.keys())
@pytest.mark.parametrize("load", [config.load, config.load_trust])
def test_an_unreadable_file_refuses(
    tmp_path: Path, load: Callable[[Path], object], make: Callable[[Path], object]
) -> None:
    path = tmp_path / "file.json"
    make(path)
    assert code(lambda: load(path)) == "node.config"


def test_an_agreement_of_the_two_pinned_parties_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(sign(agreement())))
    ((terms, digest, envelope),) = config.load_agreements(tmp_path, TRUST)
    assert (terms.id, len(digest)) == ("a-1", 64)
    assert envelope == sign(agreement())
    assert config.load_agreements(tmp_path / "none", TRUST) == []


REFUSED: dict[str, dsse.EnvelopeDict | bytes] = {
    "one signature": sign(agreement(), HOSPITAL),
    "the company twice": sign(agreement(COMPANY), COMPANY),
    "a stranger for the company": sign(agreement(company=OTHER), HOSPITAL, OTHER),
    "a second hospital for the company": sign(agreement(company=OTHER_HOSPITAL), HOSPITAL, OTHER_HOSPITAL),
    "a company for the hospital": sign(agreement(COMPANY, HOSPITAL), HOSPITAL, COMPANY),
    "signed by others than it names": sign(agreement(), OTHER_HOSPITAL, COMPANY),
    "two hospitals, and not the company": sign(agreement(), HOSPITAL, OTHER_HOSPITAL),
    "the roles swapped, of two pinned keys": sign(
        agreement(COMPANY, OTHER_HOSPITAL), COMPANY, OTHER_HOSPITAL
    ),
    "signed by three": sign(agreement(), HOSPITAL, OTHER_HOSPITAL, COMPANY),
    "production": sign(agreement(), profile="production"),
    "another audience": sign(agreement(), audience="node"),
    "unknown field": sign({**agreement(), "extra": 1}),
    "garbage": b"garbage",
    "deep": b"[" * 50_000,
    "not an envelope": b"{}",
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_one_bad_agreement_stops_the_node(tmp_path: Path, value: dsse.EnvelopeDict | bytes) -> None:
    (tmp_path / "a.json").write_text(json.dumps(sign(agreement())))
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    (tmp_path / "b.json").write_bytes(data)
    assert code(lambda: config.load_agreements(tmp_path, TRUST)).startswith(("policy.", "schema."))


def test_an_agreement_that_is_a_folder_refuses(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    assert code(lambda: config.load_agreements(tmp_path, TRUST)) == "policy.agreement"


def test_the_policy_that_attestation_binds_is_that_of_the_trust_file() -> None:
    other = TRUST.model_copy(update={"policy_bundles": ("bb" * 32,)})
    assert config.bound_policy(TRUST) != config.bound_policy(other)
