"""Check 8 where the records are: halves, canaries, counts, and what may be told of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from rapha.node.datasets import control, wire
from rapha.node.datasets.audit import Auditor
from rapha.node.datasets.canaries import SHARE, Relabelled, choose, wrong_labels
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.node.datasets.subgroups import MOST_VALUES, column, subgroups
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import Ragged, RecordStore, TableStore
from rapha.spec.dataset import DatasetManifest, Field, FolderSource, Provenance, Target
from rapha.spec.disclosure import Caps, Leakage, LeakageTest
from rapha.spec.paths import SourceFile
from rapha.spec.refusals import Refused
from rapha_trainer.session import BrokerSource
from rapha_trainer.source import Epoch

KEY = HospitalKey(bytes((7 * i + 3) % 251 for i in range(32)))
Batch = dict[str, NDArray[Any]]
Learner = Callable[[Batch], Callable[[Batch], NDArray[np.float64]]]
BINARY = Target(label="label")
ASKED = LeakageTest(shadows=6)


@dataclass
class Case:
    """A dataset of two records a patient, in memory."""

    folder: Path
    store: RecordStore
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    target: Target = BINARY
    asked: LeakageTest = ASKED
    held: int = 0

    def auditor(self, used: NDArray[np.int64] | None = None) -> Auditor:
        job = SimpleNamespace(
            request=SimpleNamespace(
                manifest=manifest(self.target, self.asked),
                means=SimpleNamespace(shards=str(self.folder / "shards")),
                max_records=len(self.store),
            ),
            derive=lambda purpose: KEY.derive(purpose, "job"),
        )
        selection = SimpleNamespace(held=self.held)
        ready = SimpleNamespace(store=self.store, train=self.train, test=self.test, selection=selection)
        every = np.arange(len(self.store)) if used is None else used
        return Auditor(cast(Any, job), cast(Any, ready), every)


def manifest(target: Target | None, asked: LeakageTest) -> DatasetManifest:
    labels = [Field(name=n, dtype="float32", label=True) for n in ("label", "died")]
    return DatasetManifest(
        dataset="made",
        title="made for a test",
        profile="tabular.made",
        modality="tabular",
        fields=(Field(name="x", dtype="float32"), *labels),
        purposes=("research/diagnosis",),
        price_per_record="0",
        provenance=Provenance(source="made", licence="none"),
        source=FolderSource(
            kind="folder",
            format="parquet",
            path="records",
            files=(SourceFile(name="a.parquet", sha256="0" * 64, size=1),),
        ),
        patient_id="patient",
        target=target,
        organisations=("a",),
        opt_outs="opt-outs.txt",
        salt="1" * 64,
        disclosure=Caps(leakage=asked),
    )


def case(folder: Path, members: int, others: int, **changes: Any) -> Case:
    """`x` names the patient, as an identifier would; the label is chance."""
    patients = np.repeat(np.arange(members + others), 2)
    generator = np.random.default_rng(8)
    columns = {
        "x": patients.astype(np.float32),
        "sex": (patients % 2).astype(np.float32),
        "label": generator.integers(0, 2, len(patients)).astype(np.float32),
        "died": generator.integers(0, 2, len(patients)).astype(np.float32),
    }
    columns |= changes.pop("columns", {})
    store = TableStore(columns, patients, {"label", "died"})
    rows = np.arange(len(patients))
    made = Case(folder, store, rows[: 2 * members], rows[2 * members :])
    return replace(made, **changes)


@pytest.fixture
def small(tmp_path: Path) -> Case:
    return case(tmp_path, 300, 100)


def served(broker: Broker, split: str) -> Batch:
    """Everything of a split, as a job's loader reads it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=broker.serve, args=(ours, split))
    thread.start()
    source = BrokerSource(theirs.fileno(), split)
    epoch = Epoch(
        batch_size=512, shuffle=False, seed=0, number=0, drop_last=False, indices=None, prefetch=None
    )
    batches = [{name: np.array(part) for name, part in b.items()} for b in source.batches(epoch)]
    source._socket.close()
    theirs.close()
    thread.join()
    ours.close()
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def attacked(made: Case, learner: Learner, shadows: int) -> Leakage:
    """The released model trains on all members, and every shadow on what it is served."""
    auditor = made.auditor()
    model = learner({name: column(made.store, name, made.train) for name in ("x", "label")})
    inputs = served(auditor.broker("audit", None), "test")
    auditor.observe(None, model(inputs).astype(np.float32)[:, None])
    for k in range(shadows):
        trained = learner(served(auditor.broker("train", k), "train"))
        inputs = served(auditor.broker("audit", k), "test")
        auditor.observe(k, trained(inputs).astype(np.float32)[:, None])
    found = auditor.leakage()
    auditor.close()
    return found


