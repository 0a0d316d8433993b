"""What gate 11 gets: the results of the ten gates before it."""

from __future__ import annotations

from dataclasses import dataclass

from rapha.evidence import dsse
from rapha.node.gates.approval import Approved
from rapha.node.gates.attest import Attested
from rapha.node.gates.consent import Consented
from rapha.node.gates.guard import Guarded
from rapha.node.gates.intake import Admitted
from rapha.node.gates.policy import Allowed
from rapha.node.gates.scan import Scanned
from rapha.node.gates.seal import Sealed
from rapha.node.gates.train import Trained
from rapha.node.uplink import Lease
from rapha.spec.receipt import AirGap
from rapha.spec.verdicts import Scope


@dataclass(frozen=True, slots=True)
class Passed:
    """The results of gates 1 to 10, as gate 11 binds them into the receipt.

    Attributes:
        airgap: severed, probed and lifted again, or waived.
        admitted_at: Unix seconds of the one clock reading of intake.
        guarded: with the files that the reviewers let go, and no other.
        released: by their verdict, all that was planned or the trusted metrics alone.
    """

    lease: Lease
    admitted: Admitted
    attested: Attested
    scanned: Scanned
    allowed: Allowed
    consented: Consented
    approved: Approved
    sealed: Sealed
    trained: Trained
    guarded: Guarded
    airgap: AirGap
    reviews: list[dsse.EnvelopeDict]
    released: Scope
    covert_bound_bits: int
    admitted_at: float
