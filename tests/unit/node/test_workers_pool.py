"""The pool, with real workers: each item is lost by its own doing alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers import frames, hand, pool
from rapha.node.sources.workers.interface import Answer, Item, Limits, Task
from rapha.node.sources.workers.pool import Pool
from rapha.node.sources.workers.template import kill
from rapha.spec.refusals import Refused

TASK: Final = Path(__file__).parent / "unsafe_worker_task.py"
QUICK: Final = Limits(item_s=0.4, memory_bytes=2**26, file_bytes=2**20)


def opened(folder: Path | None = None, workers: int = 2, **more: Any) -> Pool:
    more = {"limits": QUICK, **more}
    return Pool(Task.DECODE, b"", folder=folder, workers=workers, _unsafe_test_module=TASK, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    (folder / "in").mkdir()
    for n in range(20):
        (folder / f"in/{n}").write_bytes(b"%d" % n)
    (folder / "link").symlink_to("in/1")
    (folder / "way").symlink_to("in")
    os.mkfifo(folder / "fifo")
    with (folder / "large").open("wb") as file:
        file.truncate(QUICK.file_bytes + 1)
    return folder


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Pool]:
    with opened(folder) as shared:
        yield shared


def collect(found: Iterator[Answer]) -> dict[int, tuple[Quarantine, bytes]]:
    """By ordinal; none twice."""
    got: dict[int, tuple[Quarantine, bytes]] = {}
    for answer in found:
        assert answer.ordinal not in got
        assert answer.quarantine is Quarantine.NONE or not (answer.reply or answer.output)
        got[answer.ordinal] = (answer.quarantine, answer.reply)
    return got


def children(process: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def lives(pid: int) -> bool:
    """Whether it runs; a zombie that nobody has waited for holds nothing any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_item_is_answered_once(shared: Pool) -> None:
    got = collect(shared.run(Item(b"%d" % n, (f"in/{n % 20}",)) for n in range(3000)))
    assert got == {n: (Quarantine.NONE, b"%d|%d" % (n, n % 20)) for n in range(3000)}


def test_nothing_is_asked_for_nothing(shared: Pool) -> None:
    assert list(shared.run([])) == []


def test_stored_bytes_and_several_files(shared: Pool) -> None:
    given = [Item(b"a", data=(b"xx", bytes(300_000))), Item(b"b", ("in/3", "in/4")), Item(b"c", data=(b"",))]
    got = collect(shared.run(given))
    assert got[0][1] == b"a|xx," + bytes(300_000)
    assert [got[1], got[2]] == [(Quarantine.NONE, b"b|3,4"), (Quarantine.NONE, b"c|")]


def test_stored_bytes_larger_than_a_socket_holds() -> None:
    large = os.urandom(8 * 2**20)
    limits = Limits(file_bytes=2**24, memory_bytes=2**28)
    with opened(limits=limits, workers=1, output_bytes=1) as wide:
        kinds = [Item(b"bad:nothing", data=(large,)), Item(b"bad:leave", data=(large, large))] * 3
        got = collect(wide.run(kinds))
    assert [got[n][0] for n in range(6)] == [Quarantine.NONE, Quarantine.DECODER_CRASHED] * 3


def test_items_that_never_fit_are_answered_as_they_come(shared: Pool) -> None:
    got = collect(shared.run(Item(b"", ("",)) for _ in range(1000)))
    assert got == dict.fromkeys(range(1000), (Quarantine.TOO_LARGE, b""))


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("in/nothing", Quarantine.FILE_UNREADABLE),
        ("link", Quarantine.FILE_UNREADABLE),
        ("way/1", Quarantine.FILE_UNREADABLE),
        ("in", Quarantine.FILE_UNREADABLE),
        ("fifo", Quarantine.FILE_UNREADABLE),
        ("../" + "x", Quarantine.FILE_UNREADABLE),
        ("/etc/passwd", Quarantine.FILE_UNREADABLE),
        ("in/../in/1", Quarantine.NONE),
        ("large", Quarantine.TOO_LARGE),
        ("a" * 5000, Quarantine.TOO_LARGE),
        ("\ud800", Quarantine.TOO_LARGE),
        ("in/1\0", Quarantine.TOO_LARGE),
    ],
)
def test_only_plain_files_below_the_folder_are_opened(shared: Pool, path: str, verdict: Quarantine) -> None:
    got = collect(shared.run([Item(b"x", ("in/2",)), Item(b"y", (path,)), Item(b"z", ("in/3",))]))
    assert got[1][0] is verdict
    assert (got[0], got[2]) == ((Quarantine.NONE, b"x|2"), (Quarantine.NONE, b"z|3"))


