"""The end of a job that went well: ciphertexts, the receipt, the log entry, delivery.

Artifacts are ciphertext to the recipient inside the signed job; until a receipt names them nobody can
fetch them. One transaction stores the receipt, appends its leaf, signs the checkpoint and delivers.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from rapha.coordinator import jobs, log
from rapha.coordinator.accounts import Node
from rapha.coordinator.config import Config
from rapha.coordinator.jobs import By
from rapha.coordinator.log import Log
from rapha.coordinator.opaque import JsonObject
from rapha.coordinator.schema import artifacts, receipts
from rapha.coordinator.schema import jobs as table
from rapha.evidence import canonical, dsse
from rapha.spec.base import Model, Profile, Sha256
from rapha.spec.refusals import Refused
from rapha.spec.states import Actor, State

MAX_BYTES: Final = 24 * 1024 * 1024
MAX_ARTIFACTS: Final = 32
ArtifactName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")]
_UPLOADING: Final = (State.RUNNING, State.GUARDING, State.IN_REVIEW)
_DELIVERED: Final = (State.DELIVERED, State.ANCHORED, State.SETTLED)
_LOG: Final = By(Actor.COORDINATOR, "log")


class ArtifactReference(Model):
    """A ciphertext by name and SHA-256."""

    name: ArtifactName
    sha256: Sha256


class ReceiptPosted(Model):
    """POST /v1/node/jobs/{id}/receipt."""

    surface: JsonObject
    bundle: JsonObject
    artifacts: Annotated[tuple[ArtifactReference, ...], Field(max_length=MAX_ARTIFACTS)]


def rooms(db: Connection, job: Row[Any], name: str, config: Config) -> dict[str, int]:
    """Bytes that artifact `name` may have: of its job, and of its node over all jobs (whose → bytes).

    What the name holds already is not counted: it would be replaced.
    """
    other = (artifacts.c.job != job.id) | (artifacts.c.name != name)
    staged = select(func.coalesce(func.sum(artifacts.c.size), 0)).where(other)
    of_job = staged.where(artifacts.c.job == job.id)
    of_node = staged.where(artifacts.c.job.in_(select(table.c.id).where(table.c.node == job.node)))
    return {
        f"job:{job.id}": config.staged_job_bytes - int(db.execute(of_job).scalar_one()),
        f"node:{job.node}": config.staged_node_bytes - int(db.execute(of_node).scalar_one()),
    }


def stage(db: Connection, job: Row[Any], name: str, sha256: str, size: int, *, config: Config) -> str | None:
    """Name an uploaded ciphertext; it stays invisible until a receipt names it too.

    The same again changes nothing; another under the same name replaces it, as long as no receipt is in.

    Returns:
        The digest that it replaced, whose blob may be nobody's now; else None.

    Raises:
        Refused: `policy.conflict` in another state, `schema.too_large` for too many, `budget.storage`.
    """
    check_uploading(job)
    if size > min(rooms(db, job, name, config).values()):
        raise Refused("budget.storage", "the job or the node has too many bytes here")
    named = (artifacts.c.job == job.id) & (artifacts.c.name == name)
    before = db.execute(select(artifacts.c.sha256).where(named)).scalar_one_or_none()
    if before is not None:
        db.execute(update(artifacts).where(named).values(sha256=sha256, size=size))
        return str(before)
    count = select(func.count()).select_from(artifacts).where(artifacts.c.job == job.id)
    if db.execute(count).scalar_one() >= MAX_ARTIFACTS:
        raise Refused("schema.too_large", f"a job has at most {MAX_ARTIFACTS} artifacts")
    db.execute(insert(artifacts).values(job=job.id, name=name, sha256=sha256, size=size))
    return None


def check_uploading(job: Row[Any]) -> None:
    """Raises `Refused` (`policy.conflict`) unless the job is where a node uploads artifacts."""
    if job.state not in _UPLOADING:
        raise Refused("policy.conflict", f"the job is {job.state}: no artifact is taken")


def post(
    db: Connection,
    job: Row[Any],
    node: Node,
    asked: ReceiptPosted,
    the_log: Log,
    *,
    profile: Profile,
    now: int,
) -> bool:
    """Store the receipt, log it and deliver; return False if exactly this receipt is in already.

    No vault is attached to this coordinator, and nodes refuse priced data where there is none
    (`budget.no_settlement`): nothing is ever due, so delivery follows the log entry.

    Raises:
        Refused: `schema.*` for its shape; `image.not_found` if an artifact isn't here; `policy.conflict`
            for a second receipt or another state.
    """
    digest = canonical.digest(asked.dump())
    stored = select(receipts.c.body_sha256).where(receipts.c.job == job.id)
    found = db.execute(stored).scalar_one_or_none()
    if found is not None:
        if found != digest:
            raise Refused("policy.conflict", "the job has another receipt")
        return False
    leaf = _leaf(job, asked.bundle, profile)
    by = By(Actor.COORDINATOR, f"receipt:{node.name}")
    jobs.step(db, job, State.RELEASED, by, now=now)
    _publish(db, job.id, asked.artifacts)
    jobs.store_surface(db, job.id, asked.surface, code=None)
    index = the_log.append(db, leaf)
    db.execute(
        insert(receipts).values(
            job=job.id,
            body_sha256=digest,
            bundle=canonical.dumps(asked.bundle),
            leaf=index,
        )
    )
    for state in (State.LOGGED, State.DELIVERED):
        jobs.step(db, jobs.require(db, job.id), state, _LOG, now=now)
    return True


def bundle(db: Connection, job: Row[Any]) -> dict[str, Any]:
    """The bundle's core as the node made it, and its place in the log.

    Raises:
        Refused: `policy.conflict` before delivery.
    """
    _check_delivered(job)
    stored = db.execute(select(receipts).where(receipts.c.job == job.id)).one()
    return {"bundle": canonical.loads(stored.bundle), "log": log.position(db, stored.leaf).dump()}


def position(db: Connection, identity: str) -> dict[str, Any]:
    """Where a job's receipt is in the log."""
    leaf = db.execute(select(receipts.c.leaf).where(receipts.c.job == identity)).scalar_one()
    return log.position(db, leaf).dump()


