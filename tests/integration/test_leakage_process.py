"""Check 8 through the real dataset process: flchain, a model that memorises and one that learns."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rapha.node.datasets import control
from rapha.node.datasets.client import DatasetProcess
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.spec import cohort
from rapha.spec.disclosure import Leakage, LeakageTest, Price
from rapha.spec.refusals import Refused
from rapha.testing.hospital import write_flchain
from rapha_trainer.session import BrokerSource
from rapha_trainer.source import Epoch

Table = dict[str, NDArray[Any]]
Model = Callable[[NDArray[np.float64]], NDArray[np.float64]]
INPUTS = ("age", "sex", "kappa", "lambda_", "flc_grp", "creatinine", "creatinine_missing", "mgus")
LABEL = "died_within_5y"
SHADOWS = 4


@pytest.fixture
def process(tmp_path: Path) -> Iterator[DatasetProcess]:
    """One that has resolved and prepared the whole of flchain."""
    HospitalKey.create(tmp_path / "phi.key")
    written = write_flchain(tmp_path)
    caps = written.disclosure.model_copy(update={"leakage": LeakageTest(shadows=SHADOWS, canaries=20)})
    manifest = written.model_copy(update={"disclosure": caps})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest.dump()))
    with (tmp_path / "log").open("wb") as log, DatasetProcess(log) as started:
        started.resolve(
            control.Resolve(
                manifest=manifest,
                folder=str(tmp_path),
                means=control.Means(workers=1, memory_bytes=2**30, shards=str(tmp_path / "shards")),
                transforms={},
                cohort=cohort.parse({"all": []}),
                organisation="demo-ai",
                purpose="research/diagnosis",
                max_records=8000,
                job_id="ab" * 32,
                key_path=str(tmp_path / "phi.key"),
                journal_path=str(tmp_path / "meter.journal"),
                ledger=str(tmp_path / "ledger"),
            )
        )
        started.prepare()
        started.reserve(Price(bits=1000, evaluations=1))
        yield started


def read(job: socket.socket, split: str) -> Table:
    """Everything of a split, as a job's loader reads it."""
    with job:
        source = BrokerSource(job.fileno(), split)
        epoch = Epoch(
            batch_size=1024, shuffle=False, seed=0, number=0, drop_last=False, indices=None, prefetch=None
        )
        batches = [{name: np.array(part) for name, part in b.items()} for b in source.batches(epoch)]
        source._socket.close()
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def inputs(table: Table) -> NDArray[np.float64]:
    return np.column_stack([np.asarray(table[name], dtype=np.float64) for name in INPUTS])


def learned(table: Table) -> Model:
    """Logistic regression by Newton's method: eight numbers about thousands of patients."""
    mean, spread = inputs(table).mean(axis=0), inputs(table).std(axis=0) + 1e-9
    label = np.asarray(table[LABEL], dtype=np.float64)

    def design(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([np.ones(len(x)), (x - mean) / spread])

    x = design(inputs(table))
    weights = np.zeros(x.shape[1])
    for _ in range(8):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.eye(len(weights))
        weights += np.linalg.solve(hessian, x.T @ (label - p) - weights)
    return lambda given: 1 / (1 + np.exp(-np.clip(design(given) @ weights, -30, 30)))


def memorised(table: Table) -> Model:
    """As sure as can be of whom it has seen, and of nobody else anything."""
    told = {row.tobytes(): label for row, label in zip(inputs(table), np.asarray(table[LABEL]), strict=True)}
    return lambda given: np.array([0.05 + 0.9 * told.get(row.tobytes(), 0.1) for row in given])


def trained_and_tested(process: DatasetProcess) -> Table:
    train = read(process.serve("train"), "train")
    read(process.serve("test"), "test")
    return train


def attack(process: DatasetProcess, train: Table, fit: Callable[[Table], Model]) -> Leakage:
    model = fit(train)
    process.observe(None, as_bytes(model(inputs(read(process.serve("audit"), "test")))))
    for shadow in range(SHADOWS):
        model = fit(read(process.serve("train", shadow), "train"))
        process.observe(shadow, as_bytes(model(inputs(read(process.serve("audit", shadow), "test")))))
    return process.audit()


def as_bytes(predictions: NDArray[np.float64]) -> bytes:
    return predictions.astype("<f4").tobytes()


def test_a_memorising_model_is_found_out_and_nothing_more_is_counted(process: DatasetProcess) -> None:
    train = trained_and_tested(process)
    before = process.usage()
    found = attack(process, train, memorised)
    assert found.verdict == "measured" and found.shadows == SHADOWS
    assert found.members == len(train[LABEL]) and found.non_members >= 1000
    assert found.members + found.non_members == before.unique_patients
    assert found.low is not None and found.low > 0.5
    assert found.worst_tpr is not None and found.tpr is not None and found.worst_tpr >= found.tpr
    # What the receipt will say is what the job itself was given, and not what its shadows were.
    assert process.usage() == before


def test_a_model_that_learned_eight_numbers_gives_almost_nobody_away(process: DatasetProcess) -> None:
    found = attack(process, trained_and_tested(process), learned)
    assert found.verdict == "measured" and found.tpr is not None and found.high is not None
    assert found.tpr < 0.02 and found.high < 0.03
    assert found.auc == pytest.approx(0.5, abs=0.05)


def test_a_shadow_is_served_no_label_of_the_held_out_split(process: DatasetProcess) -> None:
    train = trained_and_tested(process)
    known = {row.tobytes() for row in inputs(train)}
    for shadow in range(SHADOWS):
        half = read(process.serve("train", shadow), "train")
        assert len(half[LABEL]) in (len(train[LABEL]) // 2, -(-len(train[LABEL]) // 2))
        assert all(row.tobytes() in known for row in inputs(half))
        assert LABEL not in read(process.serve("audit", shadow), "test")


def test_a_job_that_left_the_held_out_split_unread_is_not_handed_it_here(process: DatasetProcess) -> None:
    train = read(process.serve("train"), "train")
    found = process.audit()
    assert (found.verdict, found.non_members, found.narrowed) == ("not_resolvable", 0, True)
    assert len(inputs(read(process.serve("audit"), "test"))) == len(train[LABEL])


def test_the_audit_comes_after_training_and_in_order(process: DatasetProcess) -> None:
    for early in (
        lambda: process.serve("audit"),
        lambda: process.serve("train", 0),
        process.audit,
        lambda: process.observe(None, b"\0" * 4),
    ):
        with pytest.raises(Refused) as refused:
            early()
        assert refused.value.code == "policy.conflict"
    trained_and_tested(process)
    assert process.audit().verdict == "not_run"
    with pytest.raises(Refused) as refused:
        process.serve("test", 0)
    assert refused.value.code == "policy.conflict"
    with pytest.raises(Refused) as refused:
        process.observe(None, b"\0" * 4)
    assert refused.value.code == "job.outputs"
    with pytest.raises(Refused) as refused:
        process.serve("train", SHADOWS)
    assert refused.value.code == "policy.conflict"


def test_patients_are_numbered_for_the_half_that_a_shadow_is_served(process: DatasetProcess) -> None:
    import os

    trained_and_tested(process)
    served = read(process.serve("train", 1), "train")
    with os.fdopen(process.groups(1), "rb") as file:
        numbers = np.frombuffer(file.read(), dtype="<i4")
    assert len(numbers) == len(served[LABEL])
    assert sorted(numbers.tolist()) == list(range(len(numbers)))
