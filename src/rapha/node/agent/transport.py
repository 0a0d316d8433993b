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


class SignedHttp:
    """One connection pool to one coordinator.

    Every method raises `Refused` with the coordinator's code, or `policy.unavailable` once the attempts
    are used up.
    """

    def __init__(self, url: str, sign: RequestSigner, attempts: int) -> None:
        import httpx

        self._sign = sign
        self._http = httpx.Client(base_url=url, timeout=_MARGIN_S)
        self._attempts = attempts

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def json(self, method: str, target: str, body: object = None, wait: float = 0.0) -> Any:
        """Send `body` as canonical JSON; the answer's JSON, or None where there is none."""
        data = b"" if body is None else canonical.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        sha256 = hashlib.sha256(data).hexdigest()
        response = self._repeat(lambda: self._once(method, target, sha256, data, headers, wait))
        return None if response.status_code == 204 else canonical.loads(response.content)

    def upload(self, target: str, path: Path) -> str:
        """PUT a file, streamed; returns its SHA-256."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        headers = {"X-Content-SHA256": sha256, "Content-Length": str(path.stat().st_size)}
        self._repeat(lambda: self._once("PUT", target, sha256, _chunks(path), headers))
        return sha256

    def download(self, target: str, sha256: str, destination: Path, limit: int) -> None:
        """GET a file of at most `limit` bytes; `destination` appears only if its digest is right.

        Raises:
            Refused: `image.not_found`, `image.too_large`, `image.digest_mismatch`.
        """
        partial = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}")
        try:
            self._repeat(lambda: self._fetch(target, sha256, partial, limit))
            partial.replace(destination)
        finally:
            partial.unlink(missing_ok=True)

    def _once(
        self,
        method: str,
        target: str,
        sha256: str,
        content: bytes | Iterator[bytes],
        headers: Mapping[str, str],
        wait: float = 0.0,
    ) -> httpx.Response:
        response = self._http.request(
            method,
            target,
            headers={**headers, **self._signed(method, target, sha256)},
            content=content,
            timeout=min(wait, MAX_WAIT_S) + _MARGIN_S,
        )
        if not response.is_success:
            raise _refusal(response)
        return response

    def _fetch(self, target: str, sha256: str, partial: Path, limit: int) -> None:
        headers = self._signed("GET", target, _EMPTY)
        found, size = hashlib.sha256(), 0
        with self._http.stream("GET", target, headers=headers) as response, partial.open("wb") as file:
            if response.status_code == 404:
                raise Refused("image.not_found", "the coordinator does not have the image")
            if response.status_code != 200:
                response.read()
                raise _refusal(response)
            for chunk in response.iter_raw(_CHUNK):
                size += len(chunk)
                if size > limit:
                    raise Refused("image.too_large", f"the image passes the limit of {limit} bytes")
                found.update(chunk)
                file.write(chunk)
        if found.hexdigest() != sha256:
            raise Refused("image.digest_mismatch", "the download is not what its digest says")

    def _repeat(self, once: Callable[[], T]) -> T:
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
                time.sleep(BACKOFF_S * 2**attempt)
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


def part(answer: Any, name: str, kind: type[T]) -> T:
    """A field of an answer, which is nobody's word until it has the type it should have.

    Raises:
        Refused: `policy.unavailable`.
    """
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, kind):
        raise Refused("policy.unavailable", f"the coordinator's answer has no {name}")
    return value


def _refusal(response: httpx.Response) -> Refused:
    """The coordinator's own code; an answer without one is no answer."""
    try:
        problem = canonical.loads(response.content)
    except Refused:
        problem = None
    code = problem.get("code") if isinstance(problem, dict) else None
    if isinstance(code, str) and code in REGISTRY:
        return Refused(code, str(problem.get("detail", ""))[:2000])
    return Refused("policy.unavailable", f"the coordinator answered with status {response.status_code}")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
