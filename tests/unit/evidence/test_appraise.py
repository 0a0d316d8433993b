from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rapha.evidence import canonical, dsse, hpke
from rapha.evidence.attestation import appraise as attestation
from rapha.evidence.attestation.appraise import Expected, appraise
from rapha.evidence.attestation.binding import report_data
from rapha.evidence.keys import SigningKey
from rapha.spec.attestation import Posture, SimulatedEvidence
from rapha.spec.refusals import Refused
from rapha.testing.simulated_tee import SimulatedTee

NOW = 1_800_000_000
MEASUREMENT = "aa" * 32
ROOT, NODE_KEY, OTHER = (SigningKey.generate() for _ in range(3))
TEE = SimulatedTee.create(ROOT, MEASUREMENT)
BOUND: dict[str, str] = {
    "nonce": "11" * 32,
    "signing_key": NODE_KEY.verify_key.to_text(),
    "hpke_key": hpke.public_text(X25519PrivateKey.generate()),
    "subject": "22" * 32,
    "policy": "33" * 32,
}
EXPECTED = Expected(
    node="hospital-1",
    nonce=BOUND["nonce"],
    subject=BOUND["subject"],
    policy=BOUND["policy"],
    signing_key=BOUND["signing_key"],
    measurements=[MEASUREMENT],
    simulated_roots=[ROOT.verify_key],
    least_assurance="simulated",
    now=NOW,
)


def posture(evidence: SimulatedEvidence | None = None, **changed: str) -> Posture:
    evidence = evidence or TEE.quote(report_data(**BOUND), issued=NOW)
    return Posture.parse({"node": "hospital-1", **BOUND, "evidence": evidence.dump(), **changed})


def quoted(**claims: Any) -> Posture:
    return posture(TEE.quote(report_data(**BOUND), **{"issued": NOW, **claims}))


def code(found: Posture, **expected: Any) -> str:
    with pytest.raises(Refused) as caught:
        appraise(found, dataclasses.replace(EXPECTED, **expected))
    return caught.value.code


def test_good_evidence_appraises_and_says_that_it_is_simulated() -> None:
    found = appraise(posture(), EXPECTED)
    assert (found.kind, found.assurance, found.measurement) == ("simulated", "simulated", MEASUREMENT)
    assert (found.tcb_status, found.issued) == ("UpToDate", NOW)


def test_evidence_travels_as_canonical_json() -> None:
    travelled = Posture.parse(canonical.loads_canonical(canonical.dumps(posture().dump())))
    assert appraise(travelled, EXPECTED) == appraise(posture(), EXPECTED)


OTHER_DEMANDS: dict[str, dict[str, Any]] = {
    "node": {"node": "hospital-2"},
    "nonce": {"nonce": "12" * 32},
    "subject": {"subject": "23" * 32},
    "policy": {"policy": "34" * 32},
    "signing key": {"signing_key": OTHER.verify_key.to_text()},
    "measurement": {"measurements": ["ab" * 32]},
    "no measurement": {"measurements": []},
    "part of a measurement": {"measurements": [MEASUREMENT[:16], "", "aa"]},
    "root": {"simulated_roots": [OTHER.verify_key]},
    "no root, as in production": {"simulated_roots": []},
    "the attestation key as root": {"simulated_roots": [TEE.attestation_key.verify_key]},
}


@pytest.mark.parametrize("expected", OTHER_DEMANDS.values(), ids=OTHER_DEMANDS.keys())
def test_evidence_of_another_refuses(expected: dict[str, Any]) -> None:
    assert code(posture(), **expected) == "posture.evidence_invalid"


RELABELLED = {
    "nonce": "12" * 32,
    "subject": "23" * 32,
    "policy": "34" * 32,
    "signing_key": OTHER.verify_key.to_text(),
    "hpke_key": hpke.public_text(X25519PrivateKey.generate()),
}


@pytest.mark.parametrize(("part", "value"), RELABELLED.items())
def test_evidence_relabelled_to_what_is_expected_refuses(part: str, value: str) -> None:
    expected = {} if part == "hpke_key" else {part: value}
    assert code(posture(None, **{part: value}), **expected) == "posture.evidence_invalid"


KEYS = {
    "signing key that is no SPKI": {"signing_key": "A" * 59 + "="},
    "HPKE key with free bits": {"hpke_key": "A" * 42 + "B="},
    "HPKE key of small order": {"hpke_key": "A" * 43 + "="},
}


@pytest.mark.parametrize("changed", KEYS.values(), ids=KEYS.keys())
def test_malformed_keys_refuse_as_evidence(changed: dict[str, str]) -> None:
    expected = {k: v for k, v in changed.items() if k == "signing_key"}
    assert code(posture(None, **changed), **expected) == "posture.evidence_invalid"


