"""What the guard says about one output folder. It stays in the hospital, and people sign it."""

from __future__ import annotations

import hashlib
import math
from typing import Final, Literal

from pydantic import Field

from rapha.evidence import canonical
from rapha.runtime.guard.codes import CHECKS, CODES, UNDECIDED, Finding
from rapha.spec.base import Model, One, Sha256
from rapha.spec.release_plan import VERDICT_BITS, ReleasePlan
from rapha.spec.reported import Reported, SelfReportedPlan

REPORT_LIMIT: Final = 2**24
"""Bytes of a report: 8192 tensors with long names fit."""
Verdict = Literal["pass", "fail", "not_run"]


class Check(Model):
    """One numbered check."""

    n: int
    id: str
    verdict: Verdict
    reason: str
    does_not_show: str


class ReleasedFile(Model):
    """A rebuilt file: the only bytes that may leave."""

    name: str
    sha256: Sha256
    bytes: int


class Transform(Model):
    """What was done to one tensor.

    `largest_error` is the greatest absolute change that rounding made; `noise_std` is the standard deviation
    of what was added before it, 0 for none.
    """

    tensor: str
    dtype: str
    released_as: str
    clipped: int
    largest_error: float
    noise_std: float = 0.0


class GuardReport(Model):
    """The verdict.

    `decided` is false when the guard could not find out (its process died, say): treat as no.
    `covert_bound_bits` bounds what the job can encode in what this verdict releases.
    """

    version: One = 1
    ok: bool
    decided: bool = True
    code: str | None = None
    plan_digest: Sha256
    checks: tuple[Check, ...]
    released: tuple[ReleasedFile, ...] = ()
    transforms: tuple[Transform, ...] = ()
    self_reported: dict[str, Reported] = Field(default_factory=dict)
    covert_bound_bits: int

    def agrees_with(self, plan: ReleasePlan) -> bool:
        """Whether the guard can say this about `plan`: a yes is whole, a no releases nothing.

        What the job states of itself leaves from here, so each value must be one that the plan lets out.
        """
        said = tuple((c.n, c.id, c.does_not_show) for c in self.checks)
        if said != tuple((n, text.id, text.does_not_show) for n, text in CHECKS.items()):
            return False
        failed = [c.n for c in self.checks if c.verdict == "fail"]
        about = self.plan_digest == canonical.digest(plan.dump())
        return about and (self._is_yes(plan, failed) if self.ok else self._is_no(failed))

    def _is_yes(self, plan: ReleasePlan, failed: list[int]) -> bool:
        sizes = {}
        if plan.weights:
            sizes[plan.weights.file] = plan.weights.released_bytes
        if plan.self_reported:
            stated = canonical.dumps(self.self_reported)
            sizes[plan.self_reported.file] = len(stated)
            digest = hashlib.sha256(stated).hexdigest()
            if digest not in (f.sha256 for f in self.released if f.name == plan.self_reported.file):
                return False
        changed = plan.weights.tensors if plan.weights else ()
        return (
            (self.decided, self.code, failed) == (True, None, [])
            and sorted((f.name, f.bytes) for f in self.released) == sorted(sizes.items())
            and [t.tensor for t in self.transforms] == [t.name for t in changed]
            and _stated(self.self_reported, plan.self_reported)
            and self.covert_bound_bits == plan.released_bits()
        )

    def _is_no(self, failed: list[int]) -> bool:
        code = self.code or ""
        return (
            code in CODES
            and failed == [CODES[code][0]]
            and self.decided == (code not in UNDECIDED)
            and (self.released, self.transforms, self.self_reported) == ((), (), {})
            and self.covert_bound_bits == math.ceil(VERDICT_BITS)
        )


def _stated(values: dict[str, Reported], plan: SelfReportedPlan | None) -> bool:
    """Whether `values` are what the plan's fields let out: releasing them once more changes nothing."""
    fields = plan.fields if plan else ()
    if values.keys() != {field.name for field in fields}:
        return False
    try:
        again = {field.name: field.release(values[field.name]) for field in fields}
    except ValueError:
        return False
    return canonical.dumps(again) == canonical.dumps(values)


class Ledger:
    """Collects the verdict of each check, in order; whatever was not reached is `not_run`."""

    def __init__(self) -> None:
        self._said: dict[int, tuple[Verdict, str]] = {}

    def passed(self, n: int, reason: str) -> None:
        """Check `n` passed."""
        self._said[n] = ("pass", reason)

    def skipped(self, n: int, reason: str) -> None:
        """Check `n` does not apply; `reason` says why."""
        self._said[n] = ("not_run", reason)

    def failed(self, finding: Finding) -> None:
        """The check that `finding` belongs to failed."""
        self._said[finding.n] = ("fail", finding.reason)

    def checks(self) -> tuple[Check, ...]:
        """All checks, by number."""
        return tuple(
            Check(n=n, id=text.id, verdict=verdict, reason=reason, does_not_show=text.does_not_show)
            for n, text in CHECKS.items()
            for verdict, reason in [self._said.get(n, UNREACHED)]
        )


def refusal(plan: ReleasePlan, finding: Finding, ledger: Ledger | None = None) -> GuardReport:
    """A no. Nothing is released, so the verdict is all that a job can encode."""
    ledger = ledger or Ledger()
    ledger.failed(finding)
    return GuardReport(
        ok=False,
        decided=finding.code not in UNDECIDED,
        code=finding.code,
        plan_digest=canonical.digest(plan.dump()),
        checks=ledger.checks(),
        covert_bound_bits=math.ceil(VERDICT_BITS),
    )


UNREACHED: Final[tuple[Verdict, str]] = ("not_run", "an earlier check failed")