def artifact(db: Connection, job: Row[Any], name: str) -> str:
    """SHA-256 of a delivered ciphertext.

    Raises:
        Refused: `policy.conflict` before delivery, `policy.not_found`.
    """
    _check_delivered(job)
    query = select(artifacts.c.sha256).where(artifacts.c.job == job.id, artifacts.c.name == name)
    found = db.execute(query).scalar_one_or_none()
    if found is None:
        raise jobs.not_found()
    return str(found)


def _check_delivered(job: Row[Any]) -> None:
    if job.state not in _DELIVERED:
        raise Refused("policy.conflict", f"the job is {job.state}: nothing is delivered")


def _leaf(job: Row[Any], core: dict[str, Any], profile: Profile) -> bytes:
    """The log entry: the node's salted commitment, else the digest of the receipt's envelope.

    Only what keeps honest nodes from mistakes is checked; verifiers check the commitment itself.
    """
    claims = dsse.unverified_predicate(core.get("receipt"))
    about = claims.get("job")
    if claims.get("profile") != profile or not isinstance(about, dict) or about.get("id") != job.id:
        raise Refused("schema.envelope", "the receipt is of another job or profile")
    given = core.get("log_leaf", canonical.digest(core["receipt"]))
    return bytes.fromhex(_Leaf.parse({"log_leaf": given}, "bundle").log_leaf)


class _Leaf(Model):
    log_leaf: Sha256


def _publish(db: Connection, identity: str, named: tuple[ArtifactReference, ...]) -> None:
    wanted = {reference.name: reference.sha256 for reference in named}
    if len(wanted) != len(named):
        raise Refused("schema.field_invalid", "artifacts: a name appears twice")
    query = select(artifacts.c.name, artifacts.c.sha256).where(artifacts.c.job == identity)
    here = {row.name: row.sha256 for row in db.execute(query)}
    missing = sorted(name for name, sha256 in wanted.items() if here.get(name) != sha256)
    if missing:
        raise Refused("image.not_found", f"artifact {missing[0]} is not here as named")
    unnamed = artifacts.c.name.not_in(wanted)
    db.execute(delete(artifacts).where(artifacts.c.job == identity, unnamed))