@pytest.mark.parametrize("status", ["SWHardeningNeeded", "ConfigurationNeeded", "OutOfDate", "Revoked"])
def test_only_an_up_to_date_tcb_passes(status: str) -> None:
    assert code(quoted(tcb_status=status)) == "posture.evidence_invalid"


def test_debug_refuses() -> None:
    assert code(quoted(debug=True)) == "posture.evidence_invalid"


@pytest.mark.parametrize("age", [-60, 0, 1, 300])
def test_evidence_within_five_minutes_and_a_skew_of_one_passes(age: int) -> None:
    assert appraise(quoted(issued=NOW - age), EXPECTED).issued == NOW - age


@pytest.mark.parametrize("age", [-(10**9), -61, 301, 10**9, NOW, NOW + 1])
def test_stale_or_future_evidence_refuses(age: int) -> None:
    assert code(quoted(issued=NOW - age)) == "posture.evidence_invalid"


@pytest.mark.parametrize("least", ["tpm", "tee", "tee+tpm"])
def test_simulated_evidence_satisfies_nothing_real(least: str) -> None:
    assert code(posture(), least_assurance=least) == "posture.assurance_low"


def certificate(
    signer: SigningKey = ROOT, *, kind: str = attestation.CERTIFICATE_KIND, **claims: Any
) -> dsse.EnvelopeDict:
    body = {"key": TEE.attestation_key.verify_key.to_text(), **claims}
    return dsse.sign(kind, {}, body, profile="demo", audience=attestation.AUDIENCE, keys=[signer])


def quote(
    key: SigningKey = TEE.attestation_key,
    *,
    kind: str = attestation.QUOTE_KIND,
    profile: Any = "demo",
    audience: str = attestation.AUDIENCE,
    **changed: Any,
) -> dsse.EnvelopeDict:
    claims = {
        "measurement": MEASUREMENT,
        "report_data": report_data(**BOUND),
        "tcb_status": "UpToDate",
        "debug": False,
        "issued": NOW,
        **changed,
    }
    return dsse.sign(kind, {}, claims, profile=profile, audience=audience, keys=[key])


def made(c: dsse.EnvelopeDict, q: dsse.EnvelopeDict) -> Posture:
    return posture(SimulatedEvidence(kind="simulated", certificate=c, quote=q))


def test_evidence_made_by_hand_is_good_when_nothing_is_wrong_with_it() -> None:
    assert appraise(made(certificate(), quote()), EXPECTED).measurement == MEASUREMENT


FORGED: dict[str, Callable[[], Posture]] = {
    "certificate by another root": lambda: made(certificate(OTHER), quote()),
    "certificate signed by its own key": lambda: made(certificate(TEE.attestation_key), quote()),
    "certificate of another kind": lambda: made(certificate(kind="job"), quote()),
    "certificate with another claim": lambda: made(certificate(ca=True), quote()),
    "certificate of a key that is a number": lambda: made(certificate(key=1), quote()),
    "certificate of a key that is none": lambda: made(certificate(key="AAAA"), quote()),
    "certificate of another key": lambda: made(certificate(key=OTHER.verify_key.to_text()), quote()),
    "quote by another key": lambda: made(certificate(), quote(OTHER)),
    "quote by the root": lambda: made(certificate(), quote(ROOT)),
    "quote by the node's key": lambda: made(certificate(), quote(NODE_KEY)),
    "quote of another kind": lambda: made(certificate(), quote(kind=attestation.CERTIFICATE_KIND)),
    "quote of production": lambda: made(certificate(), quote(profile="production")),
    "quote for another audience": lambda: made(certificate(), quote(audience="node")),
    "the two swapped": lambda: made(quote(), certificate()),
    "empty": lambda: made({}, {}),
    "other measurement": lambda: made(certificate(), quote(measurement="ab" * 32)),
    "other report data": lambda: made(certificate(), quote(report_data="00" * 64)),
    "report data in capitals": lambda: made(certificate(), quote(report_data=report_data(**BOUND).upper())),
    "debug is a number": lambda: made(certificate(), quote(debug=0)),
    "time is true": lambda: made(certificate(), quote(issued=True)),
    "time is text": lambda: made(certificate(), quote(issued=str(NOW))),
    "time is a float": lambda: made(certificate(), quote(issued=NOW + 0.5)),
    "status unknown": lambda: made(certificate(), quote(tcb_status="uptodate")),
    "extra claim": lambda: made(certificate(), quote(waiver="all")),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_forged_evidence_refuses(forge: Callable[[], Posture]) -> None:
    assert code(forge()) == "posture.evidence_invalid"


def test_every_flipped_byte_of_the_evidence_refuses() -> None:
    data = canonical.dumps(posture().evidence.dump())
    for i in range(0, len(data), 3):
        changed = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        with pytest.raises(Refused):
            evidence = SimulatedEvidence.parse(canonical.loads(changed))
            appraise(posture(evidence), EXPECTED)
