"""The statement about an image that came inside its layout is believed as one in a lease is."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rapha.evidence import canonical, dsse, hpke
from rapha.evidence.keys import SigningKey
from rapha.evidence.steps.case import AUDIENCE_NODE
from rapha.node.gates.intake import attached
from rapha.spec.base import Profile
from rapha.spec.job import Job
from rapha.spec.refusals import Refused

DEVELOPER, STRANGER = SigningKey.generate(), SigningKey.generate()
IMAGE = "ab" * 32
JOB = Job.parse(
    {
        **{"kind": "train", "name": "fna", "purpose": "research", "not_after": "2030-01-01T00:00:00Z"},
        **{"nodes": "any", "entrypoint": ["python3", "train.py"], "model": {"architecture": "mlp"}},
        "dataset": {"profile": "fna", "modality": "tabular", "cohort": {"all": []}, "max_records": 10},
        "outputs": {
            "version": 1,
            "max_bytes": 1024,
            "self_reported": {
                "file": "metrics.json",
                "fields": [{"name": "loss", "type": "number", "min": 0, "max": 1, "decimals": 3}],
            },
        },
        **{"assurance": "simulated", "image": "sha256:" + IMAGE},
        "recipient": hpke.public_text(X25519PrivateKey.generate()),
        "compute": {"cpus": 1, "memory_bytes": 2**30, "gpus": 0, "wall_clock_s": 60},
    }
)


def envelope(key: SigningKey, image: str = IMAGE, profile: Profile = "demo") -> bytes:
    return canonical.dumps(
        dsse.sign("image", {"image": image}, {}, profile=profile, audience=AUDIENCE_NODE, keys=[key])
    )


GOOD = envelope(DEVELOPER)


@pytest.mark.parametrize(
    "referrers",
    [
        (GOOD,),
        (envelope(DEVELOPER, profile="production"), GOOD),
        (b"\xff", b"[]", envelope(STRANGER), GOOD),
    ],
)
def test_the_first_that_verifies_counts(referrers: tuple[bytes, ...]) -> None:
    found = attached(referrers, JOB, [DEVELOPER.verify_key], "demo")
    assert canonical.dumps(found) == GOOD


@pytest.mark.parametrize(
    ("referrers", "code"),
    [
        ((), "image.unsigned"),
        ((envelope(STRANGER),), "image.signature_invalid"),
        ((envelope(DEVELOPER, profile="production"),), "image.signature_invalid"),
        ((envelope(DEVELOPER, image="cd" * 32),), "image.signature_invalid"),
        ((b"not json",), "image.signature_invalid"),
        ((b"{}",), "image.signature_invalid"),
    ],
)
def test_anything_else_is_refused(referrers: tuple[bytes, ...], code: str) -> None:
    with pytest.raises(Refused) as refused:
        attached(referrers, JOB, [DEVELOPER.verify_key], "demo")
    assert refused.value.code == code
