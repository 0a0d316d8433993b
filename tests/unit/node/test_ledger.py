"""The disclosure ledger: what it allows, against a naive model; what it keeps, against damage and crashes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rapha.node.datasets.ledger import entries
from rapha.node.datasets.ledger.chain import NAME
from rapha.node.datasets.ledger.charge import afford
from rapha.node.datasets.ledger.cohorts import Cohort
from rapha.node.datasets.ledger.entries import Answered, Seen
from rapha.node.datasets.ledger.ledger import COHORTS, TOKENS, Asker, opened, place
from rapha.node.datasets.ledger.messages import Inspect
from rapha.node.datasets.ledger.population import Population
from rapha.node.datasets.ledger.tokens import Dictionary, ranks, tokens_of
from rapha.node.datasets.ledger.view import inspect
from rapha.spec import cohort as cohorts
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Balance, Price
from rapha.spec.refusals import REGISTRY, Refused

NOW = "2026-01-01T00:00:00Z"
CELL = 3
FREE = Price(bits=0)
Record = tuple[str, int]


def manifest(caps: Mapping[str, Any] | None = None, **changes: Any) -> DatasetManifest:
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
            "organisations": ["acme"],
            "opt_outs": "o",
            "salt": "5a" * 32,
            "minimum_cell": CELL,
            "disclosure": dict(caps or {}),
            **changes,
        }
    )


def job(number: int, organisation: str = "acme") -> Asker:
    return Asker(f"{number:064x}", organisation, "research/diagnosis", "train", "0" * 64)


def people(
    here: Iterable[Record], chosen: Iterable[Record], held: Iterable[str] = (), salt: str = "5a" * 32
) -> Population:
    """Records by patient and rank that can be used now, and those that a job asks for."""
    records, wanted, test = sorted(here), set(chosen), set(held)
    names = sorted({name for name, _ in records})
    assert wanted <= set(records)
    return Population(
        patients=tokens_of(salt, "d", names),
        held=np.array([name in test for name in names], dtype=np.bool_),
        patient_of=np.array([names.index(name) for name, _ in records], dtype=np.int64),
        rank=np.array([rank for _, rank in records], dtype=np.int64),
        chosen=np.array([record in wanted for record in records], dtype=np.bool_),
    )


def one_each(names: Iterable[str]) -> set[Record]:
    return {(name, 0) for name in names}


def crowd(count: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{number:03}" for number in range(count)]


class Dataset:
    """One dataset's ledger, and who is there."""

    def __init__(self, folder: Path, caps: Mapping[str, Any] | None = None, cell: int = CELL) -> None:
        self.folder, self.manifest = folder, manifest(caps, minimum_cell=cell)
        self.number = 0

    def run(self, who: Population, price: Price = FREE) -> Balance:
        """A job from gate 5 to its first record."""
        asker = job(self.number)
        with opened(self.folder, self.manifest, None) as ledger:
            ledger.check(price, asker, who)
        with opened(self.folder, self.manifest, None) as ledger:
            balance = ledger.reserve(price, asker, who, who, NOW)
        self.number += 1
        return balance

    def allows(self, who: Population) -> bool:
        try:
            self.run(who)
        except Refused as refused:
            assert refused.code == "privacy.cohort_refused"
            assert refused.detail == REGISTRY[refused.code].meaning, "no words of its own"
            return False
        return True

    def bytes(self) -> dict[str, bytes]:
        root = place(self.folder, self.manifest)
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


EVERY = one_each(crowd(40))


def some(*spans: tuple[int, int]) -> set[Record]:
    return one_each(name for start, end in spans for name in crowd(40)[start:end])


ATTACKS: list[tuple[str, list[set[Record]], set[Record]]] = [
    ("everyone, everyone but one", [EVERY], some((0, 39))),
    ("everyone, everyone but too few", [EVERY], some((0, 38))),
    ("a half, the half and one more", [some((0, 20))], some((0, 21))),
    ("a half, the half less one", [some((0, 20))], some((0, 19))),
    ("A or B, then A with one of B", [some((0, 10)), some((10, 20))], some((0, 11))),
    ("A and B, and then their overlap of one", [some((0, 10))], some((9, 20))),
    ("three that only together single one out", [some((0, 20)), some((10, 30))], some((0, 10), (19, 20))),
    ("all but two in two steps", [some((0, 20)), some((0, 20))], some((20, 38))),
    ("the rest that nobody asked about yet", [some((0, 19)), some((19, 38))], EVERY),
    ("in parts that are large enough, which meet in one", [some((0, 20)), some((20, 40))], some((19, 30))),
]


