"""A simulated TEE: issues quotes under its own root. Proves nothing; production can't name it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rapha.evidence import dsse
from rapha.evidence.attestation.appraise import AUDIENCE, CERTIFICATE_KIND, QUOTE_KIND
from rapha.evidence.keys import SigningKey
from rapha.spec.attestation import SimulatedEvidence, SimulatedQuote


@dataclass(frozen=True, slots=True)
class SimulatedTee:
    """Implements `rapha.node.posture.interface.Producer`.

    Attributes:
        attestation_key: signs quotes.
        certificate: the root's statement over the attestation key.
        measurement: what the quotes claim; a real TEE would measure it itself.
    """

    attestation_key: SigningKey
    certificate: dsse.EnvelopeDict
    measurement: str

    @classmethod
    def create(cls, root: SigningKey, measurement: str, key: SigningKey | None = None) -> SimulatedTee:
        """A machine whose attestation key `root` certifies."""
        key = key or SigningKey.generate()
        certificate = dsse.sign(
            CERTIFICATE_KIND,
            {"attestation-key": key.keyid},
            {"key": key.verify_key.to_text()},
            profile="demo",
            audience=AUDIENCE,
            keys=[root],
        )
        return cls(key, certificate, measurement)

    @classmethod
    def load(cls, folder: Path, measurement: str) -> SimulatedTee:
        """The machine whose root key lies in `folder`/tee-root.pem."""
        return cls.create(SigningKey.load(folder / "tee-root.pem"), measurement)

    def collect(self, report_data: str) -> SimulatedEvidence:
        """A fresh quote over `report_data` (64 bytes, hex)."""
        return self.quote(report_data)

    def quote(
        self,
        report_data: str,
        *,
        tcb_status: str = "UpToDate",
        debug: bool = False,
        issued: int | None = None,
    ) -> SimulatedEvidence:
        """A quote of any state, for tests of appraisal."""
        claims = SimulatedQuote.parse(
            {
                "measurement": self.measurement,
                "report_data": report_data,
                "tcb_status": tcb_status,
                "debug": debug,
                "issued": int(time.time()) if issued is None else issued,
            }
        )
        quote = dsse.sign(
            QUOTE_KIND,
            {"measurement": self.measurement},
            claims.dump(),
            profile="demo",
            audience=AUDIENCE,
            keys=[self.attestation_key],
        )
        return SimulatedEvidence(kind="simulated", certificate=self.certificate, quote=quote)
