"""The researcher's side of the coordinator's API: plain calls, an API key, the coordinator's own codes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rapha.evidence import canonical, dsse
from rapha.spec.refusals import REGISTRY, Refused

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
Objects = list[dict[str, Any]]
Hashes = list[bytes]
ATTEMPTS: Final = 6
BACKOFF_S: Final = 0.1
MAX_WAIT_S: Final = 25.0
"""Longest that the coordinator holds a call."""
_MARGIN_S: Final = 15.0
_CHUNK: Final = 1 << 20
_PAGE: Final = 100


class CoordinatorClient:
    """A coordinator as one developer sees it; a context manager.

    Calls that can't reach it, or find it unavailable, are repeated with growing pauses; all of them are
    safe to repeat. Every method raises `Refused` with the coordinator's code, or `policy.unavailable`
    once the attempts are used up.
    """

    def __init__(self, url: str, api_key: str | None = None, *, attempts: int = ATTEMPTS) -> None:
        """Without an API key only `register` and the log can be called."""
        import httpx

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=_MARGIN_S)
        self._attempts = attempts

    def __enter__(self) -> CoordinatorClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def register(self, *, organisation: str, contact: str, purpose: str, public_key: str) -> dict[str, Any]:
        """Ask for early access with `VerifyKey.to_text()` of one's key: `{"id", "status"}`."""
        body = {"organisation": organisation, "contact": contact, "purpose": purpose}
        return self._object("POST", "/v1/developers", {**body, "public_key": public_key})

    def me(self) -> dict[str, Any]:
        """Who the API key belongs to."""
        return self._object("GET", "/v1/developers/me")

    def catalogue(self) -> Objects:
        """What nodes offer: `[{"node", "public_key", "entries": [envelope]}]`."""
        return _objects(self._object("GET", "/v1/catalogue"), "nodes")

    def submit(self, job: dsse.EnvelopeDict, image: dsse.EnvelopeDict, archive: Path) -> dict[str, Any]:
        """Upload the image archive and submit the signed job; repeating it gives the same job."""
        blob = self.upload(archive)
        return self._object("POST", "/v1/jobs", {"job": job, "image": image, "image_blob": blob})

    def upload(self, archive: Path) -> str:
        """Upload a file under its SHA-256, which is returned."""
        with archive.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        headers = {"Content-Length": str(archive.stat().st_size)}
        self._repeat(lambda: self._checked("PUT", f"/v1/blobs/{sha256}", _chunks(archive), headers=headers))
        return sha256

    def list(self) -> Objects:
        """Every job of yours, oldest first."""
        found: Objects = []
        target: str | None = f"/v1/jobs?limit={_PAGE}"
        while target is not None:
            page = self._object("GET", target)
            found += _objects(page, "jobs")
            following = page.get("next")
            target = f"/v1/jobs?limit={_PAGE}&after={following}" if following else None
        return found[::-1]

    def get(self, job: str) -> dict[str, Any]:
        """One job's state, and how it ended."""
        return self._object("GET", f"/v1/jobs/{job}")

    def explain(self, job: str) -> Objects:
        """Each node as eligible, or why not: `[{"node", "eligible", "reasons"}]`."""
        return _objects(self._object("GET", f"/v1/jobs/{job}/explain"), "nodes")

    def cancel(self, job: str) -> dict[str, Any]:
        """Cancel a job from which nothing was released."""
        return self._object("POST", f"/v1/jobs/{job}/cancel")

    def events(self, job: str, *, after: int = 0, wait: float = 0.0) -> Objects:
        """Events after number `after`; waits up to `wait` seconds for the first."""
        found = self._object("GET", f"/v1/jobs/{job}/events?after={after}&wait={_bounded(wait)}", wait=wait)
        events = _objects(found, "events")
        if not all(isinstance(e.get("seq"), int) and isinstance(e.get("state"), str) for e in events):
            raise Refused("policy.unavailable", "the coordinator's answer has malformed events")
        return events

    def put_exchange(self, job: str, slot: str, message: Mapping[str, Any]) -> None:
        """Write a slot, once."""
        self._object("PUT", f"/v1/jobs/{job}/exchange/{slot}", dict(message))

    def get_exchange(self, job: str, slot: str, *, wait: float = 0.0) -> dict[str, Any] | None:
        """Read a slot, waiting up to `wait` seconds for it."""
        target = f"/v1/jobs/{job}/exchange/{slot}?wait={_bounded(wait)}"
        response = self._repeat(lambda: self._checked("GET", target, wait=wait))
        return None if response.status_code == 204 else _object(canonical.loads(response.content))

    def bundle(self, job: str) -> dict[str, Any]:
        """`{"bundle": core, "log": {"checkpoint", "index", "size", "proof"}}`, once delivered."""
        return self._object("GET", f"/v1/jobs/{job}/bundle")

    def artifact(self, job: str, name: str) -> bytes:
        """A delivered ciphertext, as the coordinator has it: check it against the receipt."""
        return self._repeat(lambda: self._checked("GET", f"/v1/jobs/{job}/artifacts/{name}")).content

    def checkpoint(self) -> dict[str, Any]:
        """The log's newest checkpoint: `{"checkpoint", "origin", "log_key"}`."""
        return self._object("GET", "/v1/log/checkpoint")

    def consistency(self, first: int, second: int) -> Hashes:
        """Proof that the log of `second` leaves extends the one of `first` (RFC 9162)."""
        if first == 0:
            return []  # every log extends the empty one
        target = f"/v1/log/consistency?first={first}&second={second}"
        try:
            return [bytes.fromhex(h) for h in self._object("GET", target)["proof"]]
        except (KeyError, TypeError, ValueError):
            raise Refused("policy.log_invalid", "the log gave no consistency proof") from None

    def _object(self, method: str, target: str, body: object = None, *, wait: float = 0.0) -> dict[str, Any]:
        data = b"" if body is None else canonical.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        response = self._repeat(lambda: self._checked(method, target, data, headers=headers, wait=wait))
        return _object(canonical.loads(response.content))

    def _checked(
        self,
        method: str,
        target: str,
        content: bytes | Iterator[bytes] = b"",
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> httpx.Response:
        timeout = min(wait, MAX_WAIT_S) + _MARGIN_S
        response = self._http.request(method, target, content=content, headers=headers, timeout=timeout)
        if not response.is_success:
            raise _refusal(response)
        return response

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


def _object(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise Refused("policy.unavailable", "the coordinator's answer is no object")
    return answer


def _objects(answer: Mapping[str, Any], name: str) -> Objects:
    found = answer.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Refused("policy.unavailable", f"the coordinator's answer has no {name}")
    return found


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


def _bounded(wait: float) -> str:
    return f"{min(max(wait, 0.0), MAX_WAIT_S):g}"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
