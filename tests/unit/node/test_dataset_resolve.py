from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.datasets.pseudonyms import held_out
from rapha.node.datasets.resolve import OPTED_OUT, Cell, Funnel, Selection, after_preparation, resolve
from rapha.node.sources.filter import Column, matches
from rapha.node.sources.interface import Array, Aside, Index, Mask, Quarantine, Rendered, Sink
from rapha.spec import cohort
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import REGISTRY, Refused

SALT = "5a" * 32
EVERYONE = cohort.parse({"all": []})


class Table:
    """Records of `patients`, whose one field `x` is the position; `bad` ones are quarantined."""

    def __init__(self, patients: list[str], bad: tuple[int, ...] = ()) -> None:
        quarantine = np.zeros(len(patients), dtype=np.uint8)
        quarantine[list(bad)] = Quarantine.VALUE_MISSING
        self.index = Index(patients, quarantine, [str(i) for i in range(len(patients))])
        self.x = Column(np.arange(len(patients)), np.ones(len(patients), dtype=np.bool_))

    def select(self, cohort: Node) -> Mask:
        return matches(cohort, {"x": self.x}, len(self.x.values))

    @property
    def aside(self) -> tuple[Aside, ...]:
        return ()

    @property
    def rendered(self) -> tuple[str, ...]:
        return ()

    def read(self, positions: Array) -> dict[str, Any]:
        return {"x": positions}

    def render(self, positions: Array, renders: Any, sink: Sink) -> Rendered:
        return Rendered(np.zeros(len(positions), dtype=np.uint8), [b""] * len(positions))

    def close(self) -> None:
        pass


def manifest(**changes: Any) -> DatasetManifest:
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
            **changes,
        }
    )


def ask(
    table: Table,
    who: Node = EVERYONE,
    listed: tuple[str, ...] = (),
    max_records: int = 10**6,
    seed: int = 1,
    **changes: Any,
) -> Selection:
    return resolve(table, manifest(**changes), who, frozenset(listed), max_records=max_records, seed=seed)


def below(limit: int) -> Node:
    return cohort.parse({"field": "x", "lt": limit})


def people(count: int, records_each: int = 1) -> list[str]:
    return [f"p{i:04d}" for i in range(count) for _ in range(records_each)]


def refused(*args: Any, **kwargs: Any) -> bool:
    try:
        ask(*args, **kwargs)
    except Refused as refusal:
        assert refusal.code == "privacy.cohort_refused"
        assert refusal.detail == REGISTRY["privacy.cohort_refused"].meaning, "no number, no reason"
        return True
    return False


def test_the_funnel_adds_up() -> None:
    bad = tuple(range(0, 60, 5))
    selection = ask(Table(people(200), bad), below(150), listed=("p0001", "p0002", "p0199", "nobody"))
    funnel = selection.funnel
    quarantined = sum(c.records for name, c in funnel.reasons.items() if name != OPTED_OUT)
    assert funnel.matched.records == 136 and quarantined == 12
    assert funnel.matched == funnel.readable == funnel.consented == funnel.used, "nothing was decoded yet"
    assert funnel.used.records == len(selection.train) + len(selection.test) == 136
    assert funnel.reasons[OPTED_OUT] == Cell(3, 3)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_no_count_tells_of_a_record_that_can_not_be_read(kind: Any) -> None:
    # The ledger compares readable records alone: to it, all of these cohorts are the same.
    table, about = Table(people(240), tuple(range(200, 240))), manifest(source=IMAGES)

    def counted(who: Node) -> tuple[Selection, Funnel]:
        whole = resolve(table, about, who, frozenset(["p0239"]), max_records=10**6, seed=1, kind=kind)
        chosen = np.concatenate([whole.train, whole.test])
        verdicts = np.full(len(chosen), Quarantine.NONE, dtype=np.uint8)
        verdicts[-1] = Quarantine.VALUE_MISSING
        return whole, after_preparation(whole, chosen, verdicts, about).funnel

    others = below(200), cohort.parse({"not": {"field": "x", "eq": 200}})
    everyone, after = counted(EVERYONE)
    missing = everyone.funnel.reasons["record.value_missing"]
    assert missing == Cell(39, 39) and after.reasons["record.value_missing"] == Cell(40, 40)
    assert everyone.funnel.matched == everyone.funnel.readable == after.matched
    assert after.readable.records == after.matched.records - 1
    for who in others:
        found, left = counted(who)
        assert found.funnel == everyone.funnel and left == after
        assert np.array_equal(found.matched, everyone.matched)


