from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.evidence import canonical
from rapha.node import journal
from rapha.node.journal import Journal
from rapha.spec.refusals import Refused


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "node.log"


def written(path: Path, count: int = 4) -> list[bytes]:
    with Journal(path) as log:
        for i in range(count):
            log.append("event", f"job-{i % 2}", i=i)
    return path.read_bytes().splitlines(keepends=True)


def code(path: Path) -> str:
    before = path.read_bytes()
    with pytest.raises(Refused) as caught:
        Journal(path)
    with pytest.raises(Refused):
        journal.read(path)
    assert path.read_bytes() == before, "what doesn't verify is kept as it is"
    return caught.value.code


def test_entries_come_back_after_a_restart(path: Path) -> None:
    written(path)
    with Journal(path) as log:
        assert [e.seq for e in log] == [0, 1, 2, 3]
        assert [e.data for e in log.of("job-1")] == [{"i": 1}, {"i": 3}]
        last = log.last("job-0")
        assert last is not None
        assert last.data == {"i": 2}
        assert log.last("never") is None
        assert log.append("again").seq == 4
    assert len(journal.read(path)) == 5


def test_the_log_of_a_new_node_is_empty(path: Path) -> None:
    assert journal.read(path) == []


def test_each_line_names_the_hash_of_the_one_before(path: Path) -> None:
    previous = journal.START
    for line in written(path):
        assert json.loads(line)["previous"] == previous
        previous = hashlib.sha256(line).hexdigest()


def test_any_torn_end_is_cut_off_and_writing_goes_on(path: Path) -> None:
    lines = written(path)
    for kept in range(len(lines[3])):
        path.write_bytes(b"".join(lines[:3]) + lines[3][:kept])
        assert len(journal.read(path)) == 3
        with Journal(path) as log:
            log.append("after")
        assert [e.event for e in journal.read(path)] == ["event"] * 3 + ["after"]


def test_an_end_of_zeros_after_a_power_cut_is_cut_off(path: Path) -> None:
    lines = written(path)
    path.write_bytes(b"".join(lines) + bytes(4096))
    with Journal(path) as log:
        assert len(list(log)) == 4


def test_no_changed_byte_before_the_last_line_passes(path: Path) -> None:
    lines = written(path)
    data, end = b"".join(lines), len(b"".join(lines[:3])) - 1
    for i in range(end):
        for byte in (data[i] ^ 1, ord("\r"), ord("\n"), 0x0B):
            if byte == data[i]:
                continue
            path.write_bytes(data[:i] + bytes([byte]) + data[i + 1 :])
            with pytest.raises(Refused) as caught:
                journal.read(path)
            assert caught.value.code == "node.internal"


DAMAGED: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "first line deleted": lambda x: x[1:],
    "middle line deleted": lambda x: x[:1] + x[2:],
    "two lines swapped": lambda x: [x[0], x[2], x[1], x[3]],
    "line repeated": lambda x: [x[0], x[0], *x[1:]],
    "empty line": lambda x: [*x[:2], b"\n", *x[2:]],
    "white space in a line": lambda x: [x[0].replace(b":", b": ", 1), *x[1:]],
    "carriage returns": lambda x: [line.replace(b"\n", b"\r\n") for line in x],
    "extra field": lambda x: [x[0].replace(b"{", b'{"a":1,', 1), *x[1:]],
    "duplicate field": lambda x: [x[0].replace(b"{", b'{"seq":0,', 1), *x[1:]],
    "NaN": lambda x: [x[0].replace(b'"i":0', b'"i":NaN'), *x[1:]],
    "infinity": lambda x: [x[0].replace(b'"i":0', b'"i":1e999'), *x[1:]],
    "surrogate": lambda x: [x[0].replace(b'"i":0', b'"i":"\\ud800"'), *x[1:]],
    "deep": lambda x: [x[0].replace(b'"i":0', b'"i":' + b"[" * 9999), *x[1:]],
    "a list": lambda x: [b"[]\n", *x],
    "a number": lambda x: [b"1\n", *x],
    "no field": lambda x: [b"{}\n", *x],
    "not UTF-8": lambda x: [b"\xff\n", *x],
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_log_refuses_and_is_left_alone(
    path: Path, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    path.write_bytes(b"".join(damage(written(path))))
    assert code(path) == "node.internal"


def test_a_second_writer_is_refused_and_a_reader_is_not(path: Path) -> None:
    with Journal(path) as log:
        log.append("event")
        with pytest.raises(Refused) as caught:
            Journal(path)
        assert caught.value.code == "node.busy"
        assert len(journal.read(path)) == 1
    Journal(path).close()


def test_what_is_not_json_is_refused_before_it_is_written(path: Path) -> None:
    with Journal(path) as log:
        log.append("good")
        before = path.read_bytes()
        for bad in (float("nan"), 2**53, b"x", "\ud800"):
            with pytest.raises(Refused) as caught:
                log.append("bad", value=bad)
            assert caught.value.code == "schema.json"
        assert path.read_bytes() == before
        assert log.append("good").seq == 1
    assert len(journal.read(path)) == 2


def test_a_full_disk_refuses_and_leaves_no_part_of_a_line(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Journal(path) as log:
            log.append("event")
            size = path.stat().st_size
            for room in (0, 1, 50):
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
                with pytest.raises(Refused) as caught:
                    log.append("event", text="x" * 100)
                assert caught.value.code == "node.disk_full"
                assert path.stat().st_size == size
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert log.append("room again").seq == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [e.event for e in journal.read(path)] == ["event", "room again"]


def test_an_entry_that_was_not_synced_is_not_relied_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with Journal(path) as log:
        log.append("event")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fails)
            with pytest.raises(Refused) as caught:
                log.append("lost")
        assert caught.value.code == "node.disk_full"
        assert [e.event for e in log] == ["event"]
    assert [e.event for e in journal.read(path)] == ["event"]


WRITER = """
import sys
from pathlib import Path
from rapha.node.journal import Journal
with Journal(Path(sys.argv[1])) as log:
    while True:
        print(log.append("event", "job", text="x" * 200).seq, flush=True)
"""


def test_a_killed_writer_leaves_every_acknowledged_entry(path: Path) -> None:
    acknowledged = -1
    for lines in (1, 7, 20):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                acknowledged = int(writer.stdout.readline())
            writer.kill()
        entries = journal.read(path)
        assert len(entries) > acknowledged
        assert [e.seq for e in entries] == list(range(len(entries)))


VALUES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text()


@given(st.lists(st.dictionaries(st.text(min_size=1).map(lambda t: "k" + t), VALUES, max_size=3), max_size=5))
def test_whatever_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, events: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "log"
    with Journal(path) as log:
        for data in events:
            log.append("event", "job", **data)
    assert [e.data for e in journal.read(path)] == events
    assert path.read_bytes().count(b"\n") == len(events)
    assert all(canonical.loads_canonical(line) for line in path.read_bytes().split(b"\n")[:-1])
