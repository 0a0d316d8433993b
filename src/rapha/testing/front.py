"""What stands before a PACS in a hospital: a proxy that ends TLS and checks tokens; this one also remembers.

Debian's Orthanc 1.10 can't serve https itself (it falls over in its first handshake with OpenSSL 3) and knows
no bearer tokens, so tests of both put this in between, on loopback.
"""

from __future__ import annotations

import http.client
import secrets
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_TIMEOUT_S: Final = 30.0
_PASSED_ON: Final = ("Accept", "Authorization", "Content-Type")


@dataclass(frozen=True, slots=True)
class Tls:
    """A server's certificate.

    Attributes:
        ca: PEM of the authority that a client is to trust.
        pem: PEM of the server's private key and certificate.
    """

    ca: Path
    pem: Path


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it came over the wire."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: dict[str, str] = field(repr=False)

    def asked(self, name: str) -> list[str]:
        """Every value that the query gives for `name`."""
        return [value for key, value in self.query if key == name]


@dataclass(frozen=True, slots=True)
class Front:
    """A running proxy: its root URL, and what it was asked so far."""

    url: str
    seen: list[Seen]


@contextmanager
def front(
    upstream: str, *, tls: Tls | None = None, bearer: str | None = None, host: str = "127.0.0.1"
) -> Iterator[Front]:
    """A proxy on loopback before `upstream`, an http URL; it takes every path below the same root.

    Args:
        upstream: such as http://127.0.0.1:40111/dicom-web.
        tls: serve https, TLS 1.2 or later, with this certificate.
        bearer: answer 401 to what doesn't carry this token; it isn't passed on.
        host: the name or address that clients are told.
    """
    to = urlsplit(upstream)
    seen: list[Seen] = []
    server = _Server((to.hostname or "", to.port or 80), bearer, seen, _context(tls))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Front(f"{'https' if tls else 'http'}://{host}:{server.server_port}{to.path}", seen)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _context(tls: Tls | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.pem)
    return context


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, to: tuple[str, int], bearer: str | None, seen: list[Seen], context: ssl.SSLContext | None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.to, self.bearer, self.seen = to, bearer, seen
        if context is not None:
            # The handshake happens in the connection's own thread, so that one client can't hold up others.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up, or that doesn't trust the certificate, is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # head and body in one packet: a client's delayed acknowledgement costs 40 ms
    disable_nagle_algorithm = True
    timeout = _TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        """Pass the request on, and the answer back."""
        parts = urlsplit(self.path)
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        self.server.seen.append(Seen("GET", parts.path, query, dict(self.headers.items())))
        headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
        if self.server.bearer is not None:
            given = headers.pop("Authorization", "")
            if not secrets.compare_digest(given, f"Bearer {self.server.bearer}"):
                self._answer(HTTPStatus.UNAUTHORIZED, "text/plain", b"who are you?")
                return
        connection = http.client.HTTPConnection(*self.server.to, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", self.path, headers=headers)
            answer = connection.getresponse()
            kind = answer.getheader("Content-Type", "application/octet-stream")
            self._answer(answer.status, kind, answer.read())
        finally:
            connection.close()

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        """Nothing on stderr; `seen` tells."""


def authority(folder: Path, names: Iterable[str] = ("localhost", "127.0.0.1")) -> Tls:
    """A new authority in `folder` and a server's certificate from it for `names`, valid for a day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir(parents=True, exist_ok=True)
    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    basic = x509.BasicConstraints(ca=True, path_length=0)
    ca = _certificate("Test CA", root.public_key()).add_extension(basic, critical=True)
    server = _certificate("Test PACS", leaf.public_key()).add_extension(alternatives, critical=False)
    pem = serialization.Encoding.PEM
    private = leaf.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made = Tls(folder / "ca.pem", folder / "server.pem")
    made.ca.write_bytes(ca.sign(root, hashes.SHA256()).public_bytes(pem))
    made.pem.write_bytes(private + server.sign(root, hashes.SHA256()).public_bytes(pem))
    made.pem.chmod(0o600)
    return made


def _certificate(name: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    def _named(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(_named(name)).issuer_name(_named("Test CA"))
    builder = builder.public_key(key).serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