def memorise(batch: Batch) -> Callable[[Batch], NDArray[np.float64]]:
    """Knows each label it was told, and nothing else."""
    told = dict(zip(batch["x"].tolist(), batch["label"].tolist(), strict=True))
    return lambda given: np.array([0.02 + 0.96 * told.get(x, 0.5) for x in given["x"].tolist()])


def generalise(batch: Batch) -> Callable[[Batch], NDArray[np.float64]]:
    """Says the same of everybody: the mean of what it was told."""
    mean = float(batch["label"].mean())
    return lambda given: np.full(len(given["x"]), mean)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(tmp_path_factory.mktemp("large"), 1500, 1100)


def one_label_a_patient(made: Case) -> Case:
    """Two records of a patient agree, so that a table of labels can know them."""
    patients = made.store.patients
    labels = np.random.default_rng(9).integers(0, 2, int(patients.max()) + 1)[patients]
    columns = {
        "x": patients.astype(np.float32),
        "sex": (patients % 2).astype(np.float32),
        "label": labels.astype(np.float32),
        "died": labels.astype(np.float32),
    }
    return replace(made, store=TableStore(columns, patients, {"label", "died"}))


def test_a_model_that_memorised_is_found_out(large: Case) -> None:
    found = attacked(one_label_a_patient(large), memorise, 6)
    assert (found.verdict, found.members, found.non_members, found.shadows) == ("measured", 1500, 1100, 6)
    assert found.tpr == 1 and found.low is not None and found.low > 0.99
    assert found.auc == 1 and found.worst_tpr == 1 and found.worst.startswith(("died=", "label=", "sex="))
    assert found.canaries is None  # none were asked for


def test_a_model_that_says_the_same_of_everybody_gives_nobody_away(large: Case) -> None:
    found = attacked(large, generalise, 6)
    assert found.verdict == "measured"
    assert found.tpr is not None and found.tpr < 0.01
    assert found.auc == pytest.approx(0.5, abs=0.03)


def test_canaries_of_a_model_that_memorises_are_found(large: Case) -> None:
    made = one_label_a_patient(replace(large, asked=LeakageTest(shadows=80, canaries=1000)))
    assert len(made.auditor()._canaries.patients) == 1500 // SHARE
    found = attacked(made, memorise, 80)
    assert found.canaries == 1 and found.tpr == 1


def test_too_few_canaries_give_no_rate(large: Case) -> None:
    made = one_label_a_patient(replace(large, asked=LeakageTest(shadows=4, canaries=10)))
    assert attacked(made, memorise, 4).canaries is None


@pytest.mark.parametrize(("others", "verdict"), [(999, "not_resolvable"), (1000, "measured")])
def test_a_rate_is_told_from_1000_non_members_on(tmp_path: Path, others: int, verdict: str) -> None:
    found = attacked(case(tmp_path, 200, others), generalise, 4)
    assert (found.verdict, found.non_members) == (verdict, others)
    assert (found.tpr is None) == (verdict == "not_resolvable")
    assert (found.auc is None) == (verdict == "not_resolvable")


def test_before_any_run_it_is_known_whether_one_would_help(small: Case, tmp_path: Path) -> None:
    assert small.auditor().leakage().verdict == "not_resolvable"
    waiting = case(tmp_path, 100, 1000).auditor().leakage()
    assert waiting.verdict == "not_run" and "shadow" in waiting.reason
    few = case(tmp_path, 99, 1000).auditor().leakage()
    assert few.verdict == "not_run" and "fewer than 100 patients" in few.reason


