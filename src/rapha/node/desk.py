"""The people's desk: requests wait here for owners and reviewers, who sign with their own keys.

`<desk>/<job>/<kind>.request.json` is what a person is asked; `<kind>.<keyid>.json` beside it is one
person's signed answer. The node believes a signature, never the folder.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar, get_args

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey, VerifyKey
from rapha.node.recover import destroy
from rapha.spec.agreement import Person
from rapha.spec.base import Profile
from rapha.spec.receipt import Approval, Review
from rapha.spec.refusals import Refused

Kind = Literal["approval", "review"]
Claims = TypeVar("Claims", Approval, Review)
POLL_S: Final = 0.02
LEAST_PREFIX: Final = 8
"""Fewest characters of a job's id that name it."""
MAX_ANSWER: Final = 2**20
"""Most bytes of a signed answer; a real one has less than two thousand."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[Claims]):
    """What one person signed, and the envelope that shows it."""

    keyid: str
    claims: Claims
    envelope: dsse.EnvelopeDict


@dataclass(frozen=True, slots=True)
class Desk:
    """One node's folder of requests."""

    root: Path
    node: str
    profile: Profile

    def ask(self, claims: Approval | Review, shown: Mapping[str, Any]) -> None:
        """Put a request on the desk: `claims` is what is signed, `shown` what a person reads.

        Raises:
            Refused: `policy.approval_invalid` unless `claims` covers `shown`.
        """
        _check_shown(claims, shown)
        job, kind = claims.job, _kind(claims)
        folder = self.root / job
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        request = {"job": job, "kind": kind, "claims": claims.dump(), "shown": dict(shown)}
        _write(folder / f"{kind}.request.json", request)

    def waiting(self) -> list[dict[str, Any]]:
        """Every request on the desk, oldest first, each with the key ids that answered.

        Raises:
            Refused: `policy.approval_invalid` for a request that is not readable.
        """
        found = []
        requests = (p for folder in _listed(self.root, "*") for p in _listed(folder, "*.request.json"))
        for path in sorted(requests, key=_written):
            try:
                request = _read(path)
            except Refused:
                if path.exists():
                    raise
                continue  # the node took it off the desk meanwhile
            answers = _listed(path.parent, f"{request['kind']}.*.json")
            request["answered"] = sorted(p.name.split(".")[1] for p in answers if p != path)
            found.append(request)
        return found

    def asked(self, job: str, kind: Kind) -> tuple[str, Mapping[str, Any]]:
        """A waiting request, by its job's id or a beginning that no other has: the id, and what is shown.

        Raises:
            Refused: `policy.not_found` for none or several; `policy.approval_invalid` for one that is not
                readable, or shows something else than would be signed.
        """
        # A name, never a path: what is listed is compared, nothing is opened by what was typed.
        listed = _listed(self.root, f"*/{kind}.request.json")
        found = [p for p in listed if p.parent.name.startswith(job)]
        if len(found) != 1 or len(job) < LEAST_PREFIX:
            many = f"{len(found)} requests begin like this" if found else f"no {kind} is asked for {job[:16]}"
            raise Refused("policy.not_found", many if len(job) >= LEAST_PREFIX else f"{many}; name it longer")
        request = _read(found[0])
        return request["job"], request["shown"]

    def answer(self, job: str, kind: Kind, key: SigningKey, verdict: str, *, seen: str | None = None) -> None:
        """Sign the request as one person, who read what has the digest `seen` (None: what lies there now).

        Raises:
            Refused: `policy.not_found` if there is no such request, or no longer once it is signed;
                `policy.approval_invalid` if it is not readable, or shows something else than would be
                signed or than was seen; `schema.field_invalid` for a verdict that it doesn't offer.
        """
        path = self.root / job / f"{kind}.request.json"
        if not path.is_file():
            raise Refused("policy.not_found", f"no {kind} is asked for {job[:16]}…")
        request = _read(path)
        claims = _MODELS[kind].parse({**request["claims"], "verdict": verdict}, kind)
        # The request may have been swapped since it was shown: what is signed is what was read, or nothing.
        if claims.job != job or claims.shown != (seen or claims.shown):
            raise Refused("policy.approval_invalid", f"the {kind} that waits is not the one that was shown")
        if kind == "review" and verdict not in request["shown"].get("choices", ()):
            raise Refused("schema.field_invalid", f"verdict: {verdict} is not offered for this job")
        envelope = dsse.sign(
            kind, {"job": job}, claims.dump(), profile=self.profile, audience=self.node, keys=[key]
        )
        with suppress(FileNotFoundError):  # the folder went with the request
            _write(path.with_name(f"{kind}.{key.keyid}.json"), envelope)
        # The node takes the request away first and reads the answers then: what is written before counts.
        if not path.is_file():
            raise Refused("policy.not_found", f"the {kind} was decided meanwhile; this answer came too late")

    def collect(
        self,
        expected: Claims,
        people: Sequence[Person],
        required: int,
        timeout_s: float,
        stopped: Callable[[], bool],
        offered: Collection[str],
    ) -> list[Answer[Claims]]:
        """Wait until `required` (at least one) of `people` signed, each with a verdict of `offered`.

        One no is a no at once. Everything that lies on the desk by then counts, not just the first to sign.

        Raises:
            Refused: `policy.approval_missing` after `timeout_s`; `policy.approval_refused` or
                `policy.review_refused`; `policy.approval_invalid`; `node.stopped`; what `stopped` raises.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            answers = self.answers(expected, people, offered)
            if len(answers) >= max(required, 1):
                return answers
            if stopped():
                raise Refused("node.stopped")
            if time.monotonic() > deadline:
                raise Refused("policy.approval_missing", f"{len(answers)} of {required} signed")
            time.sleep(POLL_S)

    def clear(self, job: str) -> None:
        """Take a job off the desk, whatever lies there; nothing that is left there stops a node.

        What can't be deleted now is tried again at the next start.
        """
        folder = self.root / job
        with suppress(OSError):
            if folder.is_dir() and not folder.is_symlink():
                destroy(folder)
            else:
                folder.unlink(missing_ok=True)

    def close(self, job: str, kind: Kind) -> None:
        """Take the request off the desk: who signs from now on is told that it doesn't count.

        Raises:
            Refused: `policy.approval_invalid` where what lies in its place can't be taken away.
        """
        try:
            (self.root / job / f"{kind}.request.json").unlink(missing_ok=True)
        except OSError as error:
            raise Refused(
                "policy.approval_invalid", f"the request can't be closed: {error.strerror}"
            ) from None

    def answers(
        self, expected: Claims, people: Sequence[Person], offered: Collection[str]
    ) -> list[Answer[Claims]]:
        """What `people` signed so far, by key id.

        Raises:
            Refused: `policy.approval_refused` or `policy.review_refused` for one no;
                `policy.approval_invalid` for an answer that is by nobody of them, about something else, or
                with a verdict that is not of `offered`.
        """
        keys, kind = [VerifyKey.from_text(p.key) for p in people], _kind(expected)
        paths = sorted(_listed(self.root / expected.job, f"{kind}.*.json"))
        found = [self._answer(p, expected, keys) for p in paths if p.name != f"{kind}.request.json"]
        if any(a.claims.verdict == "refuse" for a in found):
            raise Refused("policy.approval_refused" if kind == "approval" else "policy.review_refused")
        if any(a.claims.verdict not in offered for a in found):
            raise Refused("policy.approval_invalid", f"an {kind} has a verdict that was not offered")
        by_key = {a.keyid: a for a in found}
        if any(by_key[a.keyid].claims != a.claims for a in found):
            raise Refused("policy.approval_invalid", "one key signed two verdicts")
        return [by_key[keyid] for keyid in sorted(by_key)]

    def _answer(self, path: Path, expected: Claims, keys: Sequence[VerifyKey]) -> Answer[Claims]:
        kind = _kind(expected)
        try:
            envelope = _loaded(path, MAX_ANSWER)
            statement = dsse.verify(envelope, keys, kind=kind, profile=self.profile, audience=self.node)
            claims = type(expected).parse(statement.predicate, kind)
        except Refused as refused:
            raise Refused("policy.approval_invalid", refused.detail) from None
        if claims != expected.model_copy(update={"verdict": claims.verdict}):
            raise Refused("policy.approval_invalid", f"an {kind} covers something else")
        # As the verifier of the receipt has it: one answer, one person, and about this job.
        if len(statement.keyids) != 1 or dict(statement.subjects) != {"job": expected.job}:
            raise Refused("policy.approval_invalid", f"an {kind} is by two people or about another job")
        return Answer(statement.keyids[0], claims, envelope)


def _check_shown(claims: Approval | Review, shown: object) -> None:
    # The folder is not trusted: a person signs what they read, or nothing.
    if canonical.digest(shown) != claims.shown:
        raise Refused("policy.approval_invalid", "what is shown is not what would be signed")
    if isinstance(claims, Review) and (
        not isinstance(shown, Mapping) or shown.get("report") != claims.report
    ):
        raise Refused("policy.approval_invalid", "the report that would be signed is not the one shown")


def _kind(claims: Approval | Review) -> Kind:
    return "approval" if isinstance(claims, Approval) else "review"


_MODELS: Final[dict[Kind, type[Approval | Review]]] = {"approval": Approval, "review": Review}


def _loaded(path: Path, limit: int) -> Any:
    """A file's JSON. The folder is not trusted: it may hold anything, a FIFO that never ends included.

    Raises:
        Refused: `policy.approval_invalid`, or `schema.*` where it is not JSON.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused("policy.approval_invalid", f"{path.name}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused("policy.approval_invalid", f"{path.name} is not a file")
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(fd)
    return canonical.loads(data, limit=limit)


def _listed(folder: Path, pattern: str) -> list[Path]:
    """What is in there; nothing where the folder is gone meanwhile, over which `glob` stumbles."""
    try:
        return list(folder.glob(pattern))
    except FileNotFoundError:
        return []


def _written(path: Path) -> float:
    """When; a request that is gone meanwhile comes first."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _read(path: Path) -> dict[str, Any]:
    """A request, as `ask` wrote it: for this folder, and with claims that cover what it shows.

    Raises:
        Refused: `policy.approval_invalid`.
    """
    try:
        value = _loaded(path, canonical.MAX_BYTES)
        if not isinstance(value, dict) or set(value) != {"job", "kind", "claims", "shown"}:
            raise Refused("policy.approval_invalid", "it has other fields")
        if value["kind"] not in get_args(Kind) or path.name != f"{value['kind']}.request.json":
            raise Refused("policy.approval_invalid", "it is of another kind")
        claims = _MODELS[value["kind"]].parse(value["claims"], "claims")
        _check_shown(claims, value["shown"])
    except Refused as refused:
        raise Refused("policy.approval_invalid", f"{path.name}: {refused.detail}") from None
    if not value["job"] == claims.job == path.parent.name:
        raise Refused("policy.approval_invalid", f"{path.name} lies in another job's folder")
    return value


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Appear whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)
