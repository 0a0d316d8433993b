"""HTTPS GET from a PACS that may be slow, broken or hostile: every answer is bounded in bytes and in time.

httpcore alone, the wire of httpx: it follows no redirect, unpacks no encoding, knows no proxy, cookie or
netrc, and lets every single read be held to the deadline of the whole call, so that a server which drips
headers or bytes gains nothing.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import httpcore

from rapha.node.sources.imaging.multipart import Malformed, MediaType, media_type
from rapha.node.sources.imaging.wire import Deadline, Failed, Fault, Limits, Line, login, trusted
from rapha.spec.imaging import DicomWebSource
from rapha.spec.refusals import Refused


@dataclass(frozen=True, slots=True)
class Target:
    """What to get: segments below the service's root, and a query. Both are escaped here and nowhere else."""

    segments: tuple[str, ...]
    query: tuple[tuple[str, str], ...] = ()

    def below(self, root: str) -> bytes:
        """The request target (RFC 9112, 3.2.1)."""
        path = "/".join([root.rstrip("/"), *(quote(segment, safe="") for segment in self.segments)])
        return (path + ("?" + urlencode(self.query, quote_via=quote) if self.query else "")).encode("ascii")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with status 200; 204 has no type and no content."""

    kind: MediaType | None
    content: bytes


class Pacs:
    """A PACS's DICOMweb service; safe to use from any thread, as many connections as calls at a time."""

    def __init__(self, source: DicomWebSource, folder: Path, limits: Limits | None = None) -> None:
        """Read the secret and the authorities; nothing is sent yet.

        Raises:
            Refused: `node.key_unsafe` for a secret that others can read or that is none;
                `node.dataset_missing` or `node.dataset_invalid` for the authorities, or the URL.
        """
        parts = urlsplit(source.url)
        try:
            self._origin = (parts.scheme.encode(), (parts.hostname or "").encode(), parts.port)
        except ValueError:
            raise Refused("node.dataset_invalid", "`url` names a port that there isn't") from None
        try:
            named = bool((parts.hostname or "").encode("idna"))
        except UnicodeError:  # an empty or overlong label, as in "a..b"
            named = False
        if not named:
            raise Refused("node.dataset_invalid", "`url` names no host")
        self._root = parts.path
        self._authority = parts.netloc  # httpcore would leave out the brackets of an IPv6 address
        self._limits = limits or Limits()
        self._login = login(source, folder)
        self._trust = None if parts.scheme == "http" else trusted(source, folder)
        self._idle: list[Line] = []
        self._busy: set[Line] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def get(self, target: Target, accept: str, limit: int) -> Answer:
        """GET `target`; the whole answer, of at most `limit` bytes.

        Raises:
            Failed: with the fault of the last attempt.
        """
        with self._borrowed(Deadline(self._limits)) as line:
            for attempt in range(self._limits.attempts):
                wait = self._limits.backoff_s * 2**attempt
                try:
                    answer = self._once(line, target, accept, limit)
                    if self._closed.is_set():  # an answer without a length looks whole wherever it is cut
                        raise Failed(Fault.UNREACHABLE)
                    return answer
                except _Again as again:
                    fault, wait = again.fault, max(wait, again.after)
                last = attempt + 1 == self._limits.attempts
                if last or wait > min(self._limits.wait_s, line.deadline.left()):
                    break
                if self._closed.wait(wait):
                    raise Failed(Fault.UNREACHABLE)
        raise Failed(fault)

    def close(self) -> None:
        """Close the connections, and end every call and wait. Idempotent."""
        with self._lock:
            self._closed.set()
            idle, self._idle = self._idle, []
            for line in self._busy:  # closed by those who use them
                line.cut()
        for line in idle:
            line.pool.close()

    @contextmanager
    def _borrowed(self, deadline: Deadline) -> Iterator[Line]:
        """A connection for one call: one that is idle, if there is one."""
        with self._lock:
            if self._closed.is_set():
                raise Failed(Fault.UNREACHABLE)
            line = self._idle.pop() if self._idle else Line(self._trust, deadline)
            line.deadline, line.ended = deadline, False
            self._busy.add(line)
        try:
            yield line
        finally:
            with self._lock:
                self._busy.discard(line)
                over = self._closed.is_set()
                if not over:
                    self._idle.append(line)
            if over:
                line.pool.close()

    def _once(self, line: Line, target: Target, accept: str, limit: int) -> Answer:
        scheme, host, port = self._origin
        url = httpcore.URL(scheme=scheme, host=host, port=port, target=target.below(self._root))
        # "identity": what is counted is what came over the wire, and nothing can swell.
        headers = [
            ("Host", self._authority),
            ("Accept", accept),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "rapha"),
        ]
        if self._login is not None:
            headers.append(("Authorization", self._login.header()))
        with _faults(line), line.pool.stream("GET", url, headers=headers) as response:
            _check_status(response)
            if response.status == 204:
                return Answer(None, b"")
            kind = _kind(response)
            return Answer(kind, _body(response, line.deadline, limit))


