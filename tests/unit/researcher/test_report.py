"""The HTML report: pure, self-contained, escaped, and never about another bundle than the verified one."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.evidence import bundle as bundles
from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.evidence.verify import DOES_NOT_PROVE, STEPS, StepResult, Verification
from rapha.researcher.report import GateLine, render, words
from rapha.researcher.report.lines import GATES
from rapha.spec.receipt import SECTIONS
from rapha.spec.refusals import Refused
from rapha.spec.verdicts import SENTENCE, Scope

KEY = SigningKey.generate()
WEIGHTS = "ab" * 32
BITS = 96_117
METRICS: dict[str, Any] = {
    "trusted": {
        **{"auroc": 0.991, "auroc.low": 0.978, "auroc.high": 0.999},
        **{"accuracy": 0.956, "accuracy.low": 0.912, "accuracy.high": 0.982},
        **{"brier": 0.031, "brier.low": 0.016, "brier.high": 0.05},
        **{f"roc.{k}": v for k, v in zip(range(2, 9), (0.97, 0.98, 0.985, 0.99, 1, 1, 1), strict=True)},
        **{"calibration.1": 0.011, "calibration.2": 0.1, "calibration.9": 0.92, "calibration.10": 0.989},
    },
    "self_reported": {"loss": 0.0712, "converged": True, "optimiser": "adam", "epochs": 40},
}
FUNNEL: dict[str, int | str] = {
    **{"matched": 560, "readable": 550, "consented": 550, "used": 540},
    **{"record.patient_missing": "<10", "record.value_missing": "<10", "consent.opted_out": 20},
}
SECONDS = (0.041, 0.18, 0.39, 0.12, 0.52, 0.07, 0.22, 7.9, 0.61, 0.05, 0.11)
TIMELINE = tuple(
    GateLine(gate, "passed", seconds, f"what {gate} found")
    for gate, seconds in zip(GATES, SECONDS, strict=True)
)
EVIL = '"></title><script src=//evil.example></script><img src=x onerror=alert(1)>\x00\u202e\ud800{{7*7}}'


def receipt_of(guard: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    sections = dict.fromkeys(SECTIONS, "0" * 64) | {"guard": canonical.digest(guard)}
    hexes = dict.fromkeys(("manifest", "cohort", "opt_out_version", "content", "ledger"), "1" * 64)
    commitments = ("records_commitment", "patients_commitment", "used_root", "transcript")
    return {
        "job": {
            **{"id": "c" * 64, "name": "breast-fna", "kind": "train", "purpose": "research/diagnosis"},
            **{"company": "acme-diagnostics", "hospital": "st-elsewhere"},
        },
        **{"node": "st-elsewhere-1", "image": "sha256:" + "d" * 64, "runtime": "e" * 64},
        "sections": sections,
        "dataset": {
            **{"id": "breast-fna", "profile": "tabular-v1", "confinement": "memory"},
            **hexes,
            "funnel": FUNNEL,
        },
        "usage": {
            **{"records": 560, "patients": 560, "bucket": 10, "cap": 569, "counts": "hospital-asserted"},
            **dict.fromkeys(commitments, "2" * 64),
        },
        "sandbox": {"driver": "bubblewrap", "walls": {"seccomp": "on", "landlock": "abi 4"}},
        "airgap": {
            **{"interface": None, "waiver": "demo", "reported_by": "host", "mode": None, "lan": []},
            **{"wan_bytes_sent": None, "lifted": None},
            "probes": {"coordinator": "unreachable", "dns": "unreachable"},
        },
        **{
            "outcome": "success",
            "released": "all",
            "covert_bound_bits": BITS,
            "assurance": "simulated",
            "nonce": "3" * 64,
        },
        "times": {"admitted": "2025-03-01T10:00:00Z", "finished": "2025-03-01T10:01:00Z"},
        "previous": "4" * 64,
        **changes,
    }


def guard_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    released = [{"name": "model.safetensors", "sha256": WEIGHTS, "bytes": 11_904}]
    if metrics:
        data = canonical.dumps(dict(metrics))
        digest = hashlib.sha256(data).hexdigest()
        released.insert(0, {"name": "metrics.json", "sha256": digest, "bytes": len(data)})
    checks = [{"n": n, "id": f"check-{n}", "verdict": "pass"} for n in range(1, 8)]
    return {"checks": checks, "released": released, "covert_bound_bits": BITS, "report": "5" * 64}


def make(metrics: Mapping[str, Any], **changes: Any) -> tuple[bytes, Verification]:
    """A bundle with a real receipt and guard section, and the verdict that would be about it."""
    guard = guard_of(metrics)
    claims = receipt_of(guard, **changes)
    core: dict[str, Any] = {name: {} for name in bundles.CORE} | {"version": 1, "profile": "demo"}
    core["receipt"] = dsse.sign(
        "receipt", {"a": WEIGHTS}, claims, profile="demo", audience="rapha", keys=[KEY]
    )
    core["guard"] = guard
    log = {"checkpoint": "", "index": 0, "size": 1, "proof": []}
    verification = Verification(
        ok=True,
        assurance=str(claims["assurance"]),
        steps=tuple(
            StepResult(n, name, "pass", f"{name} holds") for n, (name, _) in enumerate(STEPS, start=1)
        ),
        proves=("a developer named in the agreement signed this job before any record was opened",),
        does_not_prove=DOES_NOT_PROVE,
        unique_records=int(claims["usage"]["records"]),
        artifacts=tuple({"name": r["name"], "sha256": r["sha256"]} for r in guard["released"]),
    )
    return bundles.assemble(core, log), verification


def page(metrics: Mapping[str, Any] = METRICS, case: str = "tabular", **changes: Any) -> str:
    bundle, verification = make(metrics, **changes)
    return render(bundle=bundle, verification=verification, metrics=metrics, timeline=TIMELINE, case=case)


class Outline(HTMLParser):
    """Every tag with its attributes, ids, and the text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.declaration: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_decl(self, decl: str) -> None:
        self.declaration.append(decl)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_order_of_gates_is_the_nodes_own() -> None:
    from rapha.node.pipeline import GATES as NODE_GATES

    assert GATES == NODE_GATES


