"""What the pipeline and the dataset process say to each other; `wire` writes it as JSON, `frames` frames it.

    request = {"command": name, "arguments": {…}}
    reply   = {"done": {…}} | {"refused": {"code": …, "detail": …}}
    event   = {"event": "first_record"} | {"event": "progress", "stage": …, "done": …, "total": …}

One reply a request, in order; events come at any time. Every type here is closed: what isn't a field can't
leave the process that holds the records.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field as Bounds
from pydantic import StringConstraints

from rapha.node.datasets.ledger.entries import Seen
from rapha.node.datasets.ledger.messages import Inspect, Reserve, Settle, Shown
from rapha.spec.base import Model, Name, Sha256
from rapha.spec.cohort import Cohort
from rapha.spec.dataset import Count, DatasetManifest
from rapha.spec.disclosure import Balance, Leakage, Price, Searched
from rapha.spec.job import Kind, Purpose
from rapha.spec.paths import AbsolutePath
from rapha.spec.release_plan import TrustedMetric
from rapha.spec.subgroups import Subgroup
from rapha.spec.surface import MetricName
from rapha.spec.transforms import Transforms

Split = Literal["train", "test", "audit"]
"""`audit` is what the job was given to train on and the held-out split, mixed, inputs only, for check 8."""
Bucketed = Count | Annotated[str, StringConstraints(pattern=r"^<[0-9]{1,7}$")]
"""A count in steps of the bucket, or a text such as `<10` below the minimum cell."""
Funnel = dict[Name, Bucketed]
Content = Literal["numbers", "text"]
"""What is searched: the data of tensors, or a JSON file, whose digits are numbers anyway."""
Confinement = Literal["memory", "encrypted-shards"]
MAX_FAULTS: Final = 1000
"""Records that `Described` names, and things set aside; it counts all of them."""
MAX_LOCATOR: Final = 8192
"""Characters: a path of 1024 bytes and a name, where each byte may have to be escaped."""


class Means(Model):
    """What the process may spend on opening and preparing records.

    Attributes:
        workers: processes that parse and decode.
        memory_bytes: of prepared records; what doesn't fit goes into encrypted shards.
        shards: folder for those; nothing in it can be read once the process is gone.
    """

    workers: Annotated[int, Bounds(ge=1, le=1024)]
    memory_bytes: Annotated[int, Bounds(ge=0, le=2**53 - 1)]
    shards: AbsolutePath


class Resolve(Model):
    """Open the dataset and find the job's records. May be asked again until the first `Serve`.

    Of kind `evaluate` the job's records are the held-out ones alone.

    Attributes:
        ledger: folder of the disclosure ledgers; without one nothing can be charged, and so nothing served.
        seen: how far the node's log saw this dataset's; an older one refuses.
        price: what the job may cost at most, to be told early that it doesn't fit; `Reserve` checks again.
    """

    kind: Kind = "train"
    manifest: DatasetManifest
    folder: AbsolutePath
    means: Means
    transforms: Transforms
    cohort: Cohort
    subgroups: tuple[Subgroup, ...] = ()
    organisation: Name
    purpose: Purpose
    max_records: Annotated[int, Bounds(ge=1, le=10**9)]
    job_id: Sha256
    key_path: AbsolutePath
    journal_path: AbsolutePath
    ledger: AbsolutePath | None = None
    seen: Seen | None = None
    price: Price = Price(bits=0)


class Describe(Model):
    """Count a dataset for its catalogue entry. Prepares nothing."""

    manifest: DatasetManifest
    folder: AbsolutePath
    means: Means


class Prepare(Model):
    """Decode the resolved records and put them where the broker serves from. Once, before `Serve`."""


class Estimate(Model):
    """How many patients and records a cohort has, in buckets, with noise that asking again can't remove."""

    manifest: DatasetManifest
    folder: AbsolutePath
    means: Means
    cohort: Cohort
    ledger: AbsolutePath
    seen: Seen | None = None