@pytest.mark.parametrize(("name", "before", "attack"), ATTACKS, ids=[a[0] for a in ATTACKS])
def test_differencing_is_refused(
    data: Dataset, name: str, before: list[set[Record]], attack: set[Record]
) -> None:
    allowed = [data.allows(people(EVERY, cohort)) for cohort in before]
    assert allowed[0]
    kept = data.bytes()
    assert not all(allowed) or not data.allows(people(EVERY, attack))
    if all(allowed):
        assert data.bytes() == kept, "a refusal changes nothing"
        assert not data.allows(people(EVERY, attack)), "and asking again gets the same answer"


def test_what_overlaps_by_enough_is_allowed(data: Dataset) -> None:
    cohorts = (EVERY, some((0, 20)), some((10, 30)), some((0, 10), (30, 40)), some((5, 35)), EVERY)
    assert [data.allows(people(EVERY, cohort)) for cohort in cohorts] == [True] * 6
    with opened(data.folder, data.manifest, None) as ledger:
        assert len(ledger.account.cohorts) == 5, "the same set again is no new cohort"


def test_a_cell_has_to_hold_on_each_side_of_the_split(data: Dataset) -> None:
    test = crowd(40)[:20]
    assert data.allows(people(EVERY, some((0, 10), (20, 30)), test))
    # Ten people leave, nine of training and one of the test: metrics would be about that one.
    assert not data.allows(people(EVERY, some((0, 9), (20, 21)), test))
    fresh = Dataset(data.folder / "fresh")
    assert not fresh.allows(people(EVERY, some((0, 19), (20, 30)), test)), "one test patient left out"
    assert fresh.allows(people(EVERY, some((0, 17), (20, 30)), test))


def test_an_evaluation_on_a_cohort_that_was_trained_on_cuts_nothing_new(data: Dataset) -> None:
    test = crowd(40)[:20]
    assert data.allows(people(EVERY, EVERY, test))
    assert data.allows(people(EVERY, one_each(test), test))
    assert not data.allows(people(EVERY, one_each(test[1:]), test))


def test_records_are_compared_and_not_only_their_patients(data: Dataset) -> None:
    """The same people each time, and one record of one of them more."""
    twice = {(name, rank) for name in crowd(20) for rank in (0, 1)}
    first = {(name, 0) for name in crowd(20)}
    assert data.allows(people(twice, first))
    assert not data.allows(people(twice, first | {("p000", 1)}))
    assert data.allows(people(twice, first | {(name, 1) for name in crowd(CELL)}))


def test_people_are_counted_and_not_their_records(data: Dataset) -> None:
    many = one_each(crowd(20)) | {("p000", rank) for rank in range(50)}
    assert not data.allows(people(many, one_each(crowd(20)))), "49 records of one patient are left out"
    assert data.allows(people(many, many))


def test_a_withdrawal_is_honoured_and_stops_no_job(data: Dataset) -> None:
    data.run(people(EVERY, EVERY))
    left = some((1, 40))
    data.run(people(left, left))
    data.run(people(left, some((1, 20))))
    assert data.allows(people(left, left))
    with opened(data.folder, data.manifest, None) as ledger:
        assert [j.reserved.departed for j in ledger.account.jobs.values()] == [0, 1, 1, 1]
    assert data.allows(people(EVERY, EVERY)), "who comes back shows nothing that wasn't shown before"
    # What is left of a cohort may be small; it can still be used whole, and never cut.
    few = some((38, 40))
    assert data.allows(people(few, few)) and not data.allows(people(few, some((39, 40))))


def test_newcomers_wait_until_they_are_enough(data: Dataset) -> None:
    data.run(people(EVERY, EVERY))
    for count in (1, CELL - 1, CELL, CELL + 1, 2 * CELL - 1, 2 * CELL):
        grown = EVERY | one_each(crowd(count, "new"))
        assert data.allows(people(grown, grown)) == (count % CELL == 0)
        assert data.allows(people(grown, EVERY)), "without them, all goes on"