def test_opt_outs_are_gone_before_anything_is_counted() -> None:
    table = Table(people(120))
    without = ask(table, listed=tuple(people(20)))
    assert not set(range(20)) & set(without.train) | set(range(20)) & set(without.test)
    assert without.funnel.matched.records == 100
    # Eleven in the complement, of whom two opted out: nine are left, and that is a small cell.
    assert not refused(table, below(109))
    assert refused(table, below(109), listed=("p0118", "p0119"))
    # Nobody is left outside: as if the cohort were everyone.
    assert not refused(table, below(109), listed=tuple(people(120)[109:]))


def test_cells_count_patients_and_not_records() -> None:
    assert refused(Table(people(9, records_each=50)))
    assert not refused(Table(people(60, records_each=2)))


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, True), (9, True), (100, False), (190, False), (191, True), (199, True)]
)
def test_cohort_and_complement_have_at_least_a_cell(limit: int, expected: bool) -> None:
    assert refused(Table(people(200)), below(limit)) is expected


def test_everyone_but_one_refuses_however_it_is_said() -> None:
    table = Table(people(200))
    for text in (
        {"not": {"field": "x", "eq": 77}},
        {"field": "x", "ne": 77},
        {"any": [{"field": "x", "lt": 77}, {"field": "x", "gt": 77}]},
        {"field": "x", "in": [i for i in range(200) if i != 77]},
    ):
        assert refused(table, cohort.parse(text))


def test_one_record_of_a_patient_can_not_be_left_out_either() -> None:
    assert refused(Table(people(100, records_each=3)), cohort.parse({"field": "x", "ne": 4}))


def test_quarantined_records_are_no_complement() -> None:
    # Otherwise one bad row would close the dataset for everyone.
    assert not refused(Table(people(200), bad=(7,)))


def test_each_split_has_at_least_a_cell() -> None:
    assert refused(Table(people(12)))
    names = people(400)
    held = held_out(SALT, "d", names, 0.05)
    few = [n for n, h in zip(names, held, strict=True) if h][:9]
    rest = [n for n, h in zip(names, held, strict=True) if not h][:100]
    assert refused(Table(few + rest), test_fraction=0.05)
    assert refused(Table(few + rest), test_fraction=0.05, minimum_cell=10)
    assert not refused(Table(few + rest), test_fraction=0.05, minimum_cell=9)


def test_a_patient_is_on_one_side_with_all_records_in_every_cohort() -> None:
    table = Table(people(100, records_each=4))
    whole, part = ask(table), ask(table, below(200))
    train, test = (set(whole.patient_of[split]) for split in (whole.train, whole.test))
    assert not train & test
    assert set(part.train) <= set(whole.train) and set(part.test) <= set(whole.test)


def test_the_cap_samples_both_splits_with_the_secret_of_the_job() -> None:
    table = Table(people(1000))
    whole, capped, other = ask(table), ask(table, max_records=100), ask(table, max_records=100, seed=2)
    assert len(capped.train) + len(capped.test) == capped.funnel.used.records == 100
    assert capped.funnel.consented.records == 1000
    assert set(capped.train) <= set(whole.train) and set(capped.test) <= set(whole.test)
    assert set(capped.train) != set(other.train)
    assert list(ask(table, max_records=100).train) == list(capped.train)


def test_who_is_held_out_is_counted_whatever_a_job_asks_for() -> None:
    table, listed = Table(people(1000, 2), bad=(0, 1)), tuple(people(1000)[500:510])
    whole = ask(table, listed=listed)
    assert whole.held == len(set(whole.patient_of[whole.test])) == len(whole.test) // 2
    assert ask(table, below(1200), listed, max_records=100).held == whole.held