def test_fewer_than_four_shadows_measure_nothing(large: Case) -> None:
    found = attacked(large, generalise, 3)
    assert (found.verdict, found.shadows, found.tpr) == ("not_run", 3, None)


def test_non_members_of_whom_nothing_is_known_do_not_count(tmp_path: Path) -> None:
    # Only first halves were trained in time: about one patient in sixteen was in all four of them.
    auditor = case(tmp_path, 200, 1010, asked=LeakageTest(shadows=8)).auditor()
    predictions = np.full((auditor.rows, 1), 0.5, np.float32)
    auditor.observe(None, predictions)
    for k in (0, 2, 4, 6):
        served(auditor.broker("train", k), "train")
        auditor.broker("audit", k)
        auditor.observe(k, predictions)
    found = auditor.leakage()
    auditor.close()
    assert (found.verdict, found.shadows, found.non_members, found.tpr) == ("not_run", 4, 1010, None)


def test_each_shadow_trains_on_half_of_the_members_and_its_pair_on_the_other(small: Case) -> None:
    auditor = small.auditor()
    halves = [set(served(auditor.broker("train", k), "train")["x"].tolist()) for k in range(6)]
    auditor.close()
    for first, second in zip(halves[::2], halves[1::2], strict=True):
        assert len(first) == len(second) == 150
        assert not first & second and first | second == set(range(300))
    assert len({frozenset(half) for half in halves}) == 6


def test_patients_of_the_held_out_split_are_left_out_of_half_of_the_shadows_too(small: Case) -> None:
    # Or the number of shadows to compare with would tell who is who.
    auditor = small.auditor()
    left_out = [np.count_nonzero(auditor._without(k) & ~auditor._member) for k in range(6)]
    assert left_out == [50] * 6
    assert not np.any(auditor._without(0) & auditor._without(1))


def test_halves_are_by_patient_and_the_same_when_asked_again(small: Case) -> None:
    auditor = small.auditor()
    first = served(auditor.broker("train", 2), "train")
    assert np.unique(first["x"], return_counts=True)[1].tolist() == [2] * 150
    again = served(small.auditor().broker("train", 2), "train")
    assert np.array_equal(first["x"], again["x"]) and np.array_equal(first["label"], again["label"])


def test_the_audit_is_inputs_only_and_in_no_telling_order(small: Case) -> None:
    auditor = small.auditor()
    given = served(auditor.broker("audit", None), "test")
    assert set(given) == {"x", "sex"}
    member = given["x"] < 300
    assert sorted(given["x"].tolist()) == sorted(np.repeat(np.arange(400), 2).tolist())
    runs = np.count_nonzero(member[1:] != member[:-1])
    assert runs > 200  # about 300 where it is mixed, 1 where the splits follow each other
    assert np.array_equal(given["x"], served(auditor.broker("audit", 3), "test")["x"])
    auditor.close()


def test_no_label_of_the_held_out_split_is_ever_served(small: Case) -> None:
    auditor = small.auditor()
    for k in range(6):
        assert served(auditor.broker("train", k), "train")["x"].max() < 300
        with pytest.raises(Refused):
            auditor.broker("test", k)
    auditor.close()


def test_members_are_those_whose_records_the_meter_counted(small: Case) -> None:
    used = np.concatenate([np.arange(0, 100, 2), small.test])  # of 50 patients one record of two
    auditor = small.auditor(used)
    assert auditor.leakage().members == 50
    assert auditor.rows == 50 + 200
    half = served(auditor.broker("train", 0), "train")["x"].tolist()
    assert len(half) == len(set(half)) == 25 and max(half) < 50
    auditor.close()


def test_non_members_are_those_whose_records_the_meter_counted(small: Case) -> None:
    # Else a job whose prediction left the held-out split unread would be handed it here, uncounted.
    auditor = small.auditor(np.concatenate([small.train, small.test[:20]]))
    given = served(auditor.broker("audit", None), "test")["x"]
    assert auditor.rows == len(given) == 600 + 20 and auditor.leakage().non_members == 10
    assert set(given.tolist()) == set(range(310))
    auditor.close()
    assert small.auditor(small.train).leakage().non_members == 0