def test_a_record_that_comes_and_goes_does_not_brick_the_dataset(data: Dataset) -> None:
    for absent in (set(), {("p007", 0)}, set(), {("p008", 0)}, set()):
        here = EVERY - absent
        assert data.allows(people(here, here))
    assert data.allows(people(EVERY, some((0, 20))))


def test_what_fell_out_while_decoding_is_not_counted_on(data: Dataset) -> None:
    data.run(people(EVERY, EVERY))
    asked = people(EVERY, some((0, 37)))
    fallen = np.array([record in some((37, 39)) for record in sorted(EVERY)])
    with opened(data.folder, data.manifest, None) as ledger:
        ledger.check(FREE, job(1), asked)
        with pytest.raises(Refused, match=r"privacy\.cohort_refused"):
            ledger.reserve(FREE, job(1), asked, asked.without(fallen), NOW)
        assert ledger.reserve(FREE, job(1), asked, asked, NOW).jobs == 2


def with_groups(who: Population, **groups: Iterable[str]) -> Population:
    """Subgroups by the names of their patients, of which those in the test split are measured apart."""
    names = sorted({name for name, _ in EVERY})
    of_record = np.array(names)[who.patient_of]
    tested = who.chosen & who.held[who.patient_of]
    return replace(who, groups={name: tested & np.isin(of_record, list(of)) for name, of in groups.items()})


def told(data: Dataset, who: Population) -> tuple[str, ...]:
    """A job from gate 5 to its first record; which subgroups it is told of."""
    with opened(data.folder, data.manifest, None) as ledger:
        names = ledger.subgroups(who, who)
        who = who.telling(names)
        ledger.reserve(FREE, job(data.number), who, who, NOW)
    data.number += 1
    return names


def test_a_subgroup_is_a_cohort_that_another_job_is_compared_with(data: Dataset) -> None:
    """Two cohorts that differ by many, and their subgroups by one."""
    test, women = crowd(40)[:30], crowd(40)[:15]
    fewer = some((1, 15), (20, 40))  # without one woman and five men
    everybody = people(EVERY, EVERY, test)
    assert told(data, with_groups(everybody, women=women)) == ("women",)
    kept = data.bytes()
    assert not data.allows(with_groups(people(EVERY, fewer, test), women=women))
    assert data.bytes() == kept
    # Where the first was told of everybody only, the second is told of everybody only.
    fresh = Dataset(data.folder / "fresh")
    assert told(fresh, everybody) == ()
    assert told(fresh, with_groups(people(EVERY, fewer, test), women=women)) == ("women",)
    assert told(fresh, with_groups(everybody, women=women)) == (), "it would tell of the one woman"
    assert shown(fresh).uses == {"2": 6, "3": 34}, "who is measured apart is used once"


def test_subgroups_of_one_job_are_compared_with_each_other(data: Dataset) -> None:
    test = crowd(40)
    groups = {"few": test[:2], "a": test[:20], "b": test[:21], "none": [], "rest": test[20:], "again": test}
    everybody = with_groups(people(EVERY, EVERY, test), **groups)
    assert told(data, everybody) == ("a", "rest", "again")
    assert told(data, everybody) == ("a", "rest", "again"), "the same sets again are nothing new"
    with opened(data.folder, data.manifest, None) as ledger:
        assert len(ledger.account.cohorts) == 3
        assert ledger.account.cohorts.total() == 2


def test_a_subgroup_that_is_a_cohort_too_many_is_left_out(tmp_path: Path) -> None:
    data = Dataset(tmp_path, {"cohorts": 2})
    test = crowd(40)
    everybody = with_groups(people(EVERY, EVERY, test), a=test[:20], b=test[10:30])
    assert told(data, everybody) == ("a",)
    assert told(data, with_groups(people(EVERY, some((0, 20)), test), b=test[5:15])) == ()


def test_what_fell_out_of_a_subgroup_while_decoding_is_not_counted_on(data: Dataset) -> None:
    test = crowd(40)
    asked = with_groups(people(EVERY, EVERY, test), a=test[:CELL])
    fallen = np.array([record == ("p000", 0) for record in sorted(EVERY)])
    with opened(data.folder, data.manifest, None) as ledger:
        assert ledger.subgroups(asked, asked) == ("a",)
        assert ledger.subgroups(asked, asked.without(fallen)) == ()