def test_page_says_everything() -> None:
    text = " ".join(Outline(page()).text.split())
    for said in (
        "SIMULATED ATTESTATION",
        "Verified",
        "breast-fna",
        "what train found",
        "7.9 s",
        "0.991",
        "0.978 to 0.999",
        "this model, AUROC 0.991 (0.978 to 0.999)",
        "fewer than 10 patients",
        "consent.opted_out",
        "96,117 bits (12.0 kB)",
        "0.02 CT slices",
        "187 identifier rows",
        SENTENCE,
        "at most 560",
        "the hospital alone",
        "agreement holds",
        "It does not prove",
        WEIGHTS,
        "adam",
        "checked by nobody",
    ):
        assert said in text, said


def test_it_is_a_pure_function() -> None:
    bundle, verification = make(METRICS)
    arguments: dict[str, Any] = {"bundle": bundle, "verification": verification, "metrics": METRICS}
    first, second = (render(**arguments, timeline=TIMELINE, case="tabular") for _ in range(2))
    assert first == second


def test_it_is_self_contained() -> None:
    html = page()
    outline = Outline(html)
    assert outline.declaration == ["doctype html"] and html.startswith("<!doctype html>")
    banned = {"script", "link", "img", "iframe", "object", "embed", "form", "use", "image", "a", "base"}
    assert not banned & {tag for tag, _ in outline.tags}
    names = {name for _, attributes in outline.tags for name in attributes}
    assert not [n for n in names if n.startswith("on") or n in ("src", "href", "style", "xlink:href")]
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_its_policy_allows_its_own_style_and_nothing_else() -> None:
    html = page()
    style = html.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(m["content"] for m in Outline(html).all("meta") if "http-equiv" in m)
    assert policy is not None and policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")