BAD = {
    b"crash": Quarantine.DECODER_CRASHED,
    b"leave": Quarantine.DECODER_CRASHED,
    b"stop": Quarantine.DECODER_CRASHED,
    b"unplug": Quarantine.DECODER_CRASHED,
    b"another item": Quarantine.DECODER_CRASHED,
    b"unknown verdict": Quarantine.DECODER_CRASHED,
    b"verdict and reply": Quarantine.DECODER_CRASHED,
    b"too long": Quarantine.DECODER_CRASHED,
    b"garbage": Quarantine.DECODER_CRASHED,
    b"flood": Quarantine.DECODER_CRASHED,
    b"hang": Quarantine.TOO_SLOW,
    b"eat": Quarantine.TOO_LARGE,
    b"long reply": Quarantine.TOO_LARGE,
    b"unusable": Quarantine.SHAPE,
    b"no reason": Quarantine.FILE_INVALID,
    b"fail": Quarantine.FILE_INVALID,
    b"recurse": Quarantine.FILE_INVALID,
    b"no bytes": Quarantine.FILE_INVALID,
    b"nothing": Quarantine.NONE,
}


@pytest.mark.parametrize("kind", BAD)
def test_an_item_that_kills_or_lies_is_lost_alone(shared: Pool, kind: bytes) -> None:
    given = [Item(b"bad:" + kind) if n == 17 else Item(b"%d" % n) for n in range(60)]
    got = collect(shared.run(given))
    assert got.pop(17)[0] is BAD[kind]
    assert got == {n: (Quarantine.NONE, b"%d|" % n) for n in range(60) if n != 17}


def in_parts(**more: Any) -> Pool:
    return Pool(Task.DECODE, b"in parts", folder=None, workers=1, _unsafe_test_module=TASK, **more)


@pytest.mark.parametrize("kind", [b"crash", b"leave", b"hang", b"eat", b"unusable", b"fail", b"long reply"])
def test_what_the_job_chose_loses_no_item_but_the_run(kind: bytes) -> None:
    limits = replace(QUICK, item_s=20.0, chosen_s=0.4)
    items = [Item(b"second:" + kind) if n == 5 else Item(b"%d" % n) for n in range(12)]
    with in_parts(limits=limits) as parts, pytest.raises(Refused) as refused:
        list(parts.run(items))
    assert str(refused.value) == str(Refused("privacy.cohort_refused"))


@pytest.mark.parametrize("kind", [b"crash", b"hang", b"eat", b"unusable", b"another item", b"flood"])
def test_what_no_job_chose_loses_its_item_alone(kind: bytes) -> None:
    items = [Item(b"first:" + kind) if n == 5 else Item(b"%d" % n) for n in range(12)]
    with in_parts(limits=replace(QUICK, chosen_s=20.0)) as parts:
        got = collect(parts.run(items))
    assert got.pop(5)[0] is BAD.get(kind)
    assert got == {n: (Quarantine.NONE, b"%d" % n) for n in range(12) if n != 5}


def test_each_part_has_a_time_of_its_own() -> None:
    with in_parts(limits=replace(QUICK, item_s=0.5, chosen_s=0.5)) as parts:
        got = collect(parts.run([Item(b"slow:a"), Item(b"slow:b")]))
    assert {verdict for verdict, _ in got.values()} == {Quarantine.NONE}


def test_an_item_that_breaks_its_worker_does_not_end_the_run_at_the_next() -> None:
    with in_parts(limits=QUICK) as parts:
        got = collect(parts.run([Item(b"poison"), *(Item(b"%d" % n) for n in range(9))]))
    assert got == {0: (Quarantine.NONE, b"poison")} | {n + 1: (Quarantine.NONE, b"%d" % n) for n in range(9)}


def test_bad_items_side_by_side() -> None:
    kinds = [kind for kind in BAD if kind != b"hang"]
    with opened(limits=replace(QUICK, item_s=30.0)) as patient:  # a host may be busy, and none of these hangs
        got = collect(patient.run(Item(b"bad:" + kinds[n % len(kinds)]) for n in range(10 * len(kinds))))
    assert {n: BAD[kinds[n % len(kinds)]] for n in got} == {n: verdict for n, (verdict, _) in got.items()}
    assert len(got) == 10 * len(kinds)


def test_a_storm_of_crashes_ends() -> None:
    with opened() as storm:
        got = collect(storm.run(Item(b"bad:crash") for _ in range(200)))
    assert Counter(verdict for verdict, _ in got.values()) == {Quarantine.DECODER_CRASHED: 200}