def test_another_split_is_refused(data: Dataset) -> None:
    """Two splits that differ by a few patients would show those, and the cohorts look the same."""
    data.run(people(EVERY, EVERY))
    data.manifest = data.manifest.model_copy(update={"test_fraction": 0.21})
    with pytest.raises(Refused, match=r"node\.ledger_invalid.*test_fraction"):
        data.run(people(EVERY, EVERY))


class Compared(RuleBasedStateMachine):
    """Random histories; the ledger says what Python sets say, and no combination is ever too small."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.data = Dataset(self.folder)
        self.here: dict[str, int] = {}
        self.away: dict[str, int] = {}
        self.held: set[str] = set()
        self.ran: list[frozenset[Record]] = []
        self.departed = False

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(count=st.integers(4, 24), several=st.booleans())
    def begin(self, count: int, several: bool) -> None:
        self.several = several
        self.here = {name: 1 + (several and number % 3 == 0) for number, name in enumerate(crowd(count))}
        self.held = set(crowd(count)[: count // 3])

    @property
    def records(self) -> set[Record]:
        return {(name, rank) for name, count in self.here.items() for rank in range(count)}

    @rule(count=st.integers(1, 5), held=st.booleans())
    def join(self, count: int, held: bool) -> None:
        new = crowd(count, f"n{len(self.here) + len(self.away)}-")
        self.here |= dict.fromkeys(new, 1)
        self.held |= set(new) if held else set()

    @rule(pick=st.randoms(use_true_random=False))
    def depart(self, pick: Any) -> None:
        if len(self.here) > 1:
            name = pick.choice(sorted(self.here))
            self.away[name] = self.here.pop(name)
            self.departed = True

    @rule(pick=st.randoms(use_true_random=False))
    def come_back(self, pick: Any) -> None:
        if self.away:
            name = pick.choice(sorted(self.away))
            self.here[name] = self.away.pop(name)

    @rule(pick=st.randoms(use_true_random=False), how=st.sampled_from(["some", "all", "like before", "span"]))
    def ask(self, pick: Any, how: str) -> None:
        records = sorted(self.records)
        match how:
            case "some":
                chosen = {r for r in records if pick.random() < 0.5}
            case "span":
                names = sorted(self.here)
                low, high = sorted((pick.randrange(len(names) + 1), pick.randrange(len(names) + 1)))
                chosen = {r for r in records if r[0] in names[low:high]}
            case "like before" if self.ran:
                chosen = set(pick.choice(self.ran)) & set(records)
            case _:
                chosen = set(records)
        if not chosen:
            return
        expected = self._naive(chosen)
        assert self.data.allows(people(records, chosen, self.held)) == expected
        if expected:
            self.ran.append(frozenset(chosen))

    def _naive(self, chosen: set[Record]) -> bool:
        """By signature, in words of sets: nothing that would be new is about fewer than the cell."""
        levels: list[tuple[set[Record], list[frozenset[Record]], Iterable[Record]]]
        levels = [(self.records, self.ran, chosen)]
        whole = {(name, 0) for name in self.here}
        levels.append((whole, [_patients(c) & whole for c in self.ran], frozenset(_patients(chosen))))
        return all(self._level(set(now), before, set(new)) for now, before, new in levels)

    def _level(self, now: set[Record], before: Iterable[Iterable[Record]], new: set[Record]) -> bool:
        atoms: dict[tuple[bool, ...], set[Record]] = {}
        earlier = [set(c) for c in before]
        for record in now:
            key = (record[0] in self.held, *(record in c for c in earlier))
            atoms.setdefault(key, set()).add(record)
        for key, atom in atoms.items():
            inside, outside = ({name for name, _ in part} for part in (atom & new, atom - new))
            if atom & new and atom - new and min(len(inside), len(outside)) < CELL:
                return False
            if not any(key[1:]) and 0 < len(inside) < CELL:
                return False
        return True

    @invariant()
    def no_combination_is_small(self) -> None:
        """Every union, intersection and difference of cohorts has no one or enough people, on each side."""
        if self.departed or len(self.ran) > 5:
            return
        cohorts = {c for c in self.ran if c}
        everything = set().union(*cohorts) if cohorts else set()
        for signs in itertools.product((True, False), repeat=len(cohorts)):
            atom = set(everything)
            for sign, cohort in zip(signs, cohorts, strict=True):
                atom = atom & cohort if sign else atom - cohort
            for side in (True, False):
                names = {name for name, _ in atom if (name in self.held) == side}
                assert not 0 < len(names) < CELL


def _patients(records: Iterable[Record]) -> frozenset[Record]:
    return frozenset((name, 0) for name, _ in records)


Compared.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestCompared = Compared.TestCase


def test_caps_stop_and_say_what_would_pass(tmp_path: Path) -> None:
    caps = {"bits": 1000, "epsilon": 2.0, "delta": 1e-5, "evaluations": 2}
    data, who = Dataset(tmp_path, caps), people(EVERY, EVERY)
    data.run(who, Price(bits=600, epsilon=1.5, delta=5e-6, evaluations=1))
    for price, said in (
        (Price(bits=401), "bits: the job may cost 401 and the dataset's cap leaves less; 256 would pass"),
        (Price(bits=1, epsilon=0.6), "epsilon: the job may cost 0.6 and the dataset's cap leaves less; 0.5"),
        (Price(bits=1, delta=9e-6), "ask for a smaller delta"),
    ):
        with pytest.raises(Refused) as refused:
            data.run(who, price)
        assert refused.value.code == "budget.disclosure" and said in refused.value.detail
    balance = data.run(who, Price(bits=400, epsilon=0.5, delta=5e-6, evaluations=1))
    assert (balance.bits.left, balance.epsilon.left, balance.evaluations.left) == (0, 0, 0)
    with pytest.raises(Refused, match="release no trusted metrics"):
        data.run(who, Price(bits=0, evaluations=1))
    assert data.run(who, FREE).jobs == 3, "what costs nothing passes a cap that is used up"


def test_fractions_that_fill_a_cap_pass_it(tmp_path: Path) -> None:
    data, who = Dataset(tmp_path, {"bits": 3, "epsilon": 0.3, "delta": 3e-6}), people(EVERY, EVERY)
    for _ in range(3):
        balance = data.run(who, Price(bits=1, epsilon=0.1, delta=1e-6))
    assert balance.epsilon.left == 0 and balance.delta.left < 1e-15
    for price in (Price(bits=0, epsilon=1e-6), Price(bits=0, delta=1e-11), Price(bits=1)):
        with pytest.raises(Refused, match=r"budget\.disclosure"):
            data.run(who, price)


def test_whether_a_price_fits_is_an_answer_and_counted(tmp_path: Path) -> None:
    """Else prices that bisect would find, for free, to the bit what others' jobs were charged."""
    data = Dataset(tmp_path, {"bits": 1000, "feasibility": 3})
    data.run(people(EVERY, EVERY), Price(bits=777))

    def probe(bits: int) -> str:
        request = SimpleNamespace(
            ledger=str(tmp_path),
            manifest=data.manifest,
            seen=None,
            cohort=cohorts.parse({"all": []}),
            kind="train",
            max_records=10,
            price=Price(bits=bits),
            job_id=job(1000 + bits).job,
        )
        try:
            afford(request, frozenset())  # type: ignore[arg-type]
        except Refused as refused:
            assert refused.code == "budget.disclosure"
            return refused.detail.partition(":")[0]
        return "fits"

    assert [probe(bits) for bits in (500, 250, 500, 500, 200)] == ["bits", "bits", "bits", "bits", "fits"]
    assert shown(data).feasibility.left == 0, "the same question again is free"
    assert [probe(bits) for bits in (223, 224, 500, 200)] == ["feasibility", "feasibility", "bits", "fits"]


