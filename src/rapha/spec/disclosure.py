"""What a dataset may give away over all jobs, what one job costs of it, and what is known about a leak.

The caps are the hospital's, and part of the manifest. They hold per dataset, across every organisation: two
companies may be one asker. What counts against them is in the disclosure ledger, which stays in the hospital.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from rapha.spec.base import Model, Name, Sha256

Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Epsilon = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Delta = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
LEAST_NON_MEMBERS: Final = 1000
"""A true positive rate at a false positive rate of 0.1% can't be resolved with fewer (gates, section 5.8)."""
LEAST_MEMBERS: Final = 100
"""Patients; shadows are trained on halves of them, and on less than that nothing like the model comes out."""
LEAST_MOST_TPR: Final = 0.01
"""A limit below would refuse by chance: with 1,000 non-members the threshold hangs on the second highest of
them, and lets more than 1% of strangers pass about once in 2,000 tests."""
LEAST_SHADOWS: Final = 4
"""Two pairs of halves: everybody is in two of them and out of two."""
ACCOUNTANT: Final = "rdp"
"""The one that `Guarantee` knows: `rapha.spec.accountant` computes it again."""


class LeakageTest(Model):
    """Check 8: how hard the node tries to tell members from non-members before it lets weights go.

    Attributes:
        shadows: models trained again on random halves of the members, `LEAST_SHADOWS` or more; 0 switches the
            test off.
        canaries: records with a wrong label that half of the shadow models see.
        limit_s: wall clock for all shadows together; what is not done by then is left out.
        most_tpr: refuse where more members than this share are found at 0.1% false positives, by the lower
            end of its interval; 1 never does.
    """

    shadows: Annotated[int, Field(ge=0, le=256)] = 0
    canaries: Annotated[int, Field(ge=0, le=1000)] = 0
    limit_s: Annotated[int, Field(ge=1, le=7 * 86400)] = 3600
    most_tpr: Annotated[float, Field(ge=LEAST_MOST_TPR, le=1)] = 1.0

    @model_validator(mode="after")
    def _enough_or_none(self) -> Self:
        if 0 < self.shadows < LEAST_SHADOWS:
            raise ValueError(f"shadows: 0, or {LEAST_SHADOWS} or more")
        if self.most_tpr < 1 and not self.shadows:
            raise ValueError("most_tpr: a limit without shadows would be kept by everything")
        return self


class Caps(Model):
    """What a dataset may give away, over all jobs of all organisations. Each one stops.

    Attributes:
        bits: covert bound summed over jobs (2**30 bits are 128 MiB).
        epsilon, delta: of hospital-run private training (Tier A), summed by basic composition over jobs; with
            epsilon 0 there is none.
        evaluations: jobs that are told trusted metrics of the fixed held-out split.
        cohorts: different sets of patients that jobs were trained or measured on.
        uses_per_patient: jobs that one patient's records were in.
        feasibility: different questions about cohorts that were answered: counts told, or a job's cohort
            accepted or refused.
    """

    bits: Count = 2**30
    epsilon: Epsilon = 0.0
    delta: Delta = 1e-5
    evaluations: Annotated[int, Field(ge=0, le=10**6)] = 50
    cohorts: Annotated[int, Field(ge=1, le=4096)] = 64
    uses_per_patient: Annotated[int, Field(ge=1, le=10**6)] = 200
    feasibility: Annotated[int, Field(ge=0, le=10**6)] = 500
    leakage: LeakageTest = LeakageTest()


class Price(Model):
    """The most that one job can cost, known from its signed terms before it runs.

    Attributes:
        bits: the covert bound over the whole surface; of a Tier A job all of it but the weights.
        epsilon, delta: of a Tier A job; else 0.
        evaluations: 1 where trusted metrics are told.
    """

    bits: Count
    epsilon: Epsilon = 0.0
    delta: Delta = 0.0
    evaluations: Annotated[int, Field(ge=0, le=1)] = 0


class Guarantee(Model):
    """Differential privacy of released weights, enforced by the hospital's own trainer.

    Holds for adding or removing one patient (all of their records); covers the weights alone: counts, metrics
    and the way a job ended are priced in bits beside it.
    """

    epsilon: Epsilon
    delta: Delta
    unit: Literal["patient"] = "patient"
    mechanism: Name = "dp-sgd"
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1, le=10**7)]
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    accountant: Name


class Spent(Model):
    """One line of a balance."""

    spent: float
    cap: float

    @property
    def left(self) -> float:
        """What is left, never below 0."""
        return max(0.0, self.cap - self.spent)


class Balance(Model):
    """A dataset's ledger after a job was charged. It stays in the hospital, on the page that people sign.

    Attributes:
        head: digest of the ledger's last entry, which chains all before it.
        entries: how many entries that are.
        opt_out_version: of the list that the job ran with.
        most_used: jobs that the most used patient was in.
    """

    dataset: Name
    jobs: Count
    bits: Spent
    epsilon: Spent
    delta: Spent
    evaluations: Spent
    cohorts: Spent
    most_used: Spent
    opt_out_version: Sha256
    head: Sha256
    entries: Annotated[int, Field(ge=1, le=2**53 - 1)]


class Leakage(Model):
    """What check 8 found. About attacks that were tried: a low number is not a bound.

    Attributes:
        verdict: `not_resolvable` where fewer than `LEAST_NON_MEMBERS` non-members leave no number to tell.
        members, non_members: patients, exact; they stay in the hospital.
        tpr: members found at 0.1% false positives, or None.
        low, high: its 95% interval (Clopper and Pearson).
        auc: of the attack, over all thresholds.
        worst: the subgroup with the highest rate, as `field=value`, or empty.
        worst_tpr: its rate, or None.
        canaries: rate at which planted records were told from records left out, at 0.1% or None.
        shadows: models that were trained in time.
        narrowed: whether the dataset has enough non-members, and the job asked for or read too few.
        reason: why there is no number.
    """

    verdict: Literal["measured", "not_resolvable", "not_run"]
    members: Count = 0
    non_members: Count = 0
    tpr: float | None = None
    low: float | None = None
    high: float | None = None
    auc: float | None = None
    worst: str = ""
    worst_tpr: float | None = None
    canaries: float | None = None
    shadows: Count = 0
    narrowed: bool = False
    reason: str = ""

    @model_validator(mode="after")
    def _numbers_only_where_resolvable(self) -> Self:
        numbers = (self.tpr, self.low, self.high, self.worst_tpr, self.canaries)
        if self.verdict != "measured" and any(number is not None for number in numbers):
            raise ValueError("a rate is told only where it was measured")
        if self.verdict == "measured" and (self.tpr is None or self.non_members < LEAST_NON_MEMBERS):
            raise ValueError("measured needs a rate, and enough non-members to resolve it")
        if any(number is not None and not math.isfinite(number) for number in (*numbers, self.auc)):
            raise ValueError("rates are finite")
        return self


NOT_ASKED: Final = Leakage(verdict="not_run", reason="the dataset's manifest asks for none")


class Searched(Model):
    """The known-identifier tripwire over the rebuilt bytes. A hit refuses; a pass is not evidence.

    Attributes:
        found: whether identifiers of the job's patients are in the bytes.
        searched: identifiers that were looked for; of several files, the most of any.
        too_short: identifiers so short or plain that chance alone would find them, so they were not looked
            for; of several files, the most of any.
        file: where they were found; empty where they were not.
    """

    found: bool
    searched: Count
    too_short: Count
    file: Annotated[str, Field(max_length=64)] = ""