class Serve(Model):
    """Start a session with the job; the reply carries the job's end of the socket.

    With a `shadow`, `train` is that shadow model's half of what the job was given. Neither that nor `audit`
    adds to any count.
    """

    split: Split
    shadow: Annotated[int, Bounds(ge=0, lt=256)] | None = None


class Usage(Model):
    """End the session that runs and ask what was used. Its reply is `Used`."""


class Groups(Model):
    """Tell which records of the training split are of one patient; the reply carries a file of numbers.

    For the hospital's own trainer (Tier A): no job's code is ever shown it. With a `shadow`, of that shadow's
    half.
    """

    shadow: Annotated[int, Bounds(ge=0, lt=256)] | None = None


class Score(Model):
    """Compute trusted metrics; the request carries a descriptor of the predictions."""

    metrics: Annotated[tuple[TrustedMetric, ...], Bounds(min_length=1, max_length=64)]


class Observe(Model):
    """Take predictions over `audit`, of the released model or of a shadow; with a descriptor of them."""

    shadow: Annotated[int, Bounds(ge=0, lt=256)] | None = None


class Audit(Model):
    """Tell what check 8 shows by now. Its reply is `Leakage`."""


class Search(Model):
    """Look for identifiers of the job's patients in released bytes, of which it carries a sealed memfd.

    Its reply is `Searched`.
    """

    content: Content


class Close(Model):
    """End the process."""


class Resolved(Model):
    """What the pipeline may know of a cohort. `records` and `patients` are exact and stay in the hospital."""

    manifest: Sha256
    dataset: Sha256
    cohort: Sha256
    opt_out_version: Sha256
    funnel: Funnel
    records: Count
    patients: Count
    test_records: Count


class Fault(Model):
    """A record that fell out, or what is no record, named for the hospital's own staff."""

    locator: Annotated[str, StringConstraints(max_length=MAX_LOCATOR)]
    reason: Name


class Described(Model):
    """Exact counts of what could be used by anyone; `DatasetManifest.catalogue` makes them publishable.

    The rest is for the hospital's own eyes, and never published: how many records fell out for which
    reason, and the first of them by name; and what is no record and was set aside, such as a link.
    """

    records: Count
    patients: Count
    reasons: dict[Name, Count]
    faults: tuple[Fault, ...]
    set_aside: Count
    aside: tuple[Fault, ...]


class Prepared(Model):
    """What became of the resolved records. Exact counts stay in the hospital.

    Attributes:
        funnel: as in `Resolved`, with what fell out while it was decoded.
        content: keyed digest of the stored bytes that every record was decoded from.
        confinement: where the decoded records are.
    """

    funnel: Funnel
    records: Count
    patients: Count
    test_records: Count
    content: Sha256
    confinement: Confinement


class Estimated(Model):
    """Bucketed counts of a cohort, or that it is too small to say."""

    records: Bucketed
    patients: Bucketed


class Used(Model):
    """`rapha.runtime.broker.meter.Usage`: exact counts, and the digests that the receipt carries."""

    unique_records: Count
    unique_patients: Count
    batches: Count
    transcript: Sha256
    used_root: Sha256
    capped: bool
    first_record_served: bool


class Scored(Model):
    """Values by name as `rapha.runtime.metrics.evaluate` gives them; a small cell's are left out."""

    values: dict[MetricName, float]


class Done(Model):
    """Nothing to say but that it was done."""


class Progress(Model):
    """An event: so much of a stage is done; a total of 0 is not known yet. It stays in the hospital."""

    stage: Name
    done: Count
    total: Count


Reply = (
    Resolved | Described | Prepared | Estimated | Used | Scored | Done | Leakage | Searched | Balance | Shown
)
Request = (
    Groups
    | Resolve
    | Describe
    | Prepare
    | Estimate
    | Serve
    | Usage
    | Score
    | Close
    | Observe
    | Audit
    | Search
    | Reserve
    | Settle
    | Inspect
)
