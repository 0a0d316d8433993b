"""What a policy decides on, and what it decides: the input document, and the decision.

The JSON schema of `AdmissionInput` is published, so that an institution can write and test its own rules
against the same facts. Nothing in it depends on a record: a policy decision may be told in full.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from rapha.spec.agreement import Agreement
from rapha.spec.base import Model, Money, Name, Profile, Sha256
from rapha.spec.cohort import conditions
from rapha.spec.dataset import DatasetManifest
from rapha.spec.job import Assurance, Compute, Job, Modality, Purpose
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.release_plan import TrustedMetric
from rapha.spec.weights import BITS, ReleaseDtype

MAX_FINDINGS: Final = 4096

Line = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]
RuleId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$")]
Severity = Literal["refuse", "warn", "info"]
NodeAssurance = Assurance | Literal["none"]
Natural = Annotated[int, Field(ge=0, le=2**53 - 1)]


class RequestedRecords(Model):
    """Which records the job asks for; `cohort_fields` are the catalogue fields that its filter reads."""

    profile: Name
    modality: Modality
    max_records: Annotated[int, Field(ge=1, le=10**9)]
    cohort_fields: tuple[Line, ...]


class RequestedPrivacy(Model):
    """The guarantee that the job asks the hospital's own trainer for, and of which model.

    Only this program of the hospital's sees records then, and `epsilon` and `delta` bound what the weights
    tell of one patient.
    """

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    model: Literal["linear", "mlp", "cnn", "head"]


class RequestedOutputs(Model):
    """What the job's release plan lets out: `bytes` is the most that all released files weigh.

    `bits` are those of one floating parameter once it is rounded; `noise` is the standard deviation of what
    the guard adds, 0 for none. Both are 0 without weights. `subgroups` are those measured apart, such as
    `sex=1`. `self_reported` counts the values that the job may say of itself and nobody checks.
    """

    bytes: Natural
    parameters: Natural
    has_weights: bool
    release_dtype: ReleaseDtype | None
    bits: Annotated[int, Field(ge=0, le=max(BITS.values()))]
    noise: Annotated[float, Field(ge=0)]
    trusted_metrics: tuple[TrustedMetric, ...]
    subgroups: tuple[Line, ...]
    self_reported: Natural

    @model_validator(mode="after")
    def _weights_have_a_dtype(self) -> Self:
        if self.has_weights != (self.release_dtype is not None):
            raise ValueError("release_dtype is given exactly when weights are released")
        return self


class JobFacts(Model):
    """The job, as far as a rule may look at it; without `private`, code of the company's own sees records."""

    id: Sha256
    kind: Literal["train", "evaluate"]
    purpose: Purpose
    dataset: RequestedRecords
    outputs: RequestedOutputs
    private: RequestedPrivacy | None
    network: bool = False
    compute: Compute
    assurance: Assurance
    budget_max: Money | None

    @classmethod
    def of(cls, job: Job, job_id: str) -> Self:
        """The facts of a signed job. No job can ask for a network: its format has no field for one."""
        plan = job.outputs
        fields = sorted({condition.field for condition in conditions(job.dataset.cohort)})
        return cls(
            id=job_id,
            kind=job.kind,
            purpose=job.purpose,
            dataset=RequestedRecords(
                profile=job.dataset.profile,
                modality=job.dataset.modality,
                max_records=job.dataset.max_records,
                cohort_fields=tuple(fields),
            ),
            outputs=RequestedOutputs(
                bytes=plan.outgoing_bytes,
                parameters=plan.parameters,
                has_weights=plan.weights is not None,
                release_dtype=plan.weights.release_dtype if plan.weights else None,
                bits=plan.weights.element_bits if plan.weights else 0,
                noise=plan.weights.noise_std if plan.weights else 0.0,
                trusted_metrics=plan.trusted_metrics,
                subgroups=plan.groups,
                self_reported=len(plan.self_reported.fields) if plan.self_reported else 0,
            ),
            private=_private(job),
            compute=job.compute,
            assurance=job.assurance,
            budget_max=job.budget.max if job.budget else None,
        )


