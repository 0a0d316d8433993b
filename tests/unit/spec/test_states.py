from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.spec.refusals import Refused
from rapha.spec.states import (
    ENDED_WITH_CODE,
    ENDS,
    HELD,
    TABLE,
    Actor,
    State,
    mermaid,
    parse,
    transition,
)

MAIN = [
    "submitted",
    "routed",
    "leased",
    "ticketed",
    "awaiting_approval",
    "admitted",
    "running",
    "guarding",
    "in_review",
    "released",
    "logged",
    "attested",
    "delivered",
    "anchored",
    "settled",
]
SHORTCUTS = {("guarding", "released"), ("logged", "delivered")}


@pytest.mark.parametrize("pair", list(itertools.product(State, State)), ids="-".join)
def test_every_pair_of_states_is_in_the_table_or_refused(pair: tuple[State, State]) -> None:
    source, target = pair
    for actor in Actor:
        step = TABLE.get(pair)
        if step is not None and actor in step.by:
            assert transition(source, target, actor) is step
            continue
        code = "policy.conflict" if step is None else "policy.not_authorised"
        with pytest.raises(Refused, match=code):
            transition(source, target, actor)


def test_the_table_is_the_designs_path_its_shortcuts_and_its_ends() -> None:
    forward = {(str(a), str(b)) for a, b in TABLE if b not in ENDED_WITH_CODE}
    assert forward == set(itertools.pairwise(MAIN)) | SHORTCUTS


def test_nothing_leaves_an_end_and_every_state_is_reached() -> None:
    assert not [pair for pair in TABLE if pair[0] in ENDS]
    assert {target for _, target in TABLE} == set(State) - {State.SUBMITTED}


def test_every_held_job_can_be_ended_by_its_node_its_owner_and_a_lost_lease() -> None:
    for state in HELD:
        assert TABLE[state, State.REFUSED].by == {Actor.NODE}
        assert TABLE[state, State.FAILED].by == {Actor.NODE, Actor.COORDINATOR}
        assert TABLE[state, State.CANCELLED].by == {Actor.RESEARCHER}


def test_nothing_ends_with_a_code_once_something_was_released() -> None:
    after = MAIN[MAIN.index("released") :]
    assert not [pair for pair in TABLE if pair[0] in after and pair[1] in ENDED_WITH_CODE]


def test_a_node_never_releases() -> None:
    assert all(step.by == {Actor.COORDINATOR} for (_, target), step in TABLE.items() if target == "released")


@given(st.lists(st.tuples(st.sampled_from(State), st.sampled_from(Actor)), max_size=40))
def test_any_walk_ends_where_it_may(moves: list[tuple[State, Actor]]) -> None:
    current = State.SUBMITTED
    for target, actor in moves:
        try:
            step = transition(current, target, actor)
        except Refused:
            continue
        assert current not in ENDS
        assert (step.source, step.target) == (current, target)
        current = target


def test_names_are_parsed_strictly() -> None:
    assert [parse(str(state)) for state in State] == list(State)
    for bad in ("", "Submitted", "submitted ", "done", "x" * 1000):
        with pytest.raises(Refused, match=r"schema\.field_invalid"):
            parse(bad)


def test_the_diagram_has_every_state_and_every_step() -> None:
    lines = mermaid().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> submitted"]
    assert len(lines) == 2 + len(TABLE) + len(ENDS)
    assert "    logged --> delivered: coordinator" in lines
    assert "    running --> failed: coordinator, node" in lines
    assert "    settled --> [*]" in lines
    assert all(any(str(state) in line for line in lines) for state in State)
