from __future__ import annotations

from typing import Any

import pytest

from rapha.evidence.keys import SigningKey
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust

HOSPITAL, COMPANY, LOG, TEE = (SigningKey.generate().verify_key.to_text() for _ in range(4))
TRUST: dict[str, Any] = {
    "version": 1,
    "profile": "demo",
    "hospitals": [HOSPITAL],
    "companies": [COMPANY],
    "log": {"origin": "log.example/1", "key": LOG},
    "policy_bundles": ["aa" * 32],
    "simulated_tee": [TEE],
    "least_assurance": "simulated",
}
PRODUCTION: dict[str, Any] = {"profile": "production", "simulated_tee": [], "least_assurance": "tee+tpm"}


def code(**fields: Any) -> str:
    with pytest.raises(Refused) as caught:
        Trust.parse({**TRUST, **fields})
    return caught.value.code


def test_trust_files_of_both_profiles_round_trip() -> None:
    assert Trust.parse(TRUST).dump() == TRUST
    production = {**TRUST, **PRODUCTION}
    assert Trust.parse(production).dump() == production


@pytest.mark.parametrize("field", sorted(TRUST))
def test_every_field_is_required(field: str) -> None:
    with pytest.raises(Refused) as caught:
        Trust.parse({k: v for k, v in TRUST.items() if k != field})
    assert caught.value.code == "schema.field_missing"


BAD: dict[str, dict[str, Any]] = {
    "production that names a simulated root": {**PRODUCTION, "simulated_tee": [TEE]},
    "production that accepts simulated": {**PRODUCTION, "least_assurance": "simulated"},
    "demo without a root": {"simulated_tee": []},
    "another profile": {"profile": "Demo"},
    "no profile": {"profile": ""},
    "version 2": {"version": 2},
    "version true": {"version": True},
    "no hospital": {"hospitals": []},
    "no company": {"companies": []},
    "no policy": {"policy_bundles": []},
    "no log": {"log": None},
    "log without a key": {"log": {"origin": "x", "key": ""}},
    "log with a newline in its origin": {"log": {"origin": "a\nb", "key": LOG}},
    "no assurance": {"least_assurance": "none"},
    "65 hospitals": {"hospitals": [HOSPITAL] * 65},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_a_bad_trust_file_refuses(fields: dict[str, Any]) -> None:
    assert code(**fields) == "schema.field_invalid"


def test_an_unknown_field_refuses() -> None:
    assert code(chain={}) == "schema.field_unknown"
    assert code(log={"origin": "x", "key": LOG, "witnesses": 0}) == "schema.field_unknown"