def test_uses_and_cohorts_stop_without_a_word(tmp_path: Path) -> None:
    data = Dataset(tmp_path, {"uses_per_patient": 2, "cohorts": 2})
    assert data.allows(people(EVERY, EVERY)) and data.allows(people(EVERY, some((0, 20))))
    assert not data.allows(people(EVERY, some((10, 20)))), "two uses each"
    assert not data.allows(people(EVERY, some((20, 30)))), "a third cohort"
    assert data.allows(people(EVERY, some((20, 40)))) is False


def test_a_job_is_charged_its_worst_case_until_it_is_settled(data: Dataset) -> None:
    plain, private = Price(bits=1000, evaluations=1), Price(bits=9, epsilon=1, delta=1e-6, evaluations=1)
    wide = Dataset(data.folder, {"epsilon": 10})
    who = people(EVERY, EVERY)
    for number, price in enumerate([plain, plain, private]):
        wide.number = number
        wide.run(who, price)
    with opened(data.folder, wide.manifest, None) as ledger:
        assert ledger.balance("0" * 64).bits.spent == 2009
        assert ledger.settle(job(0).job, 30, "nothing", NOW).bits.spent == 1039
        assert ledger.settle(job(0).job, 30, "nothing", NOW).evaluations.spent == 2, "again is the same"
        for bits, released in ((31, "nothing"), (30, "metrics")):
            with pytest.raises(Refused, match=r"policy\.conflict"):
                ledger.settle(job(0).job, bits, released, NOW)  # type: ignore[arg-type]
        with pytest.raises(Refused, match=r"policy\.conflict"):
            ledger.settle(job(9).job, 1, "all", NOW)
        with pytest.raises(Refused, match=r"node\.internal"):
            ledger.settle(job(1).job, 1001, "all", NOW)
        assert ledger.settle(job(1).job, 100, "metrics", NOW).evaluations.spent == 2
        kept = ledger.settle(job(2).job, 9, "metrics", NOW)
        assert (kept.epsilon.spent, kept.delta.spent, kept.bits.spent) == (0, 0, 139), "no weights left"
    assert [line.released for line in shown(wide).jobs] == ["nothing", "metrics", "metrics"]