def test_it_is_accessible() -> None:
    outline = Outline(page())
    tags = [tag for tag, _ in outline.tags]
    assert outline.all("html") == [{"lang": "en"}]
    assert [tags.count(t) for t in ("h1", "header", "main", "footer")] == [1, 1, 1, 1]
    levels = [int(t[1]) for t in tags if t in ("h1", "h2", "h3", "h4")]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(th.get("scope") in ("row", "col") for th in outline.all("th"))
    assert tags.count("caption") == tags.count("table")
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))
    named = [a["aria-labelledby"] or "" for _, a in outline.tags if "aria-labelledby" in a]
    assert {i for n in named for i in n.split()} <= set(ids)
    drawings = [a for a in outline.all("svg") if a.get("aria-hidden") != "true"]
    assert len(drawings) == 4 == tags.count("desc")
    assert all(a["role"] == "img" for a in drawings)


@pytest.mark.parametrize("where", ["case", "found", "gate", "reason", "proves", "does_not_prove", "reported"])
def test_hostile_text_is_shown_and_does_nothing(where: str) -> None:
    metrics = METRICS
    evil = EVIL.replace("\ud800", "") if where == "reported" else EVIL  # a lone surrogate is no JSON
    if where == "reported":
        metrics = {**METRICS, "self_reported": {evil: evil}}
    bundle, verification = make(metrics)
    if where in ("proves", "does_not_prove"):
        changes: dict[str, Any] = {where: (evil,)}
        verification = replace(verification, **changes)
    if where == "reason":
        verification = replace(verification, steps=(StepResult(1, evil, "pass", evil),))
    found = evil if where == "found" else "."
    line = GateLine(evil if where == "gate" else "intake", "passed", 1.0, found)
    html = render(
        bundle=bundle,
        verification=verification,
        metrics=metrics,
        timeline=[line],
        case=evil if where == "case" else "tabular",
    )
    outline = Outline(html)
    assert not {"script", "img"} & {tag for tag, _ in outline.tags}
    assert "<script src=//evil.example>" in outline.text and "{{7*7}}" in outline.text
    assert not {"\x00", "\u202e", "\ud800"} & set(html)
    html.encode("utf-8")


def test_hostile_names_of_metrics_are_escaped_in_drawings() -> None:
    trusted = {EVIL[:-9]: 0.5, "auroc": 0.9}
    metrics = {"trusted": trusted, "self_reported": {}}
    outline = Outline(page(metrics))
    assert not {"script", "img"} & {tag for tag, _ in outline.tags}


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=60), seconds=st.floats(0, 1e9))
def test_any_text_and_time_keep_the_page_whole(text: str, seconds: float) -> None:
    bundle, verification = make({})
    lines = [GateLine(text, "refused", seconds, text), GateLine("train", "passed", seconds, text)]
    html = render(bundle=bundle, verification=verification, metrics={}, timeline=lines, case=text)
    plain = render(
        bundle=bundle,
        verification=verification,
        metrics={},
        timeline=[replace(line, gate=g, found=".") for line, g in zip(lines, ("x", "train"), strict=True)],
        case="x",
    )
    html.encode("utf-8")
    assert all(a.get("width") != "nan%" and a.get("x") != "nan%" for a in Outline(html).all("rect"))
    assert sorted(t for t, _ in Outline(html).tags) == sorted(t for t, _ in Outline(plain).tags)


def test_a_failed_bundle_shows_its_failure_and_no_claim() -> None:
    bundle, verification = make(METRICS)
    failed = replace(
        verification,
        ok=False,
        assurance="none",
        steps=(StepResult(1, "format", "fail", "schema.json: not canonical"),),
        proves=(),
        unique_records=0,
        artifacts=(),
    )
    html = render(bundle=bundle, verification=failed, metrics=METRICS, timeline=TIMELINE, case="tabular")
    text = Outline(html).text
    assert "Verification failed" in text and "schema.json: not canonical" in text
    for claim in ("breast-fna", "0.991", "what train found", WEIGHTS, "acme"):
        assert claim not in text


def test_a_failed_bundle_may_be_any_bytes() -> None:
    failed = Verification(False, "none", (), (), DOES_NOT_PROVE, 0, ())
    html = render(bundle=b"\xff{", verification=failed, metrics={"x": object()}, timeline=(), case="x")
    assert "Verification failed" in html


