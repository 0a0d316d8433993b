"""The life of a job: one table, from which the code, the docs' diagram and an exhaustive test come."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rapha.spec.refusals import Refused


class State(StrEnum):
    """Where a job is. The last four are ends that carry a code; `SETTLED` is the end that doesn't."""

    SUBMITTED = "submitted"
    ROUTED = "routed"
    LEASED = "leased"
    TICKETED = "ticketed"
    AWAITING_APPROVAL = "awaiting_approval"
    ADMITTED = "admitted"
    RUNNING = "running"
    GUARDING = "guarding"
    IN_REVIEW = "in_review"
    RELEASED = "released"
    LOGGED = "logged"
    ATTESTED = "attested"
    DELIVERED = "delivered"
    ANCHORED = "anchored"
    SETTLED = "settled"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Actor(StrEnum):
    """Who may make a transition."""

    RESEARCHER = "researcher"
    NODE = "node"
    COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True)
class Transition:
    """One permitted step."""

    source: State
    target: State
    by: frozenset[Actor]


ENDED_WITH_CODE: Final = frozenset({State.REFUSED, State.FAILED, State.CANCELLED, State.EXPIRED})
"""Ends that always carry a refusal code."""
ENDS: Final = ENDED_WITH_CODE | {State.SETTLED}
"""States that nothing leaves."""
HELD: Final = (
    State.LEASED,
    State.TICKETED,
    State.AWAITING_APPROVAL,
    State.ADMITTED,
    State.RUNNING,
    State.GUARDING,
    State.IN_REVIEW,
)
"""States in which a node holds the job under a lease."""

_WAITING: Final = (State.SUBMITTED, State.ROUTED)
_STEPS: Final[tuple[tuple[State, State, Actor], ...]] = (
    (State.SUBMITTED, State.ROUTED, Actor.COORDINATOR),
    (State.ROUTED, State.LEASED, Actor.NODE),
    (State.LEASED, State.TICKETED, Actor.NODE),
    (State.TICKETED, State.AWAITING_APPROVAL, Actor.NODE),
    (State.AWAITING_APPROVAL, State.ADMITTED, Actor.NODE),
    (State.ADMITTED, State.RUNNING, Actor.NODE),
    (State.RUNNING, State.GUARDING, Actor.NODE),
    (State.GUARDING, State.IN_REVIEW, Actor.NODE),
    # Only a receipt releases; the coordinator takes the step in the transaction that stores it.
    (State.GUARDING, State.RELEASED, Actor.COORDINATOR),
    (State.IN_REVIEW, State.RELEASED, Actor.COORDINATOR),
    (State.RELEASED, State.LOGGED, Actor.COORDINATOR),
    (State.LOGGED, State.ATTESTED, Actor.COORDINATOR),
    (State.LOGGED, State.DELIVERED, Actor.COORDINATOR),  # nothing is due
    (State.ATTESTED, State.DELIVERED, Actor.COORDINATOR),
    (State.DELIVERED, State.ANCHORED, Actor.COORDINATOR),
    (State.ANCHORED, State.SETTLED, Actor.COORDINATOR),
    *((s, State.REFUSED, Actor.NODE) for s in HELD),
    *((s, State.FAILED, Actor.NODE) for s in HELD),
    *((s, State.FAILED, Actor.COORDINATOR) for s in HELD),  # the lease ran out
    *((s, State.EXPIRED, Actor.COORDINATOR) for s in _WAITING),
    *((s, State.CANCELLED, Actor.RESEARCHER) for s in (*_WAITING, *HELD)),
)


def _table() -> dict[tuple[State, State], Transition]:
    actors: dict[tuple[State, State], frozenset[Actor]] = {}
    for source, target, actor in _STEPS:
        actors[source, target] = actors.get((source, target), frozenset()) | {actor}
    return {pair: Transition(*pair, by) for pair, by in actors.items()}


TABLE: Final = _table()
"""Every permitted transition; what isn't here is refused."""


def transition(source: State, target: State, actor: Actor) -> Transition:
    """The permitted step from `source` to `target`, made by `actor`.

    Raises:
        Refused: `policy.conflict` if the table has no such step; `policy.not_authorised` if it has but
            another must make it.
    """
    step = TABLE.get((source, target))
    if step is None:
        raise Refused("policy.conflict", f"a job can't go from {source} to {target}")
    if actor not in step.by:
        raise Refused("policy.not_authorised", f"the {actor} can't take a job from {source} to {target}")
    return step


def parse(value: str) -> State:
    """A state by its name. Raises `Refused` (`schema.field_invalid`)."""
    try:
        return State(value)
    except ValueError:
        raise Refused("schema.field_invalid", f"{value[:64]!r} is not a job state") from None


def mermaid() -> str:
    """The docs' state diagram (Mermaid `stateDiagram-v2`)."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.SUBMITTED}"]
    for step in TABLE.values():
        lines.append(f"    {step.source} --> {step.target}: {', '.join(sorted(step.by))}")
    ends = (state for state in State if state in ENDS)
    return "\n".join([*lines, *(f"    {state} --> [*]" for state in ends)]) + "\n"
