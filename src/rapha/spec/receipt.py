"""The receipt: what the node's key signs once a job has ended well.

It names everything by digest. Counts are in buckets and salted commitments; the exact ones stay in the
hospital.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from rapha.spec.agreement import Label
from rapha.spec.base import Model, Name, Sha256, Timestamp
from rapha.spec.job import Assurance, Purpose

ImageDigest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]

SECTIONS: Final = (
    "job",
    "image",
    "agreement",
    "ticket",
    "admission",
    "seal",
    "policy",
    "scan",
    "guard",
    "approvals",
    "reviews",
    "surface",
)
"""The parts of a bundle that the receipt binds, by the SHA-256 of their canonical form."""


PROBES: Final = frozenset(
    {"coordinator", "ipv4", "ipv6", "netlink", "dataset-folder", "node-keys", "node-state"}
)
"""What is tried from inside the walls before every job; all of it must be unreachable."""
WALLS: Final = {
    "bubblewrap": frozenset(
        {"capabilities", "driver", "host_uid", "limits", "namespaces", "no_new_privs"}
        | {"seccomp", "seccomp_filter"}
    )
}
"""The walls that each sandbox driver reports of every run."""


class JobReference(Model):
    """Which job, of whom, for what."""

    id: Sha256
    name: Name
    kind: Literal["train", "evaluate"]
    purpose: Purpose
    company: Name
    hospital: Name


class DatasetUse(Model):
    """Which data, by commitment; the funnel with small cells suppressed (as text such as `<10`)."""

    id: Name
    profile: Name
    manifest: Sha256
    cohort: Sha256
    opt_out_version: Sha256
    funnel: dict[Name, Count | Annotated[str, StringConstraints(pattern=r"^<[0-9]{1,6}$")]]


class Usage(Model):
    """What the meter outside the job counted, training and trusted metrics together."""

    records: Count
    patients: Count
    bucket: Annotated[int, Field(ge=1, le=10**6)]
    cap: Count
    records_commitment: Sha256
    patients_commitment: Sha256
    used_root: Sha256
    transcript: Sha256
    counts: Literal["attested", "hospital-asserted"]


class AirGap(Model):
    """What was probed while sealed. Counters are the host's own word."""

    interface: Name | None
    waiver: Label | None
    probes: dict[str, Literal["unreachable"]]
    reported_by: Literal["host"]


class Sandbox(Model):
    """The driver and the walls that held."""

    driver: Name
    walls: dict[str, str]


class Times(Model):
    """Quantised as the surface is."""

    admitted: Timestamp
    finished: Timestamp


class Receipt(Model):
    """Predicate of the `receipt` statement; its subjects are the released artifacts."""

    job: JobReference
    node: Name
    image: ImageDigest
    runtime: Sha256
    sections: dict[str, Sha256]
    dataset: DatasetUse
    usage: Usage
    sandbox: Sandbox
    airgap: AirGap
    outcome: Literal["success"]
    covert_bound_bits: Count
    assurance: Assurance
    nonce: Sha256
    times: Times
    previous: Sha256


class Approval(Model):
    """An owner's signed yes or no; `shown` is the digest of all that was shown to them."""

    job: Sha256
    verdict: Literal["approve", "refuse"]
    policy: Sha256
    manifest: Sha256
    cohort: Sha256
    measurement: Sha256
    changes: Sha256
    shown: Sha256


class Review(Model):
    """An output reviewer's signed verdict over the disclosure report, and the digest of what was shown."""

    job: Sha256
    verdict: Literal["release", "metrics-only", "refuse"]
    report: Sha256
    shown: Sha256