def test_real_attestation_has_no_banner() -> None:
    usage = receipt_of({})["usage"] | {"counts": "attested"}
    text = Outline(page(assurance="tee", usage=usage)).text
    assert "SIMULATED" not in text and "inside attested hardware" in text


@pytest.mark.parametrize(
    "change",
    [
        {"unique_records": 1},
        {"assurance": "tee"},
        {"artifacts": ()},
        {"artifacts": ({"name": "model.safetensors", "sha256": "0" * 64},)},
    ],
)
def test_a_verdict_about_another_bundle_refuses(change: dict[str, Any]) -> None:
    bundle, verification = make(METRICS)
    with pytest.raises(Refused, match=r"schema\.field_invalid"):
        render(
            bundle=bundle,
            verification=replace(verification, **change),
            metrics=METRICS,
            timeline=TIMELINE,
            case="x",
        )


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"receipt":{}}'])
def test_a_verdict_about_no_bundle_refuses(data: bytes) -> None:
    _, verification = make(METRICS)
    with pytest.raises(Refused, match=r"schema\."):
        render(bundle=data, verification=verification, metrics=METRICS, timeline=(), case="x")


def test_metrics_that_the_receipt_does_not_name_refuse() -> None:
    bundle, verification = make(METRICS)
    better = {**METRICS, "trusted": {**METRICS["trusted"], "auroc": 1.0}}
    with pytest.raises(Refused, match="not the bytes of an artifact"):
        render(bundle=bundle, verification=verification, metrics=better, timeline=(), case="x")


@pytest.mark.parametrize(
    "trusted",
    [{"auroc": True}, {"auroc": "1"}, {"auroc": None}, {"roc.1": 1.5}, {"calibration.1": -0.1}],
)
def test_trusted_values_are_numbers_in_range(trusted: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"schema\.field_invalid"):
        page({"trusted": trusted, "self_reported": {}})


def test_a_file_of_another_shape_is_the_jobs_own_word() -> None:
    text = Outline(page({"auroc": 1.0, "note": "best ever"})).text
    assert "None were released." in text and "Self-reported by the job" in text and "best ever" in text


def test_an_interval_alone_or_missing_is_not_made_up() -> None:
    text = Outline(page({"trusted": {"auroc": 0.9, "brier.low": 0.1}, "self_reported": {}})).text
    assert "not released" in text and "Brier" not in text


def test_missing_gates_are_named_and_lines_are_put_in_order() -> None:
    bundle, verification = make(METRICS)
    lines = [TIMELINE[7], GateLine("later", "refused", 0, ""), TIMELINE[0]]
    html = render(bundle=bundle, verification=verification, metrics=METRICS, timeline=lines, case="x")
    text = Outline(html).text
    assert text.index("what intake found") < text.index("what train found")
    assert "later (refused)" in text and "Not in this journal: posture, scan" in text


def test_no_journal_no_timeline() -> None:
    bundle, verification = make({})
    html = render(bundle=bundle, verification=verification, metrics={}, timeline=(), case="x")
    assert "The gates, in order" not in html


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e300])
def test_a_time_that_no_gate_takes_refuses(seconds: float) -> None:
    with pytest.raises(Refused):
        GateLine("train", "passed", seconds, "")


def test_a_verdict_that_no_gate_gives_refuses() -> None:
    with pytest.raises(Refused):
        GateLine("train", "maybe", 1.0, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "released", "metrics", "said"),
    [
        (["metrics.json", "model.safetensors"], "all", {"trusted": {"auroc": 0.5}}, SENTENCE),
        (["report.json"], "all", {}, SENTENCE),
        (["metrics.json"], "metrics", {}, words.COMPUTED),
        (["metrics.json"], "all", {"trusted": {"auroc": 0.5}, "self_reported": {}}, words.COMPUTED),
        (["metrics.json"], "all", {"self_reported": {"loss": 1.0}}, words.OWN_WORDS),
        (["metrics.json"], "all", {}, words.OWN_WORDS),
    ],
)
def test_what_is_not_excluded_is_about_what_left(
    names: list[str], released: Scope, metrics: dict[str, Any], said: str
) -> None:
    assert words.hidden(released, names, metrics) == said