def test_an_archive_that_hangs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_MOST_HUNG", 2)
    limits = Limits(item_s=0.1)
    with opened(limits=limits) as slow, pytest.raises(Refused) as refused:
        list(slow.run(Item(b"bad:hang") for _ in range(10)))
    assert refused.value.code == "node.dataset_invalid"


def test_a_slow_caller_and_a_slow_source_take_nothing_from_a_worker(folder: Path) -> None:
    def slow() -> Iterator[Item]:
        for n in range(4):
            time.sleep(0.15)
            yield Item(b"%d" % n)

    with opened(folder, limits=Limits(item_s=0.1)) as patient:
        got = {}
        for answer in patient.run(slow()):
            time.sleep(0.15)
            got[answer.ordinal] = answer.quarantine
    assert got == dict.fromkeys(range(4), Quarantine.NONE)


def test_outputs_are_each_item_s_own() -> None:
    with opened(output_bytes=5000) as writing:
        seen = set()
        for answer in writing.run(Item(b"out:%d" % n) for n in range(300)):
            assert answer.output.readonly
            assert bytes(answer.output) == (b"%d" % answer.ordinal).ljust(5000, b"\0")
            seen.add(answer.ordinal)
        assert seen == set(range(300))


def test_what_a_task_leaves_unwritten_is_zero() -> None:
    with opened(output_bytes=100, workers=1) as writing:
        kinds = [b"bad:fill", b"x", b"bad:fill", b"bad:crash", b"x", b"bad:fill", b"bad:unusable", b"x"]
        found = {a.ordinal: (bytes(a.output), a.quarantine) for a in writing.run(map(Item, kinds))}
    assert {found[n][0] for n in (1, 4, 7)} == {bytes(100)}
    assert {found[n][0] for n in (0, 2, 5)} == {b"\xaa" * 100}
    assert {found[n][0] for n in (3, 6)} == {b""}


@pytest.mark.parametrize("workers", [1, 3])
def test_the_output_of_a_worker_that_ends_after_its_answer_is_kept(workers: int) -> None:
    kinds = [b"last:%d", b"out:%d", b"last:%d", b"last:%d"]
    with opened(output_bytes=100, workers=workers) as writing:
        for answer in writing.run(Item(kinds[n % 4] % n) for n in range(40)):
            assert answer.quarantine is Quarantine.NONE
            assert bytes(answer.output) == (b"%d" % answer.ordinal).ljust(100, b"\0")
        assert len(writing._spare) + len(writing._hands) <= workers


def test_the_last_output_of_a_worker_that_has_done_its_share_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_LIFE", 3)
    with opened(output_bytes=100, workers=2) as writing:
        found = {a.ordinal: bytes(a.output) for a in writing.run(Item(b"out:%d" % n) for n in range(20))}
    assert found == {n: (b"%d" % n).ljust(100, b"\0") for n in range(20)}


@pytest.mark.parametrize("output", [0, 100])
@pytest.mark.parametrize("kind", [b"crash", b"hang", b"garbage"])
def test_an_item_is_not_lost_by_what_an_earlier_one_did_to_its_worker(kind: bytes, output: int) -> None:
    poison, given = b"poison:" + kind, [b"%d" % n for n in range(8)]
    with opened(output_bytes=output, workers=2) as broken:
        got = collect(broken.run(map(Item, [poison, *given[:4], poison, poison, *given[4:]])))
    assert sorted(got) == list(range(11))
    assert {verdict for verdict, _ in got.values()} == {Quarantine.NONE}


def test_no_descriptor_for_another_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(24, "Too many open files")

    with opened() as many:
        monkeypatch.setattr("socket.socketpair", full)
        with pytest.raises(Refused, match="no room for another worker: Too many open files"):
            list(many.run([Item(b"a")]))


def test_the_output_can_not_be_made_shorter() -> None:
    with opened(output_bytes=10_000, workers=1) as writing:
        got = collect(writing.run([Item(b"bad:shrink"), Item(b"out:a")]))
    assert got == {0: (Quarantine.FILE_INVALID, b""), 1: (Quarantine.NONE, b"a")}


def test_the_memory_for_output_is_sealed() -> None:
    staging = hand.Staging(100)
    for size in (1, 10_000):
        with pytest.raises(PermissionError):
            os.ftruncate(staging.fd, size)
    staging.close()


def test_the_memory_of_a_worker_that_may_live_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand, "kill", lambda pidfd: bool(kill(pidfd) and False))
    with opened(output_bytes=100, workers=1) as writing:
        got = collect(writing.run([Item(b"bad:crash"), Item(b"out:a")]))
        assert not writing._spare
    assert got == {0: (Quarantine.DECODER_CRASHED, b""), 1: (Quarantine.NONE, b"a")}