def test_a_job_is_charged_once(data: Dataset) -> None:
    who = people(EVERY, EVERY)
    data.run(who)
    with opened(data.folder, data.manifest, None) as ledger:
        ledger.check(Price(bits=2**40), job(0), who)  # it has its answer
        with pytest.raises(Refused, match=r"policy\.conflict"):
            ledger.reserve(FREE, job(0), who, who, NOW)


def test_answers_are_counted_once_for_the_same_question(tmp_path: Path) -> None:
    data = Dataset(tmp_path, {"feasibility": 2})
    with opened(data.folder, data.manifest, None) as ledger:
        for question in ("a", "b", "a", "b"):
            ledger.answer(Answered(question=question * 64), NOW)
        with pytest.raises(Refused, match=r"budget\.disclosure"):
            ledger.answer(Answered(question="c" * 64), NOW)
    assert shown(data).feasibility.left == 0 and shown(data).balance is None


def shown(data: Dataset, seen: Seen | None = None) -> Any:
    return inspect(Inspect(manifest=data.manifest, ledger=str(data.folder), seen=seen))


def test_what_is_shown_is_totals_and_no_patient(data: Dataset) -> None:
    data.run(people(EVERY, EVERY))
    data.run(people(EVERY, some((0, 20))))
    found = shown(data)
    assert found.uses == {"1": 20, "2": 20}
    assert [(o.first, o.second, o.patients) for o in found.overlaps] == [(0, 0, 40), (0, 1, 20), (1, 1, 20)]
    text = str(found.dump())
    assert not any(name in text for name in crowd(40))
    for content in data.bytes().values():
        assert b"p000" not in content, "nor is one in any file"


def test_another_salt_or_name_is_another_ledger_and_the_node_s_log_knows(data: Dataset) -> None:
    balance = data.run(people(EVERY, EVERY))
    seen = Seen(entries=balance.entries, head=balance.head)
    for changed in (manifest(salt="77" * 32), manifest(dataset="e")):
        with pytest.raises(Refused, match=r"node\.ledger_invalid"), opened(data.folder, changed, seen):
            pass
    revised = manifest(title="new", price_per_record="1")
    with opened(data.folder, revised, seen) as ledger:
        assert len(ledger.account.jobs) == 1, "a revision of the manifest keeps it"


