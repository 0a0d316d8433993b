"""The node's one exit: everything that leaves the hospital passes here, and only in these shapes.

Before records are opened: which job, evidence about the node itself, and state names. After: one closed
`Surface`, and an outbox that was committed with a signed receipt. A field that isn't in those types can't
be sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rapha.evidence import canonical
from rapha.node.uplink import Lease, Uplink
from rapha.spec.attestation import Posture
from rapha.spec.dataset import CatalogueEntry
from rapha.spec.surface import Surface, encode

BEFORE_DATA: Final = ("ticketed", "awaiting_approval", "admitted", "running")
"""States told while they happen. What comes after is told once, at a quantised time."""


class Exit:
    """Allow-lists what may go to the agent, and so to the coordinator."""

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink

    def publish(self, entries: list[CatalogueEntry]) -> None:
        """Catalogue entries: their type holds nothing that can't be published."""
        self._uplink.publish([e.dump() for e in entries])

    def lease(self, key: str, wait_s: float) -> Lease | None:
        """Ask for work."""
        return self._uplink.lease(key, wait_s)

    def fetch_image(self, job: str, sha256: str, destination: Path, limit: int) -> None:
        """Download; nothing leaves but the digest that the coordinator named itself."""
        self._uplink.fetch_image(job, sha256, destination, limit)

    def read_slot(self, job: str, slot: str, wait_s: float) -> dict[str, Any] | None:
        """Read what the researcher's client wrote."""
        return self._uplink.read_slot(job, slot, wait_s)

    def state(self, job: str) -> str:
        """Where the coordinator has the job; nothing leaves but the id that it gave out itself."""
        return self._uplink.state(job)

    def evidence(self, job: str, posture: Posture) -> None:
        """The node's evidence about itself."""
        self._uplink.write_slot(job, "evidence", posture.dump())

    def progress(self, job: str, state: str, more_s: int = 0) -> None:
        """A state name of `BEFORE_DATA`; `more_s` is how long it may be silent beyond the job's own limit."""
        if state not in BEFORE_DATA:
            raise ValueError(f"{state} is not told while it happens")
        self._uplink.transition(job, state, None, more_s)

    def end(self, surface: Surface) -> None:
        """A refusal or failure."""
        self._uplink.transition(surface.job_id, surface.outcome, canonical.loads(encode(surface)))

    def release(self, job: str, outbox: Path) -> str:
        """A committed outbox: ciphertexts, the receipt's bundle and the surface that it binds.

        Returns where the job is now: an end with a code if it was over already, and nothing was sent.
        """
        return self._uplink.release(job, outbox)
