"""The gates, in order: what happens to a job on a hospital node.

 #  gate      refuses unless
 1  intake    an agreement in force pins the key that signed; digests, expiry, node and replay are right
 2  posture   fresh evidence appraises, and the researcher's one-use ticket names it
 3  scan      the image parses under limits and runs on a runtime that the node offers
 4  policy    every set of rules says allow
 5  consent   the manifest allows organisation and purpose, and the cohort may be used
 6  approval  enough owners signed exactly this
 7  seal      2, 4 and 5 hold again with a fresh nonce, records decode, the WAN is severed, and nothing
              can be reached
 8  train     limits hold; every record was counted before it was handed over (an evaluation predicts)
 9  guard     outputs equal the release plan; bytes are rebuilt; the node computes the metrics
10  release   enough reviewers signed the disclosure report
11  receipt   the WAN is back and sent nothing, the node's key signs, and a second quote covers it

Each gate returns a typed result or raises `Refused`. Nothing has left before `committed` is in the journal;
after it, exactly what was committed leaves.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rapha.node import progress
from rapha.node.datasets.client import DatasetProcess
from rapha.node.gates import outcome
from rapha.node.gates.approval import Approved, approve
from rapha.node.gates.attest import Attested, attest
from rapha.node.gates.consent import Consented, consent
from rapha.node.gates.evaluate import evaluate, score
from rapha.node.gates.gap import WanGap
from rapha.node.gates.guard import guard
from rapha.node.gates.intake import Admitted, allow_list, intake
from rapha.node.gates.ledger import Charge
from rapha.node.gates.passed import Passed
from rapha.node.gates.policy import Allowed, allow
from rapha.node.gates.receipt import issue
from rapha.node.gates.release import Facts, Reviewed, confirm, review
from rapha.node.gates.scan import Scanned, scan
from rapha.node.gates.seal import Sealed, seal
from rapha.node.gates.train import Trained, train
from rapha.node.node import Node
from rapha.node.recover import CLOSED, COMMITTED, ENDED, OPEN, TRAINING, charge, destroy
from rapha.node.uplink import Lease
from rapha.node.watch import Watch
from rapha.spec.receipt import AirGap
from rapha.spec.refusals import Refused
from rapha.spec.states import ENDED_WITH_CODE
from rapha.spec.surface import Surface

GATES = (
    "intake", "posture", "scan", "policy", "consent", "approval", "seal", "train", "guard", "release",
    "receipt",
)  # fmt: skip


def run(node: Node, lease: Lease) -> None:
    """Take one leased job to its end; every end is journalled before it is told."""
    job = lease.job
    if node.journal.last(job) is not None:
        node.journal.append("replayed", job)
        node.exit.end(
            outcome.ended(job, Refused("policy.job_replayed"), outcome.Clock(node.config.quantum_s))
        )
        return
    node.journal.append(OPEN, job)
    clock = outcome.Clock(node.config.quantum_s)
    with Watch(node.exit, job, node.stop) as watch, WanGap(node, job, watch) as gap:
        decided = _decide(node, lease, watch, clock, gap)
        clock.wait_for_boundary()
        gap.put_back()
        if isinstance(decided, Refused):
            surface = outcome.ended(job, decided, clock)
            node.journal.append(ENDED, job, surface=surface.dump(), reason=decided.detail)
        else:
            node.journal.append(COMMITTED, job, receipt=decided)
    settle(node, job)


def _decide(node: Node, lease: Lease, watch: Watch, clock: outcome.Clock, gap: WanGap) -> str | Refused:
    """The receipt's digest, or why there is none. What the job made is destroyed by then.

    Deletion takes as long as the job's files make it, so it comes before the boundary, never after.
    """
    work = node.state / "jobs" / lease.job
    decided: str | Refused
    try:
        work.mkdir(parents=True, mode=0o700)
        tell, limit = progress.teller(work), node.config.preparation.limit_s
        with DatasetProcess(tell=tell, stopped=watch.stopped, limit_s=limit) as data:
            before = _admit(node, lease, data, work, watch)
            decided = _train(node, lease, before, work, clock, watch, gap)
    except Refused as refused:
        decided = charged(node, lease.job, refused)
    except Exception as error:  # noqa: BLE001  what no gate foresaw costs the job, never the node
        # This is the one place for it. Its words may hold records, so they go to a file that stays on the
        # node, and its class alone goes on.
        node.log_file(lease.job, "internal").write_text(traceback.format_exc())
        decided = charged(node, lease.job, Refused("node.internal", type(error).__name__))
    destroy(work)
    node.desk.clear(lease.job)
    return decided


def charged(node: Node, job: str, refused: Refused) -> Refused:
    """`refused` with what the job used: at worst its cap, if training began and nothing counted it."""
    found = charge(node.journal.of(job))
    if found is None or isinstance(refused, outcome.Told):
        return refused
    return outcome.Told(refused, found.records, found.patients, found.wall_s)


def settle(node: Node, job: str) -> None:
    """Tell what the journal says about a job that ended; safe to repeat until the coordinator has it.

    Raises:
        Refused: what the agent or the coordinator says; the job stays unsettled and is told again.
    """
    outbox = node.state / "outbox" / job
    events = {e.event: e for e in node.journal.of(job)}
    if COMMITTED in events:
        state = node.exit.release(job, outbox)
        # A job that ended meanwhile (a cancellation, a lost lease) takes nothing: its outbox stays here.
        told = "withheld" if state in ENDED_WITH_CODE else "released"
        node.journal.append(CLOSED, job, outcome=told, state=state)
        destroy(outbox)
    elif ENDED in events:
        surface = Surface.parse(events[ENDED].data["surface"])
        node.exit.end(surface)
        node.journal.append(CLOSED, job, outcome=surface.outcome, code=surface.code or "")


@dataclass(frozen=True, slots=True)
class _Approved:
    """The results of gates 1 to 6: everything that people and rules said yes to."""

    admitted: Admitted
    attested: Attested
    scanned: Scanned
    allowed: Allowed
    consented: Consented
    approved: Approved
    patients: str
    at: float


def _admit(node: Node, lease: Lease, data: DatasetProcess, work: Path, watch: Watch) -> _Approved:
    """Gates 1 to 6: nothing of the job has run, and no record was served."""
    now = datetime.now(UTC)
    job = lease.job
    with gate(node, job, "intake") as found:
        admitted = intake(node, lease, work, now)
        terms = admitted.agreement.terms
        found.append(f"{admitted.job.name} of {terms.company.name}, agreement {terms.id}")
    with gate(node, job, "posture") as found:
        attested = attest(node, admitted)
        node.exit.progress(job, "ticketed")
        found.append(f"{attested.appraisal.assurance} evidence appraised, ticket names it")
    with gate(node, job, "scan") as found:
        scanned = scan(node, admitted, allow_list(node))
        found.append(f"{scanned.report.files} files, {len(scanned.report.findings)} findings")
    with gate(node, job, "policy") as found:
        allowed = allow(node, admitted, attested, scanned)
        found.append(f"allowed by {len(node.policies)} pinned bundle(s)")
    with gate(node, job, "consent") as found:
        consented = consent(node, admitted, data, work)
        patients = outcome.in_words(consented)
        found.append(f"{patients}; opt-outs removed first")
    with gate(node, job, "approval") as found:
        node.exit.progress(job, "awaiting_approval")
        approved = approve(
            node,
            admitted,
            attested,
            policy=allowed.digest,
            cohort=consented.resolved.cohort,
            patients=patients,
            stopped=watch.stopped,
        )
        node.journal.append("approved", job, agreement=admitted.agreement.digest, scope=approved.scope)
        node.exit.progress(job, "admitted")
        found.append(f"{len(approved.envelopes)} owners signed")
    return _Approved(admitted, attested, scanned, allowed, consented, approved, patients, now.timestamp())


def _train(
    node: Node, lease: Lease, before: _Approved, work: Path, clock: outcome.Clock, watch: Watch, gap: WanGap
) -> str:
    """Gates 7 to 11; returns the receipt's digest."""
    job, admitted, consented = lease.job, before.admitted, before.consented
    evaluation = admitted.job.kind == "evaluate"
    with gate(node, job, "seal") as found:
        sealed = seal(
            node, admitted, before.attested, before.scanned, before.allowed, consented, gap, int(time.time())
        )
        found.append(_in_words(node, sealed))
    charge = Charge(node, admitted, consented)
    with outcome.metered(admitted, consented), charge:
        with gate(node, job, "train") as found:
            _begin(node, admitted, clock, charge)
            trained = (evaluate if evaluation else train)(node, admitted, consented, work, gap.hold)
            usage = consented.data.usage()
            found.append(f"{usage.unique_records} records in {usage.batches} batches, all counted first")
        with gate(node, job, "guard") as found:
            guarded = (score if evaluation else guard)(node, admitted, consented, trained, work, gap.hold)
            bits = outcome.covert_bound(admitted, guarded, clock, gap.moments)
            done = "measured by the node" if evaluation else f"{len(guarded.files)} files rebuilt"
            guarded = replace(guarded, balance=charge.balance)
            found.append(f"{done}, covert bound {bits} bits")
        # No code of the job lives from here on, and people may take days.
        airgap = gap.lift(clock).model_copy(update={"probes": sealed.probes})
        with gate(node, job, "release") as found:
            assurance = before.attested.appraisal.assurance
            facts = Facts(lease, before.patients, assurance, clock, gap.moments, charge.price)
            reviewed = review(node, admitted, guarded, facts, work, watch.stopped)
            found.append(f"{len(reviewed.answers)} reviewer(s) signed, released: {reviewed.scope}")
        passed = _passed(lease, before, sealed, trained, airgap, reviewed)
        with gate(node, job, "receipt") as found:
            outbox = node.state / "outbox" / job
            digest, surface = issue(node, passed, outbox, clock)
            confirm(node, admitted, reviewed, outbox)
            charge.settle(reviewed.scope)
            found.append(f"receipt {digest[:16]}…, {len(surface.artifacts)} artifacts sealed")
    return digest


