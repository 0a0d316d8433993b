"""The node's side of the coordinator's API. It dials out, signs every call, and opens no record."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.evidence.steps.case import AUDIENCE_ALL
from rapha.node.agent.transport import ATTEMPTS, MAX_WAIT_S, RemoteKey, SignedHttp, local_key, part
from rapha.spec.base import Profile
from rapha.spec.refusals import Refused


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
        self._key = local_key(key, origin, profile) if isinstance(key, SigningKey) else key
        self._node, self._origin, self._profile = node, origin, profile
        self._http = SignedHttp(url, self._key.sign, attempts)

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
        answer = self._http.json("POST", "/v1/nodes/enrol", body)
        profile, origin = part(answer, "profile", str), part(answer, "origin", str)
        if (profile, origin) != (self._profile, self._origin):
            raise Refused("policy.profile_mismatch", f"the coordinator is {origin:.100}, {profile:.100}")
        return Enrolled(self._node, self._profile, self._origin, part(answer, "log_key", str))

    def publish_catalogue(self, entries: Sequence[dsse.EnvelopeDict]) -> None:
        """Replace the catalogue by these `catalogue` statements, signed with the node's key."""
        self._http.json("PUT", "/v1/node/catalogue", list(entries))

    def lease(
        self, wait: float = 0.0, *, key: str | None = None, silent_period_s: int = 3600
    ) -> Leased | None:
        """Take a job, waiting up to `wait` seconds for one.

        Args:
            key: 32 bytes in hex; a job that was taken with it and whose answer was lost comes again.
        """
        asked = {"key": key or secrets.token_hex(32), "silent_period_s": silent_period_s}
        found = self._http.json("POST", _waiting("/v1/node/leases", wait), asked, wait)
        if found is None:
            return None
        digests = part(found, "id", str), part(found, "image_blob", str)
        if not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests):
            raise Refused("policy.unavailable", "the coordinator's answer names no job")  # ids become paths
        return Leased(digests[0], part(found, "job", dict), part(found, "image", dict), digests[1])

    def open_jobs(self) -> list[dict[str, str]]:
        """The jobs that the coordinator believes this node holds: `[{"id", "state"}]`."""
        found = part(self._http.json("GET", "/v1/node/jobs"), "jobs", list)
        return [{"id": part(job, "id", str), "state": part(job, "state", str)} for job in found]

    def state(self, job: str) -> str:
        """Where one of the node's jobs is."""
        return part(self._http.json("GET", f"/v1/node/jobs/{job}"), "state", str)

    def heartbeat(self, job: str, silent_period_s: int) -> str:
        """Declare a silent period; returns the job's state, which tells of a cancellation."""
        body = {"silent_period_s": silent_period_s}
        return part(self._http.json("POST", f"/v1/node/jobs/{job}/heartbeat", body), "state", str)

    def transition(self, job: str, step: Step) -> None:
        """Take a step; the same step again changes nothing."""
        self._http.json("POST", f"/v1/node/jobs/{job}/transitions", step.dump())

    def put_exchange(self, job: str, slot: str, message: Mapping[str, Any]) -> None:
        """Write a slot, once."""
        self._http.json("PUT", f"/v1/jobs/{job}/exchange/{slot}", dict(message))

    def get_exchange(self, job: str, slot: str, wait: float = 0.0) -> dict[str, Any] | None:
        """Read a slot, waiting up to `wait` seconds for it."""
        found = self._http.json("GET", _waiting(f"/v1/jobs/{job}/exchange/{slot}", wait), wait=wait)
        return None if found is None else part({"message": found}, "message", dict)

    def upload_artifact(self, job: str, name: str, path: Path) -> str:
        """Upload a ciphertext; returns its SHA-256. It stays invisible until the receipt."""
        return self._http.upload(f"/v1/node/jobs/{job}/artifacts/{quote(name, safe='')}", path)

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
        return part(self._http.json("POST", f"/v1/node/jobs/{job}/receipt", body), "log", dict)

    def download_blob(self, sha256: str, destination: Path, limit: int) -> None:
        """Download a blob of at most `limit` bytes; `destination` appears only if its digest is right.

        Raises:
            Refused: `image.not_found`, `image.too_large`, `image.digest_mismatch`.
        """
        self._http.download(f"/v1/blobs/{sha256}", sha256, destination, limit)


def sign_entry(entry: Mapping[str, Any], key: SigningKey, profile: Profile) -> dsse.EnvelopeDict:
    """A catalogue entry as it is published: a `catalogue` statement for everybody."""
    subjects = {"entry": canonical.digest(dict(entry))}
    return dsse.sign(
        "catalogue", subjects, {"entry": dict(entry)}, profile=profile, audience=AUDIENCE_ALL, keys=[key]
    )


def _waiting(target: str, wait: float) -> str:
    return f"{target}?{urlencode({'wait': f'{min(max(wait, 0.0), MAX_WAIT_S):g}'})}"
