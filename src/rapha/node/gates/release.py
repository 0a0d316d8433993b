"""Gate 10: the reviewers read one page about what would leave, and sign what may."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import VerifyKey
from rapha.evidence.steps.case import AUDIENCE_NODE
from rapha.node.desk import Answer
from rapha.node.disclosure.page import File, Outgoing, Page, Signer, checks
from rapha.node.gates.guard import Guarded
from rapha.node.gates.intake import Admitted
from rapha.node.gates.outcome import Clock, covert_bound, price_context
from rapha.node.node import Node
from rapha.node.recover import destroy
from rapha.node.uplink import Lease
from rapha.spec.agreement import Person
from rapha.spec.disclosure import Price
from rapha.spec.job import Assurance
from rapha.spec.price import price_bits, timing_bits
from rapha.spec.receipt import Review
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import METRICS_FILE
from rapha.spec.verdicts import Scope, narrowest, offered


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What the reviewers let go.

    Attributes:
        asked: the claims that they signed, but for the verdict.
        guarded: with the files that may leave, and no other.
        bits: the covert bound of those.
    """

    asked: Review
    answers: list[Answer[Review]]
    scope: Scope
    guarded: Guarded
    bits: int

    @property
    def envelopes(self) -> list[dsse.EnvelopeDict]:
        """The signatures, as they go into the bundle."""
        return [answer.envelope for answer in self.answers]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the page says beside the guard's findings.

    Attributes:
        patients: how many, in words (a bucket).
        assurance: of the evidence that was appraised.
        moments: quantised moments of the job that can be seen from outside.
        price: what the dataset's ledger was charged for the job.
    """

    lease: Lease
    patients: str
    assurance: Assurance
    clock: Clock
    moments: int
    price: Price


def review(
    node: Node, admitted: Admitted, guarded: Guarded, facts: Facts, work: Path, stopped: Callable[[], bool]
) -> Reviewed:
    """Ask, wait, and destroy at once what the reviewers keep back.

    Raises:
        Refused: `policy.review_refused`, `policy.approval_*`, `node.stopped`, `job.cancelled`.
    """
    terms = admitted.agreement.terms
    page = disclosure(node, admitted, guarded, facts)
    asked = Review(job=admitted.id, verdict="release", report=guarded.commitment, shown=page.digest)
    node.desk.ask(asked, page.dump())
    answers = node.desk.collect(
        asked, terms.reviewers, terms.reviews_required, node.config.waits.review_s, stopped, page.choices
    )
    scope = narrowest(answer.claims.verdict for answer in answers)
    bits = page.release.bits
    if scope == "metrics":
        destroy(work / "released")
        guarded = narrowed(guarded)
        bits = covert_bound(admitted, guarded, facts.clock, facts.moments, scope)
    return Reviewed(asked, answers, scope, guarded, bits)


def confirm(node: Node, admitted: Admitted, reviewed: Reviewed, outbox: Path) -> None:
    """The last look before an end is committed: take the page off the desk, then read what lies there.

    A verdict that came after enough others and is narrower than theirs still holds the release back: the
    outbox is destroyed. Whoever signs later is told that the page is gone.

    Raises:
        Refused: `policy.review_refused`, `policy.approval_invalid`, `policy.approval_missing`.
    """
    people, choices = admitted.agreement.terms.reviewers, offered(admitted.job.outputs)
    try:
        node.desk.close(admitted.id, "review")
        late = node.desk.answers(reviewed.asked, people, choices)
        if not {a.keyid for a in reviewed.answers} <= {a.keyid for a in late}:
            raise Refused("policy.approval_missing", "an answer that counted is no longer on the desk")
        if narrowest(answer.claims.verdict for answer in late) != reviewed.scope:
            raise Refused("policy.review_refused", "a later verdict is not what the ones before it said")
    except Refused:
        destroy(outbox)
        raise


def narrowed(guarded: Guarded) -> Guarded:
    """Of all that was rebuilt and measured, the metrics that the node computed, and no word of the job's."""
    return replace(guarded, files={METRICS_FILE: metrics_only(guarded.trusted)})


def metrics_only(trusted: Mapping[str, float]) -> bytes:
    """`metrics.json` without self-reported values."""
    return canonical.dumps({"trusted": dict(trusted), "self_reported": {}})


def disclosure(node: Node, admitted: Admitted, guarded: Guarded, facts: Facts) -> Page:
    """The page for the person who signs: who, what, how much could be hidden, and what was not shown."""
    terms, job, report = admitted.agreement.terms, admitted.job, guarded.report
    choices = offered(job.outputs)
    balance = guarded.balance
    return Page(
        job=admitted.id,
        report=guarded.commitment,
        name=job.name,
        kind=job.kind,
        profile=node.config.profile,
        assurance=facts.assurance,
        hospital=terms.hospital.name,
        node=node.config.node,
        company=terms.company.name,
        company_id=terms.company.id,
        written_by=_authors(node, admitted, facts.lease),
        purpose=job.purpose,
        dataset=admitted.manifest.dataset,
        dataset_title=admitted.manifest.title,
        patients=facts.patients,
        release=_outgoing(admitted, guarded, facts, "all"),
        metrics_only=_outgoing(admitted, guarded, facts, "metrics") if "metrics-only" in choices else None,
        balance=balance,
        charge=facts.price if balance else None,
        guarantee=guarded.guarantee,
        checks=checks(report.checks, guarded.searched, guarded.leakage, balance),
        searched=guarded.searched,
        leakage=guarded.leakage,
        transforms=report.transforms,
        trusted=guarded.trusted,
        self_reported=dict(report.self_reported),
        choices=choices,
        reviewers=tuple(_signer(p) for p in terms.reviewers),
        required=terms.reviews_required,
    )


def _authors(node: Node, admitted: Admitted, lease: Lease) -> tuple[Signer, ...]:
    """The developers whose keys signed the job: whose code it is, as far as a signature can say."""
    people = {VerifyKey.from_text(p.key).keyid: p for p in admitted.agreement.terms.developers}
    keys = [VerifyKey.from_text(p.key) for p in people.values()]
    statement = dsse.verify(
        lease.job_envelope, keys, kind="job", profile=node.config.profile, audience=AUDIENCE_NODE
    )
    return tuple(_signer(people[keyid]) for keyid in sorted(set(statement.keyids)))


def _signer(person: Person) -> Signer:
    return Signer(name=person.name, role=person.role, key=VerifyKey.from_text(person.key).keyid)


def _outgoing(admitted: Admitted, guarded: Guarded, facts: Facts, scope: Scope) -> Outgoing:
    files = guarded.files if scope == "all" else narrowed(guarded).files
    context = price_context(admitted, facts.clock, facts.moments, scope)
    price = price_bits(context)
    bits = covert_bound(admitted, guarded, facts.clock, facts.moments, scope)
    parts = {
        "weights": price["artifacts"],
        "metrics": price["metrics"],
        "self_reported": price["self_reported"],
        "counts": price["records_bucket"] + price["patients_bucket"],
        "resources": price["usage"],
        "verdict": price["code"],
        "timing": timing_bits(context),
    }
    if math.ceil(sum(parts.values())) > bits:
        raise Refused("node.internal", "the parts of the covert bound are more than the bound")
    return Outgoing.parse(
        {
            "bits": bits,
            "parts": parts,
            "files": [File(name=n, bytes=len(data)).dump() for n, data in sorted(files.items())],
        },
        "outgoing",
    )
