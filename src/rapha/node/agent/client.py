"""The node's side of the coordinator's API. It dials out, signs every call, and opens no record."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlencode

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey, VerifyKey
from rapha.evidence.steps.case import AUDIENCE_ALL
from rapha.spec.base import Profile
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.units import format_time

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
RequestSigner = Callable[[Mapping[str, str], Mapping[str, Any]], dsse.EnvelopeDict]
"""Signs a `request` statement of (subjects, predicate) for the coordinator, with a key kept elsewhere."""


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


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a coordinator answers to an enrolment; `origin` is the audience of signed requests."""

    node: str
    profile: Profile
    origin: str
    log_key: str


@dataclass(frozen=True, slots=True)
class Leased:
    """A job as the coordinator hands it over: nothing in it is believed yet."""

    id: str
    job: dsse.EnvelopeDict
    image: dsse.EnvelopeDict
    image_blob: str


@dataclass(frozen=True, slots=True)
class Step:
    """One transition of a job.

    Attributes:
        code, detail, surface: only with an end.
        silent_period_s: seconds that the node may now be silent before its job counts as lost.
    """

    source: str
    target: str
    code: str | None = None
    detail: str | None = None
    surface: Mapping[str, Any] | None = None
    silent_period_s: int | None = None

    def dump(self) -> dict[str, Any]:
        """The body of the call."""
        return {
            "from": self.source,
            "to": self.target,
            "code": self.code,
            "detail": self.detail,
            "surface": None if self.surface is None else dict(self.surface),
            "silent_period_s": self.silent_period_s,
        }


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    target: str
    sha256: str
    content: Callable[[], bytes | Iterator[bytes]]
    headers: Mapping[str, str]
    wait_s: float


