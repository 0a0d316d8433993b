"""Gate 10: the reviewers read one page about what would leave, and sign it or don't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rapha.evidence import canonical, dsse
from rapha.node.gates.guard import Guarded
from rapha.node.gates.intake import Admitted
from rapha.node.node import Node
from rapha.spec.receipt import Review

SENTENCE = "Automated checks cannot exclude that weights encode patient data; the maximum is the bound above."


def review(
    node: Node,
    admitted: Admitted,
    guarded: Guarded,
    *,
    covert_bound_bits: int,
    patients: str,
    stopped: Callable[[], bool],
) -> list[dsse.EnvelopeDict]:
    """Ask, wait, verify.

    Raises:
        Refused: `policy.review_refused`, `policy.approval_*`, `node.stopped`, `job.cancelled`.
    """
    terms = admitted.agreement.terms
    shown = disclosure(admitted, guarded, covert_bound_bits=covert_bound_bits, patients=patients)
    expected = Review(
        job=admitted.id, verdict="release", report=guarded.commitment, shown=canonical.digest(shown)
    )
    node.desk.ask(admitted.id, "review", expected, shown)
    return node.desk.collect(
        admitted.id,
        "review",
        expected,
        terms.reviewers,
        terms.reviews_required,
        node.config.waits.review_s,
        stopped,
    )


def disclosure(
    admitted: Admitted, guarded: Guarded, *, covert_bound_bits: int, patients: str
) -> dict[str, Any]:
    """The page for the person who signs: who, what, how much could be hidden, and what was not shown."""
    terms = admitted.agreement.terms
    report = guarded.report
    return {
        "report": guarded.commitment,
        "written_by": terms.company.name,
        "purpose": admitted.job.purpose,
        "dataset": admitted.manifest.title,
        "patients": patients,
        "released": {name: len(data) for name, data in guarded.files.items()},
        "covert_bound_bits": covert_bound_bits,
        "covert_bound_bytes": -(-covert_bound_bits // 8),
        "differential_privacy": "none",
        "checks": [c.dump() for c in report.checks],
        "transforms": [t.dump() for t in report.transforms],
        "metrics": guarded.trusted,
        "self_reported": dict(report.self_reported),
        "sentence": SENTENCE,
        "choices": ["release", "refuse"],
    }