def test_an_older_copy_is_refused(data: Dataset) -> None:
    data.run(people(EVERY, EVERY))
    old = data.folder.parent / "old"
    shutil.copytree(place(data.folder, data.manifest), old)
    balance = data.run(people(EVERY, some((0, 20))))
    seen = Seen(entries=balance.entries, head=balance.head)
    assert shown(data, seen).balance is not None
    shutil.rmtree(place(data.folder, data.manifest))
    shutil.copytree(old, place(data.folder, data.manifest))
    with pytest.raises(Refused, match=r"node\.ledger_invalid"):
        shown(data, seen)
    shutil.rmtree(place(data.folder, data.manifest))
    with pytest.raises(Refused, match=r"node\.ledger_invalid"):
        shown(data, seen)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), file=st.sampled_from("ltc"))
def test_any_altered_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, file: str
) -> None:
    data = Dataset(tmp_path_factory.mktemp("altered"))
    data.run(people(EVERY, EVERY))
    balance = data.run(people(EVERY, some((0, 20))))
    root = place(data.folder, data.manifest)
    cohorts = sorted((root / COHORTS).iterdir())
    path = {"l": root / NAME, "t": root / TOKENS, "c": cohorts[int(where * len(cohorts))]}[file]
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(Refused, match=r"node\.ledger_invalid"):
        shown(data, Seen(entries=balance.entries, head=balance.head))


def test_files_that_are_not_the_node_s_own_are_refused(data: Dataset) -> None:
    data.run(people(EVERY, EVERY))
    root = place(data.folder, data.manifest)
    for path in (root / NAME, root / TOKENS, next((root / COHORTS).iterdir())):
        path.chmod(0o640)
        with pytest.raises(Refused, match=r"node\.ledger_invalid"):
            shown(data)
        path.chmod(0o600)
        moved = path.rename(path.with_suffix(".moved"))
        path.symlink_to(moved)
        with pytest.raises(Refused, match=r"node\.(ledger_invalid|internal)"):
            shown(data)
        path.unlink()
        os.mkfifo(path, 0o600)
        with pytest.raises(Refused, match=r"node\.ledger_invalid"):
            shown(data)
        path.unlink()
        moved.rename(path)
    assert shown(data).balance is not None


def test_a_torn_line_and_orphans_are_passed_over(data: Dataset) -> None:
    first = data.run(people(EVERY, EVERY))
    root = place(data.folder, data.manifest)
    with (root / NAME).open("ab") as file:
        file.write(b'{"entry":{"event":"settled"')
    with (root / TOKENS).open("ab") as file:
        file.write(b"\xaa" * 40)
    (root / COHORTS / "new.cohort").write_bytes(b"half")
    kept = data.bytes()
    assert shown(data).balance.head == first.head
    assert data.bytes() == kept, "who only looks changes nothing"
    grown = EVERY | one_each(crowd(9, "new"))
    data.run(people(grown, grown))
    assert shown(data).uses == {"1": 9, "2": 40}, "tokens that no entry names were overwritten"


POINTS = ("write", "fsync", "fdatasync", "replace", "ftruncate")


def _dies_at(folder: Path, calls: int) -> None:
    """Reserve and settle in a child that is killed before its `calls`-th call that changes the disk."""
    left = calls

    def counting(name: str) -> Any:
        true = getattr(os, name)

        def call(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return true(*arguments)

        return call

    for name in POINTS:
        setattr(os, name, counting(name))
    data = Dataset(folder)
    data.number = 1
    data.run(
        people(EVERY | one_each(crowd(9, "new")), some((0, 20)) | one_each(crowd(9, "new"))), Price(bits=8)
    )
    with opened(folder, data.manifest, None) as ledger:
        ledger.settle(job(1).job, 1, "nothing", NOW)
    os._exit(7)


def test_a_crash_at_any_write_leaves_the_ledger_whole(tmp_path: Path) -> None:
    base = Dataset(tmp_path / "base")
    before = base.run(people(EVERY, EVERY))
    seen = Seen(entries=before.entries, head=before.head)
    charges = []
    for calls in itertools.count():
        folder = tmp_path / str(calls)
        shutil.copytree(base.folder, folder)
        child = multiprocessing.get_context("fork").Process(target=_dies_at, args=(folder, calls))
        child.start()
        child.join()
        data = Dataset(folder)
        charges.append(shown(data, seen).balance.bits.spent)
        data.number = 2
        assert data.allows(people(EVERY, EVERY)), "and it goes on"
        assert not data.allows(people(EVERY, some((0, 39))))
        if child.exitcode == 7:
            break
        assert child.exitcode == -signal.SIGKILL
    assert charges[0] == 0 and charges[-1] == 1 and 8 in charges
    assert charges == sorted(charges[: charges.index(8)]) + [8] * charges.count(8) + [1] * charges.count(1)


def _reserves(folder: Path, first: int) -> None:
    data = Dataset(folder)
    for number in range(first, first + 5):
        data.number = number
        data.run(people(EVERY, some((0, 20)) if number % 2 else EVERY))


def test_two_processes_take_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_reserves, args=(tmp_path, first)) for first in (0, 100, 200)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    found = shown(Dataset(tmp_path))
    assert found.balance.jobs == 15 and found.balance.entries == 16