class _Again(Exception):  # noqa: N818  not a defect either
    """Worth another attempt, `after` that many seconds at least."""

    def __init__(self, fault: Fault, after: float = 0.0) -> None:
        super().__init__(fault.value)
        self.fault, self.after = fault, after


@contextmanager
def _faults(line: Line) -> Iterator[None]:
    """What can go wrong on the wire, as a verdict; messages of libraries may quote what was asked."""
    try:
        yield
    except httpcore.ConnectError as error:
        # Its argument is what it stands for; the pool takes its cause away.
        if any(isinstance(cause, ssl.SSLError) for cause in error.args):
            raise Failed(Fault.UNTRUSTED) from None
        raise _Again(Fault.UNREACHABLE) from None
    except httpcore.TimeoutException:
        raise _Again(Fault.TOO_SLOW) from None
    except httpcore.ProtocolError:
        raise _Again(Fault.UNREACHABLE if line.ended else Fault.GARBLED) from None
    except (httpcore.NetworkError, OSError):
        raise _Again(Fault.UNREACHABLE) from None


def _check_status(response: httpcore.Response) -> None:
    match response.status:
        case 200 | 204:
            return
        case 429 | 502 | 503 | 504:
            raise _Again(Fault.FAILING, _retry_after(response))
        case 401 | 407:
            raise Failed(Fault.LOGIN)
        case 403:
            raise Failed(Fault.FORBIDDEN)
        case 404 | 410:
            raise Failed(Fault.ABSENT)
        case 400 | 406 | 415 | 501:
            raise Failed(Fault.NOT_OFFERED)
        case status if 300 <= status < 400:
            raise Failed(Fault.REDIRECTED)
        case status if 400 <= status < 600:
            raise Failed(Fault.FAILING)
        case _:
            raise Failed(Fault.GARBLED)


def _retry_after(response: httpcore.Response) -> float:
    """Seconds, or a date (RFC 9110, 10.2.3); what is neither asks for nothing."""
    text = _header(response, b"retry-after")
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _kind(response: httpcore.Response) -> MediaType:
    if _header(response, b"content-encoding").strip().lower() not in ("", "identity"):
        raise Failed(Fault.GARBLED)
    try:
        return media_type(_header(response, b"content-type"))
    except Malformed:
        raise Failed(Fault.GARBLED) from None


def _header(response: httpcore.Response, name: bytes) -> str:
    """A header that may be there once; servers that send it twice mean to be read in two ways."""
    values = [value for key, value in response.headers if key.lower() == name]
    if len(values) > 1:
        raise Failed(Fault.GARBLED)
    return values[0].decode("latin-1") if values else ""


def _body(response: httpcore.Response, deadline: Deadline, limit: int) -> bytes:
    length = _header(response, b"content-length")
    if length.isascii() and length.isdigit() and (len(length) > 15 or int(length) > limit):
        raise Failed(Fault.TOO_LARGE)
    content = bytearray()
    for chunk in response.iter_stream():
        content += chunk
        if len(content) > limit:
            raise Failed(Fault.TOO_LARGE)
        deadline.received(len(chunk))
        deadline.left()
    return bytes(content)
