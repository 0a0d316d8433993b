"""What the agent's client does when the coordinator is slow, gone, or not what it says."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.node.agent import transport
from rapha.node.agent.client import AgentClient
from rapha.node.agent.transport import RemoteKey
from rapha.spec.refusals import Refused

KEY = SigningKey.generate()
IMAGE = b"image" * 1000
DIGEST = hashlib.sha256(IMAGE).hexdigest()


class Hostile(ThreadingHTTPServer):
    """Gives the answers that it was told to, in order, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[tuple[int, bytes] | None] = []
        self.envelopes: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hostile

    def do_GET(self) -> None:
        header = base64.b64decode(self.headers["Rapha-Envelope"])
        self.server.envelopes.append(canonical.loads_canonical(header))
        answer = self.server.answers.pop(0)
        if answer is None:
            self.connection.close()
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    do_POST = do_GET  # noqa: N815  http.server's name

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    monkeypatch.setattr(transport, "BACKOFF_S", 0.001)
    server = Hostile()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(hostile: Hostile) -> Iterator[AgentClient]:
    with AgentClient(hostile.url, KEY, node="node-a", origin="o", profile="demo", attempts=3) as made:
        yield made


def problem(code: str) -> bytes:
    return canonical.dumps({"code": code, "detail": "as it says"})


def test_a_lost_call_is_repeated_and_signed_anew(hostile: Hostile, client: AgentClient) -> None:
    hostile.answers = [None, (503, problem("policy.unavailable")), (200, b'{"state": "leased"}')]
    assert client.state("a" * 64) == "leased"
    claims = [
        dsse.verify(e, [KEY.verify_key], kind="request", profile="demo", audience="o").predicate
        for e in hostile.envelopes
    ]
    assert len({c["nonce"] for c in claims}) == 3
    assert {c["path"] for c in claims} == {"/v1/node/jobs/" + "a" * 64}


def test_a_coordinator_that_stays_away_is_a_refusal(hostile: Hostile, client: AgentClient) -> None:
    hostile.answers = [None, (502, b"<html>"), (500, b"")]
    with pytest.raises(Refused, match=r"policy\.unavailable"):
        client.state("a" * 64)
    hostile.shutdown()
    with (
        AgentClient("http://127.0.0.1:1", KEY, node="n", origin="o", profile="demo", attempts=2) as nobody,
        pytest.raises(Refused, match=r"policy\.unavailable: the coordinator does not answer"),
    ):
        nobody.lease()


def test_a_refusal_is_not_repeated(hostile: Hostile, client: AgentClient) -> None:
    hostile.answers = [(409, problem("policy.conflict"))]
    with pytest.raises(Refused, match=r"^policy\.conflict: as it says$"):
        client.state("a" * 64)
    assert hostile.answers == []


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"code": 5}', b'{"code": ["x"]}', b'{"code": "x.y"}']
)
def test_an_answer_without_a_known_code_is_no_answer(
    hostile: Hostile, client: AgentClient, body: bytes
) -> None:
    hostile.answers = [(418, body)] * 3
    with pytest.raises(Refused, match=r"policy\.unavailable"):
        client.state("a" * 64)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"{", b'{"state": 1, "state": 2}'])
def test_a_malformed_yes_is_refused(hostile: Hostile, client: AgentClient, body: bytes) -> None:
    hostile.answers = [(200, body)] * 3
    with pytest.raises(Refused):
        client.state("a" * 64)


@pytest.mark.parametrize(
    "lease",
    [
        {"id": "../../etc", "image_blob": DIGEST, "job": {}, "image": {}},
        {"id": DIGEST, "image_blob": "/etc/passwd", "job": {}, "image": {}},
        {"id": DIGEST, "image_blob": DIGEST, "job": [], "image": {}},
        {"id": DIGEST, "image_blob": DIGEST, "job": {}},
        {"id": DIGEST + "\n", "image_blob": DIGEST, "job": {}, "image": {}},
    ],
)
def test_a_lease_that_names_no_job_is_refused(hostile: Hostile, client: AgentClient, lease: Any) -> None:
    hostile.answers = [(200, canonical.dumps(lease))]
    with pytest.raises(Refused, match=r"policy\.unavailable"):
        client.lease()


def test_a_download_is_kept_only_if_it_is_right(
    hostile: Hostile, client: AgentClient, tmp_path: Path
) -> None:
    target = tmp_path / "image.tar"
    for answer, limit, code in (
        ((200, IMAGE[:-1]), 10**6, "image.digest_mismatch"),
        ((200, IMAGE), len(IMAGE) - 1, "image.too_large"),
        ((404, problem("policy.not_found")), 10**6, "image.not_found"),
        ((206, IMAGE), 10**6, "policy.unavailable"),
    ):
        hostile.answers = [answer] * 3
        with pytest.raises(Refused, match=f"^{code}"):
            client.download_blob(DIGEST, target, limit)
        assert list(tmp_path.iterdir()) == []
    hostile.answers = [None, (200, IMAGE)]
    client.download_blob(DIGEST, target, len(IMAGE))
    assert target.read_bytes() == IMAGE


def test_a_key_may_be_kept_elsewhere(hostile: Hostile) -> None:
    asked: list[Any] = []

    def sign(subjects: Any, predicate: Any) -> dsse.EnvelopeDict:
        asked.append(predicate)
        return dsse.sign("request", subjects, predicate, profile="demo", audience="o", keys=[KEY])

    hostile.answers = [(200, b'{"jobs": []}')]
    remote = RemoteKey(KEY.verify_key, sign)
    with AgentClient(hostile.url, remote, node="n", origin="o", profile="demo") as client:
        assert client.open_jobs() == []
    assert asked[0]["method"] == "GET"


def test_an_answer_is_read_under_a_limit_and_a_deadline(
    hostile: Hostile, client: AgentClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transport, "MAX_ANSWER", 100)
    for status in (200, 409):
        hostile.answers = [(status, b" " * 101)] * 3
        with pytest.raises(Refused, match=r"policy\.unavailable.*passes"):
            client.state("a" * 64)
    monkeypatch.setattr(transport, "MAX_CALL_S", 0.0)
    for call in (
        lambda: client.state("a" * 64),
        lambda: client.download_blob(DIGEST, tmp_path / "image.tar", 0),
    ):
        hostile.answers = [(200, b'{"state": "leased"}')] * 3
        with pytest.raises(Refused, match=r"policy\.unavailable.*in time"):
            call()


def test_a_deadline_ends_what_drips(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_CALL_S", 0.3)
    gone = threading.Event()

    def _drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not gone.wait(0.02):
                handler.wfile.write(b" ")

    monkeypatch.setattr(_Handler, "do_GET", _drip)
    with (
        AgentClient(hostile.url, KEY, node="n", origin="o", profile="demo") as client,
        pytest.raises(Refused, match=r"policy\.unavailable"),
    ):
        client.state("a" * 64)
    gone.set()


def test_a_packed_answer_is_not_unpacked(
    hostile: Hostile, client: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str | None] = []

    def _packed(handler: Any) -> None:
        said.append(handler.headers["Accept-Encoding"])
        body = gzip.compress(b'{"state": "leased"}' + b" " * 10**6)
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    monkeypatch.setattr(_Handler, "do_GET", _packed)
    with pytest.raises(Refused):
        client.state("a" * 64)
    assert set(said) == {"identity"}