def _in_words(node: Node, sealed: Sealed) -> str:
    severed = f"{node.config.wan_interface} severed, " if node.config.wan_interface else ""
    where = "in memory" if sealed.prepared.confinement == "memory" else "in encrypted shards"
    return f"{severed}{len(sealed.probes)} probes unreachable, records decoded {where}"


def _begin(node: Node, admitted: Admitted, clock: outcome.Clock, charge: Charge) -> None:
    """From here on, an end that counts nothing is charged; on disk before the first record is served.

    The clock goes first: how long the ledger takes depends on the records, and shows in no end then.
    """
    started = clock.start()
    charge.reserve()
    records, patients = outcome.worst(admitted)
    node.journal.append(
        TRAINING, admitted.id, started_ms=int(started * 1000), records=records, patients=patients
    )


def _passed(
    lease: Lease, before: _Approved, sealed: Sealed, trained: Trained, airgap: AirGap, reviewed: Reviewed
) -> Passed:
    return Passed(
        lease,
        before.admitted,
        before.attested,
        before.scanned,
        before.allowed,
        before.consented,
        before.approved,
        sealed,
        trained,
        reviewed.guarded,
        airgap,
        reviewed.envelopes,
        reviewed.scope,
        reviewed.bits,
        before.at,
    )


@contextmanager
def gate(node: Node, job: str, name: str) -> Iterator[list[str]]:
    """Journal a gate's start and end; the body appends what it found."""
    if node.stop.is_set():
        raise Refused("node.stopped")
    node.journal.append("gate", job, gate=name, verdict="started", at_ms=_ms())
    found: list[str] = []
    try:
        yield found
    except Refused as refused:
        node.journal.append(
            "gate",
            job,
            gate=name,
            verdict="refused",
            at_ms=_ms(),
            code=refused.code,
            detail=refused.detail,
        )
        raise
    node.journal.append("gate", job, gate=name, verdict="passed", at_ms=_ms(), found="; ".join(found))


def _ms() -> int:
    return int(time.time() * 1000)