@pytest.mark.parametrize(("held", "narrowed"), [(999, False), (1000, True)])
def test_whether_the_job_or_the_dataset_left_too_few_non_members(
    small: Case, held: int, narrowed: bool
) -> None:
    found = replace(small, held=held).auditor().leakage()
    assert (found.verdict, found.narrowed) == ("not_resolvable", narrowed)
    assert ("the dataset has more" in found.reason) == narrowed


def test_a_job_that_was_given_nothing_to_train_on_has_no_members(small: Case) -> None:
    with pytest.raises(Refused) as refused:
        small.auditor(small.test)
    assert refused.value.code == "policy.conflict"


def test_without_a_target_there_is_no_truth(small: Case) -> None:
    with pytest.raises(Refused) as refused:
        replace(small, target=cast(Any, None)).auditor()
    assert refused.value.code == "node.config"


def test_half_of_the_shadows_see_a_canary_and_all_else_is_as_it_is(small: Case) -> None:
    made = one_label_a_patient(replace(small, asked=LeakageTest(shadows=8, canaries=3)))
    auditor = made.auditor()
    truth = np.empty(len(made.store), dtype=np.float32)
    made.store.gather("label", np.arange(len(made.store)), truth)
    seen: dict[float, int] = {}
    for k in range(8):
        half = served(auditor.broker("train", k), "train")
        wrong = half["label"] != truth[2 * half["x"].astype(int)]
        for patient in np.unique(half["x"][wrong]).tolist():
            seen[patient] = seen.get(patient, 0) + 1
            assert wrong[half["x"] == patient].all()
    auditor.close()
    assert len(seen) == 3 and set(seen.values()) == {4}


def test_the_journal_of_a_shadow_leaves_no_file(small: Case) -> None:
    auditor = small.auditor()
    served(auditor.broker("train", 0), "train")
    assert not [path for path in small.folder.rglob("*") if path.is_file()]
    auditor.close()
    auditor.close()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: a.broker("train", 6),
        lambda a: a.broker("train", None),
        lambda a: a.broker("test", None),
        lambda a: a.observe(0, np.zeros((a.rows, 1), np.float32)),
        lambda a: (
            a.observe(None, np.zeros((a.rows, 1), np.float32)),
            a.observe(6, np.zeros((a.rows, 1), np.float32)),
        ),
    ],
    ids=["a shadow too many", "no shadow", "test", "shadow first", "observed too many"],
)
def test_what_is_out_of_order_is_refused(small: Case, wrong: Callable[[Auditor], object]) -> None:
    auditor = small.auditor()
    with pytest.raises(Refused) as refused:
        wrong(auditor)
    assert refused.value.code == "policy.conflict"
    auditor.close()


def test_a_shadow_is_observed_once_and_only_if_it_read_its_records(small: Case) -> None:
    auditor = small.auditor()
    predictions = np.full((auditor.rows, 1), 0.5, np.float32)
    auditor.observe(None, predictions)
    auditor.broker("train", 0)  # nobody reads
    auditor.broker("audit", 0)
    with pytest.raises(Refused) as refused:
        auditor.observe(0, predictions)
    assert refused.value.code == "job.outputs"
    served(auditor.broker("train", 0), "train")
    auditor.broker("audit", 0)
    auditor.observe(0, predictions)
    with pytest.raises(Refused) as refused:
        auditor.observe(0, predictions)
    assert refused.value.code == "policy.conflict"
    assert auditor.leakage().shadows == 1
    auditor.close()


