"""Gate 4: every set of rules, ours and the institution's, says allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rapha.evidence import canonical
from rapha.node.gates.attest import Attested
from rapha.node.gates.intake import Admitted
from rapha.node.gates.scan import Scanned
from rapha.node.node import Node
from rapha.runtime.policy.evaluate import evaluate
from rapha.spec.policy import (
    AdmissionInput,
    AgreementTerms,
    DatasetTerms,
    Decision,
    FoundRule,
    JobFacts,
    NodeFacts,
    ScanFacts,
)
from rapha.spec.sections import PolicySection

TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Allowed:
    """A decision that allows, and the section of the bundle that shows it."""

    decision: Decision
    section: PolicySection

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the section: what the owners approve."""
        return canonical.digest(self.section.dump())


def allow(node: Node, admitted: Admitted, attested: Attested, scanned: Scanned) -> Allowed:
    """Decide.

    Raises:
        Refused: `policy.*`, `consent.*`, `budget.*` by the rules; `policy.undefined`, `policy.error`,
            `policy.timeout` where there is no answer.
    """
    decision = evaluate(node.policies, facts(node, admitted, attested, scanned), TIMEOUT_S)
    decision.require()
    section = PolicySection(
        allow=True, engine=decision.engine, bundles=tuple(sorted(decision.bundles)), input=decision.input
    )
    return Allowed(decision, section)


def facts(node: Node, admitted: Admitted, attested: Attested, scanned: Scanned) -> AdmissionInput:
    """The input document: all that a rule may look at."""
    terms = admitted.agreement.terms
    found = sorted({(f.rule, f.severity) for f in scanned.report.findings})
    return AdmissionInput(
        job=JobFacts.of(admitted.job, admitted.id),
        agreement=AgreementTerms.of(terms),
        dataset=DatasetTerms.of(admitted.manifest),
        node=NodeFacts(
            id=node.config.node, profile=node.config.profile, assurance=attested.appraisal.assurance
        ),
        scan=ScanFacts(
            digest=canonical.digest(scanned.report.dump()),
            findings=tuple(FoundRule(rule=rule, severity=severity) for rule, severity in found),
        ),
        approvals_required=terms.approvals_required,
        reviews_required=terms.reviews_required,
        settlement_configured=False,
    )
