"""Attacks on the air gap's parts that need no network: full disks, long names, clocks, other users' locks."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rapha.evidence import canonical
from rapha.node.gates.outcome import Clock
from rapha.node.posture.airgap import client, engine, keeper, wire
from rapha.node.posture.airgap.hold import Hold, Watch
from rapha.node.posture.airgap.journal import RECORD, Journal
from rapha.node.posture.airgap.keeper import Keeper
from rapha.node.posture.airgap.model import Device, Lock, Outcome, Reading, Record, Sever, State
from rapha.node.posture.airgap.probe import Target, probe
from rapha.node.recover import next_boundary
from rapha.spec.refusals import Refused

NOTHING = Reading(tx_bytes=0, tx_packets=0, lan_bytes=0, lan_packets=0, dropped_packets=0)


class Kernel:
    """What the helper did to the network, in order; and what it finds there."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.breach = ""
        self.missing = ""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()

    def restore(record: Record, onlink: bool) -> str:
        made.did.append("restore")
        return made.missing

    monkeypatch.setattr(engine, "seal", lambda record: made.did.append("seal"))
    monkeypatch.setattr(engine, "prepare", prepare)
    monkeypatch.setattr(engine, "breach", lambda record: made.breach)
    monkeypatch.setattr(engine, "read", lambda record: NOTHING)
    monkeypatch.setattr(engine, "settled", lambda record: NOTHING)
    monkeypatch.setattr(engine, "restore", restore)
    monkeypatch.setattr(engine, "SETTLE_S", 0.0)
    monkeypatch.setattr(keeper, "_LOOK_S", 0.0)
    return made


def prepare(request: Sever, lock: Lock) -> Record:
    return Record(
        version=1,
        id="a" * 64,
        phase="severing",
        interface="wan0",
        mode="link",
        lan=(),
        boot=engine.boot(),
        netns=engine.netns(),
        lock=lock,
        devices=(Device(index=1 << 20, name="wan0", up=True, stacked=False),),
        addresses=(),
        routes=(),
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "j")
    yield made
    made.close()


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    with Hold.create(tmp_path / "hold") as made:
        yield made


@pytest.fixture
def severed(kernel: Kernel, journal: Journal, hold: Hold) -> Iterator[Keeper]:
    made = Keeper(journal)
    asked = Sever(op="sever", interface="wan0", mode="link", lan=(), hold=str(hold.path))
    assert made.sever(asked, hold.fd).phase == "severed"
    yield made
    dead(made)


