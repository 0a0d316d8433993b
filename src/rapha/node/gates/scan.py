"""Gate 3: what the submitter added is read as hostile, and runs on a runtime that this node offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rapha.evidence import canonical
from rapha.node.gates.intake import Admitted
from rapha.node.node import Node
from rapha.runtime.image import EMPTY, AllowList
from rapha.runtime.scan import ScanReport, run_in_process
from rapha.spec.refusals import Refused
from rapha.spec.sections import ScanSection

TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Scanned:
    """The scanner's report; whether a finding refuses is the policy's decision (gate 4)."""

    report: ScanReport

    def section(self) -> ScanSection:
        """What the bundle shows of it. Precondition: the policy allowed it.

        Raises:
            Refused: `policy.scan` if a refusing finding is left.
        """
        refusals = [f for f in self.report.findings if f.severity == "refuse"]
        if refusals:
            raise Refused("policy.scan", refusals[0].reason)
        return ScanSection(
            image=self.report.digest,
            base=self.report.base,
            scanner=self.report.scanner_version,
            report=canonical.digest(self.report.dump()),
            refusals=0,
            warnings=len([f for f in self.report.findings if f.severity == "warn"]),
        )


def scan(node: Node, admitted: Admitted, allow: AllowList = EMPTY) -> Scanned:
    """Scan in a process of its own, with a deadline.

    A slim image runs on this node's runtime, whose modules its imports may name; a full image brings its
    own, whose lowest layers must be on `allow`.

    Raises:
        Refused: `image.*`.
    """
    full = admitted.image.kind == "full"
    if full and not allow.base_of(admitted.image.base):
        raise Refused("image.runtime_unknown", "its lowest layers are none that this node allows")
    if not full and admitted.image.runtime != node.config.runtime_name:
        raise Refused(
            "image.runtime_unknown",
            f"asks for {admitted.image.runtime!r}, this node has {node.config.runtime_name!r}",
        )
    report = run_in_process(
        admitted.archive,
        TIMEOUT_S,
        allow=allow,
        packages=() if full else node.config.runtime,
        certain=True,
        room=admitted.archive.parent,
    )
    if report.digest != admitted.job.image:
        raise Refused("image.digest_mismatch", "the scanner read another image")
    return Scanned(report)
