"""One GET: bounded in bytes and time, to whom it is meant, and with a secret that shows nowhere."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from rapha.evidence.keys import write_private
from rapha.node.sources.imaging import wire
from rapha.node.sources.imaging.http import Pacs, Target
from rapha.node.sources.imaging.wado import Breaker
from rapha.node.sources.imaging.wire import Deadline, Failed, Fault, Limits, login
from rapha.spec.imaging import DicomWebSource
from rapha.spec.refusals import Refused
from rapha.testing.front import authority, front
from rapha.testing.pacs import Image, Trouble, pacs
from rapha.testing.troubles import TROUBLES

QUICK = Limits(call_s=0.4, idle_s=0.2, attempts=2, backoff_s=0.01)
STUDIES = Target(("studies",), (("PatientID", "P1"),))
JSON = "application/dicom+json"
IMAGES = (Image("1.2.1", "1.2.1.1", "1.2.1.1.1"),)


def source(url: str, **more: Any) -> DicomWebSource:
    return DicomWebSource.parse({"kind": "dicomweb", "url": url, "scope": {"studies": ["1.2.1"]}, **more})


@contextlib.contextmanager
def client(url: str, folder: Path, limits: Limits = QUICK, **more: Any) -> Iterator[Pacs]:
    with contextlib.closing(Pacs(source(url, **more), folder, limits)) as opened:
        yield opened


def fault_of(url: str, folder: Path, limits: Limits = QUICK, **more: Any) -> Fault:
    with client(url, folder, limits, **more) as opened, pytest.raises(Failed) as failed:
        opened.get(STUDIES, JSON, 2**20)
    assert "P1" not in str(failed.value)
    return failed.value.fault


@contextlib.contextmanager
def listener(pieces: Iterable[bytes]) -> Iterator[str]:
    """A server that reads a request and sends `pieces`, whatever they are, to each that connects."""
    over = threading.Event()
    bound = socket.create_server(("127.0.0.1", 0))
    bound.settimeout(0.02)

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                connection, _ = bound.accept()
                with connection:
                    connection.settimeout(1.0)
                    connection.recv(65536)
                    for piece in pieces:
                        if over.is_set():
                            break
                        connection.sendall(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/dicom-web"
    finally:
        over.set()
        thread.join()
        bound.close()


class Dripping:
    """`piece` for ever, with a pause before each."""

    def __init__(self, piece: bytes) -> None:
        self._piece = piece

    def __iter__(self) -> Iterator[bytes]:
        pause = threading.Event()
        while True:
            pause.wait(0.02)
            yield self._piece


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
WIRES: dict[str, tuple[Iterable[bytes], Fault]] = {
    "nothing": ([], Fault.UNREACHABLE),
    "not HTTP": ([b"SSH-2.0-OpenSSH\r\n\r\n"], Fault.GARBLED),
    "half a head": ([OK], Fault.UNREACHABLE),
    "dripped head": (Dripping(b"a"), Fault.TOO_SLOW),
    "dripped headers": (Dripping(b"X: y\r\n"), Fault.TOO_SLOW),
    "a head without end": ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10**6], Fault.GARBLED),
    "informed for ever": (Dripping(b"HTTP/1.1 102 Processing\r\n\r\n"), Fault.TOO_SLOW),
    "dripped body": (itertools.chain([OK + b"\r\n"], Dripping(b" ")), Fault.TOO_SLOW),
    "dripped chunks": ([OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 3], Fault.UNREACHABLE),
    "chunks of no size": ([OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], Fault.GARBLED),
    "two lengths": ([OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]"], Fault.GARBLED),
    "two types": ([OK + b"Content-Type: text/html\r\nContent-Length: 2\r\n\r\n[]"], Fault.GARBLED),
    "status 299": ([OK.replace(b"200", b"299") + b"\r\n"], Fault.GARBLED),
    "status 999": ([OK.replace(b"200", b"999") + b"\r\n"], Fault.GARBLED),
}


@pytest.mark.parametrize("name", WIRES)
def test_what_comes_over_the_wire(name: str, tmp_path: Path) -> None:
    pieces, fault = WIRES[name]
    with listener(pieces) as url:
        assert fault_of(url, tmp_path) is fault


def test_nobody_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    assert fault_of(f"http://127.0.0.1:{port}/", tmp_path) is Fault.UNREACHABLE


def test_a_server_that_does_not_shake_hands(tmp_path: Path) -> None:
    tls = authority(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"https://127.0.0.1:{bound.getsockname()[1]}/"
        assert fault_of(url, tmp_path, ca=str(tls.ca)) is Fault.TOO_SLOW
    with listener([b"HTTP/1.1 200 OK\r\n\r\n"]) as plain:
        url = plain.replace("http:", "https:")
        assert fault_of(url, tmp_path, ca=str(tls.ca)) is Fault.UNTRUSTED


def test_who_is_trusted(tmp_path: Path) -> None:
    tls, other = authority(tmp_path / "tls"), authority(tmp_path / "other")
    with pacs(IMAGES) as server, front(server.url, tls=tls) as before:
        with client(before.url, tmp_path, ca=str(tls.ca)) as opened:
            assert opened._trust is not None
            assert opened._trust.minimum_version is ssl.TLSVersion.TLSv1_2
            assert opened.get(STUDIES, JSON, 2**20).kind is not None
        assert fault_of(before.url, tmp_path, ca=str(other.ca)) is Fault.UNTRUSTED
        assert fault_of(before.url, tmp_path) is Fault.UNTRUSTED
        assert len(before.seen) == 1
    named = authority(tmp_path / "named", ["pacs.example"])
    with pacs(IMAGES) as server, front(server.url, tls=named, host="localhost") as before:
        assert fault_of(before.url, tmp_path, ca=str(named.ca)) is Fault.UNTRUSTED
        assert before.seen == []


@pytest.mark.parametrize(("limit", "fits"), [(9, False), (10, True)])
@pytest.mark.parametrize("said", [True, False])
def test_the_limit_is_of_bytes_on_the_wire(limit: int, fits: bool, said: bool, tmp_path: Path) -> None:
    head = OK + (b"Content-Length: 10\r\n\r\n" if said else b"Connection: close\r\n\r\n")
    with listener([head + b"[        ]"]) as url, client(url, tmp_path) as opened:
        if fits:
            assert len(opened.get(STUDIES, JSON, limit).content) == 10
            return
        with pytest.raises(Failed) as failed:
            opened.get(STUDIES, JSON, limit)
    assert failed.value.fault is Fault.TOO_LARGE


def _later(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("after", "asked"),
    [("0", 2), ("", 2), ("soon", 2), ("-5", 2), ("²", 2), ("1.5", 2), ("3600", 1), ("9" * 400, 2),
     (_later(-9), 2), (_later(3600), 1), ("Fri, 99 Nov 9999 00:00:00 GMT", 2)],
)  # fmt: skip
def test_retry_after_is_heard_up_to_a_limit(after: str, asked: int, tmp_path: Path) -> None:
    head = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: " + after.encode("latin-1") + b"\r\n\r\n"
    count = itertools.count()
    pieces = [head]

    class Counted:
        def __iter__(self) -> Iterator[bytes]:
            next(count)
            return iter(pieces)

    with listener(Counted()) as url:
        assert fault_of(url, tmp_path) is Fault.FAILING
    assert next(count) == asked


def test_no_proxy_netrc_or_key_log_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = authority(tmp_path)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("default login nurse password hunter2\n")
    with pacs(IMAGES) as server, front(server.url, tls=tls) as before:
        with client(before.url, tmp_path, ca=str(tls.ca)) as opened:
            opened.get(STUDIES, JSON, 2**20)
        assert "Authorization" not in before.seen[0].headers
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1", "::ffff:10.0.0.1", "0.0.0.0", "fe80::1"])
def test_without_tls_only_this_machine(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*_: object, **__: object) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]

    connected: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(socket, "create_connection", lambda *to, **_: connected.append(to))
    assert fault_of("http://localhost/dicom-web", tmp_path) is Fault.UNTRUSTED
    assert not connected


def test_a_resolver_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over, asked = threading.Event(), itertools.count()

    def hangs(*_: object, **__: object) -> Any:
        next(asked)
        over.wait(30)
        raise OSError

    before = threading.active_count()
    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    try:
        for _ in range(12):
            assert (
                fault_of("https://pacs.example/", tmp_path, Limits(0.05, 0.02, attempts=1)) is Fault.TOO_SLOW
            )
        assert threading.active_count() - before == next(asked) <= 8
        assert all(t.daemon for t in threading.enumerate() if t.name == "resolve")
    finally:
        over.set()
        for thread in [t for t in threading.enumerate() if t.name == "resolve"]:
            thread.join()


def test_the_next_address_where_one_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pacs(IMAGES) as server, client(server.url.replace("127.0.0.1", "localhost"), tmp_path) as opened:
        monkeypatch.setattr(wire, "addresses", lambda *_: ("127.0.0.9", "127.0.0.1"))
        assert opened.get(STUDIES, JSON, 2**20).kind is not None


def test_an_ipv6_host_is_named_in_brackets(tmp_path: Path) -> None:
    heads: list[bytes] = []
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as bound:

        def serve() -> None:
            connection, _ = bound.accept()
            with connection:
                heads.append(connection.recv(65536))
                connection.sendall(OK + b"Content-Length: 2\r\n\r\n[]")

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://[::1]:{bound.getsockname()[1]}"
        with client(url, tmp_path) as opened:
            opened.get(STUDIES, JSON, 2**20)
        thread.join()
    assert f"Host: {url.removeprefix('http://')}\r\n".encode() in heads[0]


def test_closing_ends_the_calls_of_others(tmp_path: Path) -> None:
    slow = Limits(call_s=60.0, idle_s=60.0, attempts=4)
    begun = threading.Event()

    class Begun:
        def __iter__(self) -> Iterator[bytes]:
            begun.set()
            yield OK + b"\r\n"
            while True:
                threading.Event().wait(0.02)
                yield b""

    with listener(Begun()) as url, ThreadPoolExecutor(1) as executor:
        with client(url, tmp_path, slow) as opened:
            call = executor.submit(opened.get, STUDIES, JSON, 2**20)
            assert begun.wait(10)
        assert isinstance(call.exception(10), Failed)


@pytest.mark.parametrize(
    "url",
    [
        "https://pacs:0x50/",
        "https://pacs:70000/",
        "https://:443/",
        "https://pacs:port/",
        "https://a..b/",
        "https://.pacs/",
        "https://" + "x" * 64 + ".example/",
    ],
)
def test_urls_that_name_nobody(url: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        Pacs(source(url), tmp_path)
    assert refused.value.code == "node.dataset_invalid"


SECRETS = [
    ("basic", b"", False), ("basic", b"nurse", False), ("basic", b":pw", False),
    ("basic", b"a:b\r\nX: y", False),
    ("basic", b"nurse:pass:word\n", True), ("basic", "nurse:pässword".encode(), True),
    ("bearer", b"two words", False), ("bearer", b"a=b", False), ("bearer", b"a\n\n", False),
    ("bearer", b"abc==\r\n", True),
]  # fmt: skip


@pytest.mark.parametrize(("auth", "secret", "good"), SECRETS)
def test_secrets(auth: str, secret: bytes, good: bool, tmp_path: Path) -> None:
    write_private(tmp_path / "secret", secret)
    described = source("https://pacs/", auth=auth, secret="secret")
    if good:
        made = login(described, tmp_path)
        assert made is not None and made.header().split(" ")[1] not in repr(made)
        return
    with pytest.raises(Refused) as refused:
        login(described, tmp_path)
    assert refused.value.code == "node.key_unsafe"
    assert not secret or secret.decode() not in str(refused.value)


def test_a_redirect_never_carries_the_secret_away(tmp_path: Path) -> None:
    write_private(tmp_path / "secret", b"nurse:hunter2")
    for name in ("redirect to itself", "redirect to another host", "redirect to a file"):
        with pacs(IMAGES, Trouble(TROUBLES[name])) as server:
            fault = fault_of(server.url, tmp_path, auth="basic", secret="secret")
            assert fault is Fault.REDIRECTED
            assert len(server.seen) == 1


def test_many_at_a_time_and_connections_used_again(tmp_path: Path) -> None:
    with pacs(IMAGES) as server, client(server.url, tmp_path, Limits()) as opened:
        with ThreadPoolExecutor(4) as executor:
            answers = list(executor.map(lambda _: opened.get(STUDIES, JSON, 2**20), range(40)))
        assert len({answer.content for answer in answers}) == 1
        assert len(opened._idle) <= 4


def test_closed_is_closed(tmp_path: Path) -> None:
    with pacs(IMAGES) as server, client(server.url, tmp_path) as opened:
        opened.get(STUDIES, JSON, 2**20)
        opened.close()
        opened.close()
        with pytest.raises(Failed):
            opened.get(STUDIES, JSON, 2**20)


def test_a_deadline_grows_with_what_came() -> None:
    deadline = Deadline(Limits(call_s=0.0, rate=1.0))
    with pytest.raises(Failed):
        deadline.left()
    deadline.received(100)
    assert deadline.left() > 0


def test_a_breaker_counts_in_a_row() -> None:
    breaker = Breaker(3)
    for _ in range(5):
        breaker.failed(Failed(Fault.UNREACHABLE))
        breaker.failed(Failed(Fault.FAILING))
        breaker.failed(Failed(Fault.ABSENT))  # an answer, at last
        breaker.failed(Failed(Fault.TOO_SLOW))
        breaker.succeeded()
    breaker.failed(Failed(Fault.UNREACHABLE))
    breaker.failed(Failed(Fault.UNREACHABLE))
    with pytest.raises(Refused) as refused:
        breaker.failed(Failed(Fault.UNREACHABLE))
    assert refused.value.code == "node.dataset_missing"


@pytest.mark.parametrize("fault", [Fault.LOGIN, Fault.UNTRUSTED])
def test_a_breaker_does_not_wait_where_nothing_will_change(fault: Fault) -> None:
    with pytest.raises(Refused):
        Breaker().failed(Failed(fault))
