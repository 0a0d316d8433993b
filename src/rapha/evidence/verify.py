"""Verification of a bundle: bytes, a trust file and one clock reading in; numbered verdicts out.

Steps (`STEPS`), in the order in which they run:
 1 format       canonical JSON, exactly the sections of a bundle (RFC 8785)
 2 profile      the bundle is of the trust file's profile
 3 agreement    signed by a pinned hospital and a pinned company; in force when the job was admitted
 4 job          signed by a developer that the agreement pins; its id is the digest of what was signed
 5 image        its statement is signed by a pinned developer and names the job's image
 6 receipt      signed by the node's key that the agreement pins
 7 sections     every section is the one that the receipt binds
 8 posture      admission evidence appraises under a pinned root; the one-use ticket names it
 9 scan         the scan was of this image and left no refusal
10 policy       allowed by exactly the pinned policy bundles
11 approval     enough pinned owners approved this job, policy, data and node
12 seal         fresh evidence held again before records were opened; all probes were made, all walls held
13 metering     records counted, in the agreement's buckets, within the cap
14 guard        exactly the guard's checks, each passed where the plan gives it something to look at; exactly
                the plan's files, or of them the metrics alone; the receipt's covert bound is the guard's, and
                no less than those files and the verdict can hold
15 surface      what the researcher was told is the receipt's artifacts, counts and planned metrics
16 review       enough pinned reviewers signed the disclosure report; what left is their narrowest verdict
17 attestation  a second quote covers the receipt itself
18 log          the receipt is in the pinned log, under its signed checkpoint (RFC 9162)
19 anchor       the checkpoint is on a chain (not asked for in this profile)

Required steps follow from the trust file, never from what a bundle holds. After a failure nothing later is
looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from rapha.evidence.steps import gates, parties, proof, released
from rapha.evidence.steps.case import PLAIN, Case
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust

Verdict = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """One numbered line of the verdict."""

    n: int
    id: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The whole verdict. `ok` only when every required step passed."""

    ok: bool
    assurance: str
    steps: tuple[StepResult, ...]
    proves: tuple[str, ...]
    does_not_prove: tuple[str, ...]
    unique_records: int
    artifacts: tuple[Mapping[str, str], ...]

    def dump(self) -> dict[str, Any]:
        """The JSON object of `rapha verify --json`."""
        return {
            "ok": self.ok,
            "assurance": self.assurance,
            "steps": [{"n": s.n, "id": s.id, "verdict": s.verdict, "reason": s.reason} for s in self.steps],
            "proves": list(self.proves),
            "does_not_prove": list(self.does_not_prove),
            "unique_records": self.unique_records,
            "artifacts": [dict(a) for a in self.artifacts],
        }


DOES_NOT_PROVE: Final = (
    "that the model is safe, clinically valid or cleared by a regulator",
    "that the released weights hold no patient data: the covert bound is the most they could hold",
    "that pseudonyms or weights are anonymous; a legal basis and a DPIA are still needed",
    "that the hospital's counters of network traffic are right: they are the host's own word",
    "that the scan found everything: the sandbox is what holds, the scan is advice",
)
SIMULATED: Final = "anything about the hardware: the attestation is simulated"
ASSERTED: Final = "the number of records: without attestation hardware it is the hospital's own assertion"


def verify(data: bytes, trust: Trust, now: datetime) -> Verification:
    """Run every step over a bundle's bytes; never raises for what the bytes hold."""
    case = Case(data, trust, now)
    results: list[StepResult] = []
    failed: int | None = None
    for n, (name, check) in enumerate(STEPS, start=1):
        if failed is not None:
            results.append(StepResult(n, name, "skipped", f"step {failed} failed"))
            continue
        result = _run(n, name, check, case)
        results.append(result)
        failed = n if result.verdict == "fail" else None
    ok = failed is None
    simulated = not ok or case.receipt.assurance == "simulated"
    return Verification(
        ok=ok,
        assurance=case.receipt.assurance if ok else "none",
        steps=tuple(results),
        proves=tuple(case.proves) if ok else (),
        does_not_prove=DOES_NOT_PROVE + ((SIMULATED, ASSERTED) if simulated else ()),
        unique_records=case.receipt.usage.records if ok else 0,
        artifacts=tuple(_artifacts(case.subjects)) if ok else (),
    )


def _run(n: int, name: str, check: Callable[[Case], str | None], case: Case) -> StepResult:
    try:
        reason = check(case)
    except Refused as refused:
        return StepResult(n, name, "fail", f"{refused.code}: {refused.detail}")
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        # A malformed bundle that no earlier check named is still a no, never a crash.
        return StepResult(n, name, "fail", f"schema.field_invalid: malformed ({type(error).__name__})")
    return (
        StepResult(n, name, "skipped", "not asked for")
        if reason is None
        else StepResult(n, name, "pass", reason)
    )


def _artifacts(subjects: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name.removeprefix(PLAIN), "sha256": digest}
        for name, digest in sorted(subjects.items())
        if name.startswith(PLAIN)
    ]


STEPS: Final[tuple[tuple[str, Callable[[Case], str | None]], ...]] = (
    ("format", parties.step_format),
    ("profile", parties.step_profile),
    ("agreement", parties.step_agreement),
    ("job", parties.step_job),
    ("image", parties.step_image),
    ("receipt", parties.step_receipt),
    ("sections", parties.step_sections),
    ("posture", gates.step_posture),
    ("scan", gates.step_scan),
    ("policy", gates.step_policy),
    ("approval", gates.step_approval),
    ("seal", gates.step_seal),
    ("metering", gates.step_metering),
    ("guard", released.step_guard),
    ("surface", released.step_surface),
    ("review", released.step_review),
    ("attestation", proof.step_attestation),
    ("log", proof.step_log),
    ("anchor", proof.step_anchor),
)
