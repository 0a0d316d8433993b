"""However a job ends, it costs the job only: cancellations, defects, lost counts, refused deliveries."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rapha.node import pipeline, progress, recover, serve, watch
from rapha.node.datasets.control import Progress
from rapha.node.desk import Desk
from rapha.node.gates import outcome
from rapha.node.gates.outcome import Clock
from rapha.node.journal import Journal
from rapha.node.uplink import Lease
from rapha.node.watch import Watch
from rapha.spec.refusals import Refused
from rapha.spec.surface import Surface

JOB, OTHER = "a" * 64, "b" * 64
LEASE = Lease(JOB, {}, None, "c" * 64)


class Exit:
    """What the coordinator says, as the node hears it."""

    def __init__(self) -> None:
        self.says: str | Refused = "running"
        self.ends: list[Surface] = []
        self.refuses: set[str] = set()
        self.released: list[str] = []
        self.released_as = "delivered"

    def state(self, job: str) -> str:
        if isinstance(self.says, Refused):
            raise self.says
        return self.says

    def end(self, surface: Surface) -> None:
        self.ends.append(surface)

    def release(self, job: str, outbox: Path) -> str:
        if job in self.refuses:
            raise Refused("schema.too_large")
        self.released.append(job)
        return self.released_as


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Any]:
    with Journal(tmp_path / "journal.jsonl") as journal:
        yield SimpleNamespace(
            journal=journal,
            state=tmp_path,
            exit=Exit(),
            stop=threading.Event(),
            desk=Desk(tmp_path / "desk", "n", "demo"),
            config=SimpleNamespace(quantum_s=1, node="n", preparation=SimpleNamespace(limit_s=60)),
            log_file=lambda job, name: tmp_path / f"{job[:4]}-{name}.log",
        )


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    class Data:
        def __init__(self, **_: object) -> None:
            return None

        def __enter__(self) -> None:
            return None

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(pipeline, "DatasetProcess", Data)


def _gates(monkeypatch: pytest.MonkeyPatch, body: Any) -> None:
    monkeypatch.setattr(pipeline, "_admit", lambda node, lease, data, work, watch: None)
    monkeypatch.setattr(
        pipeline, "_train", lambda node, lease, before, work, clock, watch, gap: body(clock, watch)
    )


def _closed(node: Any, job: str = JOB) -> dict[str, Any]:
    return dict(node.journal.of(job)[-1].data)


@pytest.mark.parametrize("over", ["cancelled", "failed", "expired"])
def test_a_wait_for_people_hears_that_the_job_is_over(
    node: Any, monkeypatch: pytest.MonkeyPatch, over: str
) -> None:
    monkeypatch.setattr(watch, "EVERY_S", 0.005)
    node.exit.says = Refused("policy.unavailable")

    def _wait(_: Clock, seen: Watch) -> str:
        assert not seen.stopped()
        node.exit.says = over
        while not seen.stopped():
            time.sleep(0.001)
        raise AssertionError

    _gates(monkeypatch, _wait)
    pipeline.run(node, LEASE)
    assert [s.code for s in node.exit.ends] == ["job.cancelled"]
    assert _closed(node)["code"] == "job.cancelled"


@pytest.mark.parametrize("error", [ValueError("Jane Doe"), KeyError("Jane Doe"), OSError(5, "Jane Doe")])
@pytest.mark.parametrize("trained", [False, True])
def test_a_defect_ends_its_job_and_says_its_class_only(
    node: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, trained: bool
) -> None:
    def _break(clock: Clock, _: Watch) -> str:
        if trained:
            node.journal.append(recover.TRAINING, JOB, started_ms=pipeline._ms(), records=20, patients=20)
        (node.state / "jobs" / JOB / "outputs").mkdir()
        raise error

    _gates(monkeypatch, _break)
    pipeline.run(node, LEASE)
    surface = node.exit.ends[0]
    expected = ("job.failed", 20, 20) if trained else ("node.internal", 0, 0)
    assert (surface.code, surface.records_bucket, surface.patients_bucket) == expected
    assert not (node.state / "jobs" / JOB).exists()
    assert "Jane Doe" in node.log_file(JOB, "internal").read_text()
    assert not any("Jane Doe" in str(e.data) for e in node.journal.of(JOB))
    assert recover.unfinished(node.journal) == ([], [])


def test_deletion_comes_before_the_boundary(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(pipeline, "destroy", lambda folder: order.append(folder.parent.name))
    monkeypatch.setattr(Clock, "wait_for_boundary", lambda _: order.append("boundary"))
    _gates(monkeypatch, lambda clock, seen: "0" * 64)
    pipeline.run(node, LEASE)
    assert order == ["jobs", "boundary", "outbox"]
    assert _closed(node) == {"outcome": "released", "state": "delivered"}


@pytest.mark.parametrize(
    ("started", "now", "expected"),
    [
        (100.0, 100.0, 100.0),
        (100.0, 100.1, 160.0),
        (100.0, 160.0, 160.0),
        (100.0, 160.5, 220.0),
        (9.0, 5.0, 9.0),
    ],
)
def test_a_missed_boundary_is_followed_by_a_whole_quantum(
    started: float, now: float, expected: float
) -> None:
    assert recover.next_boundary(started, 60, now) == expected


@pytest.mark.parametrize("state", ["cancelled", "failed", "expired", "refused"])
def test_what_the_coordinator_did_not_take_is_withheld(node: Any, state: str) -> None:
    node.exit.released_as = state
    node.journal.append(recover.OPEN, JOB)
    node.journal.append(recover.COMMITTED, JOB, receipt="0" * 64)
    pipeline.settle(node, JOB)
    assert _closed(node) == {"outcome": "withheld", "state": state}


def test_one_job_that_is_never_taken_holds_up_no_other(node: Any) -> None:
    for job in (JOB, OTHER):
        node.journal.append(recover.OPEN, job)
        node.journal.append(recover.COMMITTED, job, receipt="0" * 64)
    node.exit.refuses = {JOB}
    settling = serve.Settling()
    for _ in range(3):
        settling.settle_all(node)
    assert node.exit.released == [OTHER]
    assert [e.data["code"] for e in node.journal.of(JOB) if e.event == "trouble"] == ["schema.too_large"]
    node.exit.refuses = set()
    serve.Settling().settle_all(node)
    assert node.exit.released == [OTHER, JOB]


def test_a_job_cut_off_in_training_is_charged_at_a_whole_quantum(node: Any) -> None:
    node.journal.append(recover.OPEN, JOB)
    started_ms = pipeline._ms() - 1300
    node.journal.append(recover.TRAINING, JOB, started_ms=started_ms, records=30, patients=30)
    node.journal.append(recover.OPEN, OTHER)
    left = node.desk.root / JOB / "note"
    left.mkdir(parents=True)
    serve.recover(node)
    surfaces = {
        job: Surface.parse(next(e for e in node.journal.of(job) if e.event == "ended").data["surface"])
        for job in (JOB, OTHER)
    }
    assert (surfaces[JOB].code, surfaces[JOB].records_bucket) == ("node.restarted", 30)
    assert (surfaces[OTHER].code, surfaces[OTHER].records_bucket) == ("node.restarted", 0)
    assert pipeline._ms() >= started_ms + 2000
    assert not left.exists()


def test_counts_that_are_lost_are_taken_for_the_cap() -> None:
    def _lost() -> None:
        raise Refused("node.disk_full", "meter checkpoint")

    admitted: Any = SimpleNamespace(
        manifest=SimpleNamespace(billing_bucket=10),
        job=SimpleNamespace(dataset=SimpleNamespace(max_records=95)),
    )
    consented: Any = SimpleNamespace(data=SimpleNamespace(usage=_lost))
    with pytest.raises(outcome.Told) as told, outcome.metered(admitted, consented):
        raise Refused("node.disk_full")
    surface = outcome.ended(JOB, told.value, Clock(1))
    assert (surface.code, surface.records_bucket, surface.patients_bucket) == ("job.failed", 100, 100)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "locked", "is_link", "is_file"])
def test_whatever_lies_on_the_desk_it_is_cleared(node: Any, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    folder = node.desk.root / JOB
    node.desk.root.mkdir()
    if kind == "is_link":
        folder.symlink_to(outside)
    elif kind == "is_file":
        folder.touch()
    else:
        folder.mkdir()
        made = folder / ".approval.x.json.tmp"
        if kind == "link":
            made.symlink_to(outside)
        elif kind == "file":
            made.touch()
        else:
            (made / "deep").mkdir(parents=True)
            made.chmod(0 if kind == "locked" else 0o700)
    node.desk.clear(JOB)
    node.desk.clear(JOB)
    assert not folder.exists() and not folder.is_symlink()
    assert (outside / "kept").exists()


def test_an_end_is_never_told_before_the_time_that_its_receipt_states() -> None:
    for fraction in range(4):
        clock = Clock(1)
        time.sleep(0.25 * fraction)
        clock.start()
        stated = clock.boundary().timestamp()
        clock.wait_for_boundary()
        assert time.time() >= stated


def test_progress_stays_in_the_job_s_folder_and_costs_the_job_nothing(tmp_path: Path) -> None:
    told = Progress(stage="decoding", done=3, total=7)
    progress.teller(tmp_path)(told)
    assert [path.name for path in tmp_path.iterdir()] == [progress.NAME]
    assert Progress.parse(json.loads((tmp_path / progress.NAME).read_text())) == told
    progress.teller(tmp_path / "gone")(told)
