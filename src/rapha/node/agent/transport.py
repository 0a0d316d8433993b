"""Signed HTTP: every call carries a fresh envelope, and is repeated, signed anew, where nobody answered."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey, VerifyKey
from rapha.spec.base import Profile
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.units import format_time

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
RequestSigner = Callable[[Mapping[str, str], Mapping[str, Any]], dsse.EnvelopeDict]
"""Signs a `request` statement of (subjects, predicate) for the coordinator."""
ATTEMPTS: Final = 6
BACKOFF_S: Final = 0.1
MAX_WAIT_S: Final = 25.0
"""Longest that the coordinator holds a call."""
MAX_ANSWER: Final = 8 * 1024 * 1024
"""Most bytes of an answer's JSON; the largest, a lease, is a submission of at most 4 MiB."""
MAX_CALL_S: Final = 40.0
"""Longest that a call may take with all its attempts, beyond the wait that it asks for."""
BYTES_PER_S: Final = 2**19
"""A file may take this much longer: twice as fast as the pipeline that waits for it thinks of as down."""
_MARGIN_S: Final = 15.0
_CHUNK: Final = 1 << 20
_EMPTY: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class RemoteKey:
    """A node key that is kept elsewhere: its public half, and what signs with it."""

    public: VerifyKey
    sign: RequestSigner


def local_key(key: SigningKey, origin: str, profile: Profile) -> RemoteKey:
    """A key of this process, signing for the coordinator `origin`."""

    def _sign(subjects: Mapping[str, str], predicate: Mapping[str, Any]) -> dsse.EnvelopeDict:
        return dsse.sign("request", subjects, predicate, profile=profile, audience=origin, keys=[key])

    return RemoteKey(key.verify_key, _sign)


@dataclass(frozen=True, slots=True)
class Answer:
    """A coordinator's answer, read whole under a limit and a deadline."""

    status: int
    content: bytes