@pytest.mark.parametrize("cap", [1, 9, 19])
def test_a_cap_below_a_cell_in_each_split_refuses(cap: int) -> None:
    assert refused(Table(people(1000)), max_records=cap)


def test_small_counts_and_zero_are_published_alike() -> None:
    counts = {"a": Cell(0, 0), "b": Cell(9, 9), "c": Cell(500, 9), "d": Cell(19, 10)}
    funnel = Funnel(Cell(569, 564), Cell(560, 555), Cell(560, 555), Cell(99, 99), counts)
    assert funnel.published(10, 10) == {
        "matched": 560,
        "readable": 560,
        "consented": 560,
        "used": 90,
        **{"a": "<10", "b": "<10", "c": "<10", "d": 10},
    }


@given(
    patients=st.lists(st.sampled_from(["", *people(40)]), min_size=1, max_size=300),
    bad=st.sets(st.integers(0, 299), max_size=20),
    listed=st.sets(st.sampled_from(people(60)), max_size=20),
    limit=st.integers(0, 300),
    cap=st.integers(1, 300),
    cell=st.integers(1, 12),
)
def test_what_is_allowed_holds_every_rule(
    patients: list[str], bad: set[int], listed: set[str], limit: int, cap: int, cell: int
) -> None:
    fallen = {i for i in bad if i < len(patients)} | {i for i, p in enumerate(patients) if not p}
    table = Table(patients, tuple(fallen))
    try:
        selection = ask(table, below(limit), tuple(listed), cap, minimum_cell=cell)
    except Refused as refusal:
        assert refusal.code == "privacy.cohort_refused"
        return
    chosen = [*selection.train.tolist(), *selection.test.tolist()]
    usable = {i for i, p in enumerate(patients) if p not in listed} - fallen
    inside, outside = {i for i in usable if i < limit}, {i for i in usable if i >= limit}
    assert len(chosen) == len(set(chosen)) <= cap and set(chosen) <= inside
    assert len({patients[i] for i in inside}) >= cell
    assert not outside or len({patients[i] for i in outside}) >= cell
    for split in (selection.train, selection.test):
        assert len({patients[i] for i in split}) >= cell
    assert not {patients[i] for i in selection.train} & {patients[i] for i in selection.test}


IMAGES = {"kind": "dicom", "path": "/mnt/pacs"}


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        (
            None,
            {"patient_missing", "patient_invalid", "value_missing", "value_not_finite", "shape"},
        ),
        (IMAGES, {kind.name.lower() for kind in Quarantine if kind}),
    ],
)
def test_every_reason_of_a_kind_is_listed_whatever_happened(
    source: dict[str, Any] | None, reasons: set[str]
) -> None:
    changes: dict[str, Any] = {"source": source} if source else {}
    calm, stormy = ask(Table(people(200)), **changes), ask(Table(people(200), bad=(1, 2, 3)), **changes)
    wanted = {"matched", "readable", "consented", "used", OPTED_OUT} | {f"record.{name}" for name in reasons}
    for selection in (calm, stormy):
        assert set(selection.funnel.published(10, 10)) == wanted


def test_a_reason_that_a_kind_of_source_can_not_have_is_a_defect() -> None:
    table = Table(people(200))
    table.index.quarantine[3] = Quarantine.TRANSFER_FAILED
    with pytest.raises(Refused, match=r"node\.internal"):
        ask(table)
    ask(table, source=IMAGES)


def test_a_readable_record_of_nobody_is_a_defect() -> None:
    with pytest.raises(Refused, match=r"node\.internal"):
        ask(Table([*people(200), ""]))


def decoded(
    selection: Selection, fallen: dict[int, Quarantine], seed: int = 1, **changes: Any
) -> tuple[Selection, Array]:
    """What is left after the records were decoded in some order and those of `fallen` could not be."""
    chosen = np.concatenate([selection.train, selection.test])
    positions = np.random.default_rng(seed).permutation(chosen)
    verdicts = np.array([fallen.get(int(p), Quarantine.NONE) for p in positions], dtype=np.uint8)
    return after_preparation(selection, positions, verdicts, manifest(source=IMAGES, **changes)), positions


