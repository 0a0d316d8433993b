from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.spec.refusals import Refused

ONE, TWO, STRANGER = sorted((SigningKey.generate() for _ in range(3)), key=lambda k: k.keyid)
SUBJECT = {"job": "11" * 32}
Body = dict[str, Any]


def signed(*keys: SigningKey, **predicate: Any) -> dsse.EnvelopeDict:
    return dsse.sign(
        "job", SUBJECT, predicate or {"a": 1}, profile="demo", audience="node", keys=keys or [ONE]
    )


def verified(envelope: object, *trusted: SigningKey, threshold: int = 1) -> dsse.Statement:
    keys = [k.verify_key for k in trusted or (ONE,)]
    return dsse.verify(envelope, keys, kind="job", profile="demo", audience="node", threshold=threshold)


def code(envelope: object, *trusted: SigningKey, threshold: int = 1) -> str:
    with pytest.raises(Refused) as caught:
        verified(envelope, *trusted, threshold=threshold)
    return caught.value.code


def enveloped(payload: bytes, key: SigningKey = ONE, payload_type: str = dsse.PAYLOAD_TYPE) -> Body:
    """Any payload, signed rightly."""
    head = f"DSSEv1 {len(payload_type)} {payload_type} {len(payload)} ".encode()
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": key.keyid, "sig": base64.b64encode(key.sign(head + payload)).decode()}],
    }


def payload(envelope: Body) -> Body:
    body: Body = json.loads(base64.b64decode(envelope["payload"]))
    return body


def test_a_statement_comes_back_as_it_was_signed() -> None:
    statement = verified(signed(a=1, b=[True]))
    assert statement.predicate == {"a": 1, "b": [True]}
    assert statement.subjects == SUBJECT
    assert statement.keyids == (ONE.keyid,)
    assert statement.predicate_type == "urn:rapha:job:v1"
    assert statement.digest == canonical.digest(payload(signed(a=1, b=[True])))


def test_our_own_encoding_is_that_of_the_dsse_specification() -> None:
    envelope = signed()
    assert enveloped(base64.b64decode(envelope["payload"])) == envelope


def test_every_flipped_byte_of_the_envelope_refuses() -> None:
    data = canonical.dumps(signed())
    for i in range(len(data)):
        for bit in (0x01, 0x20, 0x80):
            changed = bytearray(data)
            changed[i] ^= bit
            with pytest.raises(Refused):
                verified(canonical.loads(bytes(changed)))


def test_every_missing_byte_of_the_envelope_refuses() -> None:
    data = canonical.dumps(signed())
    for i in range(len(data)):
        with pytest.raises(Refused):
            verified(canonical.loads(data[:i] + data[i + 1 :]))


def test_an_envelope_read_by_a_model_verifies_the_same() -> None:
    envelope = signed()
    assert verified({**envelope, "signatures": tuple(envelope["signatures"])}) == verified(envelope)


def change(path: str, value: Any) -> Callable[[Body], None]:
    def apply(envelope: Body) -> None:
        *parents, last = path.split(".")
        target: Any = envelope
        for part in parents:
            target = target[int(part) if part.isdigit() else part]
        target[last] = value

    return apply


def drop(path: str) -> Callable[[Body], None]:
    def apply(envelope: Body) -> None:
        *parents, last = path.split(".")
        target: Any = envelope
        for part in parents:
            target = target[int(part) if part.isdigit() else part]
        del target[last]

    return apply


MALFORMED: dict[str, Callable[[Body], object]] = {
    "extra field": change("note", ""),
    "extra field in a signature": change("signatures.0.cert", ""),
    "no payload": drop("payload"),
    "no type": drop("payloadType"),
    "no signatures": drop("signatures"),
    "no keyid": drop("signatures.0.keyid"),
    "other type": change("payloadType", "application/json"),
    "type with a parameter": change("payloadType", dsse.PAYLOAD_TYPE + ";v=1"),
    "type in capitals": change("payloadType", dsse.PAYLOAD_TYPE.upper()),
    "type is a list": change("payloadType", [dsse.PAYLOAD_TYPE]),
    "payload is bytes": change("payload", b""),
    "payload with a newline": lambda e: e.update(payload=e["payload"] + "\n"),
    "payload in the url alphabet": change("payload", "-_-_"),
    "signatures is a mapping": change("signatures", {"0": 1}),
    "signatures is text": change("signatures", "abc"),
    "signature is a list": change("signatures", [["keyid", "sig"]]),
    "keyid is a number": change("signatures.0.keyid", 1),
    "sig is null": change("signatures.0.sig", None),
    "sig with free bits": lambda e: e["signatures"][0].update(sig=e["signatures"][0]["sig"][:-3] + "B=="),
    "the same signature twice": lambda e: e["signatures"].append(e["signatures"][0]),
    "seventeen signatures": lambda e: e.update(signatures=e["signatures"] * 17),
}


