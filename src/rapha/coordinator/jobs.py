"""Jobs: submission, compare-and-set steps, events, views. Every change of state is an event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, delete, insert, select, update

from rapha.coordinator import accounts, routing
from rapha.coordinator.accounts import Developer
from rapha.coordinator.blobs import owns
from rapha.coordinator.opaque import JsonObject
from rapha.coordinator.routing import Eligibility, Wanted
from rapha.coordinator.schema import artifacts, events, jobs
from rapha.evidence import canonical, dsse
from rapha.evidence.steps.case import AUDIENCE_NODE
from rapha.spec import states
from rapha.spec.base import Model, Name, Profile, Sha256, Timestamp
from rapha.spec.job import NodeIds
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.states import Actor, State
from rapha.spec.surface import Surface
from rapha.spec.units import format_time, parse_time

MAX_PAGE: Final = 100


class Submission(Model):
    """POST /v1/jobs: two envelopes and the digest of the uploaded image archive."""

    job: JsonObject
    image: JsonObject
    image_blob: Sha256


class Routable(Model):
    """The few fields of a signed job that the coordinator reads; nodes and verifiers judge the rest."""

    name: Name
    nodes: Literal["any"] | NodeIds
    not_after: Timestamp
    dataset_profile: Name
    nonce: Sha256

    @classmethod
    def of(cls, predicate: Mapping[str, Any]) -> Routable:
        """Read them from a `job` statement. Raises `Refused` (`schema.*`)."""
        job = predicate.get("job")
        if set(predicate) != {"job", "nonce"} or not isinstance(job, dict):
            raise Refused("schema.envelope", "a job statement holds `job` and `nonce`")
        dataset = job.get("dataset")
        fields = {name: job[name] for name in ("name", "nodes", "not_after") if name in job}
        if isinstance(dataset, dict) and "profile" in dataset:
            fields["dataset_profile"] = dataset["profile"]
        return cls.parse({**fields, "nonce": predicate["nonce"]}, "job")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: a registered code, and a line that doesn't depend on records."""

    code: str
    detail: str | None = None

    def __post_init__(self) -> None:
        if self.code not in REGISTRY:
            raise Refused("schema.field_invalid", f"{self.code[:64]!r} is not a refusal code")
        if self.detail is not None and REGISTRY[self.code].depends_on_records:
            raise Refused("schema.field_invalid", f"{self.code} leaves the hospital without a detail")


@dataclass(frozen=True, slots=True)
class By:
    """Who takes a step, and their name for the event."""

    actor: Actor
    name: str

    @property
    def text(self) -> str:
        """As events show it."""
        return f"{self.actor}:{self.name}"


ROUTING: Final = By(Actor.COORDINATOR, "routing")


def submit(
    db: Connection, owner: Developer, asked: Submission, *, profile: Profile, now: int
) -> tuple[str, bool]:
    """Store a signed job and route it; return its id and whether it is new.

    Raises:
        Refused: as `dsse.verify` for the job's envelope; `schema.*` for its fields; `policy.job_expired`;
            `image.not_found` if the owner has uploaded no such blob; `policy.conflict` if the id is taken
            by other bytes.
    """
    statement = dsse.verify(asked.job, [owner.key], kind="job", profile=profile, audience=AUDIENCE_NODE)
    wanted = Routable.of(statement.predicate)
    identity = canonical.digest(dict(statement.predicate))
    if statement.subjects.get("job") != identity:
        raise Refused("schema.envelope", "the job's id is not the digest of what was signed")
    dsse.unverified_predicate(asked.image)
    submission = canonical.dumps(asked.dump())
    found = db.execute(select(jobs.c.owner, jobs.c.submission).where(jobs.c.id == identity)).one_or_none()
    if found is not None:
        if found.owner != owner.id or bytes(found.submission) != submission:
            raise Refused("policy.conflict", "another submission has this job id")
        return identity, False
    not_after = int(parse_time(wanted.not_after).timestamp()) * 1000
    if not_after <= now:
        raise Refused("policy.job_expired", f"not_after was {wanted.not_after}")
    if not owns(db, owner.id, asked.image_blob):
        raise Refused("image.not_found", f"upload the image {asked.image_blob[:16]}… first")
    db.execute(
        insert(jobs).values(
            id=identity,
            owner=owner.id,
            submission=submission,
            name=wanted.name,
            image_blob=asked.image_blob,
            nodes=canonical.dumps(wanted.dump()["nodes"]),
            dataset_profile=wanted.dataset_profile,
            not_after=not_after,
            state=State.SUBMITTED,
            seq=1,
            created=now,
        )
    )
    _record(db, identity, 1, State.SUBMITTED, By(Actor.RESEARCHER, owner.id), None, now)
    _route(db, identity, now=now)
    return identity, True


def step(
    db: Connection, job: Row[Any], target: State, by: By, *, now: int, end: Outcome | None = None
) -> None:
    """Take `job` to `target` by the table of `rapha.spec.states`, as one event.

    The caller's transaction holds the write lock, so `job` can't have changed since it was read in it;
    the update compares all the same.

    Raises:
        Refused: as `states.transition`; `schema.field_invalid` unless an end, and only an end, has a code.
    """
    states.transition(State(job.state), target, by.actor)
    if (target in states.ENDED_WITH_CODE) != (end is not None):
        raise Refused("schema.field_invalid", "an end carries a code, and nothing else does")
    unchanged = (jobs.c.id == job.id) & (jobs.c.state == job.state) & (jobs.c.seq == job.seq)
    changed = db.execute(update(jobs).where(unchanged).values(state=target, seq=job.seq + 1))
    if changed.rowcount != 1:
        raise Refused("policy.conflict", "the job changed in the meantime")
    if target in states.ENDED_WITH_CODE:  # what was never released goes
        db.execute(delete(artifacts).where(artifacts.c.job == job.id))
    _record(db, job.id, job.seq + 1, target, by, end, now)