class Deadline:
    """When a call must have ended, however slowly bytes drip in."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left. Raises `Refused` (`policy.unavailable`) if there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise Refused("policy.unavailable", "the coordinator did not answer in time")
        return left


class SignedHttp:
    """One connection pool to one coordinator.

    Every method raises `Refused` with the coordinator's code, or `policy.unavailable` once the attempts
    are used up.
    """

    def __init__(self, url: str, sign: RequestSigner, attempts: int) -> None:
        import httpx

        self._sign = sign
        # What is counted is what came over the wire: nothing is unpacked, so nothing can swell.
        headers = {"Accept-Encoding": "identity"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=_MARGIN_S)
        self._attempts = attempts

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def json(self, method: str, target: str, body: object = None, wait: float = 0.0) -> Any:
        """Send `body` as canonical JSON; the answer's JSON, or None where there is none."""
        data = b"" if body is None else canonical.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        sha256 = hashlib.sha256(data).hexdigest()
        deadline = Deadline(MAX_CALL_S + min(wait, MAX_WAIT_S))
        call = _Call(method, target, sha256, headers, min(wait, MAX_WAIT_S), deadline)
        answer = self._repeat(lambda: self._once(call, data), deadline)
        return None if answer.status == 204 else canonical.loads(answer.content, limit=MAX_ANSWER)

    def upload(self, target: str, path: Path) -> str:
        """PUT a file, streamed; returns its SHA-256."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        headers = {"X-Content-SHA256": sha256, "Content-Length": str(size)}
        deadline = Deadline(MAX_CALL_S + size / BYTES_PER_S)
        call = _Call("PUT", target, sha256, headers, 0.0, deadline)
        self._repeat(lambda: self._once(call, _chunks(path, deadline)), deadline)
        return sha256

    def download(self, target: str, sha256: str, destination: Path, limit: int) -> None:
        """GET a file of at most `limit` bytes; `destination` appears only if its digest is right.

        Raises:
            Refused: `image.not_found`, `image.too_large`, `image.digest_mismatch`.
        """
        partial = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}")
        deadline = Deadline(MAX_CALL_S + limit / BYTES_PER_S)
        try:
            self._repeat(lambda: self._fetch(target, sha256, partial, limit, deadline), deadline)
            partial.replace(destination)
        finally:
            partial.unlink(missing_ok=True)

    def _once(self, call: _Call, content: bytes | Iterator[bytes]) -> Answer:
        headers = {**call.headers, **self._signed(call.method, call.target, call.sha256)}
        timeout = min(call.wait + _MARGIN_S, call.deadline.left())
        with self._http.stream(
            call.method, call.target, headers=headers, content=content, timeout=timeout
        ) as response:
            answer = _read(response, call.deadline)
        if not response.is_success:
            raise _refusal(answer)
        return answer

    def _fetch(self, target: str, sha256: str, partial: Path, limit: int, deadline: Deadline) -> None:
        headers = self._signed("GET", target, _EMPTY)
        found, size = hashlib.sha256(), 0
        with self._http.stream("GET", target, headers=headers) as response, partial.open("wb") as file:
            if response.status_code == 404:
                raise Refused("image.not_found", "the coordinator does not have the image")
            if response.status_code != 200:
                raise _refusal(_read(response, deadline))
            # Of whatever size they come in: a buffer would wait for its last byte past any deadline.
            for chunk in response.iter_raw():
                deadline.left()
                size += len(chunk)
                if size > limit:
                    raise Refused("image.too_large", f"the image passes the limit of {limit} bytes")
                found.update(chunk)
                file.write(chunk)
        if found.hexdigest() != sha256:
            raise Refused("image.digest_mismatch", "the download is not what its digest says")

    def _repeat(self, once: Callable[[], T], deadline: Deadline) -> T:
        import httpx

        for attempt in range(1, self._attempts + 1):
            try:
                return once()
            except httpx.TransportError as error:
                failed = Refused("policy.unavailable", f"the coordinator does not answer: {error!r:.200}")
            except Refused as refused:
                if refused.code != "policy.unavailable":
                    raise
                failed = refused
            if attempt < self._attempts:
                time.sleep(min(BACKOFF_S * 2**attempt, deadline.left()))
        raise failed

    def _signed(self, method: str, target: str, sha256: str) -> dict[str, str]:
        predicate = {
            "method": method,
            "path": target,
            "body_sha256": sha256,
            "created": format_time(datetime.now(UTC)),
            "nonce": secrets.token_hex(32),
        }
        envelope = self._sign({"body": sha256}, predicate)
        return {"Rapha-Envelope": base64.b64encode(canonical.dumps(envelope)).decode()}


@dataclass(frozen=True, slots=True)
class _Call:
    """One call, which each attempt signs anew."""

    method: str
    target: str
    sha256: str
    headers: Mapping[str, str]
    wait: float
    deadline: Deadline


def part(answer: Any, name: str, kind: type[T]) -> T:
    """A field of an answer, which is nobody's word until it has the type it should have.

    Raises:
        Refused: `policy.unavailable`.
    """
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, kind):
        raise Refused("policy.unavailable", f"the coordinator's answer has no {name}")
    return value


def _read(response: httpx.Response, deadline: Deadline) -> Answer:
    """The whole answer. Raises `Refused` (`policy.unavailable`) past the limit or the deadline."""
    content = bytearray()
    for chunk in response.iter_raw():
        deadline.left()
        content += chunk
        if len(content) > MAX_ANSWER:
            raise Refused("policy.unavailable", f"the coordinator's answer passes {MAX_ANSWER} bytes")
    return Answer(response.status_code, bytes(content))


def _refusal(response: Answer) -> Refused:
    """The coordinator's own code; an answer without one is no answer."""
    try:
        problem = canonical.loads(response.content, limit=MAX_ANSWER)
    except Refused:
        problem = None
    code = problem.get("code") if isinstance(problem, dict) else None
    if isinstance(code, str) and code in REGISTRY:
        return Refused(code, str(problem.get("detail", ""))[:2000])
    return Refused("policy.unavailable", f"the coordinator answered with status {response.status}")


def _chunks(path: Path, deadline: Deadline) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            deadline.left()
            yield chunk