@pytest.mark.parametrize("mutate", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_envelope_refuses(mutate: Callable[[Body], object]) -> None:
    envelope = copy.deepcopy(signed())
    mutate(envelope)
    assert code(envelope) in ("schema.envelope", "schema.json")


@pytest.mark.parametrize("value", [None, 1, "x", b"x", [], {}, [signed()], True])
def test_what_is_no_envelope_refuses(value: object) -> None:
    assert code(value) == "schema.envelope"
    with pytest.raises(Refused):
        dsse.unverified_predicate(value)


WRONG: dict[str, Callable[[Body], object]] = {
    "no signature": change("signatures", []),
    "empty signature": change("signatures.0.sig", ""),
    "short signature": change("signatures.0.sig", "AAAA"),
    "zero signature": change("signatures.0.sig", base64.b64encode(bytes(64)).decode()),
    "keyid of a stranger": change("signatures.0.keyid", STRANGER.keyid),
    "keyid in capitals": lambda e: e["signatures"][0].update(keyid=ONE.keyid.upper()),
    "keyid is empty": change("signatures.0.keyid", ""),
    "payload is empty": change("payload", ""),
    "payload of another": change("payload", signed(a=2)["payload"]),
    "signature over another": change("signatures.0.sig", signed(a=2)["signatures"][0]["sig"]),
    "signature by a stranger": change("signatures.0.sig", signed(STRANGER)["signatures"][0]["sig"]),
    "bare signature": lambda e: e["signatures"][0].update(
        sig=base64.b64encode(ONE.sign(base64.b64decode(e["payload"]))).decode()
    ),
}


@pytest.mark.parametrize("mutate", WRONG.values(), ids=WRONG.keys())
def test_a_signature_that_does_not_verify_refuses(mutate: Callable[[Body], object]) -> None:
    envelope = copy.deepcopy(signed())
    mutate(envelope)
    assert code(envelope) == "policy.signature_invalid"


def test_thresholds() -> None:
    both = signed(ONE, TWO)
    assert verified(both, ONE, TWO, threshold=2).keyids == (ONE.keyid, TWO.keyid)
    assert code(signed(ONE), ONE, TWO, threshold=2) == "policy.signature_invalid"
    assert code(both, ONE, TWO, threshold=3) == "policy.signature_invalid"
    assert code(both, ONE, TWO, threshold=0) == "policy.signature_invalid"
    assert code(both, ONE) == "policy.signature_invalid", "a signature by a stranger rides along"
    assert code({**both, "signatures": both["signatures"][::-1]}, ONE, TWO) == "schema.envelope"


def test_the_same_trusted_key_twice_counts_once() -> None:
    assert code(signed(ONE), ONE, ONE, threshold=2) == "policy.signature_invalid"


def test_one_bad_signature_beside_a_good_one_refuses() -> None:
    both = copy.deepcopy(signed(ONE, TWO))
    both["signatures"][1]["sig"] = both["signatures"][0]["sig"]
    assert code(both, ONE, TWO) == "policy.signature_invalid"


def test_no_trusted_key_refuses() -> None:
    with pytest.raises(Refused) as caught:
        dsse.verify(signed(), [], kind="job", profile="demo", audience="node")
    assert caught.value.code == "policy.signature_invalid"


def test_nobody_signing_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        dsse.sign("job", {}, {}, profile="demo", audience="node", keys=[])


def test_a_cosignature_is_added_in_order() -> None:
    for first, second in ((ONE, TWO), (TWO, ONE)):
        assert dsse.cosign(signed(first), second) == signed(ONE, TWO)
    assert dsse.cosign(signed(ONE), ONE) == signed(ONE)
    with pytest.raises(Refused):
        dsse.cosign({"payload": ""}, ONE)


ELSEWHERE: dict[str, dict[str, Any]] = {
    "profile": {"profile": "production"},
    "audience": {"audience": "other"},
    "audience in capitals": {"audience": "NODE"},
    "no audience": {"audience": ""},
}


@pytest.mark.parametrize("other", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_a_statement_for_elsewhere_refuses(other: dict[str, Any]) -> None:
    envelope = dsse.sign("job", SUBJECT, {}, keys=[ONE], **{"profile": "demo", "audience": "node", **other})
    assert code(envelope) == "policy.profile_mismatch"


def test_another_kind_refuses() -> None:
    with pytest.raises(Refused) as caught:
        dsse.verify(signed(), [ONE.verify_key], kind="receipt", profile="demo", audience="node")
    assert caught.value.code == "schema.envelope"


@pytest.mark.parametrize("protocol", [2, 0, -1, "1", True, None, [1], 1.5])
def test_another_protocol_refuses(protocol: Any) -> None:
    body = payload(signed())
    body["predicate"]["protocol"] = protocol
    assert code(enveloped(canonical.dumps(body))) == "policy.profile_mismatch"


@pytest.mark.parametrize("field", ["profile", "protocol", "audience"])
def test_a_signer_can_not_leave_out_or_overwrite_the_context(field: str) -> None:
    body = payload(signed())
    del body["predicate"][field]
    assert code(enveloped(canonical.dumps(body))) == "policy.profile_mismatch"
    assert field not in verified(signed(**{field: "mine"})).predicate


STATEMENTS: dict[str, Callable[[Body], object]] = {
    "extra field": change("note", 1),
    "no predicate": drop("predicate"),
    "other statement type": change("_type", "https://in-toto.io/Statement/v0.1"),
    "predicate is a list": change("predicate", []),
    "predicate type is a number": change("predicateType", 1),
    "subject is a mapping": change("subject", {}),
    "subject is text": change("subject", ["job"]),
    "subject without a digest": drop("subject.0.digest"),
    "subject with an annotation": change("subject.0.uri", "x"),
    "two digests": change("subject.0.digest.sha512", "x"),
    "digest is a number": change("subject.0.digest.sha256", 1),
    "digest is a list": change("subject.0.digest", ["sha256"]),
    "the same subject twice": lambda b: b["subject"].append(b["subject"][0]),
}


@pytest.mark.parametrize("mutate", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_a_malformed_statement_refuses_though_signed(mutate: Callable[[Body], object]) -> None:
    body = payload(signed())
    mutate(body)
    assert code(enveloped(canonical.dumps(body))) == "schema.envelope"


PAYLOADS: dict[str, Callable[[bytes], bytes]] = {
    "white space": lambda p: p + b" ",
    "pretty": lambda p: json.dumps(json.loads(p), indent=1).encode(),
    "duplicate key": lambda p: p.replace(b'"a":1', b'"a":1,"a":1'),
    "float": lambda p: p.replace(b'"a":1', b'"a":1.0'),
    "NaN": lambda p: p.replace(b'"a":1', b'"a":NaN'),
    "deep": lambda p: p.replace(b'"a":1', b'"a":' + b"[" * 70 + b"]" * 70),
    "surrogate": lambda p: p.replace(b'"a":1', b'"a":"\\ud800"'),
    "text": lambda p: b'"a statement"',
    "empty": lambda p: b"",
}


@pytest.mark.parametrize("change_payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_a_payload_that_is_not_canonical_refuses_though_signed(
    change_payload: Callable[[bytes], bytes],
) -> None:
    good = base64.b64decode(signed()["payload"])
    assert code(enveloped(change_payload(good))) in ("schema.json", "schema.envelope")


def test_a_signature_under_another_payload_type_refuses() -> None:
    good = base64.b64decode(signed()["payload"])
    other = enveloped(good, payload_type="application/json")
    assert code(other) == "schema.envelope"
    assert code({**other, "payloadType": dsse.PAYLOAD_TYPE}) == "policy.signature_invalid"


def test_claims_are_shown_before_they_are_checked_by_a_name_that_says_so() -> None:
    assert dsse.unverified_predicate(signed(STRANGER))["a"] == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["payload", "payloadType", "signatures", "keyid", "sig"]), inner)
    ),
)


@given(JSON)
def test_any_json_is_refused_and_never_crashes(value: object) -> None:
    with pytest.raises(Refused):
        verified(value)
    with pytest.raises(Refused):
        verified({**signed(), "signatures": value})


@given(
    st.dictionaries(
        st.text(), st.none() | st.booleans() | st.text() | st.integers(-(2**53) + 1, 2**53 - 1), max_size=4
    )
)
def test_any_claims_round_trip(claims: dict[str, Any]) -> None:
    kept = {k: v for k, v in claims.items() if k not in ("profile", "protocol", "audience")}
    envelope = dsse.sign("job", {}, claims, profile="demo", audience="node", keys=[ONE])
    assert verified(canonical.loads(canonical.dumps(envelope))).predicate == kept