def require(db: Connection, identity: str) -> Row[Any]:
    """A job's row. Raises `Refused` (`policy.not_found`)."""
    found = db.execute(select(jobs).where(jobs.c.id == identity)).one_or_none()
    if found is None:
        raise not_found()
    return found


def owned(db: Connection, identity: str, owner: str) -> Row[Any]:
    """A job of `owner`. Raises `Refused` (`policy.not_found`), for another's job too."""
    found = require(db, identity)
    if found.owner != owner:
        raise not_found()
    return found


def not_found() -> Refused:
    """The one answer for what isn't there and what isn't the caller's."""
    return Refused("policy.not_found", "no such object, or it is not yours")


def cancel(db: Connection, identity: str, owner: str, *, now: int) -> None:
    """Cancel a job from which nothing was released; cancelling twice changes nothing.

    Raises:
        Refused: `policy.not_found`; `policy.conflict` if it has ended or is released.
    """
    job = owned(db, identity, owner)
    if job.state != State.CANCELLED:
        by = By(Actor.RESEARCHER, owner)
        step(db, job, State.CANCELLED, by, now=now, end=Outcome("job.cancelled"))


def route_waiting(db: Connection, *, now: int) -> list[str]:
    """Route every submitted job, after a catalogue changed; return the ids of those that moved."""
    waiting = select(jobs.c.id).where(jobs.c.state == State.SUBMITTED).order_by(jobs.c.created)
    return [identity for identity in db.execute(waiting).scalars().all() if _route(db, identity, now=now)]


def wanted_of(job: Row[Any]) -> Wanted:
    """What a stored job says about where it runs."""
    listed = canonical.loads(job.nodes)
    return Wanted("any" if listed == "any" else tuple(listed), job.dataset_profile)


def explain(db: Connection, job: Row[Any]) -> list[Eligibility]:
    """Each node as eligible, or why not."""
    return routing.explain(wanted_of(job), accounts.enrolled_nodes(db))


def view(db: Connection, job: Row[Any]) -> dict[str, Any]:
    """What the owner sees of a job."""
    last = events_after(db, job.id, job.seq - 1)[-1]
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "node": job.node,
        "code": last["code"],
        "detail": last["detail"],
        "created": iso(job.created),
        "events": job.seq,
        "surface": None if job.surface is None else canonical.loads(job.surface),
    }


def list_owned(db: Connection, owner: str, *, after: str | None, limit: int) -> list[dict[str, Any]]:
    """A page of the owner's jobs, newest first; `after` is the last id of the page before.

    Raises:
        Refused: `policy.not_found` for an `after` that isn't the owner's.
    """
    query = select(jobs).where(jobs.c.owner == owner).order_by(jobs.c.created.desc(), jobs.c.id.desc())
    if after is not None:
        cursor = owned(db, after, owner)
        same_time = (jobs.c.created == cursor.created) & (jobs.c.id < cursor.id)
        query = query.where((jobs.c.created < cursor.created) | same_time)
    return [view(db, job) for job in db.execute(query.limit(min(limit, MAX_PAGE))).all()]


def events_after(db: Connection, identity: str, after: int) -> list[dict[str, Any]]:
    """Events with a sequence number above `after`, in order."""
    query = select(events).where(events.c.job == identity, events.c.seq > after).order_by(events.c.seq)
    return [_event(e) for e in db.execute(query).all()]


def store_surface(db: Connection, identity: str, surface: Mapping[str, Any], *, code: str | None) -> None:
    """Keep what the node said of a job at its end.

    Raises:
        Refused: `schema.*` unless it is a `Surface` of this job with this code.
    """
    said = Surface.parse(surface, "surface")
    if (said.job_id, said.code) != (identity, code):
        raise Refused("schema.field_invalid", "surface: of another job, or with another code")
    db.execute(update(jobs).where(jobs.c.id == identity).values(surface=canonical.dumps(dict(surface))))


def iso(milliseconds: int) -> str:
    """Unix milliseconds as RFC 3339, whole seconds."""
    return format_time(datetime.fromtimestamp(milliseconds // 1000, UTC))


def _event(row: Row[Any]) -> dict[str, Any]:
    shown = {name: getattr(row, name) for name in ("seq", "state", "code", "detail", "actor")}
    return {**shown, "fix": REGISTRY[row.code].fix if row.code else None, "time": iso(row.time)}


def _route(db: Connection, identity: str, *, now: int) -> bool:
    job = require(db, identity)
    if job.state != State.SUBMITTED or not any(answer.eligible for answer in explain(db, job)):
        return False
    step(db, job, State.ROUTED, ROUTING, now=now)
    return True


def _record(
    db: Connection, identity: str, seq: int, state: State, by: By, end: Outcome | None, now: int
) -> None:
    db.execute(
        insert(events).values(
            job=identity,
            seq=seq,
            state=state,
            code=end.code if end else None,
            detail=end.detail if end else None,
            actor=by.text,
            time=now,
        )
    )