def test_what_can_not_be_decoded_leaves_its_split_and_is_counted() -> None:
    whole = ask(Table(people(200), bad=(7,)), source=IMAGES)
    fallen = {int(whole.train[0]): Quarantine.DECODER_CRASHED, int(whole.test[-1]): Quarantine.TOO_LARGE}
    left, _ = decoded(whole, fallen)
    assert list(left.train) == list(whole.train[1:]) and list(left.test) == list(whole.test[:-1])
    funnel = left.funnel
    assert (funnel.matched, funnel.used) == (Cell(199, 199), Cell(197, 197))
    assert funnel.readable == funnel.consented == funnel.used
    reasons = {name: count.records for name, count in funnel.reasons.items() if count.records}
    assert reasons == {"record.value_missing": 1, "record.decoder_crashed": 1, "record.too_large": 1}
    assert whole.funnel.used == Cell(199, 199), "the selection that was approved is not touched"
    assert left.held == len(left.test) == whole.held - 1, "who could never have been measured"


def test_nothing_fell_out_and_nothing_changes() -> None:
    whole = ask(Table(people(200)), source=IMAGES)
    left, _ = decoded(whole, {})
    assert left.funnel == whole.funnel
    assert list(left.train) == list(whole.train) and list(left.test) == list(whole.test)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_that_falls_below_the_cell_refuses_without_a_number(split: str) -> None:
    whole = ask(Table(people(200)), source=IMAGES)
    mine = getattr(whole, split)
    decoded(whole, dict.fromkeys(mine[10:].tolist(), Quarantine.TOO_SLOW))
    with pytest.raises(Refused) as refused:
        decoded(whole, dict.fromkeys(mine[9:].tolist(), Quarantine.TOO_SLOW))
    assert refused.value.code == "privacy.cohort_refused"
    assert refused.value.detail == REGISTRY["privacy.cohort_refused"].meaning


def test_cells_after_decoding_count_patients_and_not_records() -> None:
    whole = ask(Table(people(60, records_each=5)), source=IMAGES)
    gone = {
        int(p): Quarantine.CHANGED
        for p in whole.train
        if whole.patient_of[p] in set(whole.patient_of[whole.train][45:])
    }
    assert len(whole.train) - len(gone) >= 10
    with pytest.raises(Refused, match=r"privacy\.cohort_refused"):
        decoded(whole, gone)


def test_of_a_sample_only_the_sample_is_judged() -> None:
    whole = ask(Table(people(1000)), max_records=100, source=IMAGES)
    left, _ = decoded(whole, {int(whole.train[3]): Quarantine.PIXELS_INVALID})
    assert left.funnel.used == Cell(99, 99) and left.funnel.readable == Cell(999, 999)


def test_verdicts_that_do_not_fit_the_records_are_a_defect() -> None:
    whole = ask(Table(people(200)), source=IMAGES)
    with pytest.raises(Refused, match=r"node\.internal"):
        after_preparation(whole, whole.train, np.zeros(3, dtype=np.uint8), manifest(source=IMAGES))


@given(
    records_each=st.integers(1, 4),
    fallen=st.dictionaries(st.integers(0, 239), st.sampled_from(list(Quarantine)), max_size=150),
    seed=st.integers(0, 100),
)
def test_after_decoding_every_rule_still_holds(
    records_each: int, fallen: dict[int, Quarantine], seed: int
) -> None:
    names = people(60, records_each)
    whole = ask(Table(names), source=IMAGES)
    try:
        left, positions = decoded(whole, fallen, seed)
    except Refused as refusal:
        assert refusal.code == "privacy.cohort_refused"
        return
    gone = {p for p, kind in fallen.items() if kind}
    for split, before in ((left.train, whole.train), (left.test, whole.test)):
        assert split.tolist() == [p for p in before.tolist() if p not in gone]
        assert len({names[p] for p in split}) >= 10
    funnel = left.funnel
    assert funnel.used.records == len(left.train) + len(left.test) == len(set(positions.tolist()) - gone)
    assert funnel.matched.records - sum(c.records for c in funnel.reasons.values()) == funnel.readable.records