class AgentClient:
    """A coordinator as one node sees it; a context manager.

    Calls that can't reach the coordinator, or find it unavailable, are repeated with growing pauses, each
    time signed anew; all of them are safe to repeat. Every method raises `Refused` with the coordinator's
    code, or `policy.unavailable` once the attempts are used up.
    """

    def __init__(
        self,
        url: str,
        key: SigningKey | RemoteKey,
        *,
        node: str,
        origin: str,
        profile: Profile,
        attempts: int = ATTEMPTS,
    ) -> None:
        """Args:
        url: where the coordinator answers.
        key: the node's key for requests.
        origin: the coordinator's name, which signed requests are for.
        """
        import httpx

        self._key = _local(key, origin, profile) if isinstance(key, SigningKey) else key
        self._node, self._origin, self._profile = node, origin, profile
        self._http = httpx.Client(base_url=url, timeout=_MARGIN_S)
        self._attempts = attempts

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def enrol(self, token: str) -> Enrolled:
        """Bind the invited node to its key; repeating it changes nothing.

        Raises:
            Refused: `policy.profile_mismatch` if the coordinator isn't the one that was configured.
        """
        body = {"token": token, "name": self._node, "public_key": self._key.public.to_text()}
        answer = self._json("POST", "/v1/nodes/enrol", body)
        if (answer["profile"], answer["origin"]) != (self._profile, self._origin):
            found = f"{answer['origin']} of profile {answer['profile']}"
            raise Refused("policy.profile_mismatch", f"the coordinator is {found:.200}")
        return Enrolled(answer["node"], self._profile, self._origin, answer["log_key"])

    def publish_catalogue(self, entries: Sequence[dsse.EnvelopeDict]) -> None:
        """Replace the catalogue by these `catalogue` statements, signed with the node's key."""
        self._json("PUT", "/v1/node/catalogue", list(entries))

    def lease(self, wait: float = 0.0, *, silent_period_s: int = 3600) -> Leased | None:
        """Take a job, waiting up to `wait` seconds for one."""
        asked = {"key": secrets.token_hex(32), "silent_period_s": silent_period_s}
        found = self._json("POST", _waiting("/v1/node/leases", wait), asked, wait)
        if found is None:
            return None
        return Leased(found["id"], found["job"], found["image"], found["image_blob"])

    def open_jobs(self) -> list[dict[str, str]]:
        """The jobs that the coordinator believes this node holds: `[{"id", "state"}]`."""
        return list(self._json("GET", "/v1/node/jobs")["jobs"])

    def state(self, job: str) -> str:
        """Where one of the node's jobs is."""
        return str(self._json("GET", f"/v1/node/jobs/{job}")["state"])

    def heartbeat(self, job: str, silent_period_s: int) -> str:
        """Declare a silent period; returns the job's state, which tells of a cancellation."""
        body = {"silent_period_s": silent_period_s}
        return str(self._json("POST", f"/v1/node/jobs/{job}/heartbeat", body)["state"])

    def transition(self, job: str, step: Step) -> None:
        """Take a step; the same step again changes nothing."""
        self._json("POST", f"/v1/node/jobs/{job}/transitions", step.dump())

    def put_exchange(self, job: str, slot: str, message: Mapping[str, Any]) -> None:
        """Write a slot, once."""
        self._json("PUT", f"/v1/jobs/{job}/exchange/{slot}", dict(message))

    def get_exchange(self, job: str, slot: str, wait: float = 0.0) -> dict[str, Any] | None:
        """Read a slot, waiting up to `wait` seconds for it."""
        found = self._json("GET", _waiting(f"/v1/jobs/{job}/exchange/{slot}", wait), wait=wait)
        return None if found is None else dict(found)

    def upload_artifact(self, job: str, name: str, path: Path) -> str:
        """Upload a ciphertext; returns its SHA-256. It stays invisible until the receipt."""
        sha256 = _file_digest(path)
        target = f"/v1/node/jobs/{job}/artifacts/{quote(name, safe='')}"
        headers = {"X-Content-SHA256": sha256, "Content-Length": str(path.stat().st_size)}
        self._send(_Call("PUT", target, sha256, lambda: _chunks(path), headers, 0.0))
        return sha256

    def post_receipt(
        self,
        job: str,
        surface: Mapping[str, Any],
        bundle: Mapping[str, Any],
        artifacts: Mapping[str, str],
    ) -> dict[str, Any]:
        """Post the receipt's bundle and what it released (name → SHA-256); returns the place in the log."""
        named = [{"name": name, "sha256": sha256} for name, sha256 in sorted(artifacts.items())]
        body = {"surface": dict(surface), "bundle": dict(bundle), "artifacts": named}
        return dict(self._json("POST", f"/v1/node/jobs/{job}/receipt", body)["log"])

    def download_blob(self, sha256: str, destination: Path, limit: int) -> None:
        """Download a blob of at most `limit` bytes; `destination` appears only if its digest is right.

        Raises:
            Refused: `image.not_found`, `image.too_large`, `image.digest_mismatch`.
        """
        partial = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}")
        try:
            self._repeat(lambda: self._fetch(sha256, partial, limit))
            partial.replace(destination)
        finally:
            partial.unlink(missing_ok=True)

    def _fetch(self, sha256: str, partial: Path, limit: int) -> None:
        target = f"/v1/blobs/{sha256}"
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

    def _json(self, method: str, target: str, body: object = None, wait: float = 0.0) -> Any:
        data = b"" if body is None else canonical.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        call = _Call(method, target, hashlib.sha256(data).hexdigest(), lambda: data, headers, wait)
        response = self._send(call)
        return None if response.status_code == 204 else canonical.loads(response.content)

    def _send(self, call: _Call) -> httpx.Response:
        def _once() -> httpx.Response:
            response = self._http.request(
                call.method,
                call.target,
                headers={**call.headers, **self._signed(call.method, call.target, call.sha256)},
                content=call.content(),
                timeout=min(call.wait_s, MAX_WAIT_S) + _MARGIN_S,
            )
            if not response.is_success:
                raise _refusal(response)
            return response

        return self._repeat(_once)

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
        envelope = self._key.sign({"body": sha256}, predicate)
        return {"Rapha-Envelope": base64.b64encode(canonical.dumps(envelope)).decode()}


def sign_entry(entry: Mapping[str, Any], key: SigningKey, profile: Profile) -> dsse.EnvelopeDict:
    """A catalogue entry as it is published: a `catalogue` statement for everybody."""
    subjects = {"entry": canonical.digest(dict(entry))}
    return dsse.sign(
        "catalogue", subjects, {"entry": dict(entry)}, profile=profile, audience=AUDIENCE_ALL, keys=[key]
    )


def _local(key: SigningKey, origin: str, profile: Profile) -> RemoteKey:
    def _sign(subjects: Mapping[str, str], predicate: Mapping[str, Any]) -> dsse.EnvelopeDict:
        return dsse.sign("request", subjects, predicate, profile=profile, audience=origin, keys=[key])

    return RemoteKey(key.verify_key, _sign)


def _refusal(response: httpx.Response) -> Refused:
    """The coordinator's own code; an answer without one is no answer."""
    try:
        problem = canonical.loads(response.content)
    except Refused:
        problem = None
    if isinstance(problem, dict) and problem.get("code") in REGISTRY:
        return Refused(problem["code"], str(problem.get("detail", ""))[:2000])
    return Refused("policy.unavailable", f"the coordinator answered with status {response.status_code}")


def _waiting(target: str, wait: float) -> str:
    return f"{target}?{urlencode({'wait': f'{min(max(wait, 0.0), MAX_WAIT_S):g}'})}"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
