"""The work directory: files, locks, blobs, and what a broken one is answered with."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rapha.cli.main import run
from rapha.coordinator import blobs, config, operator, server
from rapha.coordinator.blobs import BlobStore
from rapha.coordinator.config import Work
from rapha.coordinator.database import Database, WriterLock
from rapha.coordinator.schema import blobs as table
from rapha.coordinator.service import Service
from rapha.spec.refusals import Refused


@pytest.fixture
def work(tmp_path: Path) -> Work:
    made = Work(tmp_path / "w")
    config.initialise(made, profile="demo")
    return made


def test_a_work_directory_is_made_once_and_is_private(work: Work) -> None:
    assert [p.stat().st_mode & 0o077 for p in (work.root, work.store, work.log_key)] == [0, 0, 0]
    with pytest.raises(Refused, match=r"node\.config.*already"):
        config.initialise(work, profile="demo")
    work.config.unlink()
    with pytest.raises(Refused, match=r"node\.config.*left from an earlier start"):
        config.initialise(work, profile="demo")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"version": 1, "profile": "demo", "origin": "a b"}',
        '{"profile": "x", "origin": "a"}',
    ],
)
def test_a_bad_configuration_is_named(work: Work, text: str) -> None:
    work.config.write_text(text)
    with pytest.raises(Refused, match=r"node\.config"):
        Service.open(work)


def test_production_does_not_run_on_sqlite(tmp_path: Path) -> None:
    work = Work(tmp_path / "p")
    assert config.initialise(work, profile="production").profile == "production"
    with pytest.raises(Refused, match=r"node\.config.*PostgreSQL"):
        Service.open(work)


def test_one_process_serves(work: Work) -> None:
    service = Service.open(work)
    try:
        with pytest.raises(Refused, match=r"node\.busy"):
            Service.open(work)
        with pytest.raises(Refused, match=r"node\.busy"):
            operator.migrate(work.root)
        operator.invite(work.root, "node-a")
    finally:
        service.close()
    assert operator.migrate(work.root) == 1
    Service.open(work).close()


def test_a_store_of_another_schema_is_not_opened(work: Work) -> None:
    with closing(sqlite3.connect(work.store)) as db:
        db.execute("PRAGMA user_version = 99")
    for open_it in (lambda: Service.open(work), lambda: operator.migrate(work.root)):
        with pytest.raises(Refused, match=r"node\.config.*schema 99"):
            open_it()
    work.store.unlink()
    with pytest.raises(Refused, match=r"node\.config.*missing"):
        operator.nodes(work.root)
    WriterLock(work.lock).close()


def test_a_lost_log_key_stops_the_start(work: Work) -> None:
    work.log_key.chmod(0o644)
    with pytest.raises(Refused, match=r"node\.key_unsafe"):
        Service.open(work)
    WriterLock(work.lock).close()


def test_writes_take_turns(work: Work) -> None:
    database = Database.open(work.store)

    def _count_up() -> None:
        for _ in range(20):
            with database.write() as db:
                size = db.exec_driver_sql("SELECT max_n FROM counter").scalar_one()
                db.exec_driver_sql("UPDATE counter SET max_n = ?", (size + 1,))

    with database.write() as db:
        db.exec_driver_sql("CREATE TABLE counter (max_n INTEGER)")
        db.exec_driver_sql("INSERT INTO counter VALUES (0)")
    threads = [threading.Thread(target=_count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as db:
        assert db.exec_driver_sql("SELECT max_n FROM counter").scalar_one() == 80
        assert db.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert db.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
    database.close()


def test_a_store_that_another_program_holds_is_unavailable(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rapha.coordinator.database.BUSY_MS", 1)
    database = Database.open(work.store)
    with closing(sqlite3.connect(work.store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Refused, match=r"policy\.unavailable"), database.write():
            pass
    database.close()


def test_a_blob_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    data = b"some image"
    sha256 = hashlib.sha256(data).hexdigest()
    with store.upload(sha256, 100) as upload:
        upload.write(data[:4])
        assert not store.path(sha256).exists()
        upload.write(data[4:])
        upload.keep()
    assert store.path(sha256).read_bytes() == data
    with pytest.raises(Refused, match=r"image\.digest_mismatch"), store.upload("0" * 64, 100) as upload:
        upload.write(data)
        upload.keep()
    with pytest.raises(Refused, match=r"schema\.too_large"), store.upload(sha256, 9) as upload:
        upload.write(data)
    with pytest.raises(RuntimeError), store.upload("1" * 64, 100) as upload:
        raise RuntimeError
    assert list((tmp_path / "incoming").iterdir()) == []
    (tmp_path / "incoming" / "left").write_bytes(b"")
    store.sweep({sha256})
    assert store.path(sha256).exists()
    store.sweep(set())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with pytest.raises(Refused, match=r"budget\.storage"), store.upload("0" * 64, 100) as upload:
        upload._file.close()
        upload._file = io.BufferedWriter(io.FileIO("/dev/full", "w"), 16)
        upload.write(b"x" * 64)


def test_a_quota_holds(running: Any, alice: Any) -> None:
    with running.service.database.write() as db:
        blobs.grant(db, alice.id, "a" * 64, 60, quota=100)
        blobs.grant(db, alice.id, "a" * 64, 60, quota=100)
        with pytest.raises(Refused, match=r"budget\.storage"):
            blobs.grant(db, alice.id, "b" * 64, 41, quota=100)
        assert blobs.room(db, alice.id, 100) == 40
        full = running.config.quota_bytes
        db.execute(table.insert().values(owner=alice.id, sha256="c" * 64, size=full - 65))
    with pytest.raises(Refused, match=r"schema\.too_large"):
        alice.client.upload(alice.archive)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_only_loopback_without_a_word(host: str) -> None:
    with pytest.raises(Refused, match=r"node\.config"):
        server.bind(host, 0)


def test_a_port_that_is_taken_is_named() -> None:
    with server.bind("localhost", 0) as listener:
        listener.listen()
        assert server.url_of(listener).startswith("http://127.0.0.1:")
        with pytest.raises(Refused, match=r"node\.config.*in use"):
            server.bind("127.0.0.1", listener.getsockname()[1])
    with server.bind("0.0.0.0", 0, unsafe_plain_http=True) as listener:
        assert server.url_of(listener).startswith("http://0.0.0.0:")


def test_the_operators_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rapha(*arguments: str) -> tuple[int, str, str]:
        code = run(["coordinator", *arguments, "--work", str(tmp_path / "w")])
        said = capsys.readouterr()
        return code, said.out.strip(), said.err

    code, made, _ = rapha("init")
    assert (code, json.loads(made)["profile"], json.loads(made)["origin"]) == (0, "demo", "rapha.demo/log")
    assert rapha("init")[0] == 3
    assert rapha("init", "--profile", "test")[0] == 2
    assert rapha("nodes", "invite", "node-a")[1].startswith("rapha-enrol_")
    assert rapha("nodes", "revoke", "node-a")[0] == 0
    listed = json.loads(rapha("nodes", "list", "--json")[1])["nodes"]
    assert [(n["name"], n["status"]) for n in listed] == [("node-a", "revoked")]
    assert rapha("developers", "list") == (0, "", "")
    assert rapha("migrate")[1].endswith("schema 1")
    for command in ("approve", "revoke"):
        code, out, words = rapha("developers", command, "dev-x")
        assert (code, out) == (1, "")
        assert "policy.not_found" in words
    assert rapha("serve", "--host", "0.0.0.0")[0] == 3


def test_what_parallel_uploads_set_aside_is_used(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with store.reserve(60, {"developer:a": 100}):
        with pytest.raises(Refused, match=r"budget\.storage"), store.reserve(41, {"developer:a": 100}):
            pass
        with store.reserve(40, {"developer:a": 100}), store.reserve(100, {"developer:b": 100}):
            pass
        with (
            pytest.raises(Refused, match=r"budget\.storage.*node"),
            store.reserve(40, {"developer:a": 100, "node:n": 39}),
        ):
            pass
        with store.reserve(40, {"developer:a": 100}):
            pass
    with store.reserve(100, {"developer:a": 100}):
        pass


def test_a_blob_is_deleted_only_when_nothing_names_or_brings_it(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    data = b"bytes"
    sha256 = hashlib.sha256(data).hexdigest()
    with store.upload(sha256, 100) as upload:
        upload.write(data)
        upload.keep()
    store.discard(sha256, lambda _: True)
    with store.arriving(sha256):
        with store.arriving(sha256):
            pass
        store.discard(sha256, lambda _: False)
    assert store.path(sha256).exists()
    store.discard(sha256, lambda _: False)
    store.discard(sha256, lambda _: False)
    assert not store.path(sha256).exists()


def _files(running: Any) -> set[str]:
    return {path.name for path in running.work.blobs.glob("??/*")}


def test_a_refused_image_leaves_nothing(running: Any, alice: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def _refuse(*_: object, **__: object) -> None:
        raise Refused("budget.storage")

    monkeypatch.setattr(blobs, "grant", _refuse)
    with pytest.raises(Refused, match=r"budget\.storage"):
        alice.client.upload(alice.archive)
    assert _files(running) == set()


def test_staging_again_replaces_and_what_a_job_may_stage_is_capped(
    running: Any, alice: Any, node: Any
) -> None:
    job = alice.submit()
    node.client.lease()
    node.run(job)
    before = _files(running)
    for content in (b"one", b"two", b"two"):
        sha256 = node.upload(job, "a.bin", content)
        assert _files(running) == before | {sha256}
    object.__setattr__(running.service.config, "staged_job_bytes", 10)
    node.upload(job, "a.bin", b"x" * 10)
    node.upload(job, "a.bin", b"y" * 10)
    with pytest.raises(Refused, match=r"schema\.too_large"):
        node.upload(job, "b.bin", b"z")
    object.__setattr__(running.service.config, "staged_job_bytes", 100)
    object.__setattr__(running.service.config, "staged_node_bytes", 10)
    with pytest.raises(Refused, match=r"schema\.too_large"):
        node.upload(job, "b.bin", b"z")
    assert _files(running) == before | {hashlib.sha256(b"y" * 10).hexdigest()}
