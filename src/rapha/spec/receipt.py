"""The receipt: what the node's key signs once a job has ended well.

It names everything by digest. Counts are in buckets and salted commitments; the exact ones stay in the
hospital.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from rapha.spec.agreement import Label
from rapha.spec.base import Model, Name, Sha256, Timestamp, Yes, Zero
from rapha.spec.disclosure import Guarantee
from rapha.spec.job import Assurance, Purpose
from rapha.spec.lan import ranges
from rapha.spec.verdicts import Scope, Verdict

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
SEVERED_PROBES: Final = PROBES | {"wan"}
"""With the WAN severed, the coordinator must be out of the node's own reach as well."""
_COMMON_WALLS: Final = frozenset(
    {"capabilities", "driver", "host_uid", "limits", "namespaces", "no_new_privs"}
    | {"seccomp", "seccomp_filter"}
)
WALLS: Final = {
    "bubblewrap": _COMMON_WALLS | {"landlock"},
    "gvisor": _COMMON_WALLS | {"job_uid", "platform", "runsc"},
}
"""The walls that each sandbox driver reports of every run; one that a kernel lacks is reported as `none`."""


class JobReference(Model):
    """Which job, of whom, for what."""

    id: Sha256
    name: Name
    kind: Literal["train", "evaluate"]
    purpose: Purpose
    company: Name
    hospital: Name


class DatasetUse(Model):
    """Which data, by commitment; the funnel with small cells suppressed (as text such as `<10`).

    Attributes:
        cohort: which records were approved, under a key of the job.
        content: the stored bytes that every record was decoded from, under another key of the job.
        confinement: where decoded records were, by the host's word: in memory alone, or in shards under
            AES-256-GCM with a key that was in memory alone.
        ledger: salted commitment to how far the dataset's disclosure ledger was once the job was charged.
            It tells nothing, and whoever is given the opening later sees whether the ledger still has that
            entry, also where all of the node's disk was put back to an older state.
    """

    id: Name
    profile: Name
    manifest: Sha256
    cohort: Sha256
    opt_out_version: Sha256
    content: Sha256
    confinement: Literal["memory", "encrypted-shards"]
    ledger: Sha256
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


InterfaceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,14}$")]
"""A network interface of Linux (IFNAMSIZ)."""
GapMode = Literal["link", "nftables"]
Network = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F.:]{2,45}/[0-9]{1,3}$")]
"""A range of addresses in CIDR notation."""


class AirGap(Model):
    """What was severed and probed while sealed, by the host's own word; or a waiver that says why not.

    Attributes:
        interface: the WAN interface that was severed; None with a waiver.
        mode: the link was down, or a packet filter dropped all but `lan`.
        lan: ranges that stayed reachable, because the sources need them.
        wan_bytes_sent: what the interface sent to anything else while sealed: 0, or there is no receipt.
        lifted: the interface was seen to work as before.
    """

    interface: InterfaceName | None
    waiver: Label | None
    mode: GapMode | None
    lan: Annotated[tuple[Network, ...], Field(max_length=64)]
    probes: dict[str, Literal["unreachable"]]
    wan_bytes_sent: Zero | None
    lifted: Yes | None
    reported_by: Literal["host"]

    @model_validator(mode="after")
    def _severed_or_waived(self) -> Self:
        severed = self.interface is not None
        if severed == (self.waiver is not None):
            raise ValueError("either an interface was severed or a waiver says why not")
        if {severed} != {x is not None for x in (self.mode, self.wan_bytes_sent, self.lifted)}:
            raise ValueError("mode, counter and lift belong to a severed interface, and all of them do")
        if self.lan and self.mode != "nftables":
            raise ValueError("only a packet filter leaves a range reachable")
        ranges(self.lan)
        return self


class Sandbox(Model):
    """The driver and the walls that held."""

    driver: Name
    walls: dict[str, str]


class Times(Model):
    """Quantised as the surface is."""

    admitted: Timestamp
    finished: Timestamp


class Receipt(Model):
    """Predicate of the `receipt` statement; its subjects are the released artifacts.

    Attributes:
        released: all that was planned, or by the reviewers' verdict the trusted metrics alone.
        guarantee: differential privacy of the weights, where the hospital's own trainer made them; else None.
    """

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
    released: Scope
    guarantee: Guarantee | None = None
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
    verdict: Verdict
    report: Sha256
    shown: Sha256
