"""Jobs from submission to delivery, over HTTP."""

from __future__ import annotations

import hashlib
import threading
from datetime import timedelta
from typing import Any

import pytest

from rapha.coordinator import leases
from rapha.evidence import checkpoint, merkle
from rapha.evidence.keys import VerifyKey
from rapha.node.agent.client import Step
from rapha.spec.refusals import Refused


def refused(code: str) -> Any:
    return pytest.raises(Refused, match=f"^{code}: ")


def test_a_job_is_taken_from_submission_to_delivery(running: Any, alice: Any, node: Any) -> None:
    job = alice.submit()
    leased = node.client.lease()
    assert (leased.id, leased.image_blob) == (job, hashlib.sha256(alice.archive.read_bytes()).hexdigest())
    target = running.root / "image.tar"
    node.client.download_blob(leased.image_blob, target, 1 << 20)
    assert target.read_bytes() == alice.archive.read_bytes()
    alice.client.put_exchange(job, "challenge", {"nonce": "1"})
    assert node.client.get_exchange(job, "challenge", 5) == {"nonce": "1"}
    node.client.put_exchange(job, "evidence", {"quote": "2"})
    assert alice.client.get_exchange(job, "evidence", wait=5) == {"quote": "2"}
    node.run(job)
    position = node.release(job)
    states = [e["state"] for e in alice.client.events(job)]
    assert states[:2] == ["submitted", "routed"]
    assert states[-4:] == ["guarding", "released", "logged", "delivered"]
    assert alice.client.artifact(job, "model.safetensors") == b"ciphertext"
    bundle = alice.client.bundle(job)
    assert bundle["log"] == position
    head = alice.client.checkpoint()
    signed = checkpoint.verify(
        position["checkpoint"], origin=head["origin"], key=VerifyKey.from_text(head["log_key"])
    )
    leaf = merkle.leaf_hash(bytes.fromhex(bundle["bundle"]["log_leaf"]))
    proof = [bytes.fromhex(h) for h in position["proof"]]
    merkle.verify_inclusion(leaf, position["index"], position["size"], proof, signed.root)
    seen = alice.client.get(job)
    assert (seen["state"], seen["surface"]["outcome"]) == ("delivered", "success")
    assert node.client.open_jobs() == []


def test_the_same_submission_is_the_same_job_and_other_bytes_conflict(alice: Any) -> None:
    envelope = alice.sign()
    first = alice.client.submit(envelope, alice.image(), alice.archive)
    assert alice.client.submit(envelope, alice.image(), alice.archive) == first
    assert len(alice.client.list()) == 1
    other = alice.archive.with_name("other.tar")
    other.write_bytes(b"another image")
    with refused("policy.conflict"):
        alice.client.submit(envelope, alice.image(), other)


WRONG_JOBS: list[tuple[dict[str, Any], str]] = [
    ({"profile": "production"}, "policy.profile_mismatch"),
    ({"not_after": "2020-01-01T00:00:00Z"}, "policy.job_expired"),
    ({"not_after": "tomorrow"}, "schema.field_invalid"),
    ({"nodes": []}, "schema.field_invalid"),
    ({"nodes": ["../x"]}, "schema.field_invalid"),
    ({"nodes": "all"}, "schema.field_invalid"),
    ({"dataset": {}}, "schema.field_missing"),
    ({"dataset": None}, "schema.field_missing"),
    ({"name": "x\n"}, "schema.field_invalid"),
]


def test_a_job_that_is_wrong_is_refused_with_its_code(alice: Any) -> None:
    for changes, code in WRONG_JOBS:
        with refused(code):
            alice.submit(**changes)
    assert alice.client.list() == []


def test_a_job_signed_by_another_is_refused(alice: Any, bob: Any) -> None:
    with refused("policy.signature_invalid"):
        alice.client.submit(bob.sign(), alice.image(), alice.archive)


def test_an_image_must_be_uploaded_by_the_submitter_itself(alice: Any, bob: Any) -> None:
    blob = bob.client.upload(bob.archive)
    body = {"job": alice.sign(), "image": alice.image(), "image_blob": blob}
    response = alice.http.post("/v1/jobs", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "image.not_found")


def test_jobs_go_to_eligible_nodes_only_and_routing_explains_itself(
    alice: Any, node: Any, running: Any
) -> None:
    job = alice.submit(nodes=["node-b", "node-c"])
    assert alice.client.get(job)["state"] == "submitted"
    assert node.client.lease() is None
    second = running.node("node-b", profiles=("other",))
    try:
        assert alice.client.get(job)["state"] == "submitted"
        reasons = {n["node"]: n["reasons"] for n in alice.client.explain(job)}
        assert "does not list" in reasons["node-a"][0]
        assert "no dataset of profile" in reasons["node-b"][0]
        assert "not enrolled" in reasons["node-c"][0]
    finally:
        second.close()
    third = running.node("node-c")
    try:
        assert alice.client.get(job)["state"] == "routed"
        assert node.client.lease() is None
        assert third.client.lease().id == job
    finally:
        third.close()


