from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.datasets import feasibility as module
from rapha.node.datasets.feasibility import CUT, EPSILON, Feasible, feasibility
from rapha.node.sources.filter import Column, matches
from rapha.node.sources.interface import Array, Aside, Index, Mask, Quarantine, Rendered, Sink
from rapha.spec import cohort
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest

SALT = bytes(range(32)).hex()
CELL, BUCKET = 10, 10
FEW = Feasible(f"<{CELL}", f"<{CELL}")


class Table:
    """Records of `patients`, whose one field `x` is the position; `bad` ones are quarantined."""

    def __init__(self, patients: list[str], bad: tuple[int, ...] = (), names: str = "") -> None:
        quarantine = np.zeros(len(patients), dtype=np.uint8)
        quarantine[list(bad)] = Quarantine.FILE_INVALID
        self.index = Index(patients, quarantine, [f"{names}{i}" for i in range(len(patients))])
        self.x = Column(np.arange(len(patients)), np.ones(len(patients), dtype=np.bool_))
        self.rendered = ()

    @property
    def aside(self) -> tuple[Aside, ...]:
        return ()

    def select(self, cohort: Node) -> Mask:
        return matches(cohort, {"x": self.x}, len(self.x.values))

    def read(self, positions: Array) -> dict[str, Any]:
        raise AssertionError("counting reads no value")

    def render(self, positions: Array, renders: Any, sink: Sink) -> Rendered:
        raise AssertionError("counting decodes nothing")

    def close(self) -> None:
        pass


def manifest(**changes: Any) -> DatasetManifest:
    files = [{"name": "a", "sha256": "0" * 64, "size": 1}]
    return DatasetManifest.parse(
        {
            "dataset": "d",
            "title": "t",
            "profile": "tabular.d",
            "modality": "tabular",
            "fields": [{"name": "x", "dtype": "int64"}],
            "purposes": ["research/diagnosis"],
            "price_per_record": "0",
            "provenance": {"source": "s", "licence": "l"},
            "source": {"kind": "folder", "format": "parquet", "path": "r", "files": files},
            "patient_id": "patient_id",
            "organisations": ["demo-ai"],
            "opt_outs": "o",
            "salt": "5a" * 32,
            "minimum_cell": CELL,
            "billing_bucket": BUCKET,
            **changes,
        }
    )


def people(count: int, records_each: int = 1) -> list[str]:
    return [f"p{i:04d}" for i in range(count) for _ in range(records_each)]


def ask(table: Table, text: dict[str, Any], listed: tuple[str, ...] = (), **changes: Any) -> Feasible:
    return feasibility(table, manifest(**{"salt": SALT, **changes}), cohort.parse(text), frozenset(listed))


def below(limit: int) -> dict[str, Any]:
    return {"field": "x", "lt": limit}


@given(st.floats(0, 1, exclude_max=True))
def test_noise_is_bounded(uniform: float) -> None:
    assert -CUT <= module._laplace(uniform) <= CUT


def test_noise_is_a_discrete_laplace_distribution() -> None:
    steps = 200_000
    drawn = Counter(module._laplace((i + 0.5) / steps) for i in range(steps))
    assert set(drawn) == set(range(-CUT, CUT + 1))
    for value in range(-CUT, CUT):
        assert drawn[value] == pytest.approx(drawn[-value], rel=0.01), "it is symmetric"
    for value in range(CUT - 2):
        assert drawn[value] / drawn[value + 1] == pytest.approx(math.exp(EPSILON), rel=0.01)
    assert drawn[CUT] / steps == pytest.approx(1 / 200, rel=0.1), "as the docstring says of the ends"


SAME: list[dict[str, Any]] = [
    below(100),
    {"field": "x", "lte": 99},
    {"not": {"field": "x", "gte": 100}},
    {"field": "x", "in": list(range(100))},
    {"all": [below(100), below(150)]},
    {"any": [below(40), {"all": [{"field": "x", "gte": 40}, below(100)]}]},
    {"any": [below(50), below(100)]},
]


@pytest.mark.parametrize("text", SAME, ids=[str(s)[:30] for s in SAME])
def test_the_same_set_gets_the_same_answer_in_any_words(text: dict[str, Any]) -> None:
    table = Table(people(300))
    first = ask(table, SAME[0])
    assert first == ask(table, text) != FEW
    assert isinstance(first.patients, int) and abs(first.patients - 100) <= CUT + BUCKET


def test_the_order_of_records_and_lines_changes_nothing() -> None:
    forward, backward = Table(people(300)), Table(people(300)[::-1])
    backward.index = Index(
        backward.index.patients, backward.index.quarantine, list(forward.index.locators)[::-1]
    )
    answer = ask(forward, below(100))
    assert ask(backward, {"field": "x", "gte": 200}) == answer


