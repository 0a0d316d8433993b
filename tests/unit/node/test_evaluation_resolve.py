"""An evaluation has the held-out records alone: nothing else is chosen, decoded or can be served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.node.datasets import control, prepare
from rapha.node.datasets.held import Job
from rapha.node.datasets.pseudonyms import HospitalKey, held_out
from rapha.node.datasets.resolve import Selection, after_preparation, resolve
from rapha.node.sources.filter import Column, matches
from rapha.node.sources.interface import Array, Aside, Index, Mask, Quarantine, Render, Rendered, Sink
from rapha.spec import cohort
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Price
from rapha.spec.refusals import REGISTRY, Refused

SALT = "5a" * 32
EVERYONE = cohort.parse({"all": []})
CELL = 10


class Images:
    """One record a patient; `x` is the position, `pixels` are decoded when they are asked for."""

    def __init__(self, patients: list[str]) -> None:
        count = len(patients)
        self.index = Index(patients, np.zeros(count, np.uint8), [str(i) for i in range(count)])
        self.x = Column(np.arange(count), np.ones(count, dtype=np.bool_))
        self.decoded: list[int] = []
        self.rendered = ("pixels",)

    def select(self, cohort: Node) -> Mask:
        return matches(cohort, {"x": self.x}, len(self.x.values))

    @property
    def aside(self) -> tuple[Aside, ...]:
        return ()

    def read(self, positions: Array) -> dict[str, Any]:
        self.decoded += positions.tolist()
        return {"x": positions.astype(np.int64)}

    def render(self, positions: Array, renders: Sequence[Render], sink: Sink) -> Rendered:
        self.decoded += positions.tolist()
        for ordinal in range(len(positions)):
            sink.put(ordinal, "pixels", memoryview(bytes(16)))
        return Rendered(np.zeros(len(positions), dtype=np.uint8), [b""] * len(positions))

    def close(self) -> None:
        return None


def manifest(**changes: Any) -> DatasetManifest:
    return DatasetManifest.parse(
        {
            "dataset": "d",
            "title": "t",
            "profile": "tabular.d",
            "modality": "tabular",
            "fields": [
                {"name": "pixels", "dtype": "float32", "shape": [4]},
                {"name": "x", "dtype": "int64"},
            ],
            "purposes": ["research/diagnosis"],
            "price_per_record": "0",
            "provenance": {"source": "s", "licence": "l"},
            "source": {
                "kind": "folder",
                "format": "parquet",
                "path": "r",
                "files": [{"name": "a", "sha256": "0" * 64, "size": 1}],
            },
            "patient_id": "patient_id",
            "organisations": ["demo-ai"],
            "consent_basis": "approved",
            "opt_outs": "o",
            "salt": SALT,
            "test_fraction": 0.5,
            "minimum_cell": CELL,
            **changes,
        }
    )


def people(count: int) -> list[str]:
    return [f"p{i:04d}" for i in range(count)]


def held(names: list[str]) -> list[int]:
    return np.flatnonzero(held_out(SALT, "d", names, 0.5)).tolist()


def ask(names: list[str], who: Node = EVERYONE, max_records: int = 10**6, seed: int = 1) -> Selection:
    images = Images(names)
    return resolve(images, manifest(), who, frozenset(), max_records=max_records, seed=seed, kind="evaluate")


def refused(names: list[str], who: Node = EVERYONE, max_records: int = 10**6) -> bool:
    try:
        ask(names, who, max_records)
    except Refused as refusal:
        assert refusal.code == "privacy.cohort_refused"
        assert refusal.detail == REGISTRY["privacy.cohort_refused"].meaning, "no number, no reason"
        return True
    return False


def test_only_the_held_out_records_are_chosen() -> None:
    names = people(200)
    selection = ask(names)
    assert selection.kind == "evaluate"
    assert selection.train.tolist() == []
    assert selection.test.tolist() == held(names)
    assert selection.funnel.matched.records == len(held(names))
    assert selection.funnel.used.records == len(held(names))


@settings(max_examples=60, deadline=None)
@given(st.integers(30, 150), st.integers(1, 200), st.integers(0, 2**32))
def test_the_cap_is_on_the_held_out_sample(count: int, cap: int, seed: int) -> None:
    names = people(count)
    try:
        selection = ask(names, max_records=cap, seed=seed)
    except Refused as refusal:
        assert refusal.code == "privacy.cohort_refused"
        assert min(cap, len(held(names))) < CELL
        return
    assert len(selection.test) == min(cap, len(held(names)))
    assert len(selection.train) == 0
    assert set(selection.test.tolist()) <= set(held(names))


def test_the_cells_are_those_of_the_held_out() -> None:
    names = people(200)
    ninth, tenth, eleventh = (held(names)[n] for n in (8, 9, 10))
    assert refused(names, cohort.parse({"field": "x", "lte": ninth}))
    assert not refused(names, cohort.parse({"field": "x", "lte": tenth}))
    assert not refused(names, cohort.parse({"field": "x", "lt": eleventh}))
    assert refused(names, max_records=CELL - 1)


def test_everybody_held_out_but_a_few_is_refused_though_many_are_outside() -> None:
    # Metrics are of the held-out alone: those of all of them and of all but one would differ by a person.
    names = people(200)
    test = held(names)
    last = [{"not": {"field": "x", "eq": test[-1]}}]
    rest = [{"not": {"field": "x", "eq": n}} for n in range(200) if n not in test][:50]
    but_one = cohort.parse({"all": [*last, *rest]})
    assert refused(names, but_one)
    assert not refused(names, cohort.parse({"all": rest})), "those outside are in no evaluation"


@pytest.mark.parametrize("left_out", [10, 11, 12, 50])
def test_no_count_tells_of_anybody_else(left_out: int) -> None:
    # The ledger compares the held-out patients of an evaluation alone: to it these two cohorts are one.
    names = people(200)
    rest = [n for n in range(200) if n not in held(names)]
    who = cohort.parse({"all": [{"not": {"field": "x", "eq": n}} for n in rest[:left_out]]})
    all_of_them, fewer = ask(names), ask(names, who)
    assert fewer.funnel == all_of_them.funnel
    assert np.array_equal(fewer.matched, all_of_them.matched)
    positions = fewer.test
    verdicts = np.full(len(positions), Quarantine.NONE, dtype=np.uint8)
    verdicts[0] = Quarantine.VALUE_MISSING
    prepared = (after_preparation(s, positions, verdicts, manifest()).funnel for s in (all_of_them, fewer))
    assert next(prepared) == next(prepared)


def test_a_train_job_still_counts_everybody() -> None:
    names = people(200)
    found = resolve(Images(names), manifest(), EVERYONE, frozenset(), max_records=10**6, seed=1)
    assert found.funnel.matched.records == found.funnel.used.records == 200


def test_preparation_decodes_nothing_else(tmp_path: Path) -> None:
    names = people(120)
    images, about = Images(names), manifest()
    key = HospitalKey.create(tmp_path / "phi.key")
    (tmp_path / "o").write_text("")
    request = control.Resolve(
        kind="evaluate",
        manifest=about,
        folder=str(tmp_path),
        means=control.Means(workers=1, memory_bytes=2**20, shards=str(tmp_path / "shards")),
        transforms={},
        cohort=EVERYONE,
        organisation="demo-ai",
        purpose="research/diagnosis",
        max_records=1000,
        job_id="ab" * 32,
        key_path=str(tmp_path / "phi.key"),
        journal_path=str(tmp_path / "journal"),
        ledger=str(tmp_path / "ledger"),
        price=Price(bits=1, evaluations=1),
    )
    selection = resolve(images, about, EVERYONE, frozenset(), max_records=1000, seed=1, kind="evaluate")
    ready = prepare.prepare(images, selection, request, key, frozenset())
    assert set(images.decoded) == set(held(names))
    assert (len(ready.train), len(ready.test), len(ready.store)) == (0, len(held(names)), len(held(names)))
    ready.store.close()


def test_what_falls_out_in_preparation_leaves_a_cell() -> None:
    names = people(60)
    selection = ask(names)
    verdicts = np.full(len(selection.test), Quarantine.NONE, dtype=np.uint8)
    verdicts[CELL:] = Quarantine.VALUE_MISSING
    left = after_preparation(selection, selection.test, verdicts, manifest())
    assert (left.kind, len(left.test), len(left.train)) == ("evaluate", CELL, 0)
    verdicts[0] = Quarantine.VALUE_MISSING
    with pytest.raises(Refused, match=r"privacy\.cohort_refused"):
        after_preparation(selection, selection.test, verdicts, manifest())


def job(kind: str) -> Job:
    rest: list[Any] = [None] * (len(fields(Job)) - 1)
    return Job(SimpleNamespace(kind=kind), *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "audit"])
def test_no_other_split_is_served(split: Any) -> None:
    job("evaluate").demand_split("test")
    with pytest.raises(Refused, match=r"policy\.conflict"):
        job("evaluate").demand_split(split)
    job("train").demand_split(split)


@pytest.mark.parametrize("used", [0, 1, 9, 11])
def test_a_record_that_was_not_read_has_no_prediction(used: int) -> None:
    job("evaluate").demand_read(10, 10)
    with pytest.raises(Refused, match=r"job\.outputs"):
        job("evaluate").demand_read(used, 10)
