"""Gate 9: outputs equal the release plan, every byte is rebuilt, and the node computes the metrics."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rapha.evidence import canonical
from rapha.node.gates.consent import Consented
from rapha.node.gates.intake import Admitted
from rapha.node.gates.leakage import leakage
from rapha.node.gates.measure import measure
from rapha.node.gates.train import Ended, Trained
from rapha.node.node import Node
from rapha.runtime.guard.confined import run_in_process
from rapha.runtime.guard.report import GuardReport
from rapha.spec.disclosure import NOT_ASKED, Balance, Guarantee, Leakage, Searched
from rapha.spec.release_plan import METRICS_FILE as METRICS
from rapha.spec.sections import GuardCheck, GuardSection, Released


@dataclass(frozen=True, slots=True)
class Guarded:
    """What may leave if the reviewers say so.

    Attributes:
        report: the guard's own report; it stays here.
        salt: hides `report` behind the commitment that leaves.
        files: name → bytes, in the order they are listed.
        trusted: metrics that the node computed.
        searched: the known-identifier tripwire, where anything was rebuilt.
        leakage: check 8.
        guarantee: differential privacy that the hospital's own trainer enforced; None for a job's own code.
        balance: the dataset's ledger with this job charged at its worst; it stays here.
    """

    report: GuardReport
    salt: str
    files: dict[str, bytes]
    trusted: dict[str, float]
    searched: Searched | None = None
    leakage: Leakage = NOT_ASKED
    guarantee: Guarantee | None = None
    balance: Balance | None = None

    @property
    def commitment(self) -> str:
        """Salted digest of all that was found."""
        found = {
            "report": self.report.dump(),
            "searched": self.searched.dump() if self.searched else None,
            "leakage": self.leakage.dump(),
            "guarantee": self.guarantee.dump() if self.guarantee else None,
        }
        return sha256(bytes.fromhex(self.salt) + canonical.dumps(found)).hexdigest()

    def section(self, covert_bound_bits: int) -> GuardSection:
        """What the bundle shows of it."""
        return GuardSection(
            checks=tuple(GuardCheck(n=c.n, id=c.id, verdict=_shown(c.verdict)) for c in self.report.checks),
            released=tuple(
                Released(name=name, sha256=sha256(data).hexdigest(), bytes=len(data))
                for name, data in sorted(self.files.items())
            ),
            covert_bound_bits=covert_bound_bits,
            report=self.commitment,
        )


def guard(
    node: Node,
    admitted: Admitted,
    consented: Consented,
    trained: Trained,
    work: Path,
    hold: int | None = None,
) -> Guarded:
    """Rebuild, destroy the raw outputs, then measure what was rebuilt on the held-out split; the sandbox
    of that run keeps `hold` open.

    Raises:
        Ended: `job.outputs` with the guard's own reason in `detail`, which stays in the hospital.
    """
    plan = admitted.job.outputs
    released = work / "released"
    released.mkdir(mode=0o700)
    # Always under bubblewrap, whatever walls the job had: it reads by openat2, which gVisor does not have.
    report = run_in_process(trained.outputs, plan, released, scratch=work, hold=hold)
    shutil.rmtree(trained.outputs)
    if not report.ok:
        failed = next((c for c in report.checks if c.verdict == "fail"), None)
        node.journal.append(
            "guard", admitted.id, code=report.code or "", reason=failed.reason if failed else ""
        )
        raise Ended("job.outputs" if report.decided else "node.internal", trained.outcome)
    released.chmod(0o755)
    files = {name: (released / name).read_bytes() for name in plan.files}
    searched = _search(node, admitted, consented, trained, files)
    trusted: dict[str, float] = {}
    if plan.trusted_metrics:
        trusted = measure(node, admitted, consented, released, work, hold)
        files[METRICS] = metrics_file(trusted, report)
    leaked = leakage(node, admitted, consented, trained, released, work, hold)
    promised = admitted.private.guarantee if admitted.private else None
    return Guarded(report, secrets.token_hex(32), files, trusted, searched, leaked, promised)


def metrics_file(trusted: dict[str, float], report: GuardReport) -> bytes:
    """What the node measured and what the job says of itself, apart and named so."""
    return canonical.dumps({"trusted": trusted, "self_reported": dict(report.self_reported)})


def _search(
    node: Node, admitted: Admitted, consented: Consented, trained: Trained, files: dict[str, bytes]
) -> Searched:
    """The known-identifier tripwire, where the identifiers are. Raises `Ended` (`job.outputs`) on a hit."""
    searched = consented.data.search(files, admitted.job.outputs)
    if searched.found:
        reason = f"{searched.file} spells identifiers of the job's patients"
        node.journal.append("guard", admitted.id, code="guard.identifiers", reason=reason)
        raise Ended("job.outputs", trained.outcome)
    return searched


def _shown(verdict: str) -> Any:
    return "not_run" if verdict == "not_run" else "pass"