def dead(made: Keeper) -> None:
    """What the kernel does with the descriptors of a helper that is killed."""
    for one in (made._watch, made._monitor):
        if one:
            one.close()
    made._watch = made._monitor = None


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Journal, name: str, content: object) -> None:
        raise Refused("posture.seal_failed", f"the journal {name}: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(Journal, "_write", write)


def test_a_full_disk_does_not_leave_a_broken_gap_open(
    severed: Keeper, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch)
    kernel.did.clear()
    kernel.breach = "wan0 is up"
    severed.tick()
    assert kernel.did == ["seal"]
    assert severed.state().broken == "wan0 is up"
    assert "No space left" in severed.state().note


def test_a_full_disk_does_not_keep_a_hospital_dark(
    severed: Keeper, kernel: Kernel, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full(patch)
        hold.release()
        severed.tick()
        assert kernel.did[-1] == "restore"
        assert (severed.state().phase, "No space left" in severed.state().note) == ("restoring", True)
    severed.tick()
    assert severed.state().phase == "open"


def test_an_operator_is_obeyed_on_a_full_disk(
    severed: Keeper, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch)
    assert severed.restore(force=True, interface=None).phase == "restoring"
    assert kernel.did[-1] == "restore"
    assert severed.restore(force=True, interface=None).phase == "open"


def test_what_force_could_not_put_back_at_once_is_tried_again(severed: Keeper, kernel: Kernel) -> None:
    kernel.missing = "1 routes"
    assert severed.restore(force=True, interface=None).phase == "restoring"
    kernel.missing = ""
    severed.tick()  # though the lock is still held
    told = severed.state()
    assert told.phase == "open" and told.last is not None and "operator" in told.last.broken


def test_force_a_second_time_gives_up_what_can_not_be_put_back(severed: Keeper, kernel: Kernel) -> None:
    kernel.missing = "1 routes"
    severed.restore(force=True, interface=None)
    told = severed.restore(force=True, interface=None)
    assert (told.phase, told.note) == ("open", "restoring: still missing 1 routes")


def test_a_journal_that_can_not_be_dropped_ends_no_helper(
    severed: Keeper, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    hold.release()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        severed.tick()
        assert "Read-only" in severed.state().note
    severed.tick()
    assert severed.state().phase == "open"


def test_a_restart_goes_on_restoring_whoever_holds_the_lock(
    severed: Keeper, kernel: Kernel, journal: Journal, hold: Hold
) -> None:
    kernel.missing = "wan0 is down"
    severed.restore(force=True, interface=None)
    again = Keeper(journal)
    kernel.missing = ""
    again.tick()
    assert again.state().phase == "open"


def test_a_long_path_of_the_lock_silences_no_helper(kernel: Kernel, journal: Journal) -> None:
    lock = Lock(path="/" + "x" * 4090, identity="1:1")
    journal.write(prepare(Sever(op="sever", interface="w", mode="link", lan=(), hold="/"), lock))
    made = Keeper(journal)
    told = made.state()
    dead(made)
    assert told.phase == "severing" and told.held and len(told.note) <= 4096
    assert State.parse(told.dump()) == told


def test_a_kernel_that_locks_nothing_refuses(
    kernel: Kernel, journal: Journal, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    asked = Sever(op="sever", interface="wan0", mode="link", lan=(), hold=str(hold.path))
    with pytest.raises(Refused, match=r"posture\.seal_failed"):
        Keeper(journal).sever(asked, hold.fd)
    assert not journal._has(RECORD)


LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
sys.stdin.read()
"""


def test_a_lease_on_the_lock_file_holds_up_no_helper(tmp_path: Path) -> None:
    path = tmp_path / "leased"
    command = [sys.executable, "-I", "-S", "-c", LEASE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"leased\n"
        with pytest.raises(Refused, match="temporarily"):
            Watch.adopt(str(path), -1)
        other.communicate()


def test_a_folder_that_everybody_may_enter_is_no_place_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Any local user could take a shared lock of a file that he can open, and never let go of it.
    monkeypatch.setattr(
        "rapha.node.posture.airgap.hold.stat.S_IXOTH", 0o100
    )  # as if each folder above were open
    with pytest.raises(Refused, match="any user could hold the lock") as refused:
        Hold.create(tmp_path / "hold")
    assert refused.value.code == "posture.seal_failed"
    assert not (tmp_path / "hold" / "airgap.hold").exists()


def test_a_probe_that_was_not_made_proves_nothing() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [int(one.name) for one in Path("/proc/self/fd").iterdir()]
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(max(taken) + 2 - len(taken))]
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        found = probe("192.0.2.1", 9, (Target(socket.AF_INET, ("192.0.2.1", 9)),))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in spare:
            os.close(fd)
    assert found == "unknown"


@pytest.mark.parametrize("back_s", [1, 59, 60, 3600, 86400 * 365])
def test_a_clock_that_was_set_back_keeps_nobody_dark_for_long(
    back_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, slept = [1_000_000.0], list[float]()
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "sleep", slept.append)
    clock = Clock(60)
    clock.start()
    now[0] += 30 - back_s
    clock.wait_for_quantum()
    clock.wait_for_boundary()
    assert all(0 <= s <= 60 for s in slept)
    boundary = next_boundary(1_000_000.0, 60, now[0])
    assert 0 <= boundary - now[0] < 60
    assert (boundary - 1_000_000.0) % 60 == 0


def test_a_new_job_waits_for_an_earlier_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = iter(["severed", "restoring", "open"])
    monkeypatch.setattr(client, "state", lambda socket: said(next(phases)))
    client.await_open(Path("s"), lambda: False)
    assert next(phases, None) is None


@pytest.mark.parametrize(
    ("phase", "stopped", "code"),
    [
        ("unknown", False, "posture.seal_failed"),
        ("severed", True, "node.stopped"),
        ("restoring", False, "posture.seal_failed"),
    ],
)
def test_it_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, phase: str, stopped: bool, code: str
) -> None:
    monkeypatch.setattr(client, "state", lambda socket: said(phase))
    with pytest.raises(Refused) as refused:
        client.await_open(Path("s"), lambda: stopped, deadline_s=0.05)
    assert refused.value.code == code


def said(phase: str, last: Outcome | None = None) -> State:
    return State.parse(
        {
            "phase": phase,
            "id": None,
            "interface": None,
            "mode": None,
            "held": False,
            "broken": "",
            "note": "",
            "last": last.dump() if last else None,
        }
    )


@pytest.mark.parametrize("half", [b"", b'{"ok":true,"sta', b"no JSON\n"])
def test_a_helper_killed_over_its_answer_is_asked_again(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "s"
    last = Outcome(version=1, id="a" * 64, before=NOTHING, after=NOTHING, broken="")
    answers = [half, canonical.dumps(wire.answer(said("open", last))) + b"\n"]

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                wire.receive(connection, 5)
                connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        counted = client.Severed(path, "a" * 64, client.Gap("wan0", "link")).lift()
        thread.join()
    assert counted.tx_bytes_after == counted.tx_bytes_before == 0


def test_half_an_answer_is_a_refusal_of_the_seal(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def die() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(Refused) as refused:
            client.state(path)
        thread.join()
    assert refused.value.code == "posture.seal_failed"
