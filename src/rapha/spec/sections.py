"""Sections of a bundle that gates write and a verifier reads back.

Each is the part of a gate's report that may leave: verdicts and digests. What a job could steer (clip
counts, timings) stays in the hospital, behind a salted commitment.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from rapha.spec.base import Model, Sha256, Yes, Zero
from rapha.spec.receipt import Count, ImageDigest
from rapha.spec.reported import FileName

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 ._+/-]{1,64}$")]

GUARD_CHECKS: Final = ("files", "format", "values", "transform", "rebuild", "metrics", "tripwires")
"""The output guard's checks that a bundle tells, from number 1: all of them, and no other."""


class PolicySection(Model):
    """Gate 4: every set of rules said allow, and which rules those were."""

    allow: Yes
    engine: Word
    bundles: Annotated[tuple[Sha256, ...], Field(min_length=1, max_length=64)]
    input: Sha256


class ScanSection(Model):
    """Gate 3: what was scanned and with what result; `report` is the digest of the whole report.

    Attributes:
        base: diff ids of the allow-listed layers below what was scanned; empty for a slim image.
    """

    image: ImageDigest
    base: Annotated[tuple[ImageDigest, ...], Field(max_length=128)]
    scanner: Word
    report: Sha256
    refusals: Zero
    warnings: Count


class GuardCheck(Model):
    """One numbered check of the output guard."""

    n: Annotated[int, Field(ge=1, le=9)]
    id: Word
    verdict: Literal["pass", "not_run"]


class Released(Model):
    """A file that the guard rebuilt."""

    name: FileName
    sha256: Sha256
    bytes: Count


class GuardSection(Model):
    """Gate 9. `report` is a salted commitment to the whole disclosure report."""

    checks: Annotated[tuple[GuardCheck, ...], Field(min_length=5, max_length=9)]
    released: Annotated[tuple[Released, ...], Field(max_length=16)]
    covert_bound_bits: Count
    report: Sha256
