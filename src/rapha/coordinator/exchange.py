"""The write-once mailbox between a researcher's client and the node that holds the job.

Each slot is written once, by its own side, while the job is on its way to admission. The coordinator
carries the messages and believes none: both sides sign or appraise what they read.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, insert, select

from rapha.coordinator.schema import exchange
from rapha.evidence import canonical
from rapha.spec.refusals import Refused
from rapha.spec.states import Actor, State

Slot = Literal["challenge", "evidence", "ticket"]
WRITER: Final[dict[Slot, Actor]] = {
    "challenge": Actor.RESEARCHER,
    "evidence": Actor.NODE,
    "ticket": Actor.RESEARCHER,
}
MAX_BYTES: Final = 256 * 1024
_OPEN: Final = (State.SUBMITTED, State.ROUTED, State.LEASED)


def put(db: Connection, job: Row[Any], slot: Slot, writer: Actor, message: dict[str, Any]) -> bool:
    """Write a slot; return False if it holds exactly this message already.

    Raises:
        Refused: `policy.not_authorised` if the slot is the other side's; `policy.conflict` if it holds
            another message, or the job is past the exchange.
    """
    if WRITER[slot] is not writer:
        raise Refused("policy.not_authorised", f"the {slot} is written by the {WRITER[slot]}")
    data = canonical.dumps(message)
    found = _read(db, job.id, slot)
    if found is not None:
        if found != data:
            raise Refused("policy.conflict", f"the {slot} is written already")
        return False
    if job.state not in _OPEN:
        raise Refused("policy.conflict", f"the job is {job.state}: the exchange is over")
    db.execute(insert(exchange).values(job=job.id, slot=slot, message=data))
    return True


def get(db: Connection, job: Row[Any], slot: Slot) -> dict[str, Any] | None:
    """What a slot holds, or None."""
    found = _read(db, job.id, slot)
    if found is None:
        return None
    message: dict[str, Any] = canonical.loads(found)
    return message


def over(job: Row[Any]) -> bool:
    """Whether an empty slot of this job stays empty: waiting for it is of no use."""
    return job.state not in _OPEN


def _read(db: Connection, identity: str, slot: Slot) -> bytes | None:
    query = select(exchange.c.message).where(exchange.c.job == identity, exchange.c.slot == slot)
    found = db.execute(query).scalar_one_or_none()
    return None if found is None else bytes(found)
