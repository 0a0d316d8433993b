"""The dataset process of an evaluation: it holds the held-out records, and no other can be had from it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rapha.node.datasets import control
from rapha.node.datasets.client import DatasetProcess
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.spec import cohort
from rapha.spec.disclosure import Price
from rapha.spec.refusals import Refused
from rapha.testing.hospital import write_breast_fna
from rapha_trainer.session import BrokerSource
from rapha_trainer.source import Epoch

PRICE = Price(bits=1000, evaluations=1)


@pytest.fixture
def request_(tmp_path: Path) -> control.Resolve:
    HospitalKey.create(tmp_path / "phi.key")
    return control.Resolve(
        kind="evaluate",
        manifest=write_breast_fna(tmp_path),
        folder=str(tmp_path),
        means=control.Means(workers=1, memory_bytes=2**30, shards=str(tmp_path / "shards")),
        transforms={},
        cohort=cohort.parse({"all": []}),
        organisation="demo-ai",
        purpose="research/diagnosis",
        max_records=1000,
        job_id="ab" * 32,
        key_path=str(tmp_path / "phi.key"),
        journal_path=str(tmp_path / "meter.journal"),
        ledger=str(tmp_path / "ledger"),
        price=PRICE,
    )


@pytest.fixture
def process(request_: control.Resolve) -> Iterator[DatasetProcess]:
    with DatasetProcess() as started:
        started.resolve(request_)
        yield started


def read(job: socket.socket, most: int | None = None) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """`worst_perimeter` of the first `most` batches of `test`."""
    source = BrokerSource(job.fileno(), "test")
    epoch = Epoch(
        batch_size=16, shuffle=False, seed=0, number=0, drop_last=False, indices=None, prefetch=None
    )
    found = []
    try:
        for batch in source.batches(epoch):
            assert "malignant" not in batch
            found.append(np.array(batch["worst_perimeter"], np.float32))
            if len(found) == most:
                break
    finally:
        source._socket.close()
    return np.concatenate(found)


def test_from_resolve_to_metrics(process: DatasetProcess, request_: control.Resolve) -> None:
    resolved = process.resolve(request_)
    assert resolved.records == resolved.test_records < 200
    prepared = process.prepare()
    assert (prepared.records, prepared.test_records) == (resolved.records, resolved.records)
    process.reserve(PRICE)
    with process.serve("test") as job:
        perimeters = read(job)
    used = process.usage()
    assert (used.unique_records, len(perimeters)) == (prepared.records, prepared.records)
    scored = process.score(perimeters.astype("<f4").tobytes(), ("auroc",))
    assert scored["auroc.low"] > 0.8


def test_the_train_split_is_not_served(process: DatasetProcess) -> None:
    process.prepare()
    process.reserve(PRICE)
    with pytest.raises(Refused, match=r"policy\.conflict"):
        process.serve("train")
    with pytest.raises(Refused, match=r"policy\.conflict"):
        process.serve("audit")
    with pytest.raises(Refused, match=r"policy\.conflict"):
        process.serve("train", 0)
    with process.serve("test") as job, pytest.raises((RuntimeError, OSError, ValueError)):
        BrokerSource(job.fileno(), "train")
    assert process.usage().unique_records == 0


@pytest.mark.parametrize("batches", [1, 2])
def test_what_was_not_read_is_not_scored(process: DatasetProcess, batches: int) -> None:
    rows = process.prepare().test_records
    process.reserve(PRICE)
    with process.serve("test") as job:
        read(job, batches)
    with pytest.raises(Refused, match=r"job\.outputs"):
        process.score(bytes(4 * rows), ("auroc",))


def test_a_training_of_the_same_job_is_another_cohort(request_: control.Resolve) -> None:
    with DatasetProcess() as process:
        one = process.resolve(request_)
        two = process.resolve(request_.model_copy(update={"kind": "train"}))
    assert one.cohort != two.cohort
    assert one.records == one.test_records == two.test_records < two.records