def test_a_lease_waits_for_work(alice: Any, node: Any) -> None:
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(node.client.lease(20)))
    waiting.start()
    job = alice.submit()
    waiting.join()
    assert got[0].id == job


def test_events_wait_for_the_next_one(alice: Any, node: Any) -> None:
    job = alice.submit()
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.extend(alice.client.events(job, after=2, wait=20)))
    waiting.start()
    node.client.lease()
    waiting.join()
    assert [(e["seq"], e["state"], e["actor"]) for e in got] == [(3, "leased", "node:node-a")]


def test_one_of_many_leases_wins(alice: Any, running: Any, made: Any) -> None:
    job = alice.submit()
    nodes = [made(running.node(f"node-{n}")) for n in range(4)]
    got: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: got.append(n.client.lease())) for n in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [leased.id for leased in got if leased is not None] == [job]


def test_cancel_and_transition_race_to_one_end(alice: Any, node: Any) -> None:
    job = alice.submit()
    node.client.lease()
    outcomes: list[str] = []

    def _attempt(call: Any) -> None:
        try:
            call()
            outcomes.append("ok")
        except Refused as no:
            outcomes.append(no.code)

    step = Step("leased", "refused", code="policy.denied", detail="no")
    threads = [
        threading.Thread(target=_attempt, args=(call,))
        for call in (lambda: alice.client.cancel(job), lambda: node.client.transition(job, step))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["ok", "policy.conflict"]
    events = alice.client.events(job)
    assert [e["seq"] for e in events] == [1, 2, 3, 4]
    assert events[-1]["state"] in ("cancelled", "refused")


def test_a_step_taken_twice_changes_nothing_and_a_stale_one_is_refused(alice: Any, node: Any) -> None:
    job = alice.submit()
    node.client.lease()
    node.advance(job, "leased", "ticketed")
    node.advance(job, "leased", "ticketed")
    node.advance(job, "ticketed", "awaiting_approval")
    with refused("policy.conflict"):
        node.advance(job, "leased", "ticketed")
    assert [e["state"] for e in alice.client.events(job, after=3)] == ["ticketed", "awaiting_approval"]


WRONG_STEPS = [
    (Step("leased", "admitted"), "policy.conflict"),
    (Step("leased", "cancelled", code="job.cancelled"), "policy.not_authorised"),
    (Step("leased", "delivered"), "policy.conflict"),
    (Step("leased", "refused"), "schema.field_invalid"),
    (Step("leased", "ticketed", code="policy.denied"), "schema.field_invalid"),
    (Step("leased", "refused", code="made.up"), "schema.field_invalid"),
    (
        Step("leased", "refused", code="privacy.cohort_refused", detail="9 patients"),
        "schema.field_invalid",
    ),
    (Step("leased", "ticketed", detail="hm"), "schema.field_invalid"),
    (Step("leased", "nowhere"), "schema.field_invalid"),
    (Step("leased", "refused", code="policy.denied", surface={"free": "text"}), "schema.field_missing"),
]


def test_a_node_can_take_only_the_steps_of_the_table(alice: Any, node: Any) -> None:
    job = alice.submit()
    node.client.lease()
    for step, code in WRONG_STEPS:
        with refused(code):
            node.client.transition(job, step)
    assert alice.client.get(job)["state"] == "leased"


def test_releasing_needs_a_receipt(alice: Any, node: Any) -> None:
    job = alice.submit()
    node.client.lease()
    node.run(job)
    with refused("policy.not_authorised"):
        node.advance(job, "guarding", "released")


def test_nothing_is_visible_before_the_receipt(alice: Any, node: Any) -> None:
    job = alice.submit()
    node.client.lease()
    node.run(job)
    node.upload(job)
    for path in ("artifacts/model.safetensors", "bundle"):
        assert alice.http.get(f"/v1/jobs/{job}/{path}").status_code == 409


def test_a_receipt_is_whole_or_nothing(alice: Any, node: Any) -> None:
    job = alice.submit()
    node.client.lease()
    node.run(job)
    surface, core = node.surface(job), node.core(job)
    sha256 = node.upload(job)
    bad: list[tuple[Any, Any, Any, str]] = [
        (surface, core, {"missing": sha256}, "image.not_found"),
        (surface, core, {"model.safetensors": "0" * 64}, "image.not_found"),
        (surface, {**core, "log_leaf": "xx"}, {}, "schema.field_invalid"),
        (surface, {"log_leaf": "0" * 64}, {}, "schema.envelope"),
        (surface, node.core("0" * 64), {}, "schema.envelope"),
        ({**surface, "job_id": "0" * 64}, core, {}, "schema.field_invalid"),
        ({**surface, "note": "x"}, core, {}, "schema.field_unknown"),
    ]
    for said, receipt, named, code in bad:
        with refused(code):
            node.client.post_receipt(job, said, receipt, named)
    assert alice.client.get(job)["state"] == "guarding"
    assert alice.http.get("/healthz").json()["log_size"] == 0
    first = node.client.post_receipt(job, surface, core, {"model.safetensors": sha256})
    assert node.client.post_receipt(job, surface, core, {"model.safetensors": sha256}) == first
    with refused("policy.conflict"):
        node.client.post_receipt(job, surface, core, {})


def test_an_unnamed_artifact_is_not_delivered(alice: Any, node: Any) -> None:
    job = alice.submit()
    node.client.lease()
    node.run(job)
    node.upload(job, "scratch.bin", b"not part of the receipt")
    node.release(job)
    assert alice.http.get(f"/v1/jobs/{job}/artifacts/scratch.bin").status_code == 404


def test_a_silent_node_loses_its_job(running: Any, alice: Any, node: Any) -> None:
    job = alice.submit()
    node.client.lease(silent_period_s=100)
    assert node.client.heartbeat(job, 200) == "leased"
    running.ahead = timedelta(seconds=150)
    with running.service.database.read() as db:
        assert not leases.overdue(db, now=running.service.now_ms())
    running.ahead = timedelta(seconds=250)
    last = alice.client.events(job, after=3, wait=10)[-1]
    assert (last["state"], last["code"], last["actor"]) == ("failed", "node.restarted", "coordinator:leases")


def test_a_job_that_nobody_takes_expires(running: Any, alice: Any) -> None:
    job = alice.submit(not_after="2090-01-01T00:00:00Z")
    running.ahead = timedelta(days=365 * 70)
    with running.service.database.write() as db:
        now = running.service.now_ms()
        assert leases.overdue(db, now=now)
        assert leases.sweep(db, now=now) == [job]
        assert not leases.overdue(db, now=now)
    running.ahead = timedelta(0)
    assert alice.client.get(job)["code"] == "job.expired"


def test_a_cancelled_job_takes_nothing_more(alice: Any, node: Any) -> None:
    job = alice.submit()
    node.client.lease()
    node.run(job)
    node.upload(job)
    assert alice.client.cancel(job)["state"] == "cancelled"
    assert alice.client.cancel(job)["code"] == "job.cancelled"
    with refused("policy.conflict"):
        node.upload(job)
    with refused("policy.conflict"):
        node.release(job)
    assert node.client.heartbeat(job, 10) == "cancelled"


def test_slots_are_written_once_by_their_own_side(alice: Any, node: Any) -> None:
    job = alice.submit()
    assert alice.client.get_exchange(job, "challenge") is None
    alice.client.put_exchange(job, "challenge", {"n": 1})
    alice.client.put_exchange(job, "challenge", {"n": 1})
    with refused("policy.conflict"):
        alice.client.put_exchange(job, "challenge", {"n": 2})
    with refused("policy.not_authorised"):
        alice.client.put_exchange(job, "evidence", {})
    node.client.lease()
    for slot in ("challenge", "ticket"):
        with refused("policy.not_authorised"):
            node.client.put_exchange(job, slot, {})
    with refused("schema.too_large"):
        node.client.put_exchange(job, "evidence", {"x": "y" * 256 * 1024})
    assert alice.http.put(f"/v1/jobs/{job}/exchange/notes", json={}).status_code == 422
    for body in (b"[]", b"1", b'{"a":1,"a":2}', b"{", b"\xff"):
        assert alice.http.put(f"/v1/jobs/{job}/exchange/ticket", content=body).status_code in (400, 422)
    node.advance(job, "leased", "ticketed")
    with refused("policy.conflict"):
        alice.client.put_exchange(job, "ticket", {"late": True})


def test_pages_go_through_every_job_once(alice: Any) -> None:
    made = [alice.submit() for _ in range(5)]
    assert [j["id"] for j in alice.client.list()] == made or {j["id"] for j in alice.client.list()} == set(
        made
    )
    first = alice.http.get("/v1/jobs?limit=2").json()
    second = alice.http.get(f"/v1/jobs?limit=3&after={first['next']}").json()
    assert {j["id"] for j in first["jobs"] + second["jobs"]} == set(made)