def _private(job: Job) -> RequestedPrivacy | None:
    asked = job.private
    if asked is None:
        return None
    return RequestedPrivacy(epsilon=asked.epsilon, delta=asked.delta, model=asked.model.kind)


class AgreementTerms(Model):
    """What hospital and company agreed; `organisation` is the company."""

    id: Name
    organisation: Name
    purposes: tuple[Purpose, ...]
    datasets: tuple[Name, ...]
    max_output_bytes: Natural
    price_per_record: Money
    currency: Literal["USDC"]
    least_assurance: Assurance

    @classmethod
    def of(cls, agreement: Agreement) -> Self:
        """The terms of a signed agreement."""
        return cls(
            id=agreement.id,
            organisation=agreement.company.id,
            purposes=agreement.purposes,
            datasets=agreement.datasets,
            max_output_bytes=agreement.max_output_bytes,
            price_per_record=agreement.price_per_record,
            currency=agreement.currency,
            least_assurance=agreement.least_assurance,
        )


class DatasetTerms(Model):
    """What the dataset's manifest allows; an empty `consent_basis` is none."""

    id: Name
    profile: Name
    modality: Modality
    purposes: tuple[Purpose, ...]
    organisations: tuple[Name, ...]
    consent_basis: Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
    price_per_record: Money
    minimum_cell: Annotated[int, Field(ge=1, le=10**6)]

    @classmethod
    def of(cls, manifest: DatasetManifest) -> Self:
        """The terms of a manifest; its files, paths and counts stay out of the document."""
        return cls(
            id=manifest.dataset,
            profile=manifest.profile,
            modality=manifest.modality,
            purposes=manifest.purposes,
            organisations=manifest.organisations,
            consent_basis=manifest.consent_basis,
            price_per_record=manifest.price_per_record,
            minimum_cell=manifest.minimum_cell,
        )


class NodeFacts(Model):
    """The node, and the assurance that its evidence appraised at."""

    id: Name
    profile: Profile
    assurance: NodeAssurance


class FoundRule(Model):
    """A scanner rule that fired, and how the scanner rates it; the policy decides whether it refuses."""

    rule: RuleId
    severity: Severity


class ScanFacts(Model):
    """The scanner's report by digest, and each rule that fired once for each severity."""

    digest: Sha256
    findings: Annotated[tuple[FoundRule, ...], Field(max_length=MAX_FINDINGS)]


class AdmissionInput(Model):
    """The input document of package `rapha.admission`: every field present, none unknown."""

    job: JobFacts
    agreement: AgreementTerms
    dataset: DatasetTerms
    node: NodeFacts
    scan: ScanFacts
    approvals_required: Annotated[int, Field(ge=1, le=64)]
    reviews_required: Annotated[int, Field(ge=1, le=64)]
    settlement_configured: bool


class Reason(Model):
    """One failing rule: a registered code, what is wrong, and the smallest change that passes."""

    code: str
    message: Line
    fix: Line

    @model_validator(mode="after")
    def _code_is_registered(self) -> Self:
        entry = REGISTRY.get(self.code)
        if entry is None:
            raise ValueError(f"{self.code[:64]!r} is not a registered refusal code")
        if entry.depends_on_records:
            # Gate 4 runs before any record is looked at; such a code would say that it had been.
            raise ValueError(f"{self.code} depends on records, and a policy sees none")
        return self


class Decision(Model):
    """The AND over every policy set. A refusal always has a reason; a permission never has one."""

    allow: bool
    reasons: tuple[Reason, ...]
    bundles: Annotated[tuple[Sha256, ...], Field(max_length=64)]
    input: Sha256
    engine: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 ._+/-]{1,64}$")]

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.allow == bool(self.reasons):
            raise ValueError("a decision allows exactly when it has no reason against")
        if self.allow and not self.bundles:
            raise ValueError("no policy can't allow")
        return self

    def require(self) -> None:
        """Return if the job is allowed.

        Raises:
            Refused: the code of the only reason, or `policy.denied` naming every code.
        """
        if self.allow:
            return
        if len({reason.code for reason in self.reasons}) == 1:
            raise Refused(self.reasons[0].code, "; ".join(r.message for r in self.reasons))
        raise Refused("policy.denied", "; ".join(f"{r.code}: {r.message}" for r in self.reasons))
