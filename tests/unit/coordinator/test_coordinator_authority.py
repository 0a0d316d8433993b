"""Who may do what: keys, signed requests, other people's objects."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from rapha.coordinator import accounts, operator
from rapha.coordinator.schema import nodes as node_table
from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.node.agent.client import AgentClient
from rapha.spec.refusals import Refused
from rapha.spec.units import format_time

EMPTY = hashlib.sha256(b"").hexdigest()


def envelope(node: Any, **changes: Any) -> str:
    """A signed `GET /v1/node/jobs`; keyword arguments replace parts of it."""
    options = {"kind": "request", "profile": "demo", "audience": "rapha.demo/log", "key": node.key}
    options |= {name: changes.pop(name) for name in list(changes) if name in options}
    subjects = changes.pop("subjects", {"body": EMPTY})
    claims = {
        "method": "GET",
        "path": "/v1/node/jobs",
        "body_sha256": EMPTY,
        "created": format_time(datetime.now(UTC)),
        "nonce": secrets.token_hex(32),
        **changes,
    }
    signed = dsse.sign(
        options["kind"],
        subjects,
        claims,
        profile=options["profile"],
        audience=options["audience"],
        keys=[options["key"]],
    )
    return base64.b64encode(canonical.dumps(signed)).decode()


def call(
    running: Any, header: str | None, path: str = "/v1/node/jobs", method: str = "GET"
) -> tuple[int, str]:
    headers = {} if header is None else {"Rapha-Envelope": header}
    response = running.http.request(method, path, headers=headers)
    return response.status_code, "" if response.is_success else str(response.json()["code"])


def test_a_signed_request_counts_once_even_across_a_restart(running: Any, node: Any) -> None:
    header = envelope(node)
    assert call(running, header) == (200, "")
    assert call(running, header) == (403, "policy.request_replayed")
    running.stop()
    running.start()
    assert call(running, header) == (403, "policy.request_replayed")
    assert call(running, envelope(node)) == (200, "")


def test_a_nonce_is_kept_as_long_as_its_request_could_be_accepted(running: Any, node: Any) -> None:
    from rapha.coordinator import requests

    header = envelope(node, created=format_time(datetime.now(UTC) + timedelta(seconds=290)))
    assert call(running, header) == (200, "")
    running.ahead = timedelta(seconds=585)
    with running.service.database.write() as db:
        requests.forget_old(db, now_ms=running.service.now_ms())
    assert call(running, header) == (403, "policy.request_replayed")


def test_a_request_that_is_signed_otherwise_is_refused(running: Any, node: Any) -> None:
    far = datetime.now(UTC)
    stranger = SigningKey.generate()
    wrong: list[tuple[str | None, tuple[int, str]]] = [
        (None, (401, "policy.not_authorised")),
        ("", (400, "schema.json")),
        ("!!!", (422, "schema.field_invalid")),
        ("A" * 9000, (413, "schema.too_large")),
        (base64.b64encode(b"{}").decode(), (400, "schema.envelope")),
        (envelope(node, key=stranger), (401, "policy.not_authorised")),
        (envelope(node, method="POST"), (403, "policy.not_authorised")),
        (envelope(node, path="/v1/node/jobs?x=1"), (403, "policy.not_authorised")),
        (envelope(node, audience="other/log"), (403, "policy.profile_mismatch")),
        (envelope(node, profile="production"), (403, "policy.profile_mismatch")),
        (envelope(node, kind="receipt"), (400, "schema.envelope")),
        (envelope(node, subjects={}), (400, "schema.envelope")),
        (envelope(node, extra=1), (422, "schema.field_unknown")),
        (envelope(node, nonce="1"), (422, "schema.field_invalid")),
        (envelope(node, created=format_time(far - timedelta(seconds=400))), (403, "policy.request_replayed")),
        (envelope(node, created=format_time(far + timedelta(seconds=400))), (403, "policy.request_replayed")),
        (_resigned(envelope(node), stranger), (400, "schema.envelope")),
        (_reencoded(envelope(node)), (400, "schema.json")),
    ]
    for header, expected in wrong:
        assert call(running, header) == expected, header


def _resigned(header: str, other: SigningKey) -> str:
    """Two signatures where one is wanted."""
    signed = dsse.cosign(canonical.loads(base64.b64decode(header)), other)
    return base64.b64encode(canonical.dumps(signed)).decode()


def _reencoded(header: str) -> str:
    """The same envelope in other bytes."""
    return base64.b64encode(base64.b64decode(header) + b" ").decode()


def test_a_signed_get_carries_no_body(running: Any, node: Any) -> None:
    other = hashlib.sha256(b"x").hexdigest()
    header = envelope(node, body_sha256=other, subjects={"body": other})
    assert call(running, header) == (400, "schema.envelope")


def test_a_body_that_was_not_signed_changes_nothing(running: Any, node: Any, alice: Any) -> None:
    alice.submit()
    body = b'{"key":"' + b"0" * 64 + b'","silent_period_s":60}'
    sha256 = hashlib.sha256(body).hexdigest()
    header = envelope(
        node, method="POST", path="/v1/node/leases", body_sha256=sha256, subjects={"body": sha256}
    )
    swapped = body.replace(b"60", b"99")
    response = running.http.post("/v1/node/leases", content=swapped, headers={"Rapha-Envelope": header})
    assert (response.status_code, response.json()["code"]) == (403, "policy.not_authorised")
    assert node.client.open_jobs() == []


def test_a_repeated_lease_call_gives_the_same_job(alice: Any, node: Any) -> None:
    jobs = {alice.submit(), alice.submit()}
    body = {"key": "a" * 64, "silent_period_s": 60}
    first = node.client._http.json("POST", "/v1/node/leases", body)
    assert node.client._http.json("POST", "/v1/node/leases", body) == first
    second = node.client._http.json("POST", "/v1/node/leases", {**body, "key": "b" * 64})
    assert {first["id"], second["id"]} == jobs


def test_other_peoples_objects_are_not_there(alice: Any, bob: Any, node: Any) -> None:
    job = alice.submit()
    node.client.lease()
    node.run(job)
    node.release(job)
    blob = alice.client.upload(alice.archive)
    paths = ["", "/events", "/explain", "/bundle", "/artifacts/model.safetensors", "/exchange/challenge"]
    for path in [f"/v1/jobs/{job}{p}" for p in paths] + [f"/v1/blobs/{blob}", f"/v1/jobs?after={job}"]:
        response = bob.http.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "policy.not_found"), path
        missing = bob.http.get(path.replace(job, "0" * 64).replace(blob, "0" * 64))
        assert response.json() == missing.json()
    assert bob.http.post(f"/v1/jobs/{job}/cancel").status_code == 404
    assert bob.http.put(f"/v1/jobs/{job}/exchange/ticket", json={}).status_code == 404


def test_a_known_digest_gives_no_right_to_the_blob(alice: Any, bob: Any) -> None:
    blob = alice.client.upload(alice.archive)
    bob.archive.write_bytes(b"not it")
    response = bob.http.put(f"/v1/blobs/{blob}", content=b"not it")
    assert (response.status_code, response.json()["code"]) == (422, "image.digest_mismatch")
    assert bob.http.get(f"/v1/blobs/{blob}").status_code == 404
    assert bob.http.put(f"/v1/blobs/{blob}", content=alice.archive.read_bytes()).status_code == 201
    part = bob.http.get(f"/v1/blobs/{blob}", headers={"Range": "bytes=0-4"})
    assert (part.status_code, part.content) == (206, alice.archive.read_bytes()[:5])


def test_a_node_touches_only_what_it_leases(running: Any, alice: Any, node: Any, other_node: Any) -> None:
    job = alice.submit()
    blob = alice.client.upload(alice.archive)
    target = running.root / "stolen"
    for thief in (node, other_node):
        with pytest.raises(Refused, match=r"image\.not_found"):
            thief.client.download_blob(blob, target, 1 << 20)
    assert node.client.lease().id == job
    steps: list[Callable[[], object]] = [
        lambda: other_node.client.state(job),
        lambda: other_node.client.heartbeat(job, 60),
        lambda: other_node.advance(job, "leased", "ticketed"),
        lambda: other_node.upload(job),
        lambda: other_node.release(job),
        lambda: other_node.client.get_exchange(job, "challenge"),
        lambda: other_node.client.put_exchange(job, "evidence", {}),
    ]
    for step in steps:
        with pytest.raises(Refused, match=r"policy\.not_found"):
            step()
    with pytest.raises(Refused, match=r"image\.not_found"):
        other_node.client.download_blob(blob, target, 1 << 20)
    assert not target.exists()


def test_a_wrong_api_key_is_401_whatever_is_wrong(running: Any, alice: Any) -> None:
    prefix, secret, check = alice.api_key.split("_")[1:]
    expired = operator.approve(running.work.root, alice.id)
    keys = [
        None,
        "",
        "Bearer",
        f"Basic {expired}",
        f"bearer {expired}",
        expired,
        f"Bearer {alice.api_key}",  # replaced by the one above
        f"Bearer rapha_{prefix}_{secret}_00000000",
        f"Bearer rapha_{'0' * 12}_{secret}_{check}",
        f"Bearer {expired}".encode() + b"\xe9",
    ]
    answers = set()
    for key in keys:
        headers = {} if key is None else {"Authorization": key}
        response = running.http.get("/v1/jobs", headers=headers)
        assert response.headers["www-authenticate"].startswith("Bearer")
        answers.add((response.status_code, response.text))
    assert len(answers) == 1
    good = {"Authorization": f"Bearer {expired}"}
    assert running.http.get("/v1/developers/me", headers=good).json()["id"] == alice.id
    running.ahead = timedelta(days=accounts.API_KEY_DAYS + 1)
    assert running.http.get("/v1/jobs", headers=good).status_code == 401
    running.ahead = timedelta(0)
    operator.revoke_developer(running.work.root, alice.id)
    assert running.http.get("/v1/jobs", headers=good).status_code == 401


def test_no_secret_is_on_the_disk(running: Any, alice: Any, node: Any) -> None:
    token = operator.invite(running.work.root, "node-z")
    with running.service.database.write() as db:
        db.exec_driver_sql("SELECT 1")
    stored = b"".join(p.read_bytes() for p in running.work.root.glob("store.db*"))
    for secret in (alice.api_key, alice.api_key.split("_")[2], token, token.split("_")[1]):
        assert secret.encode() not in stored
    assert node.name.encode() in stored


def test_an_invitation_is_for_one_node_once(running: Any, made: Any) -> None:
    def client(name: str, key: SigningKey) -> Any:
        return made(
            AgentClient(running.url, key, node=name, origin="rapha.demo/log", profile="demo", attempts=1)
        )

    first, second = SigningKey.generate(), SigningKey.generate()
    stale = operator.invite(running.work.root, "node-x")
    token = operator.invite(running.work.root, "node-x")
    for name, key, secret in (("node-x", first, stale), ("node-y", first, token)):
        with pytest.raises(Refused, match=r"policy\.not_authorised"):
            client(name, key).enrol(secret)
    assert client("node-x", first).enrol(token).node == "node-x"
    assert client("node-x", first).enrol(token).origin == "rapha.demo/log"
    with pytest.raises(Refused, match=r"policy\.not_authorised"):
        client("node-x", second).enrol(token)
    with pytest.raises(Refused, match=r"policy\.conflict"):
        client("node-w", first).enrol(operator.invite(running.work.root, "node-w"))
    late = operator.invite(running.work.root, "node-v")
    running.ahead = timedelta(hours=accounts.INVITATION_HOURS + 1)
    with pytest.raises(Refused, match=r"policy\.not_authorised"):
        client("node-v", second).enrol(late)
    with pytest.raises(Refused, match=r"policy\.conflict"):
        operator.invite(running.work.root, "node-x")
    with pytest.raises(Refused, match=r"schema\.field_invalid"):
        operator.invite(running.work.root, "../etc")


def test_a_node_of_another_coordinator_does_not_enrol_here(running: Any, made: Any) -> None:
    token = operator.invite(running.work.root, "node-x")
    client = made(
        AgentClient(running.url, SigningKey.generate(), node="node-x", origin="other", profile="demo")
    )
    with pytest.raises(Refused, match=r"policy\.profile_mismatch"):
        client.enrol(token)


def test_a_revoked_node_is_out_at_once(running: Any, node: Any, alice: Any) -> None:
    alice.submit()
    operator.revoke_node(running.work.root, node.name)
    with pytest.raises(Refused, match=r"policy\.not_authorised"):
        node.client.lease()
    with running.service.database.read() as db:
        assert db.execute(node_table.select()).one().status == "revoked"


def test_a_catalogue_is_what_its_node_signed(node: Any, other_node: Any, alice: Any) -> None:
    offered = {n["node"]: n["entries"] for n in alice.client.catalogue()}
    assert sorted(offered) == ["node-a", "node-b"]
    with pytest.raises(Refused, match=r"policy\.signature_invalid"):
        other_node.client.publish_catalogue(offered["node-a"])
    with pytest.raises(Refused, match=r"schema\.envelope"):
        node.client.publish_catalogue([{"profile": "x"}])
    with pytest.raises(Refused, match=r"schema\.too_large"):
        node.client.publish_catalogue(offered["node-a"] * 257)


def test_registration_is_idempotent_and_bounded(running: Any) -> None:
    def ask(**changes: Any) -> httpx.Response:
        key = SigningKey.generate().verify_key.to_text()
        body = {
            "organisation": "Acme",
            "contact": "a@b.example",
            "purpose": "r",
            "public_key": key,
            **changes,
        }
        answer: httpx.Response = running.http.post("/v1/developers", json=body)
        return answer

    key = SigningKey.generate().verify_key.to_text()
    first = ask(public_key=key)
    assert (first.status_code, first.json()["status"]) == (200, "pending")
    assert ask(public_key=key).json() == first.json()
    assert ask(public_key=key, organisation="Evil").status_code == 409
    for bad in (
        {"public_key": "A" * 59 + "="},
        {"organisation": "a\nb"},
        {"organisation": ""},
        {"role": "admin"},
    ):
        assert ask(**bad).status_code == 422
    with running.service.database.write() as db, pytest.raises(Refused, match=r"budget\.rate"):
        asked = accounts.Registration.parse(
            {
                "organisation": "x",
                "contact": "x",
                "purpose": "x",
                "public_key": SigningKey.generate().verify_key.to_text(),
            }
        )
        accounts.register(db, asked, max_pending=1, now=0)
    with pytest.raises(Refused, match=r"policy\.not_found"):
        operator.approve(running.work.root, "dev-nobody")


def test_every_no_is_a_problem_with_a_code_and_a_fix(running: Any) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("DELETE", "/healthz", 405),
        ("GET", "/v1/jobs", 401),
        ("GET", "/v1/log/leaves?start=a&end=1", 422),
        ("GET", "/v1/log/inclusion?index=0&size=1", 422),
        ("POST", "/v1/developers", 400),
    ):
        response = running.http.request(method, path)
        said = response.json()
        assert response.status_code == status == said["status"]
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["cache-control"] == "no-store"
        assert set(said) == {"type", "title", "status", "detail", "code", "fix"}
        assert said["type"] == f"urn:rapha:refusal:{said['code']}"
    assert running.http.get("/docs").status_code == 404


def test_a_body_has_a_limit_and_is_strict(running: Any, alice: Any) -> None:
    for content, code in (
        (b"x" * (16 * 1024 + 1), "schema.too_large"),
        (b'{"organisation":"a","organisation":"b"}', "schema.json"),
        (b"[" * 100 + b"]" * 100, "schema.json"),
        (b"NaN", "schema.json"),
        (b"[]", "schema.field_invalid"),
    ):
        assert running.http.post("/v1/developers", content=content).json()["code"] == code
    assert alice.http.post("/v1/jobs", content=b"{}").json()["code"] == "schema.field_missing"
