"""The wire to a PACS: who is trusted, who we are, and every wait held to one deadline.

httpcore looks at time one read at a time, so a server that drips bytes could hold a call for ever; here each
read and write gets what is left of the call.
"""

from __future__ import annotations

import base64
import contextlib
import math
import re
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import httpcore

from rapha.evidence.keys import read_private
from rapha.node.sources.folder import read_small
from rapha.node.sources.imaging.hosts import addresses
from rapha.spec.imaging import DicomWebSource
from rapha.spec.refusals import Refused

MAX_CA: Final = 2**20
_BEARER: Final = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1
_BASIC: Final = re.compile(rb"[^\x00-\x1f\x7f:]+:[^\x00-\x1f\x7f]*")  # RFC 7617, 2


class Fault(StrEnum):
    """Why there is no answer, in words that hold nothing of the question."""

    UNREACHABLE = "the PACS does not answer, or breaks off"
    UNTRUSTED = "the PACS shows no certificate that is trusted for its name"
    LOGIN = "the PACS does not accept the login"
    FORBIDDEN = "the PACS forbids what the dataset needs"
    ABSENT = "the PACS does not have what was asked for"
    NOT_OFFERED = "the PACS does not offer the form that was asked for"
    FAILING = "the PACS answers with errors"
    REDIRECTED = "the PACS sends its clients elsewhere; redirects are not followed"
    TOO_LARGE = "an answer of the PACS is larger than the limit"
    TOO_SLOW = "the PACS takes too long to answer"
    GARBLED = "the PACS answers with something else than DICOMweb"


class Failed(Exception):  # noqa: N818  a verdict on one request
    """A request that came to nothing, and why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one call, with all its attempts.

    Attributes:
        call_s: seconds until it must have ended, and one more for every `rate` bytes received.
        idle_s: seconds without a byte.
        attempts: how often to ask where nobody answers, or the server says that it is busy.
        backoff_s: before the second attempt; doubled each time.
        wait_s: longest wait that a server may ask for (Retry-After).
    """

    call_s: float = 30.0
    idle_s: float = 15.0
    rate: float = 2 * 2**20
    attempts: int = 4
    backoff_s: float = 0.25
    wait_s: float = 10.0


class Deadline:
    """When a call must have ended."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._at = time.monotonic() + limits.call_s

    def received(self, count: int) -> None:
        """Allow the time that `count` bytes may take."""
        self._at += count / self._limits.rate

    def end(self) -> None:
        """Leave no time."""
        self._at = -math.inf

    def left(self) -> float:
        """Seconds left for one read or write. Raises `Failed` (TOO_SLOW) where there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise Failed(Fault.TOO_SLOW)
        return min(left, self._limits.idle_s)


@dataclass(slots=True, eq=False)
class Line:
    """One connection, the deadline of the call that it is used for, and whether the server has hung up."""

    trust: ssl.SSLContext | None
    deadline: Deadline
    ended: bool = False
    pool: httpcore.ConnectionPool = field(init=False)
    stream: httpcore.NetworkStream | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.pool = httpcore.ConnectionPool(self.trust, max_connections=1, network_backend=_Backend(self))

    def cut(self) -> None:
        """End the call that another thread is in."""
        self.deadline.end()
        sock = None if self.stream is None else self.stream.get_extra_info("socket")
        if isinstance(sock, socket.socket):
            # Not SSLSocket's own, which would take its TLS away under the other thread's hands.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Backend(httpcore.NetworkBackend):
    """Connects, with every wait held to the line's deadline."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Without TLS, only to this machine, whatever address the name `localhost` stands for."""
        try:
            found = addresses(host, port, self._line.deadline.left())
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except OSError:
            raise httpcore.ConnectError from None
        failed: Exception = httpcore.ConnectError()
        for address in found:
            if self._line.trust is None and not ip_address(address).is_loopback:
                raise Failed(Fault.UNTRUSTED)
            try:
                inner = self._inner.connect_tcp(address, port, timeout=self._line.deadline.left())
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
                continue
            return _Stream(inner, self._line)
        raise failed


class _Stream(httpcore.NetworkStream):
    """A connection of a line."""

    def __init__(self, inner: httpcore.NetworkStream, line: Line) -> None:
        self._inner, self._line = inner, line
        line.stream = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, self._line.deadline.left())
        self._line.ended = not data
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._line.deadline.left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._line.deadline.left()
        try:
            return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._line)
        except ValueError:  # a name that no certificate can be for
            raise Failed(Fault.UNTRUSTED) from None

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def trusted(source: DicomWebSource, folder: Path) -> ssl.SSLContext:
    """TLS 1.2 or later, certificate and name checked, no authority but the pinned ones if there are any."""
    # Not ssl.create_default_context: it would write session keys to where SSLKEYLOGFILE says.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if source.ca is None:
        context.load_default_certs()
        return context
    pem = read_small(source.ca, folder, MAX_CA)
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise Refused("node.dataset_invalid", "`ca` holds no certificate in PEM form") from None
    # A hospital may pin an intermediate authority, or the very certificate of its PACS.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


class Login:
    """What to send as Authorization. It shows in no repr, log or traceback's locals by name."""

    __slots__ = ("_header",)

    def __init__(self, header: str) -> None:
        self._header = header

    def __repr__(self) -> str:
        return "Login(…)"

    def header(self) -> str:
        """The header's value."""
        return self._header


def login(source: DicomWebSource, folder: Path) -> Login | None:
    if source.secret is None:
        return None
    secret = read_private(folder / source.secret).removesuffix(b"\n").removesuffix(b"\r")
    if source.auth == "bearer" and _BEARER.fullmatch(secret):
        return Login("Bearer " + secret.decode("ascii"))
    if source.auth == "basic" and _BASIC.fullmatch(secret):
        return Login("Basic " + base64.b64encode(secret).decode("ascii"))
    raise Refused("node.key_unsafe", f"`secret` does not hold what {source.auth} authentication needs")