@pytest.mark.parametrize("absurd", [1e4, 3e38])
def test_a_shadow_that_diverged_is_left_out(large: Case, absurd: float) -> None:
    # It would be half of the mean and all of the variance of whom it never saw, and so hide them.
    auditor = replace(large, target=Target(label="label", positive=None)).auditor()
    x = served(auditor.broker("audit", None), "test")["x"]
    truth = np.asarray(column(large.store, "label", auditor._listed), np.float64)
    noise = np.random.default_rng(3).normal(0, 1, (7, len(x)))

    def predict(number: int, knows: NDArray[np.bool_]) -> NDArray[np.float32]:
        return (truth + np.where(knows, 0, 3 + noise[number])).astype(np.float32)[:, None]

    auditor.observe(None, predict(6, x < 1500))
    for k in range(6):
        half = served(auditor.broker("train", k), "train")["x"]
        auditor.broker("audit", k)
        if k == 2:
            with pytest.raises(Refused) as refused:
                auditor.observe(k, np.full((len(x), 1), absurd, np.float32))
            assert refused.value.code == "job.outputs"
            continue
        told = predict(k, np.isin(x, half))
        told[0] = absurd  # one patient may be strange to a shadow
        auditor.observe(k, told)
    found = auditor.leakage()
    auditor.close()
    assert found.shadows == 5 and found.tpr is not None and found.tpr > 0.5


def test_shadows_of_a_model_that_is_as_sure_of_everybody_are_taken(small: Case) -> None:
    auditor = replace(small, target=Target(label="label", positive=None)).auditor()
    truth = column(small.store, "label", auditor._listed)
    auditor.observe(None, truth[:, None])
    served(auditor.broker("train", 0), "train")
    auditor.broker("audit", 0)
    auditor.observe(0, truth[:, None] + 100)
    assert auditor.leakage().shadows == 1
    auditor.close()


def test_predictions_that_do_not_cover_the_classes_are_the_jobs_mistake(small: Case) -> None:
    made = replace(small, target=Target(label="label", positive=None))
    classes = TableStore(
        {"x": np.arange(800.0), "label": np.arange(800) % 3}, small.store.patients, {"label"}
    )
    auditor = replace(made, store=classes).auditor()
    with pytest.raises(Refused) as refused:
        auditor.observe(None, np.zeros((auditor.rows, 2), np.float32))
    assert refused.value.code == "job.outputs"
    auditor.close()


@pytest.mark.parametrize(
    "target",
    [Target(label="label", positive=None), Target(label="label", positive=None, event="died")],
    ids=["quantity", "time"],
)
def test_quantities_and_times_give_their_members_away_too(large: Case, target: Target) -> None:
    patients = large.store.patients
    value = np.random.default_rng(4).permutation(int(patients.max()) + 1)[patients].astype(np.float32)
    columns = {"x": patients.astype(np.float32), "label": value, "died": np.ones(len(value), np.float32)}
    store = TableStore(columns, patients, {"label", "died"})

    def learn(batch: Batch) -> Callable[[Batch], NDArray[np.float64]]:
        told = dict(zip(batch["x"].tolist(), batch["label"].tolist(), strict=True))
        sign = -1 if target.event else 1  # the sooner, the higher the risk
        middle = float(np.median(batch["label"]))
        return lambda given: np.array([sign * told.get(x, middle) for x in given["x"].tolist()])

    found = attacked(replace(large, store=store, target=target), learn, 6)
    # Of the members near the middle nobody can tell, since it is what the model says of everybody else.
    assert found.verdict == "measured" and found.low is not None and found.low > 0.6