@pytest.mark.parametrize("change", ["salt", "dataset", "who"])
def test_noise_is_drawn_anew_for_another_salt_dataset_or_set(change: str) -> None:
    answers = set()
    for i in range(40):
        salt = f"{i:02x}" * 32 if change == "salt" else SALT
        dataset = f"d{i}" if change == "dataset" else "d"
        first = 20 * i if change == "who" else 0
        table = Table(people(1000))
        text = {"all": [{"field": "x", "gte": first}, below(first + 100)]}
        answers.add(ask(table, text, salt=salt, dataset=dataset, billing_bucket=1).patients)
    assert len(answers) > 3 and all(isinstance(a, int) and abs(a - 100) <= CUT for a in answers)


@pytest.mark.parametrize("limit", [0, 1, 5, CELL - 1, 300 - CELL + 1, 295, 299])
def test_below_the_cell_inside_or_outside_there_is_one_answer(limit: int) -> None:
    for salt in (bytes(range(first, first + 32)).hex() for first in range(3)):
        assert ask(Table(people(300)), below(limit), salt=salt) == FEW


@pytest.mark.parametrize("limit", [CELL + 2 * CUT, 100, 300 - CELL - 2 * CUT, 300])
def test_well_above_the_cell_there_is_always_an_answer(limit: int) -> None:
    for first in range(20):
        salt = bytes(range(first, first + 32)).hex()
        found = ask(Table(people(300)), below(limit), salt=salt)
        assert isinstance(found.patients, int) and found.patients == found.records


def test_opt_outs_and_unreadable_records_count_nowhere() -> None:
    table = Table(people(300), bad=tuple(range(95)))
    assert ask(table, below(100)) == FEW, "five are left"
    assert ask(Table(people(300)), below(100), listed=tuple(people(95))) == FEW
    assert ask(Table(people(300)), below(290)) == ask(Table(people(300)), below(295)) == FEW
    assert ask(Table(people(300)), below(290), listed=tuple(people(300)[290:])) != FEW, "all who are left"


def test_one_patient_with_most_records_can_not_be_seen_among_the_records() -> None:
    """A cohort with and without the one whose records would show: both answers could be of either."""
    patients = people(100) + ["whale"] * 500 + people(100)[:50]
    table = Table(patients)
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    for i in range(150):
        salt = bytes([i, *range(1, 32)]).hex()
        for whole, limit in ((True, 600), (False, 100)):
            records = ask(table, below(limit), salt=salt).records
            assert isinstance(records, int)
            seen[whole].add(records)
    assert min(seen[True]) < max(seen[False]), "the two overlap"


SETS = st.integers(10, 120).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1), st.integers(0, n - 1))
)


@given(SETS, st.integers(1, 25), st.integers(0, 255))
def test_one_person_more_changes_an_answer_by_no_more_than_noise_and_bucket(
    drawn: tuple[int, set[int], int], bucket: int, seed: int
) -> None:
    count, members, person = drawn
    table = Table(people(count))
    salt = bytes([seed, *range(1, 32)]).hex()
    with_, without = sorted(members | {person}), sorted(members - {person})
    answers = [
        ask(table, {"field": "x", "in": who} if who else below(0), salt=salt, billing_bucket=bucket)
        for who in (with_, without)
    ]
    told = [a.patients for a in answers]
    if all(isinstance(t, int) for t in told):
        assert abs(told[0] - told[1]) <= 1 + 2 * CUT + bucket  # type: ignore[operator]
    for answer, who in zip(answers, (with_, without), strict=True):
        if answer == Feasible(f"<{CELL}", f"<{CELL}"):
            assert len(who) < CELL + 2 * CUT or 0 < count - len(who) < CELL + 2 * CUT
        else:
            assert len(who) >= CELL and (len(who) == count or count - len(who) >= CELL)
            assert isinstance(answer.patients, int) and answer.patients % bucket == 0
            assert abs(answer.patients - len(who)) <= CUT + bucket


@given(st.lists(st.sampled_from(people(60)), min_size=60, max_size=200), st.integers(0, 200))
def test_records_stay_within_noise_of_the_patient_who_has_most(patients: list[str], limit: int) -> None:
    answer = ask(Table(patients), below(limit))
    if isinstance(answer.records, int):
        most = max(Counter(patients).values())
        true = min(limit, len(patients))
        assert answer.records >= 0 and abs(answer.records - true) <= CUT * most + BUCKET
