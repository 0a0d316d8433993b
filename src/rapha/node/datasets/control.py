"""What the pipeline and the dataset process say to each other, and how it is framed.

    frame   = length u32 big-endian, canonical JSON (RFC 8785); a descriptor may ride on the length
    request = {"command": name, "arguments": {…}}
    reply   = {"done": {…}} | {"refused": {"code": …, "detail": …}}
    event   = {"event": "first_record"}

One reply a request, in order; events come at any time. Every type here is closed: what isn't a field can't
leave the process that holds the records.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field as Bounds
from pydantic import StringConstraints

from rapha.evidence.canonical import dumps, loads_canonical
from rapha.spec.base import Model, Name, Sha256
from rapha.spec.cohort import Cohort
from rapha.spec.dataset import Count, DatasetManifest, Field
from rapha.spec.job import Purpose
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.release_plan import TrustedMetric

MAX_FRAME: Final = 32 * 2**20
_LENGTH: Final = 4
_RIGHTS_SPACE: Final = socket.CMSG_SPACE(4 * array.array("i").itemsize)

AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=4096)]
"""An absolute path."""
Split = Literal["train", "test"]


class Resolve(Model):
    """Open the dataset and find the job's records. May be asked again until the first `Serve`."""

    manifest: DatasetManifest
    folder: AbsolutePath
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
    funnel: dict[Name, Count | Annotated[str, StringConstraints(pattern=r"^<[0-9]{1,7}$")]]
    records: Count
    patients: Count
    test_records: Count
    fields: tuple[Field, ...]


class Described(Model):
    """Exact counts of what could be used by anyone; `DatasetManifest.catalogue` makes them publishable."""

    records: Count
    patients: Count


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


Reply = Resolved | Described | Used | Scored | Done
Request = Resolve | Describe | Serve | Usage | Score | Close
_REQUESTS: Final[dict[str, type[Request]]] = {
    "resolve": Resolve,
    "describe": Describe,
    "serve": Serve,
    "usage": Usage,
    "score": Score,
    "close": Close,
}
_NAMES: Final = {kind: name for name, kind in _REQUESTS.items()}


class Closed(Exception):  # noqa: N818  the peer's end, not a defect
    """The other end is gone."""


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


def send(sock: socket.socket, frame: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one frame, and a duplicate of `descriptor` with it.

    Raises:
        Closed: the peer is gone.
        Refused: `schema.too_large`.
    """
    data = dumps(frame)
    if len(data) > MAX_FRAME:
        raise Refused("schema.too_large", f"a frame of {len(data)} bytes; the limit is {MAX_FRAME}")
    rights = (
        [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    )
    try:
        sent = sock.sendmsg([len(data).to_bytes(_LENGTH)], rights)
        sock.sendall(len(data).to_bytes(_LENGTH)[sent:] + data)
    except (BrokenPipeError, ConnectionResetError):
        raise Closed from None


def receive(sock: socket.socket) -> tuple[dict[str, Any], int | None]:
    """One frame, and the descriptor that came with it, close-on-exec.

    Raises:
        Closed: the peer is gone.
        Refused: `schema.json` or `schema.too_large` for what is no frame.
    """
    descriptors: list[int] = []
    try:
        length = int.from_bytes(_exactly(sock, _LENGTH, descriptors))
        if length > MAX_FRAME:
            raise Refused("schema.too_large", f"a frame of {length} bytes; the limit is {MAX_FRAME}")
        frame = loads_canonical(_exactly(sock, length, descriptors))
        if not isinstance(frame, dict) or len(descriptors) > 1:
            raise Refused("schema.json", "not a frame of the dataset process")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return frame, descriptors[0] if descriptors else None


def _exactly(sock: socket.socket, length: int, descriptors: list[int]) -> bytes:
    parts: list[bytes] = []
    left = length
    while left:
        try:
            part, rights, _, _ = sock.recvmsg(min(left, 2**20), _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            raise Closed from None
        descriptors.extend(_descriptors(rights))
        if not part:
            raise Closed
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _descriptors(rights: list[tuple[int, int, bytes]]) -> Iterator[int]:
    # Not socket.recv_fds: it drops its flags, and a descriptor without close-on-exec reaches every child.
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            yield from numbers