LABELS = {
    "two classes": (BINARY, [0, 1, 1], [1, 0, 0]),
    "positive is 2, the others are alike": (Target(label="label", positive=2), [0, 2, 1, 1], [2, 1, 2, 2]),
    "classes by number": (Target(label="label", positive=None), [0, 1, 2, 5], [1, 2, 5, 0]),
    "quantities": (Target(label="label", positive=None), [1.5, 9.0, 3.0], [9.0, 1.5, 3.0]),
    "times": (Target(label="label", positive=None, event="died"), [4, 1, 3, 2], [1, 4, 2, 3]),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_wrong_label_is_one_that_occurs(name: str) -> None:
    target, labels, wrong = LABELS[name]
    found = wrong_labels(np.array(labels), target)
    assert found is not None and found.tolist() == wrong


@pytest.mark.parametrize(
    ("target", "labels"),
    [(BINARY, [1, 1]), (BINARY, [0, 0]), (Target(label="label", positive=None), [2.5, 2.5])],
)
def test_where_all_labels_are_alike_none_is_wrong(target: Target, labels: list[float]) -> None:
    assert wrong_labels(np.array(labels), target) is None


def test_where_no_label_is_wrong_nobody_is_a_canary() -> None:
    patients, labels = np.repeat(np.arange(200), 2), np.ones(400)
    generator = np.random.default_rng(0)
    found = choose(np.arange(200), patients, labels, BINARY, 4, generator)
    assert not len(found.patients) and not len(found.records)
    assert np.array_equal(found.planted(labels), labels)


def test_a_member_whose_wrong_label_would_be_their_own_is_no_canary() -> None:
    patients = np.repeat(np.arange(200), 2)
    labels = np.where(patients < 150, 0.0, patients.astype(np.float64))
    quantity = Target(label="label", positive=None)
    wrong = wrong_labels(labels, quantity)
    assert wrong is not None and np.count_nonzero(wrong == labels) == 200  # equal ones, by the opposite rank
    found = choose(np.arange(200), patients, labels, quantity, 1000, np.random.default_rng(0))
    assert len(found.patients) == 200 // SHARE
    assert not np.any(found.labels == labels[found.records])


def test_a_relabelled_store_is_otherwise_the_same() -> None:
    notes = Ragged(np.arange(9.0), np.array([0, 2, 5, 9]))
    store = TableStore({"label": np.array([1.0, 2.0, 3.0]), "notes": notes}, np.arange(3), {"label"})
    changed = Relabelled(store, "label", np.array([2, 0]), np.array([30.0, 10.0]))
    every = np.array([2, 1, 0, 2])
    assert column(changed, "label", every).tolist() == [30, 2, 10, 30]
    assert len(changed) == 3 and changed.fields == store.fields and changed.patients is store.patients
    assert changed.lengths("notes", every).tolist() == [4, 3, 2, 4]
    values = np.empty(13)
    changed.gather_values("notes", every, values)
    assert values.tolist() == [5, 6, 7, 8, 2, 3, 4, 0, 1, 5, 6, 7, 8]


def test_subgroups_are_of_small_valued_fields_and_of_patients_whose_records_agree() -> None:
    patients = np.array([0, 0, 1, 1, 2, 2])
    store = TableStore(
        {
            "sex": np.array([0, 0, 1, 1, 1, 0], dtype=np.float32),
            "constant": np.ones(6, dtype=np.int64),
            "many": np.arange(6) * 100 + np.arange(6),
            "image": np.zeros((6, 2)),
            "notes": Ragged(np.zeros(6), np.arange(7)),
        },
        patients,
    )
    found = subgroups(store, np.arange(6), patients)
    assert {k: v.tolist() for k, v in found.items() if k.startswith("sex")} == {
        "sex=0": [True, False, False],
        "sex=1": [False, True, False],
    }
    assert not [name for name in found if name.startswith(("constant", "image", "notes"))]
    codes = np.array([20230101, 20230102, 20230103])
    named = TableStore({"code": codes, "part": np.array([0.1, 1.0, 0.25], dtype=np.float32)}, np.arange(3))
    assert set(subgroups(named, np.arange(3), np.arange(3))) == {
        *(f"code={code}" for code in codes),
        *("part=0.1", "part=0.25", "part=1"),
    }
    wide = TableStore({"many": np.arange(MOST_VALUES + 1)}, np.arange(MOST_VALUES + 1))
    assert subgroups(wide, np.arange(MOST_VALUES + 1), np.arange(MOST_VALUES + 1)) == {}


def test_what_the_process_is_asked_is_a_closed_type() -> None:
    for request in (
        control.Serve(split="train", shadow=3),
        control.Serve(split="audit"),
        control.Observe(),
        control.Observe(shadow=255),
        control.Audit(),
    ):
        assert wire.read_request(wire.request_frame(request)) == request
    with pytest.raises(Refused):
        control.Observe.parse({"shadow": 256}, "observe")
