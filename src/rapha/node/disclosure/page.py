"""What a reviewer is shown before outputs leave, as data. Its digest is what the reviewer signs.

The page stays in the hospital: it holds what a job could steer, and exact numbers about the dataset.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from rapha.evidence import canonical
from rapha.runtime.guard.report import Check, Transform
from rapha.spec.agreement import Label
from rapha.spec.base import KeyId, Model, Name, One, Profile, Sha256
from rapha.spec.disclosure import LEAST_MOST_TPR, Balance, Guarantee, Leakage, Price, Searched
from rapha.spec.job import Assurance, Purpose
from rapha.spec.receipt import Count
from rapha.spec.refusals import Refused
from rapha.spec.reported import FileName, Reported
from rapha.spec.verdicts import SENTENCE, Sentence, Verdict

Source = Literal["weights", "metrics", "self_reported", "counts", "resources", "verdict", "timing"]
"""Where bits about records could be."""


class Signer(Model):
    """A person of the agreement, by their key."""

    name: Label
    role: Label
    key: KeyId


class File(Model):
    """A file that would leave, and its size in bytes."""

    name: FileName
    bytes: Count


class Outgoing(Model):
    """What one verdict lets out.

    Attributes:
        bits: the covert bound: the most that all of it can say about records.
        parts: where those bits are; they add up to the bound, but for rounding up.
    """

    bits: Count
    parts: dict[Source, Annotated[float, Field(ge=0)]]
    files: Annotated[tuple[File, ...], Field(max_length=16)]


class Verdicted(Model):
    """One of the nine checks (gates, section 5), and what a pass of it does not show."""

    n: Annotated[int, Field(ge=1, le=9)]
    id: Label
    verdict: Literal["pass", "fail", "not_run", "not_resolvable"]
    found: str
    does_not_show: str


class Page(Model):
    """The page.

    Attributes:
        choices: the verdicts that may be signed; `metrics_only` is None where it is not among them.
        report: salted commitment to the guard's whole report.
        written_by: developers whose keys signed the job.
        patients: how many, in words, as a bucket.
        release, metrics_only: what would leave, and the most that it could hold.
        balance: the dataset's ledger over all jobs, this one charged at its worst; None where none is kept.
        charge: what this job is charged of it.
        guarantee: differential privacy that the hospital's trainer enforced, or None.
        reviewers, required: who may sign, and how many must.
    """

    version: One = 1
    job: Sha256
    report: Sha256
    name: Name
    kind: Literal["train", "evaluate"]
    profile: Profile
    assurance: Assurance
    hospital: Label
    node: Name
    company: Label
    company_id: Name
    written_by: tuple[Signer, ...]
    purpose: Purpose
    dataset: Name
    dataset_title: Label
    patients: Label
    release: Outgoing
    metrics_only: Outgoing | None
    balance: Balance | None
    charge: Price | None
    guarantee: Guarantee | None
    checks: tuple[Verdicted, ...]
    searched: Searched | None
    leakage: Leakage
    transforms: tuple[Transform, ...]
    trusted: dict[str, float]
    self_reported: dict[str, Reported]
    sentence: Sentence = SENTENCE
    choices: tuple[Verdict, ...]
    reviewers: tuple[Signer, ...]
    required: Annotated[int, Field(ge=1)]

    @property
    def digest(self) -> str:
        """What a review signs as `shown`."""
        return canonical.digest(self.dump())


def read(shown: Any) -> Page:
    """The page of a request on the desk.

    Raises:
        Refused: `schema.*` for anything but a page; `policy.approval_invalid` where a part is left out: what
            is printed would not be what is signed.
    """
    page = Page.parse(shown, "page")
    if page.digest != canonical.digest(shown):
        raise Refused("policy.approval_invalid", "the request leaves out a part of the page")
    return page


LEAKAGE_SHOWS_NOT: Final = (
    "that no other attack finds more, or that the code did not notice the test; a low rate is no bound"
)
CAPS_SHOW_NOT: Final = "whose data the bits are about; the caps bound their sum"


def checks(
    guard: tuple[Check, ...], searched: Searched | None, leakage: Leakage, balance: Balance | None
) -> tuple[Verdicted, ...]:
    """All nine checks by number: the guard's own, the leakage test, and the dataset's caps."""
    found = [Verdicted.parse({**_of_guard(c.dump(), searched)}, "check") for c in guard]
    return (*found, _eighth(leakage), _ninth(balance))


def _of_guard(check: dict[str, Any], searched: Searched | None) -> dict[str, Any]:
    said = {k: check[k] for k in ("n", "id", "verdict", "does_not_show")}
    # Without one identifier to look for, or where something else failed, the guard's own words say it.
    asked = searched is not None and searched.searched > 0
    if check["n"] != 7 or searched is None or not (searched.found or (asked and check["verdict"] != "fail")):
        return {**said, "found": check["reason"]}
    short = f", {searched.too_short:,} too short to search for" if searched.too_short else ""
    hit = "FOUND" if searched.found else "not found"
    looked = f"{searched.searched:,} known identifiers searched: {hit}{short}"
    ran = check["verdict"] if check["verdict"] != "not_run" else "pass"
    return {**said, "verdict": "fail" if searched.found else ran, "found": looked}


def _eighth(leakage: Leakage) -> Verdicted:
    # Without a limit of the hospital's nothing was refused, and a leak that chance can't explain is no pass.
    measured = "fail" if leakage.low is not None and leakage.low > LEAST_MOST_TPR else "pass"
    verdict = measured if leakage.verdict == "measured" else leakage.verdict
    said = {"n": 8, "id": "leakage", "verdict": verdict, "does_not_show": LEAKAGE_SHOWS_NOT}
    return Verdicted.parse({**said, "found": leakage_in_words(leakage)}, "check")


def leakage_in_words(leakage: Leakage) -> str:
    """The number with its interval, or plainly why there is none."""
    if leakage.verdict != "measured" or leakage.tpr is None:
        reason = leakage.reason or "no reason was given"
        return f"not resolvable: {reason}" if leakage.verdict == "not_resolvable" else reason
    told = f"{leakage.tpr:.1%} of members found at 0.1% false positives"
    if leakage.low is not None and leakage.high is not None:
        told += f" (95% interval {leakage.low:.1%} to {leakage.high:.1%})"
    if leakage.worst_tpr is not None:
        told += f"; worst subgroup {leakage.worst[:32] or 'unnamed'}: {leakage.worst_tpr:.1%}"
    if leakage.canaries is not None:
        told += f"; planted records: {leakage.canaries:.1%}"
    return f"{told}; {leakage.shadows} shadow models"


def _ninth(balance: Balance | None) -> Verdicted:
    said: dict[str, Any] = {"n": 9, "id": "caps", "does_not_show": CAPS_SHOW_NOT}
    if balance is None:
        return Verdicted(**said, verdict="not_run", found="no ledger is kept for this dataset")
    names = ("bits", "epsilon", "delta", "evaluations", "cohorts", "most_used")
    lines = {name: getattr(balance, name) for name in names}
    over = [name for name, line in lines.items() if line.spent > line.cap]
    found = f"beyond the cap: {', '.join(over)}" if over else f"within all caps, over {balance.jobs:,} jobs"
    return Verdicted(**said, verdict="fail" if over else "pass", found=found)