def test_items_are_taken_as_they_are_needed(folder: Path) -> None:
    taken = 0

    def counted() -> Iterator[Item]:
        nonlocal taken
        for n in range(100_000):
            taken += 1
            yield Item(b"%d" % n)

    with opened(folder) as lazy:
        found = lazy.run(counted())
        for _ in range(10):
            next(found)
        assert taken < 1000


def test_a_run_that_is_left_is_not_in_the_next(shared: Pool) -> None:
    for _ in range(3):
        found = shared.run(Item(b"old") for _ in range(1000))
        next(found)
        found.close()  # type: ignore[attr-defined]
        assert collect(shared.run([Item(b"new")])) == {0: (Quarantine.NONE, b"new|")}


def test_a_source_that_fails_ends_the_run_and_not_the_pool(shared: Pool) -> None:
    def failing() -> Iterator[Item]:
        yield Item(b"a")
        raise Refused("node.dataset_missing", "the archive went away")

    with pytest.raises(Refused, match=r"node\.dataset_missing"):
        list(shared.run(failing()))
    assert collect(shared.run([Item(b"b")])) == {0: (Quarantine.NONE, b"b|")}


def test_one_run_at_a_time_inside_its_with() -> None:
    shut = opened()
    with pytest.raises(RuntimeError, match="once at a time"):
        next(shut.run([]))
    with shut:
        first = shut.run([Item(b"a")] * 3)
        next(first)
        with pytest.raises(RuntimeError, match="once at a time"):
            next(shut.run([]))


def test_nothing_lives_on() -> None:
    with opened(output_bytes=100) as ended:
        next(ended.run(Item(b"bad:hang" if n else b"a") for n in range(5)))
        assert ended._template is not None
        template = ended._template.pid
        alive = children(template)
        assert alive
    assert not [pid for pid in (template, *alive) if lives(pid)]


def test_a_worker_that_has_done_its_share_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_LIFE", 10)
    with opened(workers=1) as short:
        got = collect(short.run(Item(b"self") for _ in range(100)))
    assert {verdict for verdict, _ in got.values()} == {Quarantine.NONE}
    assert len({reply for _, reply in got.values()}) > 1


def test_without_the_process_that_forks_there_is_no_answer() -> None:
    with opened(output_bytes=10) as orphan:
        assert collect(orphan.run([Item(b"a")]))
        assert orphan._template is not None
        os.kill(orphan._template.pid, signal.SIGKILL)
        with pytest.raises(Refused, match=r"node\.internal"):
            list(orphan.run(Item(b"a") for _ in range(1000)))


def test_workers_that_end_before_they_begin_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stillborn(hand.Hand):
        def receive(self) -> list[frames.Frame]:
            self.ended = True
            return []

    monkeypatch.setattr(pool, "Hand", Stillborn)
    with opened() as still, pytest.raises(Refused, match="before they begin"):
        list(still.run([Item(b"a")]))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(".")
    for name in ("nothing", "file", "link"):
        with pytest.raises(Refused, match=r"node\.dataset_missing"), opened(tmp_path / name):
            pass


def test_no_room_for_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(Refused, match="no memory for a worker's output"):
        hand.Staging(100)


@pytest.mark.parametrize(("workers", "output"), [(0, 0), (1, -1)])
def test_a_pool_of_nothing(workers: int, output: int) -> None:
    with pytest.raises(ValueError, match="a pool has a worker"):
        opened(workers=workers, output_bytes=output)


ORPHAN = """
import sys
from pathlib import Path
from rapha.node.sources.workers.interface import Item, Limits, Task
from rapha.node.sources.workers.pool import Pool
from rapha.node.sources.workers.template import kill
file = Path(sys.argv[1])
with Pool(Task.DECODE, b"", folder=None, workers=2, output_bytes=9, _unsafe_test_module=file) as pool:
    items = [Item(b"out:"), *[Item(b"bad:hang")] * 9]
    for answer in pool.run(items):
        print(pool._template.pid, flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_workers_die_with_the_node(how: signal.Signals) -> None:
    command = [sys.executable, "-c", ORPHAN, str(TASK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout
        template = int(node.stdout.readline())
        workers = children(template)
        assert workers
        node.send_signal(how)
        node.wait(10)
    late = time.monotonic() + 10
    while any(map(lives, (template, *workers))):
        assert time.monotonic() < late, "a worker lives on"
        time.sleep(0.01)
