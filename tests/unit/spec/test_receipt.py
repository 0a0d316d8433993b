from __future__ import annotations

import copy
from typing import Any

import pytest

from rapha.spec.receipt import SECTIONS, Approval, Receipt, Review
from rapha.spec.refusals import Refused

SHA = "aa" * 32
RECEIPT: dict[str, Any] = {
    "job": {
        **{"id": SHA, "name": "breast-fna", "kind": "train", "purpose": "research/diagnosis"},
        **{"company": "acme", "hospital": "st-marys"},
    },
    "node": "st-marys-1",
    "image": "sha256:" + SHA,
    "runtime": SHA,
    "sections": dict.fromkeys(SECTIONS, SHA),
    "dataset": {
        **{"id": "breast-fna", "profile": "tabular.breast-fna", "manifest": SHA, "cohort": SHA},
        **{
            "opt_out_version": SHA,
            "content": SHA,
            "ledger": SHA,
            "confinement": "memory",
            "funnel": {"matched": 569, "opted-out": "<10"},
        },
    },
    "usage": {
        **{"records": 400, "patients": 380, "bucket": 50, "cap": 5000, "counts": "hospital-asserted"},
        **{"records_commitment": SHA, "patients_commitment": SHA, "used_root": SHA, "transcript": SHA},
    },
    "sandbox": {"driver": "bubblewrap", "walls": {"seccomp": "on"}},
    "airgap": {
        **{"interface": None, "waiver": "demo", "probes": {"coordinator": "unreachable"}},
        **{"mode": None, "lan": [], "wan_bytes_sent": None, "lifted": None},
        "reported_by": "host",
    },
    "outcome": "success",
    "released": "all",
    "guarantee": None,
    "covert_bound_bits": 1000,
    "assurance": "simulated",
    "nonce": SHA,
    "times": {"admitted": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:10:00Z"},
    "previous": "00" * 32,
}


def changed(path: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(RECEIPT)
    *parents, last = path.split(".")
    target: Any = tree
    for part in parents:
        target = target[part]
    target[last] = value
    return tree


def code(tree: dict[str, Any]) -> str:
    with pytest.raises(Refused) as caught:
        Receipt.parse(tree)
    return caught.value.code


def test_a_receipt_round_trips() -> None:
    assert Receipt.parse(RECEIPT).dump() == RECEIPT


@pytest.mark.parametrize("level", ["", "job", "dataset", "usage", "sandbox", "airgap", "times"])
def test_no_level_takes_another_field(level: str) -> None:
    assert code(changed(f"{level}.extra".strip("."), 1)) == "schema.field_unknown"


BAD: dict[str, tuple[str, Any]] = {
    "a failed job": ("outcome", "job.failed"),
    "negative count": ("usage.records", -1),
    "count true": ("usage.records", True),
    "count as text": ("usage.records", "400"),
    "count as a float": ("usage.records", 400.0),
    "count beyond 2^53": ("usage.records", 2**53),
    "bucket 0": ("usage.bucket", 0),
    "counts label": ("usage.counts", "exact"),
    "a small cell as a number with a sign": ("dataset.funnel", {"matched": "<-1"}),
    "a small cell in other digits": ("dataset.funnel", {"matched": "<٣"}),
    "a small cell as free text": ("dataset.funnel", {"matched": "Jane Doe"}),
    "a stage as free text": ("dataset.funnel", {"Jane Doe": 1}),
    "a scope that nobody signs": ("released", "weights"),
    "assurance none": ("assurance", "none"),
    "a probe that got out": ("airgap.probes", {"coordinator": "reached"}),
    "counters by another": ("airgap.reported_by", "tee"),
    "an interface and a waiver": ("airgap.interface", "eth0"),
    "neither": ("airgap.waiver", None),
    "a counter without an interface": ("airgap.wan_bytes_sent", 0),
    "a mode without an interface": ("airgap.mode", "link"),
    "bytes that got out": ("airgap.wan_bytes_sent", 1),
    "bytes that are false": ("airgap.wan_bytes_sent", False),
    "a lift that was not seen": ("airgap.lifted", False),
    "a range that is text": ("airgap.lan", ["the PACS"]),
    "a section in capitals": ("sections", {"job": "AA" * 32}),
    "image": ("image", SHA),
    "time with a fraction": ("times.finished", "2026-01-01T00:10:00.5Z"),
    "no such day": ("times.finished", "2026-02-30T00:00:00Z"),
    "kind": ("job.kind", "infer"),
    "previous": ("previous", ""),
}


@pytest.mark.parametrize(("path", "value"), BAD.values(), ids=BAD.keys())
def test_a_bad_receipt_refuses(path: str, value: Any) -> None:
    assert code(changed(path, value)) == "schema.field_invalid"


SEVERED = {
    **{"interface": "enp3s0f0np0", "waiver": None, "mode": "nftables", "lan": ["10.0.0.0/8"]},
    **{"probes": {"wan": "unreachable"}, "wan_bytes_sent": 0, "lifted": True, "reported_by": "host"},
}


def test_a_severed_interface_is_stated_whole() -> None:
    assert Receipt.parse(changed("airgap", SEVERED)).dump()["airgap"] == SEVERED
    for missing in ("mode", "wan_bytes_sent", "lifted"):
        assert code(changed("airgap", SEVERED | {missing: None})) == "schema.field_invalid"
    assert code(changed("airgap", SEVERED | {"mode": "link"})) == "schema.field_invalid"


@pytest.mark.parametrize("verdict", ["yes", "", True, None, "Approve", "release "])
def test_only_the_verdicts_that_there_are(verdict: Any) -> None:
    approval = dict.fromkeys(("job", "policy", "manifest", "cohort", "measurement", "changes", "shown"), SHA)
    review = dict.fromkeys(("job", "report", "shown"), SHA)
    assert Approval.parse({**approval, "verdict": "approve"}).verdict == "approve"
    assert Review.parse({**review, "verdict": "metrics-only"}).verdict == "metrics-only"
    for model, value in ((Approval, approval), (Review, review)):
        with pytest.raises(Refused) as caught:
            model.parse({**value, "verdict": verdict})
        assert caught.value.code == "schema.field_invalid"
