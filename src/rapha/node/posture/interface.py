"""Ports of the node's posture: who produces evidence."""

from __future__ import annotations

from typing import Protocol

from rapha.spec.attestation import SimulatedEvidence


class Producer(Protocol):
    """A source of attestation evidence."""

    @property
    def measurement(self) -> str:
        """Hex SHA-256 of the build that evidence will claim."""

    def collect(self, report_data: str) -> SimulatedEvidence:
        """Fresh evidence over `report_data` (64 bytes in hex).

        Each call makes new evidence; nothing is kept.

        Raises:
            Refused: `posture.evidence_invalid` if the hardware doesn't answer.
        """
