"""What the page says: read from the arguments, held against the verified receipt, put into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rapha.evidence import bundle as bundles
from rapha.evidence import canonical, dsse
from rapha.evidence.verify import Verification
from rapha.researcher.report import metrics as numbers
from rapha.researcher.report import plots, words
from rapha.researcher.report.lines import GATES, GateLine, duration, in_order
from rapha.runtime.charts import Markup
from rapha.runtime.sizes import rows, size, slices
from rapha.spec.receipt import DatasetUse, Receipt
from rapha.spec.refusals import Refused
from rapha.spec.sections import GuardSection

STAGES: Final = ("matched", "readable", "consented", "used")
_ASSERTED_BY: Final = {
    "attested": "the node's meter, inside attested hardware",
    "hospital-asserted": "the hospital alone: no attestation hardware vouches for the meter",
}
_ENVELOPE: Final = ("profile", "protocol", "audience")

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Funnel:
    """The stages, and why records dropped out.

    Attributes:
        reasons: what, code, count.
        suppressed: what and code of the reasons whose count is only known to be `below` so many patients.
    """

    chart: Markup
    reasons: tuple[tuple[str, str, str], ...]
    suppressed: tuple[tuple[str, str], ...]
    below: str


@dataclass(frozen=True, slots=True)
class Covert:
    """What could be hidden in what was released, at most, in sizes that people know."""

    bits: str
    size: str
    slices: str
    rows: str
    released: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The gates; `missing` ones are not in the journal's account."""

    chart: Markup
    lines: tuple[tuple[GateLine, str], ...]
    total: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A job whose receipt was verified."""

    job: str
    headline: Pairs
    facts: Pairs
    timeline: Timeline | None
    funnel: Funnel
    metrics: numbers.Metrics
    covert: Covert
    use: Pairs
    patients: str
    caution: str
    measured: str
    hidden: str
    artifacts: tuple[tuple[str, str, str], ...]


def read(
    data: bytes, verification: Verification, metrics: Mapping[str, Any], timeline: Sequence[GateLine]
) -> Finished:
    """Everything that the page shows of a job that `verification` said yes to.

    Raises:
        Refused: `schema.*` where `data` is not a bundle, or where it or `metrics` is not what was verified.
    """
    bundle = bundles.read(data)
    claims = dict(dsse.unverified_predicate(bundle["receipt"]))
    receipt = Receipt.parse({k: v for k, v in claims.items() if k not in _ENVELOPE}, "receipt")
    guard = GuardSection.parse(bundle["guard"], "guard")
    _check(bundle, receipt, guard, verification)
    if metrics and canonical.digest(dict(metrics)) not in {r.sha256 for r in guard.released}:
        raise Refused("schema.field_invalid", "metrics: not the bytes of an artifact that the receipt names")
    shown = numbers.read(metrics)
    bound = covert(receipt.covert_bound_bits, sum(r.bytes for r in guard.released))
    return Finished(
        job=receipt.job.name,
        headline=_headline(receipt, shown, bound),
        facts=_facts(receipt, str(bundle["profile"])),
        timeline=_timeline(in_order(timeline)) if timeline else None,
        funnel=_funnel(receipt.dataset),
        metrics=shown,
        covert=bound,
        use=_use(receipt),
        patients=words.patients(receipt.usage, receipt.dataset, receipt.job.kind),
        caution=words.caution(receipt.usage),
        measured=words.MEASURED[receipt.job.kind],
        hidden=words.hidden(receipt.released, [r.name for r in guard.released], metrics),
        artifacts=tuple((r.name, f"{r.bytes:,}", r.sha256) for r in guard.released),
    )


def _check(bundle: bundles.Bundle, receipt: Receipt, guard: GuardSection, verification: Verification) -> None:
    # A verdict about one bundle must never head the numbers of another.
    released = {r.name: r.sha256 for r in guard.released}
    verified = {a["name"]: a["sha256"] for a in verification.artifacts}
    if (receipt.assurance, receipt.usage.records) != (verification.assurance, verification.unique_records):
        raise Refused("schema.field_invalid", "the verification is of another receipt")
    if released != verified or receipt.sections.get("guard") != bundle.section_digest("guard"):
        raise Refused("schema.field_invalid", "the verification is of other artifacts")


def _headline(receipt: Receipt, shown: numbers.Metrics, bound: Covert) -> Pairs:
    measured = (("Measured by the node", shown.headline),) if shown.headline else ()
    return (
        *measured,
        ("Unique records, at most", f"{receipt.usage.records:,}"),
        ("Released", bound.released),
        ("Covert-channel bound", f"{bound.bits} bits"),
    )


def _facts(receipt: Receipt, profile: str) -> Pairs:
    job, air = receipt.job, receipt.airgap
    return (
        ("Job", f"{job.name} ({job.kind})"),
        ("Purpose", job.purpose),
        ("Company", job.company),
        ("Hospital", f"{job.hospital}, node {receipt.node}"),
        ("Dataset", f"{receipt.dataset.id} ({receipt.dataset.profile})"),
        ("Decoded records were", words.CONFINEMENT[receipt.dataset.confinement]),
        ("Admitted, finished", f"{receipt.times.admitted}, {receipt.times.finished}"),
        ("Sandbox", f"{receipt.sandbox.driver}, {len(receipt.sandbox.walls)} walls recorded"),
        ("Air gap", f"{len(air.probes)} probes found nothing to reach, by the host's own word"),
        ("Released", words.RELEASED[receipt.released]),
        ("Assurance, profile", f"{receipt.assurance}, {profile}"),
        ("Image", receipt.image),
        ("Job id", job.id),
    )


def _timeline(lines: tuple[GateLine, ...]) -> Timeline:
    named = {line.gate for line in lines}
    return Timeline(
        chart=plots.timeline(lines),
        lines=tuple((line, duration(line.seconds)) for line in lines),
        total=duration(sum(line.seconds for line in lines)),
        missing=tuple(gate for gate in GATES if gate not in named),
    )


def _funnel(dataset: DatasetUse) -> Funnel:
    counts = dataset.funnel
    stages: dict[str, plots.Count] = {stage: counts[stage] for stage in STAGES if stage in counts}
    codes = sorted(code for code in counts if code not in STAGES)
    small = [code for code in codes if isinstance(counts[code], str)]
    return Funnel(
        chart=plots.funnel(stages),
        reasons=tuple(
            (words.REASONS.get(code, code), code, plots.counted(counts[code]))
            for code in codes
            if code not in small
        ),
        suppressed=tuple((words.REASONS.get(code, code), code) for code in small),
        below=plots.counted(max((counts[code] for code in small), key=plots.upper, default=0)),
    )


def covert(bits: int, released: int) -> Covert:
    """A bound in bits and the released bytes, put into words."""
    return Covert(
        bits=f"{bits:,}",
        size=size(-(-bits // 8)),
        slices=slices(bits),
        rows=rows(bits),
        released=size(released),
    )


def _use(receipt: Receipt) -> Pairs:
    usage = receipt.usage
    return (
        ("Unique records used", f"at most {usage.records:,}"),
        ("Unique patients", f"at most {usage.patients:,}"),
        ("Counted in steps of", f"{usage.bucket:,}"),
        ("The job's cap", f"{usage.cap:,} records"),
        ("Who asserts it", _ASSERTED_BY[usage.counts]),
    )
