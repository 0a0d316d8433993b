"""The tickets that a researcher has signed: at most one a job, kept so that a restart sends the same."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapha.evidence import canonical, dsse
from rapha.spec.base import Model, Sha256
from rapha.spec.refusals import Refused


class Kept(Model):
    """A signed ticket with what it was signed for: our challenge, and the digest of the evidence."""

    challenge: Sha256
    evidence: Sha256
    ticket: dict[str, Any]

    @property
    def envelope(self) -> dsse.EnvelopeDict:
        """The ticket as JSON types, lists included, which a parsed model holds as tuples."""
        envelope: dsse.EnvelopeDict = self.dump()["ticket"]
        return envelope


@dataclass(frozen=True, slots=True)
class Tickets:
    """A folder with one file a job."""

    root: Path

    def get(self, job: str) -> Kept | None:
        """The ticket that was signed for `job` (hex SHA-256), if any.

        Raises:
            Refused: `posture.ticket_reused` if it is not readable: which node it was for is unknown.
        """
        try:
            return Kept.parse(canonical.loads(self._file(job).read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, Refused) as error:
            raise Refused("posture.ticket_reused", f"{self._file(job)} is not readable: {error}") from None

    def keep(self, job: str, kept: Kept) -> dsse.EnvelopeDict:
        """Store before it is sent: whole, durably and only once; returns the ticket to send.

        Raises:
            Refused: `posture.ticket_reused` if another one was signed meanwhile; `policy.conflict` if it
                can't be stored.
        """
        temporary = self._file(job).with_suffix(f".{secrets.token_hex(4)}")
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(temporary, canonical.dumps(kept.dump()))
            try:
                os.link(temporary, self._file(job))  # unlike a rename, never over another
            finally:
                temporary.unlink()
            _sync(self.root)
        except FileExistsError:
            return self.again(job, kept.challenge, kept.evidence)
        except OSError as error:
            raise Refused("policy.conflict", f"the ticket can't be stored: {error.strerror}") from None
        return kept.envelope

    def again(self, job: str, challenge: str, evidence: str) -> dsse.EnvelopeDict:
        """The stored ticket, if it was signed for this challenge and evidence.

        Raises:
            Refused: `posture.ticket_reused`.
        """
        kept = self.get(job)
        if kept is None or (kept.challenge, kept.evidence) != (challenge, evidence):
            raise Refused("posture.ticket_reused", "a ticket for other evidence of this job was signed")
        return kept.envelope

    def _file(self, job: str) -> Path:
        return self.root / f"{job}.json"


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
