"""What the pipeline and the dataset process say to each other; `frames` says how it is framed.

    request = {"command": name, "arguments": {…}}
    reply   = {"done": {…}} | {"refused": {"code": …, "detail": …}}
    event   = {"event": "first_record"} | {"event": "progress", "stage": …, "done": …, "total": …}

One reply a request, in order; events come at any time. Every type here is closed: what isn't a field can't
leave the process that holds the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field as Bounds
from pydantic import StringConstraints

from rapha.spec.base import Model, Name, Sha256
from rapha.spec.cohort import Cohort
from rapha.spec.dataset import Count, DatasetManifest
from rapha.spec.job import Purpose
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.release_plan import TrustedMetric
from rapha.spec.transforms import Transforms

AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=4096)]
"""An absolute path."""
Split = Literal["train", "test"]
Bucketed = Count | Annotated[str, StringConstraints(pattern=r"^<[0-9]{1,7}$")]
"""A count in steps of the bucket, or a text such as `<10` below the minimum cell."""
Funnel = dict[Name, Bucketed]
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
    """Open the dataset and find the job's records. May be asked again until the first `Serve`."""

    manifest: DatasetManifest
    folder: AbsolutePath
    means: Means
    transforms: Transforms
    cohort: Cohort
    organisation: Name
    purpose: Purpose
    max_records: Annotated[int, Bounds(ge=1, le=10**9)]
    job_id: Sha256
    key_path: AbsolutePath
    journal_path: AbsolutePath


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
    key_path: AbsolutePath


class Serve(Model):
    """Start a session with the job; the reply carries the job's end of the socket."""

    split: Split


class Usage(Model):
    """End the session that runs and ask what was used. Its reply is `Used`."""


class Score(Model):
    """Compute trusted metrics; the request carries a descriptor of the predictions."""

    metrics: Annotated[tuple[TrustedMetric, ...], Bounds(min_length=1, max_length=64)]


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

    values: dict[Name, float]


class Done(Model):
    """Nothing to say but that it was done."""


class Progress(Model):
    """An event: so much of a stage is done; a total of 0 is not known yet. It stays in the hospital."""

    stage: Name
    done: Count
    total: Count


Reply = Resolved | Described | Prepared | Estimated | Used | Scored | Done
Request = Resolve | Describe | Prepare | Estimate | Serve | Usage | Score | Close
_REQUESTS: Final[dict[str, type[Request]]] = {
    "resolve": Resolve,
    "describe": Describe,
    "prepare": Prepare,
    "estimate": Estimate,
    "serve": Serve,
    "usage": Usage,
    "score": Score,
    "close": Close,
}
_NAMES: Final = {kind: name for name, kind in _REQUESTS.items()}


def request_frame(request: Request) -> dict[str, Any]:
    """A request as JSON types."""
    return {"command": _NAMES[type(request)], "arguments": request.dump()}


def read_request(frame: dict[str, Any]) -> Request:
    """Parse a request. Raises `Refused` (`schema.*`)."""
    kind = _REQUESTS.get(str(frame.get("command")))
    if kind is None:
        raise Refused("schema.field_invalid", "command: not one of the dataset process's")
    return kind.parse(frame.get("arguments"), "arguments")


def refusal_frame(refused: Refused) -> dict[str, Any]:
    """A refusal as it may leave: a code that depends on records takes no words along."""
    entry = REGISTRY[refused.code]
    detail = entry.meaning if entry.depends_on_records else refused.detail
    return {"refused": {"code": refused.code, "detail": detail}}


def read_reply(frame: dict[str, Any]) -> Mapping[str, Any]:
    """The fields of a `done` reply.

    Raises:
        Refused: what the process refused, or `node.internal` if it sent something else.
    """
    match frame:
        case {"done": dict(done), **rest} if not rest:
            return done
        case {"refused": {"code": str(code), "detail": str(detail)}} if code in REGISTRY:
            raise Refused(code, detail)
        case _:
            raise Refused("node.internal", "the dataset process sent no reply")
