"""What a node does with a job: take it under a lease, move it on, and be noticed when it is gone."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints, model_validator
from sqlalchemy import Connection, Row, select, update

from rapha.coordinator import accounts, jobs, routing
from rapha.coordinator.accounts import Node
from rapha.coordinator.jobs import By, Outcome
from rapha.coordinator.opaque import JsonObject
from rapha.coordinator.schema import jobs as table
from rapha.evidence import canonical, dsse
from rapha.evidence.steps.case import AUDIENCE_ALL
from rapha.spec import states
from rapha.spec.base import Model, Profile, Sha256
from rapha.spec.dataset import CatalogueEntry
from rapha.spec.refusals import Refused
from rapha.spec.states import Actor, State

MAX_ENTRIES: Final = 256
LEASES: Final = By(Actor.COORDINATOR, "leases")
SilentPeriod = Annotated[int, Field(ge=1, le=90 * 86400)]
"""Seconds that a node may stay silent before its job counts as lost: it trains with its WAN severed."""


class LeaseRequest(Model):
    """POST /v1/node/leases. `key` is random; the call repeated with it gets the same job again."""

    key: Sha256
    silent_period_s: SilentPeriod


class Heartbeat(Model):
    """POST /v1/node/jobs/{id}/heartbeat."""

    silent_period_s: SilentPeriod


class NodeTransition(Model):
    """POST /v1/node/jobs/{id}/transitions.

    `code` goes exactly where `to` is an end, and `surface`, all that the node says of the job, with it.
    A step that begins a silence declares it in the same breath.
    """

    source: Annotated[str, Field(alias="from", max_length=32)]
    target: Annotated[str, Field(alias="to", max_length=32)]
    code: Annotated[str, StringConstraints(max_length=64)] | None = None
    detail: Annotated[str, StringConstraints(max_length=2000)] | None = None
    surface: JsonObject | None = None
    silent_period_s: SilentPeriod | None = None

    @model_validator(mode="after")
    def _ends_are_told_once(self) -> NodeTransition:
        if self.code is None and (self.detail is not None or self.surface is not None):
            raise ValueError("a detail or a surface goes with a code")
        return self


def publish(db: Connection, node: Node, envelopes: list[Any], *, profile: Profile, now: int) -> list[str]:
    """Replace a node's catalogue; return the ids of jobs that this routed.

    Raises:
        Refused: as `dsse.verify` and `CatalogueEntry.parse`, for entries that the node didn't sign.
    """
    if len(envelopes) > MAX_ENTRIES:
        raise Refused("schema.too_large", f"a catalogue has at most {MAX_ENTRIES} entries")
    stored = []
    for envelope in envelopes:
        statement = dsse.verify(
            envelope, [node.key], kind="catalogue", profile=profile, audience=AUDIENCE_ALL
        )
        entry = CatalogueEntry.parse(statement.predicate.get("entry"), "entry")
        stored.append({"profile": entry.profile, "envelope": envelope})
    accounts.store_catalogue(db, node.name, canonical.dumps(stored))
    return jobs.route_waiting(db, now=now)


def lease(db: Connection, node: Node, asked: LeaseRequest, *, now: int) -> dict[str, Any] | None:
    """Give the node its oldest eligible routed job, or the one that it leased with this key already."""
    node = accounts.node_by_key(db, node.key.keyid)  # as of now: the call may have waited
    until = now + asked.silent_period_s * 1000
    job = _leased_with(db, node, asked.key)
    if job is None:
        job = _next(db, node, now)
        if job is None:
            return None
        jobs.step(db, job, State.LEASED, By(Actor.NODE, node.name), now=now)
        held = {"node": node.name, "lease_key": asked.key, "lease_until": until}
        db.execute(update(table).where(table.c.id == job.id).values(**held))
    submission = canonical.loads(job.submission)
    return {"id": job.id, **submission, "lease_until": jobs.iso(until)}


def available(db: Connection, node: Node, asked: LeaseRequest, *, now: int) -> bool:
    """Whether `lease` would give a job; a read transaction suffices."""
    node = accounts.node_by_key(db, node.key.keyid)
    return (_leased_with(db, node, asked.key) or _next(db, node, now)) is not None


def held(db: Connection, identity: str, node: Node) -> Row[Any]:
    """A job that the node holds or has held. Raises `Refused` (`policy.not_found`) for any other."""
    job = jobs.require(db, identity)
    if job.node != node.name:
        raise jobs.not_found()
    return job


def open_jobs(db: Connection, node: Node) -> list[dict[str, Any]]:
    """Jobs that the node holds: after a restart it ends those that it can't go on with."""
    query = select(table).where(table.c.node == node.name, table.c.state.in_(states.HELD))
    return [{"id": job.id, "state": job.state} for job in db.execute(query.order_by(table.c.created))]