def test_who_looks_at_a_ledger_that_is_not_there_makes_none(data: Dataset) -> None:
    found = shown(data)
    assert found.balance is None and found.jobs == () and found.feasibility.spent == 0
    with pytest.raises(Refused, match=r"node\.ledger_invalid"):
        shown(data, Seen(entries=1, head="0" * 64))
    assert not place(data.folder, data.manifest).exists()


def test_a_full_disk_charges_nothing(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data.run(people(EVERY, EVERY))
    kept = data.bytes()[NAME]

    def _full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fdatasync", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, _full)
            with pytest.raises(Refused, match=r"node\.(disk_full|internal)"):
                data.run(people(EVERY, some((0, 20))))
        assert data.bytes()[NAME] == kept
    assert data.allows(people(EVERY, some((0, 20))))


BAD_LINES: list[tuple[str, bytes]] = [
    ("no JSON", b"x\n"),
    ("an empty line", b"\n"),
    ("a CR for an LF", b"{}\r{}\n"),
    ("another event", b'{"entry":{"event":"gift"},"previous":"","seq":0,"time":""}\n'),
    ("a list", b"[]\n"),
    ("a number", b"1\n"),
]


@pytest.mark.parametrize(("name", "line"), BAD_LINES, ids=[b[0] for b in BAD_LINES])
def test_lines_that_were_never_written_refuse(name: str, line: bytes) -> None:
    with pytest.raises(Refused, match=r"node\.ledger_invalid"):
        entries.read(line)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    try:
        found, good = entries.read(data)
    except Refused as refused:
        assert refused.code == "node.ledger_invalid"
    else:
        assert found == [] and good == 0


@given(st.binary(max_size=120))
def test_no_bytes_break_a_cohort_s_reader(data: bytes) -> None:
    try:
        Cohort.loads(b"RAPHAC1\n" + data)
    except Refused as refused:
        assert refused.code == "node.ledger_invalid"


@given(st.lists(st.integers(0, 9), max_size=60))
def test_ranks_count_up_within_a_patient(owners: list[int]) -> None:
    found = ranks(np.array(owners, dtype=np.int64)).tolist()
    assert found == [owners[:position].count(owner) for position, owner in enumerate(owners)]


@given(st.sets(st.integers(0, 500)), st.sets(st.integers(0, 500)))
def test_ordinals_never_change(first: set[int], second: set[int]) -> None:
    one, two = (tokens_of("5a" * 32, "d", map(str, sorted(members))) for members in (first, second))
    narrow = Dictionary(np.zeros((0, 2), dtype="<u8")).extended(one)
    wide = narrow.extended(two)
    assert wide.find(one).tolist() == narrow.find(one).tolist()
    assert sorted(set(wide.find(np.concatenate([one, two])).tolist())) == list(range(len(first | second)))
    assert set(narrow.find(two).tolist()) - {-1} <= set(range(len(first)))
    assert wide.extended(one) is wide


def test_tokens_that_are_too_alike_refuse() -> None:
    alike = np.array([[1, 2], [1, 3]], dtype="<u8")
    with pytest.raises(Refused, match=r"node\.internal"):
        Dictionary(np.zeros((0, 2), dtype="<u8")).extended(alike)
    with pytest.raises(Refused, match=r"node\.internal"):
        Dictionary(alike[:1]).find(alike[1:])