def renew(db: Connection, identity: str, node: Node, asked: Heartbeat, *, now: int) -> Row[Any]:
    """Extend a lease by a newly declared silent period; an ended job's row comes back unchanged.

    Raises:
        Refused: `policy.not_found`.
    """
    job = held(db, identity, node)
    if job.state in states.HELD:
        _declare(db, identity, asked.silent_period_s, now)
    return job


def move(db: Connection, identity: str, node: Node, asked: NodeTransition, *, now: int) -> bool:
    """Take one step as the node; return False if the same node had taken it already.

    Raises:
        Refused: `policy.not_found`; `policy.conflict` if the job is elsewhere; as `jobs.step`.
    """
    source, target = states.parse(asked.source), states.parse(asked.target)
    end = Outcome(asked.code, asked.detail) if asked.code is not None else None
    job = held(db, identity, node)
    by = By(Actor.NODE, node.name)
    if job.state == target:
        last = jobs.events_after(db, identity, job.seq - 1)[-1]
        if (last["actor"], last["code"], last["detail"]) == (by.text, asked.code, asked.detail):
            return False
    if job.state != source:
        raise Refused("policy.conflict", f"the job is {job.state}, not {source}")
    jobs.step(db, job, target, by, now=now, end=end)
    if asked.silent_period_s is not None and target in states.HELD:
        _declare(db, identity, asked.silent_period_s, now)
    if asked.surface is not None:
        jobs.store_surface(db, identity, asked.surface, code=asked.code)
    return True


def overdue(db: Connection, *, now: int) -> bool:
    """Whether `sweep` has something to do; a read transaction suffices."""
    return bool(_lost(db, now) or _late(db, now))


def sweep(db: Connection, *, now: int) -> list[str]:
    """End jobs whose lease ran out or that no node took before `not_after`; return their ids."""
    lost, late = _lost(db, now), _late(db, now)
    for job in lost:
        gone = Outcome("node.restarted", "the node was silent for longer than it had declared")
        jobs.step(db, job, State.FAILED, LEASES, now=now, end=gone)
    for job in late:
        jobs.step(db, job, State.EXPIRED, LEASES, now=now, end=Outcome("job.expired"))
    return [job.id for job in (*lost, *late)]


def _declare(db: Connection, identity: str, silent_period_s: int, now: int) -> None:
    until = now + silent_period_s * 1000
    db.execute(update(table).where(table.c.id == identity).values(lease_until=until))


def _lost(db: Connection, now: int) -> list[Row[Any]]:
    query = select(table).where(table.c.state.in_(states.HELD), table.c.lease_until < now)
    return list(db.execute(query).all())


def _late(db: Connection, now: int) -> list[Row[Any]]:
    waiting = table.c.state.in_((State.SUBMITTED, State.ROUTED))
    return list(db.execute(select(table).where(waiting, table.c.not_after < now)).all())


def _leased_with(db: Connection, node: Node, key: str) -> Row[Any] | None:
    mine = (table.c.node == node.name) & (table.c.state == State.LEASED)
    return db.execute(select(table).where(mine, table.c.lease_key == key)).first()


def _next(db: Connection, node: Node, now: int) -> Row[Any] | None:
    """The oldest routed job that the node may run, by its catalogue as of now."""
    routed = (table.c.state == State.ROUTED) & (table.c.not_after >= now)
    query = select(table).where(routed, table.c.dataset_profile.in_(node.profiles))
    found = db.execute(query.order_by(table.c.created, table.c.id)).all()
    return next((job for job in found if routing.judge(jobs.wanted_of(job), node).eligible), None)
